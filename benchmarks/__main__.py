"""``python -m benchmarks [name ...] [--out DIR]``: run the benchmarks, print their tables, keep them in DIR."""

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent


def run(name: str, out: Path | None) -> None:
    """Run ``bench_<name>``: its ``report``, or the module as a program where it has none."""
    module = import_module(f"benchmarks.bench_{name}")
    if hasattr(module, "report"):
        report = module.report()
        print(report.markdown(), flush=True)
        if out is not None:
            report.save(out, name)
        return
    done = subprocess.run([sys.executable, "-m", module.__name__], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(done.stdout)


def main() -> None:
    """Run the named benchmarks, or all."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one or more of {', '.join(known)} (default: all)")
    parser.add_argument("--out", type=Path, help="folder for NAME.md and NAME.json")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    for name in options.names or known:
        run(name, options.out)


if __name__ == "__main__":
    main()
