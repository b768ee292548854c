"""Draw the pictures of docs/ into docs/pictures: ``make pictures``, or ``python -m scripts.draw_pictures NAME ...``.

Each function below makes the files of its name with the commands that the page shows, on photographs that scikit-image
ships, with the model that ships. The painter's screenshots are drawn by
``python -m tests.helpers.painter_screenshots small``.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw

import fastinpaint as fi
from fastinpaint.cli import main as command
from fastinpaint.data.images import to_signed_tensor
from fastinpaint.demo.photographs import load_photographs
from fastinpaint.visualize.sheets import Cell, draw_sheet, gradient_cell

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "pictures"
NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def run(*arguments: object) -> str:
    """Run ``fastinpaint ARGUMENTS`` here; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = command([str(argument) for argument in arguments])
    if status:
        raise SystemExit(f"fastinpaint {' '.join(map(str, arguments))} failed")
    return printed.getvalue()


def pixels(path: Path) -> Cell:
    """A picture file as (H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def sheet(rows: list[dict[str, Cell]], name: str, cell: int, notes: Sequence[str] = ()) -> None:
    """Draw a contact sheet without the white below cells that are wider than high."""
    draw_sheet(rows, OUTPUT / name, cell=cell, notes=notes)
    picture = Image.open(OUTPUT / name)
    _, _, _, bottom = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    picture.crop((0, 0, picture.width, bottom + 6)).save(OUTPUT / name)


def photographs(work: Path) -> Path:
    """Write the photographs; return their folder."""
    folder = work / "photographs"
    folder.mkdir()
    for name, picture in load_photographs(NAMES, 256).items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


def sample(work: Path) -> tuple[Path, Path]:
    """The painter's sample photograph, and a mask over one of its masts."""
    photo, mask = work / "photo.png", work / "mask.png"
    picture = Image.open(ROOT / "fastinpaint" / "serve" / "page" / "sample.jpg").convert("RGB")
    picture.save(photo)
    drawing = Image.new("L", picture.size)
    ImageDraw.Draw(drawing).line([(448, 120), (449, 190), (453, 260), (460, 400)], fill=255, width=26)
    drawing.save(mask)
    return photo, mask


def inpaint(work: Path) -> None:
    """The sample and its mask, filled with each strategy."""
    photo, mask = sample(work)
    row = {"photo.jpg": pixels(photo), "mask.png": pixels(mask)}
    for strategy in ("crop", "resize"):
        filled = work / f"{strategy}.png"
        run("inpaint", "--image", photo, "--mask", mask, "--output", filled, "--strategy", strategy, "--device", "cpu")
        row[f"filled.png, --strategy {strategy}"] = pixels(filled)
    sheet([row], "inpaint.png", cell=320)


def demo(work: Path) -> None:
    """The first four photographs of `fastinpaint demo`."""
    run("demo", "--output", work / "demo", "--seconds", 20, "--device", "cpu")
    picture = Image.open(work / "demo" / "filled.png").convert("RGB")
    half = picture.crop((0, 0, picture.width, (picture.height + 30) // 2))  # 30 pixels are the names of the columns
    small = half.resize((half.width * 3 // 4, half.height * 3 // 4), Image.Resampling.LANCZOS)
    small.save(OUTPUT / "demo.png", optimize=True)


def strategies(work: Path) -> None:
    """Photographs above 512 pixels, filled with each strategy."""
    call = [sys.executable, "-m", "benchmarks.compare_strategies", "--out", str(OUTPUT / "strategies.png")]
    subprocess.run(call, check=True, cwd=ROOT)


def masks(work: Path) -> None:
    """A mask of each bin, strokes and boxes."""
    rows = []
    for kind in ("irregular", "box"):
        run("masks", "--output", work / kind, "--kind", kind, "--bins", "--count", 1)
        folders = sorted(path for path in (work / kind).iterdir() if path.is_dir())
        rows.append({f"{path.name} %": pixels(next(path.glob("*.png"))) for path in folders})
    sheet(rows, "masks.png", cell=128)


def evaluate(work: Path) -> None:
    """The contact sheet of an evaluation."""
    run(
        "evaluate", "--model", "small", "--data", photographs(work), "--output", work / "report", "--device", "cpu",
        "--holes", "box", "strokes", "--baselines", "telea", "mean-colour", "--metrics", "psnr",
    )  # fmt: skip
    shutil.copy(work / "report" / "contact_sheet.png", OUTPUT / "evaluate.png")


def train(work: Path) -> None:
    """Curves and samples of a short run that fine-tunes the model that ships."""
    run(
        "train", "--config", "small", "--data", photographs(work), "--output", work / "run", "--device", "cpu",
        "--init-from", ROOT / "fastinpaint" / "weights" / "small", "--image-size", 64, "--first-size", 0,
        "--steps", 20, "--batch-size", 2, "--log-every", 1, "--sample-every", 20, "--workers", 0, "--muon-lr", 0.003,
    )  # fmt: skip
    shutil.copy(work / "run" / "losses.png", OUTPUT / "train-losses.png")
    shutil.copy(sorted((work / "run" / "samples").glob("*.png"))[-1], OUTPUT / "train-samples.png")


def export(work: Path) -> None:
    """The sample, filled by the exported graph without torch and by PyTorch, and where they differ."""
    photo, mask = sample(work)
    run("export", "--model", "small", "--output", work / "exported", "--format", "onnx")
    graph, without, filled = work / "exported" / "picture.onnx", work / "without.png", work / "filled.png"
    call = [sys.executable, ROOT / "docs" / "fill_with_onnx.py", graph, photo, mask, without]
    subprocess.run(list(map(str, call)), check=True)
    run("inpaint", "--image", photo, "--mask", mask, "--output", filled, "--strategy", "original", "--device", "cpu")
    difference = np.abs(pixels(without).astype(int) - pixels(filled))
    row = {
        "photo.jpg": pixels(photo),
        "mask.png": pixels(mask),
        "onnxruntime": pixels(without),
        "PyTorch": pixels(filled),
        f"difference, at most {difference.max()} of 255": np.minimum(255 * difference, 255).astype(np.uint8),
    }
    sheet([row], "export.png", cell=256)


def convert(work: Path) -> None:
    """What converting and judging a checkpoint of the original prints: one of width 16 that was never trained."""
    checkpoint = ROOT / "tests" / "golden" / "tf_checkpoint_w16"
    model, report = work / "model", work / "report"
    printed = run("convert", checkpoint, model)
    printed += run(
        "evaluate", "--model", model, "--data", photographs(work), "--output", report, "--as-original", "--device",
        "cpu", "--holes", "box",
    )  # fmt: skip
    (OUTPUT / "convert.txt").write_text(printed.replace(f"{work}/", ""))


def operators(work: Path) -> None:
    """What Canny, its pyramid, Sobel gradients and the edge priority make of a photograph."""
    picture = load_photographs(("coffee",), 256)["coffee"]
    image = (to_signed_tensor(picture)[None] + 1) / 2
    full, half, quarter = fi.canny_pyramid(image, scales=(1, 2, 4))

    def grey(levels: torch.Tensor) -> Cell:
        values = (levels[0, 0].float() * 255).to(torch.uint8).numpy()
        return np.repeat(values[..., None], 3, axis=2)

    priority = fi.edge_priority(full)
    row = {
        "image": picture,
        "canny": grey(full),
        "at half size": grey(half),
        "at quarter size": grey(quarter),
        "sobel_edges": gradient_cell(fi.sobel_edges(image * 2 - 1)[0]),
        "edge_priority": grey(priority / priority.max()),
    }
    sheet([row], "operators.png", cell=192)


def info(work: Path) -> None:
    """What `fastinpaint info` prints here."""
    (OUTPUT / "info.txt").write_text(run("info"))


DRAWINGS = {
    drawing.__name__: drawing
    for drawing in (demo, inpaint, strategies, masks, evaluate, train, export, convert, operators, info)
}


def main(names: list[str]) -> None:
    """Draw the named pictures, or all."""
    OUTPUT.mkdir(exist_ok=True)
    for name in names or DRAWINGS:
        with tempfile.TemporaryDirectory() as work:
            DRAWINGS[name](Path(work))
        print(f"drawn: {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
