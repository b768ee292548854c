"""``fastinpaint inpaint``."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from fastinpaint.cli.arguments import add_device, add_model, add_precision, positive, whole
from fastinpaint.errors import print_traceback

SUMMARY = "fill the holes of an image or of a folder of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser)
    parser.add_argument("--image", type=Path, required=True, help="an image, or a folder of them")
    parser.add_argument(
        "--mask", type=Path, required=True,
        help="mask image (white is hole), or a folder of the same names, or 'alpha': what the image leaves transparent",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="file to write, or for a folder the folder")
    parser.add_argument("--invert-mask", action="store_true", help="black is hole")
    parser.add_argument(
        "--mask-dilate", type=whole, default=0, metavar="N", help="grow holes by so many pixels (default: 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist; refused otherwise")
    parser.add_argument("--skip-existing", action="store_true", help="leave out images whose output exists")
    parser.add_argument(
        "--format", choices=("same", "png"), default="same",
        help="of a folder's results: as each image has, or PNG where it cannot hold them; or PNG (default: same)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=positive(int), default=8, help="regions that are filled in one pass (default: 8)"
    )
    add_device(parser)
    add_precision(parser)
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
    from fastinpaint.inference.files import FileOptions, inpaint_files
    from fastinpaint.inference.inpainter import Inpainter

    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # far larger ones are still refused
    inpainter = Inpainter.from_pretrained(
        options.model, options.device, options.max_side, options.strategy, options.precision
    )
    from_alpha = str(options.mask) == "alpha" and not options.mask.exists()
    how = FileOptions(
        options.invert_mask, options.mask_dilate, options.overwrite, options.skip_existing, options.format,
        options.batch_size,
    )  # fmt: skip
    summary = inpaint_files(inpainter, options.image, None if from_alpha else options.mask, options.output, how)
    for error in summary.errors if options.debug else []:
        print_traceback(error)
    for path, reason in summary.failed:
        print(f"fastinpaint: error: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    skipped = f", {len(summary.skipped)} skipped" if summary.skipped else ""
    print(f"{len(summary.written)} written, {len(summary.failed)} failed{skipped}")
    return 1 if summary.failed else 0
