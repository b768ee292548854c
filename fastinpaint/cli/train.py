"""``fastinpaint train``."""

from __future__ import annotations

import argparse

SUMMARY = "train a generator on a folder of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import add_flags

    parser.add_argument(
        "--config", help="YAML file of options, or the name of a preset (small); the flags below come on top of it"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--print-config", action="store_true", help="print the options as YAML, explained, and stop")
    add_flags(parser.add_argument_group("options, as in the YAML file"), TrainConfig)


def run(options: argparse.Namespace) -> int:
    """Train, or print the options."""
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import flag_values, from_mapping, merge, read_yaml
    from fastinpaint.training.presets import find_config

    base = read_yaml(find_config(options.config)) if options.config else {}
    config = from_mapping(TrainConfig, merge(base, flag_values(TrainConfig, options)))
    if options.print_config:
        print(config.to_yaml(), end="")
        return 0
    from fastinpaint.data.images import refuse_output_inside
    from fastinpaint.training.distributed import leave
    from fastinpaint.training.trainer import Trainer

    if config.data:
        refuse_output_inside(config.data, config.output)
    trainer = Trainer(config, resume=options.resume)
    model = trainer.run()
    leave()
    if trainer.ranks.main:
        print(f"model written to {model}")
    return 0
