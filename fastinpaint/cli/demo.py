"""``fastinpaint demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastinpaint.cli.arguments import DEVICE_HELP, positive, whole

SUMMARY = "train a small model in minutes and fill holes in photographs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for everything it makes (default: demo)"
    )
    parser.add_argument(
        "--seconds", type=positive(float), default=None, help="training time (default: 170 on a CPU, 60 on a GPU)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="seed of weights, crops and holes (default: 0)")
    parser.add_argument("--device", default=None, help=DEVICE_HELP)


def run(options: argparse.Namespace) -> int:
    """Train, fill and draw."""
    from fastinpaint.demo import run_demo

    run_demo(options.output, seconds=options.seconds, seed=options.seed, device=options.device)
    return 0
