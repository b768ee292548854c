"""``fastinpaint convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "convert a TensorFlow checkpoint of the original system"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="TF_CHECKPOINT", help="NAME of NAME.index and NAME.data-*")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="folder to write the model to")
    parser.add_argument(
        "--discriminator", action="store_true", help="convert the discriminator instead of the generator"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that exists; refused otherwise")


def run(options: argparse.Namespace) -> int:
    """Read the checkpoint and write the model."""
    from fastinpaint.checkpoint.tensorflow import read_tf_checkpoint
    from fastinpaint.models.from_tensorflow import discriminator_from_tf, generator_from_tf
    from fastinpaint.models.pretrained import CONFIG, WEIGHTS

    existing = next((path for name in (WEIGHTS, CONFIG) if (path := options.output / name).exists()), None)
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing} exists already; --overwrite replaces the model")
    variables = read_tf_checkpoint(options.checkpoint)
    model = discriminator_from_tf(variables) if options.discriminator else generator_from_tf(variables)
    try:
        model.save_pretrained(options.output)
    except Exception as error:  # safetensors has an error of its own for a full disk
        raise OSError(f"the model cannot be written to {options.output}: {error}") from error
    print(f"{type(model).__name__} written to {options.output}")
    return 0
