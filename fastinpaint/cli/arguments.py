"""Arguments, and kinds of arguments, that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare ``--model``, for ``InpaintGenerator.from_pretrained``."""
    parser.add_argument(
        "--model", default="small",
        help="folder with model.safetensors and config.json, or the name of a model that ships with the package "
        "(default: small)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare ``--device``."""
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Declare ``--precision``, for ``Inpainter``."""
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto",
        help="number type of the network; auto: bfloat16 where the processor computes it faster (default: auto)",
    )  # fmt: skip


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config`` and a flag for every option of a run."""
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import add_flags
    from fastinpaint.training.presets import preset_names

    parser.add_argument(
        "--config",
        help=f"YAML file of options, or a preset ({', '.join(preset_names())}); the flags below come on top of it",
    )
    add_flags(parser.add_argument_group("options, as in the YAML file"), TrainConfig)


def training_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run that were given, in the file and as flags, under their present names."""
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import flag_values, merge, modernise, read_yaml
    from fastinpaint.training.presets import find_config

    given = modernise(TrainConfig, read_yaml(find_config(options.config))) if options.config else {}
    return merge(given, flag_values(TrainConfig, options))


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """Make the type of an argument that is finite and above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def whole(text: str) -> int:
    """Read an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


whole.__name__ = "int"
