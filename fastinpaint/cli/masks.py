"""``fastinpaint masks``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastinpaint.cli.arguments import positive, whole

SUMMARY = "write training masks as PNG files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write mask-000000.png, ... to")
    parser.add_argument("--count", type=positive(int), default=100, help="how many (default: 100)")
    parser.add_argument(
        "--size", type=positive(int), nargs=2, default=(256, 256), metavar=("H", "W"), help="pixels (default: 256 256)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="(default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")


def run(options: argparse.Namespace) -> int:
    """Draw and write."""
    from fastinpaint.data.masks import save_masks

    existing = next(options.output.glob("mask-*.png"), None)
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing} exists already; --overwrite replaces masks")
    height, width = options.size
    save_masks(options.output, options.count, height, width, seed=options.seed)
    print(f"{options.count} masks written to {options.output}")
    return 0
