"""``fastinpaint demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastinpaint.cli.arguments import add_device, positive, whole

SUMMARY = "fill holes in photographs with the model that ships, then fine-tune it on a few pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for everything it makes (default: demo)"
    )
    parser.add_argument(
        "--seconds", type=positive(float), default=None, help="time of fine-tuning (default: 120 on a CPU, 40 on a GPU)"
    )
    parser.add_argument(
        "--model", default="small", help="folder of a model, or the name of one that ships (default: small)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder of pictures to fine-tune on, the first 8 (default: scikit-image's)",
    )
    parser.add_argument("--seed", type=whole, default=0, help="seed of weights, crops and holes (default: 0)")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Fill, fine-tune and draw."""
    from fastinpaint.data.images import refuse_output_inside
    from fastinpaint.demo import run_demo

    if options.data is not None:
        refuse_output_inside(options.data, options.output)
    run_demo(
        options.output,
        model=options.model,
        data=options.data,
        seconds=options.seconds,
        seed=options.seed,
        device=options.device,
    )
    return 0
