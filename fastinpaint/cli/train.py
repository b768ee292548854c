"""``fastinpaint train``."""

from __future__ import annotations

import argparse

from fastinpaint.cli.arguments import add_training_options, training_options

SUMMARY = "train a generator on a folder of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in the output folder with the options in its config.yaml; other options "
        "given beside are applied and named",
    )
    parser.add_argument("--print-config", action="store_true", help="print the options as YAML, explained, and stop")
    add_training_options(parser)


def run(options: argparse.Namespace) -> int:
    """Train, or print the options."""
    import logging

    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import from_mapping, merge, to_mapping

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = training_options(options)
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

    for source in filter(None, (config.data, config.validation, config.masks.source)):
        refuse_output_inside(source, config.output)
    trainer = Trainer(config, resume=options.resume)
    model = trainer.run()
    leave()
    if trainer.ranks.main and not trainer.stopped:  # by a lost terminal, perhaps, to which nothing can be printed
        print(f"model written to {model}")
    return 0
