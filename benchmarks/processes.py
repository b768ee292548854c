"""``python -m benchmarks.processes``: training by two gloo processes beside one process with two threads.

Both are real runs of ``fastinpaint train`` on the same made-up photographs with the same total batch, in turns, so that
whatever slows the machine down slows both. Speeds are the medians of the rows of ``metrics.jsonl``; processor time is
that of the whole run with its start, and tells what dividing the batch costs where other work runs beside.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastinpaint.training.metrics import read_metrics

SKIPPED = 2  # rows at the start of a run


def make_photographs(folder: Path, side: int, count: int = 16) -> Path:
    """Write smooth pictures of ``side`` x ``side`` pixels."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def train(processes: int, output: Path, options: argparse.Namespace, data: Path) -> tuple[list[float], float]:
    """Train for ``options.steps`` updates; return images/s of each row, and seconds of processor time."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*launcher, "fastinpaint", "train", "--config", "small", "--data", str(data), "--output", str(output)]
    values = {
        "device": "cpu", "steps": options.steps, "base-channels": options.base_channels, "workers": 0,
        "batch-size": options.batch_size, "image-size": options.size, "first-size": 0, "log-every": options.log_every,
        "losses.adversarial": options.adversarial, "discriminator-channels": options.base_channels,
        "adversarial-start": 0, "sample-every": 0, "checkpoint-every": 0,
    }  # fmt: skip
    command += [word for name, value in values.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads // processes)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = [row["images_per_second"] for row in read_metrics(output / "metrics.jsonl")[SKIPPED:]]
    return rows, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run both in turns, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--steps", type=int, default=60, help="updates of a run (default: 60)")
    parser.add_argument("--log-every", type=int, default=5, help="updates in a row of metrics (default: 5)")
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="side of the crops in pixels (default: 96)")
    parser.add_argument("--adversarial", type=float, default=0.1, help="weight; 0: no discriminator (default: 0.1)")
    parser.add_argument("--threads", type=int, default=2, help="of all processes together (default: 2)")
    options = parser.parse_args()
    speeds: dict[int, list[float]] = {1: [], 2: []}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = make_photographs(folder / "photographs", 2 * options.size)
        for number in range(options.rounds):
            for processes in (1, 2):
                rows, spent = train(processes, folder / f"run-{number}-{processes}", options, data)
                speeds[processes].append(statistics.median(rows))
                seconds[processes].append(spent)
    print("| processes | threads of each | images/s | by run | processor time, s |\n|---|---|---|---|---|")
    for processes, found in speeds.items():
        runs = ", ".join(f"{speed:.2f}" for speed in found)
        each = options.threads // processes
        speed, used = statistics.median(found), statistics.median(seconds[processes])
        print(f"| {processes} | {each} | {speed:.2f} | {runs} | {used:.1f} |")
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    print(f"two processes / one: {statistics.median(ratios):.3f} (by round {', '.join(f'{r:.3f}' for r in ratios)})")


if __name__ == "__main__":
    main()
