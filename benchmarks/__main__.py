"""``python -m benchmarks [name ...]``: check, time, print tables, and keep them with samples and plots."""

import argparse
import os
import traceback
from pathlib import Path

import torch

from benchmarks import stand_in
from benchmarks.machine import CEILINGS
from benchmarks.results import COMPILED, Results, compact, draw, table
from benchmarks.suite import Benchmark, find_benchmarks, run, run_once


def main() -> None:
    """Run the named benchmarks, or all."""
    known = find_benchmarks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one or more of {', '.join(known)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", default="", help="only cases whose name contains one of these, separated by commas")
    parser.add_argument("--skip", default="", help="no cases whose name contains one of these, separated by commas")
    parser.add_argument("--name", help="name of the files in --out, in place of the benchmark's")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each competitor and case (default: 2)")
    parser.add_argument("--out", type=Path, help="folder for NAME.json, NAME.md and NAME.png")
    parser.add_argument(
        "--compiled", choices=("no", "yes", "only"), default="yes",
        help="leave out competitors that wait for a compiler, or time them alone beside ours, into NAME_compiled.json",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="run ours once and time nothing, to have it compiled")
    parser.add_argument("--compact", action="store_true", help="short tables, no plots")
    parser.add_argument("--ceilings", type=Path, help="file that keeps this machine's ceilings from run to run")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on a CPU that stands in for a GPU")
    options = parser.parse_args()
    if options.ceilings is not None:
        os.environ[CEILINGS] = str(options.ceilings)
    if options.dry_run:
        stand_in.install()
        options.device = "cuda"
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    failed = [name for name in options.names or known if not run_one(known[name], name, options)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run_one(benchmark: Benchmark, name: str, options: argparse.Namespace) -> bool:
    """Run one benchmark, keep what there is after every case, print its table; False if it failed."""
    if options.once:
        run_once(benchmark, options.device, options.skip, dry=options.dry_run)
        return True
    done: list[Results] = []
    name = options.name or name
    if options.compiled == "only":
        name += COMPILED

    def keep(results: Results) -> None:
        done[:] = [results]
        if options.out is not None:
            results.save(options.out, name)

    failed = False
    try:
        run(
            benchmark, options.device, options.case,
            skipped=options.skip, budget=options.budget, compiled=options.compiled, dry=options.dry_run, keep=keep,
        )  # fmt: skip
    except Exception:
        traceback.print_exc()
        failed = True
    for results in done:
        failed = failed or any(row.failed for row in results.rows)
        print(compact(results) if options.compact else table(results), flush=True)
        if options.out is not None and not options.compact:
            draw(options.out / f"{name}.json")
    return not failed


if __name__ == "__main__":
    main()
