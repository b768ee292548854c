"""``python -m benchmarks.start_up``: time and memory of a run of one update on a folder of a million images.

The first run searches the folder and writes the index, the second one reads it; a run on eight images takes what does
not depend on their number. The names are hard links to small pictures; making them takes a minute or two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

_IN_A_FOLDER = 1000  # file systems bound the links to one file


def make_images(root: Path, count: int) -> Path:
    """Give the folder ``count`` names of pictures of 64 x 64 pixels, a thousand in each subfolder."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for start in range(0, count, _IN_A_FOLDER):
        folder = root / f"{start // _IN_A_FOLDER:05d}"
        folder.mkdir(parents=True)
        first = folder / f"{start:08d}.png"
        Image.fromarray(pixels).save(first)
        for number in range(start + 1, min(start + _IN_A_FOLDER, count)):
            os.link(first, folder / f"{number:08d}.png")
    return root


def measure(images: Path, output: Path, cache: Path, workers: int) -> tuple[float, float, float]:
    """Run one update in a process of its own.

    Returns:
        Seconds until it has ended, seconds of processor time, and peak resident memory in MiB of its largest process.
    """
    command = [sys.executable, "-m", "fastinpaint", "train", "--data", str(images), "--output", str(output)]
    command += ["--device", "cpu", "--steps", "1", "--batch-size", "2", "--image-size", "32", "--base-channels", "2"]
    command += ["--discriminator-channels", "2", "--sample-every", "0", "--workers", str(workers)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"training failed with exit status {process.returncode}")
    return elapsed, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Make the folder, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2, help="data workers of the run (default: 2)")
    parser.add_argument("--folder", type=Path, help="where the names are made, and removed at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        few = make_images(folder / "few", 8)
        many = make_images(folder / "many", options.images)
        time.sleep(2.5)  # an index of folders that have just changed is not kept
        print("| one update on | seconds | of processor time | peak MiB |\n|---|---|---|---|")
        rows = {
            "8 images": few,
            f"{options.images:,} images, first start": many,
            f"{options.images:,} images, from the index": many,
        }
        for number, (name, images) in enumerate(rows.items()):
            found = measure(images, folder / f"run-{number}", folder / "cache", options.workers)
            print("| {} | {:.1f} | {:.1f} | {:.0f} |".format(name, *found), flush=True)


if __name__ == "__main__":
    main()
