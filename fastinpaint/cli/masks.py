"""``fastinpaint masks``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastinpaint.cli.arguments import positive, whole

SUMMARY = "write masks as PNG files: as training draws them, or by kind and share of the picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write mask-000000.png, ... to")
    parser.add_argument("--count", type=positive(int), default=100, help="how many, of each bin (default: 100)")
    parser.add_argument(
        "--kind", choices=("mixture", "irregular", "box"), default="mixture",
        help="irregular: brush strokes; box: one box; mixture: training's, or with --bins either (default: mixture)",
    )  # fmt: skip
    parser.add_argument(
        "--bins", type=_bin, nargs="*", metavar="LOW-HIGH",
        help="shares of the picture in percent, such as 10-20, each into a folder of this name; without values "
        "0-10 ... 50-60",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=positive(int), nargs=2, default=(256, 256), metavar=("H", "W"), help="pixels (default: 256 256)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="(default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")


def _bin(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        found = float(low) / 100, float(high) / 100
    except ValueError:
        found = 0.0, 0.0
    if not 0 <= found[0] < found[1] <= 1:
        raise argparse.ArgumentTypeError(f"must be percentages such as 10-20, got {text}")
    return found


def run(options: argparse.Namespace) -> int:
    """Draw and write."""
    from fastinpaint.data.mask_files import BINS, save_binned_masks, save_masks

    existing = next(options.output.rglob("mask-*.png"), None)
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing} exists already; --overwrite replaces masks")
    height, width = options.size
    if options.bins is None and options.kind == "mixture":
        written = save_masks(options.output, options.count, height, width, seed=options.seed)
    else:
        bins = tuple(options.bins or BINS)
        written = save_binned_masks(options.output, options.count, height, width, bins, options.kind, options.seed)
    print(f"{len(written)} masks written to {options.output}")
    return 0
