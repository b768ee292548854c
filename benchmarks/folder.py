"""``python -m benchmarks.folder``: a folder of photographs in one call beside one call for each photograph.

Both run in one process with the model loaded, in turns, on parts of the folder; a call of the command line for each
photograph, which starts Python anew, is timed on a few.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image
from tqdm import tqdm

from fastinpaint.inference.files import inpaint_files
from fastinpaint.inference.inpainter import Inpainter

ROUNDS, COMMANDS = 5, 5


def make_photographs(folder: Path, count: int) -> None:
    """Write JPEG photographs of 1152 x 864 pixels in folders ``part0`` ..., and masks of one stroke in ``masks``."""
    rng = np.random.default_rng(0)
    source = np.asarray(skimage.data.stereo_motorcycle()[0])
    for name in ("masks", *(f"part{number}" for number in range(ROUNDS))):
        (folder / name).mkdir()
    for index in range(count):
        scale = rng.uniform(2.4, 3)
        large = cv2.resize(source, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        top, left = (rng.integers(0, free + 1) for free in (large.shape[0] - 864, large.shape[1] - 1152))
        part = large[top : top + 864, left : left + 1152].astype(np.int16)
        noisy = (part + rng.integers(-6, 7, part.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"part{index % ROUNDS}" / f"{index:03}.jpg", quality=92)
        mask = np.zeros((864, 1152), np.uint8)
        start = rng.integers((200, 200), (900, 600))
        cv2.line(mask, start.tolist(), (start + rng.integers(-70, 71, 2)).tolist(), 255, 18)
        Image.fromarray(mask).save(folder / "masks" / f"{index:03}.png")


def in_one_call(fill: Inpainter, folder: Path, number: int) -> None:
    """Fill a part of the photographs in one call."""
    inpaint_files(fill, folder / f"part{number}", folder / "masks", folder / f"one{number}", progress=False)


def one_by_one(fill: Inpainter, folder: Path, number: int) -> None:
    """Fill a part of the photographs in a call for each."""
    output = folder / f"each{number}"
    output.mkdir()
    for photo in sorted((folder / f"part{number}").iterdir()):
        inpaint_files(fill, photo, folder / "masks" / f"{photo.stem}.png", output / photo.name)


def by_commands(model: str, folder: Path) -> list[float]:
    """Fill some of the photographs by a command for each; return the seconds of every one."""
    seconds = []
    for photo in sorted((folder / "part0").iterdir())[:COMMANDS]:
        mask, output = folder / "masks" / f"{photo.stem}.png", folder / f"command-{photo.name}"
        command = [sys.executable, "-m", "fastinpaint", "inpaint", "--model", model]
        command += ["--image", str(photo), "--mask", str(mask), "--output", str(output)]
        seconds.append(_seconds(partial(subprocess.run, command, check=True)))
    return seconds


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folder", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="photographs")
    parser.add_argument("--model", default="small")
    options = parser.parse_args()
    fill = Inpainter.from_pretrained(options.model)
    seconds: dict[str, list[float]] = {"in one call": [], "one by one": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(folder, options.count)
        for number in tqdm(range(ROUNDS), unit="part"):
            count = len(list((folder / f"part{number}").iterdir()))
            runs = {"in one call": in_one_call, "one by one": one_by_one}
            for name in sorted(runs, reverse=number % 2 == 1):  # in turns
                seconds[name].append(_seconds(partial(runs[name], fill, folder, number)) / count)
        seconds["a command for each"] = by_commands(options.model, folder)
    print("| seconds a photograph | median | least | most |\n|---|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f} |")
    ratios = [each / one for one, each in zip(seconds["in one call"], seconds["one by one"], strict=True)]
    print(f"one by one / in one call: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
