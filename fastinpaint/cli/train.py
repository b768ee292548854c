"""``fastinpaint train``."""

from __future__ import annotations

import argparse

SUMMARY = "train a generator on a folder of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import add_flags
    from fastinpaint.training.presets import preset_names

    parser.add_argument(
        "--config",
        help=f"YAML file of options, or a preset ({', '.join(preset_names())}); the flags below come on top of it",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in the output folder with the options in its config.yaml; other options "
        "given beside are applied and named",
    )
    parser.add_argument("--print-config", action="store_true", help="print the options as YAML, explained, and stop")
    add_flags(parser.add_argument_group("options, as in the YAML file"), TrainConfig)


def run(options: argparse.Namespace) -> int:
    """Train, or print the options."""
    import logging

    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import flag_values, from_mapping, merge, modernise, read_yaml, to_mapping
    from fastinpaint.training.presets import find_config

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = modernise(TrainConfig, read_yaml(find_config(options.config))) if options.config else {}
    given = merge(given, flag_values(TrainConfig, options))
    if options.resume:
        run = TrainConfig.of_run(given.get("output", TrainConfig().output))
        given = merge(to_mapping(run), given)
    config = from_mapping(TrainConfig, given)
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
    if trainer.ranks.main and not trainer.stopped:  # by a lost terminal, perhaps, to which nothing can be printed
        print(f"model written to {model}")
    return 0
