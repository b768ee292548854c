"""``fastinpaint evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastinpaint.cli.arguments import add_device

SUMMARY = "judge a model, or a folder of results, beside the truth and beside other methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    what = parser.add_argument_group("what is judged")
    what.add_argument("--model", type=Path, help="folder with model.safetensors and config.json")
    what.add_argument("--data", type=Path, help="photographs for the model to fill holes in")
    what.add_argument("--truth", type=Path, help="folder of true pictures, beside --results")
    what.add_argument("--results", type=Path, help="folder of filled pictures of the same names")
    holes = parser.add_argument_group("holes")
    holes.add_argument(
        "--masks", type=Path,
        help="mask files (white is hole): one for all, a folder of the same names, or 'holes' of an earlier evaluation",
    )  # fmt: skip
    holes.add_argument(
        "--holes", nargs="+", default=["bins"], metavar="KIND",
        help="kinds to draw: box, strokes, 0-10 ... 50-60 (percent of the picture), bins for all six (default: bins)",
    )  # fmt: skip
    holes.add_argument(
        "--box-side", type=int, nargs=2, default=[64, 96], metavar=("LEAST", "GREATEST"),
        help="sides of boxes in pixels at 256 x 256 (default: 64 96)",
    )  # fmt: skip
    holes.add_argument(
        "--stroke-ratio", type=float, nargs=2, default=[0.1, 0.3], metavar=("LEAST", "GREATEST"),
        help="share of the picture that strokes cover (default: 0.1 0.3)",
    )  # fmt: skip
    holes.add_argument("--per-image", type=int, default=1, help="holes of each kind in each photograph (default: 1)")
    holes.add_argument("--seed", type=int, default=0, help="of holes and bootstrap (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for report, tables, holes and contact sheet")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that exists; refused otherwise")
    parser.add_argument(
        "--image-size", type=int, default=256,
        help="crop and resize photographs to a square of so many pixels; 0 keeps their size (default: 256)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=None, help="at most so many photographs, evenly spaced")
    parser.add_argument(
        "--baselines", nargs="*", default=[], metavar="NAME",
        help="methods to compare with: telea, navier-stokes, biharmonic, mean-colour",
    )  # fmt: skip
    parser.add_argument(
        "--slow-limit", type=int, default=20, help="cases that the slow baseline biharmonic is given (default: 20)"
    )
    parser.add_argument(
        "--as-original", action="store_true", help="the original system's metrics and its input of whole pictures"
    )
    parser.add_argument(
        "--metrics", nargs="+", default=None, metavar="NAME", help="mae, psnr, ssim, ... (default: all)"
    )
    parser.add_argument("--inception", type=Path, default=None, metavar="FILE", help="weights for FID; none: no FID")
    parser.add_argument("--lpips", type=Path, default=None, metavar="FILE", help="weights for LPIPS; none: no LPIPS")
    parser.add_argument("--lpips-net", choices=("alex", "vgg"), default="alex", help="their network (default: alex)")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws; 0: no intervals (default: 2000)")
    parser.add_argument(
        "--sheet-rows", type=int, default=3, help="best, median and worst cases drawn (default: 3 each)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="cases filled at once (default: 8)")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Judge, write the report and print its table."""
    from fastinpaint.data.images import refuse_output_inside
    from fastinpaint.evaluation.evaluate import Evaluation, EvaluationOptions
    from fastinpaint.evaluation.holes import HoleOptions
    from fastinpaint.evaluation.report import SUMMARY as REPORT
    from fastinpaint.evaluation.report import write_report

    if (options.results is None) != (options.truth is None) or (options.model is None) != (options.data is None):
        raise ValueError("evaluate wants --model with --data, or --truth with --results")
    for source in filter(None, (options.data, options.truth, options.results, options.masks)):
        refuse_output_inside(source, options.output)
    if (options.output / REPORT).exists() and not options.overwrite:
        raise FileExistsError(f"{options.output / REPORT} exists already; --overwrite replaces the report")
    evaluation = Evaluation(
        EvaluationOptions(
            data=options.truth if options.data is None else options.data,
            model=options.model,
            results=options.results,
            masks=options.masks,
            holes=tuple(options.holes),
            hole_options=HoleOptions(tuple(options.box_side), tuple(options.stroke_ratio)),
            per_image=options.per_image,
            image_size=options.image_size,
            limit=options.limit,
            seed=options.seed,
            baselines=tuple(options.baselines),
            slow_limit=options.slow_limit,
            as_original=options.as_original,
            metrics=None if options.metrics is None else tuple(options.metrics),
            inception=options.inception,
            lpips=options.lpips,
            lpips_net=options.lpips_net,
            batch_size=options.batch_size,
            device=options.device,
        )
    )
    rows = evaluation.run(options.output)
    if evaluation.rank == 0:
        text = write_report(
            evaluation, rows, options.output, resamples=options.resamples, sheet_rows=options.sheet_rows
        )
        print(text, end="")
        print(f"report written to {options.output}")
    return 0
