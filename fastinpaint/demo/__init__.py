"""From nothing to filled holes in minutes: the model that ships on new photographs, then fine-tuned on a few."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from fastinpaint.demo.learning import train_for
from fastinpaint.demo.photographs import Picture, draw_cases, load_photographs, read_photographs, training_batches
from fastinpaint.demo.report import draw_filled, draw_fine_tuning, write_losses, write_report
from fastinpaint.demo.scores import compare, milliseconds_per_image
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.inference.precision import usable_device
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.training.train_step import TrainStep

CPU_SECONDS, GPU_SECONDS = 120, 40
UNSEEN = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle", "camera", "coins", "retina")
OWN = UNSEEN[:4]  # stand for the user's pictures where no folder is given
# L1 and structure loss; little weight on what is known or only guides, because the time is short.
WEIGHTS = LossWeights(l1_valid=0.2, structure=0.1, adversarial=0.0, content=0.0, style=0.0)


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and rates; the defaults suit two CPU cores."""

    size: int = 256  # pixels, of the squares in which the model fills holes
    tune_size: int = 128  # pixels, of the squares that it is fine-tuned on
    batch_size: int = 4
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    muon_lr: float = 0.02
    holes_per_photograph: int = 3
    sheet_rows: int = 8
    most_pictures: int = 8  # that are read from a folder
    updates: int | None = None  # fine-tune for so many updates, whatever time they take


def run_demo(
    output: Path,
    *,
    model: str | Path = "small",
    data: Path | None = None,
    seconds: float | None = None,
    seed: int = 0,
    device: str | None = None,
    settings: DemoSettings | None = None,
) -> dict[str, Path]:
    """Fill holes in photographs that the model never saw, fine-tune it on a few, and write everything below ``output``.

    After fine-tuning the model is judged on the photographs that it was tuned on, with holes that it did not see: it
    has then largely memorised them. Seeds are fixed, but fine-tuning lasts for a time, so the number of updates
    depends on the machine.

    Args:
        output: Folder to write to.
        model: Folder of a model, or the name of one that ships.
        data: Folder of the pictures to fine-tune on, of which the first 8 are taken; None takes four of scikit-image's.
        seconds: Time of fine-tuning; None takes 120 s on a CPU and 40 s on a GPU.
        seed: Of training holes; the judged ones are always the same.
        device: None takes CUDA if there is some, else the CPU.
        settings: Sizes and rates.

    Returns:
        What was written: ``filled``, ``fine_tuning``, ``losses``, ``metrics``, ``report`` and ``model``.

    Raises:
        ImportError: scikit-image, whose photographs are used, is not installed.
        FileNotFoundError, ValueError: There is no such model, or no picture in ``data``.
    """
    settings = settings or DemoSettings()
    place = usable_device(device)
    seconds = seconds or (GPU_SECONDS if place.type == "cuda" else CPU_SECONDS)
    torch.manual_seed(seed)
    before = InpaintGenerator.from_pretrained(model, device=place, dtype=torch.float32)
    own = _own_pictures(data, settings)
    unseen = load_photographs(UNSEEN, settings.size)

    print(f"filling holes in {len(unseen)} photographs that the model {model} never saw")
    cases = draw_cases(unseen, settings.holes_per_photograph, settings.size, 1000)
    scores = compare(Inpainter(before, place), cases)
    speed = milliseconds_per_image(Inpainter(before, place), cases[0])

    print(f"fine-tuning on {', '.join(own)} for {seconds:.0f} s on {place}")
    train_step = TrainStep(
        copy.deepcopy(before),
        InpaintObjective(WEIGHTS),
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        muon_lr=settings.muon_lr,
    )
    batches = training_batches(own, settings.batch_size, settings.tune_size, seed)
    lesson = train_for(train_step, batches, seconds, settings.updates)
    after = train_step.generator.eval()
    own_cases = draw_cases(own, settings.holes_per_photograph, settings.tune_size, 1001)
    own_scores = [compare(Inpainter(generator, place), own_cases) for generator in (before, after)]

    paths = {
        "filled": output / "filled.png",
        "fine_tuning": output / "fine_tuning.png",
        "losses": output / "losses.png",
        "metrics": output / "metrics.jsonl",
        "report": output / "report.md",
        "model": output / "model",
    }
    after.save_pretrained(paths["model"])
    write_losses(paths["metrics"], paths["losses"], lesson)
    draw_filled(paths["filled"], before, cases, scores, settings.sheet_rows)
    draw_fine_tuning(paths["fine_tuning"], (before, after), own_cases, own_scores, settings.sheet_rows)
    print("\n" + write_report(paths["report"], lesson, speed, settings, scores, own_scores))
    print("\n".join(f"{name.replace('_', ' '):<14}{path}" for name, path in paths.items()))
    return paths


def _own_pictures(data: Path | None, settings: DemoSettings) -> dict[str, Picture]:
    if data is None:
        return load_photographs(OWN, settings.tune_size)
    return read_photographs(data, settings.tune_size, settings.most_pictures)
