"""``fastinpaint inpaint``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastinpaint.cli.arguments import DEVICE_HELP, whole

SUMMARY = "fill the holes of an image or of a folder of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--model", default="small",
        help="folder with model.safetensors and config.json, or the name of a model that ships with the package "
        "(default: small)",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, required=True, help="an image, or a folder of them")
    parser.add_argument(
        "--mask", type=Path, required=True, help="mask image (white is hole), or a folder of the same names"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write, or for a folder the folder")
    parser.add_argument("--invert-mask", action="store_true", help="black is hole")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")
    parser.add_argument("--device", default=None, help=DEVICE_HELP)
    parser.add_argument(
        "--strategy", choices=("crop", "resize", "original"), default="crop",
        help="large images: crop fills around each hole at full size, resize fills the whole image at --max-side and "
        "enlarges the filling, original fills the whole image at its size (default: crop)",
    )  # fmt: skip
    parser.add_argument(
        "--max-side", type=whole, default=512,
        help="images with a longer side in pixels are large; 0: none is (default: 512)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Fill, and name each file that failed."""
    from fastinpaint.inference.files import inpaint_files
    from fastinpaint.inference.inpainter import Inpainter

    inpainter = Inpainter.from_pretrained(options.model, options.device, options.max_side, options.strategy)
    summary = inpaint_files(
        inpainter, options.image, options.mask, options.output,
        invert_mask=options.invert_mask, overwrite=options.overwrite,
    )  # fmt: skip
    for path, reason in summary.failed:
        print(f"fastinpaint: error: {path}: {reason}", file=sys.stderr)
    print(f"{len(summary.written)} written, {len(summary.failed)} failed")
    return 1 if summary.failed else 0
