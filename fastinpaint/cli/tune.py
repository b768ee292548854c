"""``fastinpaint tune``."""

from __future__ import annotations

import argparse

from fastinpaint.cli.arguments import add_training_options, training_options

SUMMARY = "compile the GPU kernels of a run and choose their fastest configurations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: those of ``train``."""
    add_training_options(parser)


def run(options: argparse.Namespace) -> int:
    """Tune and print what was chosen."""
    import time

    from fastinpaint.ops._tuning import cache_folder
    from fastinpaint.training.config import TrainConfig
    from fastinpaint.training.options import from_mapping
    from fastinpaint.training.tune import table, tune

    start = time.perf_counter()
    choices = tune(from_mapping(TrainConfig, training_options(options)))
    print(table(choices))
    print(f"{time.perf_counter() - start:.0f} s; kept in {cache_folder()}, where training and filling find them")
    return 0
