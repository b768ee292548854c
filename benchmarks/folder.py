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

from fastinpaint.inference.files import FileOptions, inpaint_files
from fastinpaint.inference.inpainter import Inpainter

ROUNDS, COMMANDS = 5, 5


def make_photographs(folder: Path, count: int) -> None:
    """Write JPEG photographs of 1152 x 864 pixels and masks with one stroke, different in each."""
    rng = np.random.default_rng(0)
    source = np.asarray(skimage.data.stereo_motorcycle()[0])
    for index in range(count):
        scale = rng.uniform(2.4, 3)
        large = cv2.resize(source, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        top, left = (rng.integers(0, free + 1) for free in (large.shape[0] - 864, large.shape[1] - 1152))
        part = large[top : top + 864, left : left + 1152].astype(np.int16)
        noisy = (part + rng.integers(-6, 7, part.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "photos" / f"{index:03}.jpg", quality=92)
        mask = np.zeros((864, 1152), np.uint8)
        start = rng.integers((200, 200), (900, 600))
        cv2.line(mask, start.tolist(), (start + rng.integers(-70, 71, 2)).tolist(), 255, 18)
        Image.fromarray(mask).save(folder / "masks" / f"{index:03}.png")


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folder", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="photographs")
    parser.add_argument("--model", default="small")
    options = parser.parse_args()
    fill = Inpainter.from_pretrained(options.model)
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("photos", "masks"):
            (folder / name).mkdir()
        make_photographs(folder, options.count)
        photographs = sorted((folder / "photos").iterdir())
        parts = [photographs[index::ROUNDS] for index in range(ROUNDS)]
        for number, part in enumerate(tqdm(parts, unit="part")):
            names = [path.stem for path in part]
            together = folder / f"part{number}"
            together.mkdir()
            for path in part:
                (together / path.name).hardlink_to(path)

            def one_call(images: Path = together, number: int = number) -> None:
                inpaint_files(fill, images, folder / "masks", folder / f"one{number}", progress=False)

            def call_each(names: list[str] = names, number: int = number) -> None:
                (folder / f"each{number}").mkdir()
                for name in names:
                    photo, mask = folder / "photos" / f"{name}.jpg", folder / "masks" / f"{name}.png"
                    inpaint_files(fill, photo, mask, folder / f"each{number}" / f"{name}.jpg", FileOptions())

            order = (one_call, call_each) if number % 2 else (call_each, one_call)
            seconds = {run: _seconds(run) / len(part) for run in order}
            ratios.append(seconds[call_each] / seconds[one_call])
            print(f"one call {seconds[one_call]:.3f} s a photograph, a call for each {seconds[call_each]:.3f} s")
        commands = []
        for path in photographs[:COMMANDS]:
            mask, output = folder / "masks" / f"{path.stem}.png", folder / f"{path.stem}-command.jpg"
            command = [sys.executable, "-m", "fastinpaint", "inpaint", "--model", options.model]
            command += ["--image", str(path), "--mask", str(mask), "--output", str(output)]
            commands.append(_seconds(partial(subprocess.run, command, check=True)))
    print(f"one call is {statistics.median(ratios):.2f}x faster ({min(ratios):.2f} to {max(ratios):.2f})")
    least, most = min(commands), max(commands)
    print(f"a command for each: {statistics.median(commands):.2f} s a photograph ({least:.2f} to {most:.2f})")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
