"""From nothing to filled holes in minutes: train a small generator on four photographs and look at what it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastinpaint.demo.learning import train_for
from fastinpaint.demo.photographs import SEEN, UNSEEN, draw_cases, load_photographs, training_batches
from fastinpaint.demo.report import draw_contact_sheet, write_losses, write_report
from fastinpaint.demo.scores import compare, milliseconds_per_image
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.training.train_step import TrainStep

CPU_SECONDS, GPU_SECONDS = 170, 60
# L1 and structure loss; little weight on what is known or only guides, because the time is short.
WEIGHTS = LossWeights(l1_valid=0.2, structure=0.1, adversarial=0.0, content=0.0, style=0.0)


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains; the defaults are tuned for two CPU cores."""

    base_channels: int = 16
    size: int = 96  # pixels, of the square from the middle of each photograph
    batch_size: int = 4
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.99)
    muon_lr: float = 0.03
    holes_per_photograph: int = 6
    sheet_rows: int = 4  # of each group
    updates: int | None = None  # train for so many updates, whatever time they take


def run_demo(
    output: Path,
    *,
    seconds: float | None = None,
    seed: int = 0,
    device: str | None = None,
    settings: DemoSettings | None = None,
) -> dict[str, Path]:
    """Train on four photographs, fill holes in them and in others, and write everything below ``output``.

    Training sees four photographs with random holes. It is judged on holes that it did not see, in these photographs,
    which it has therefore largely learned by heart, and in photographs that it never saw. Seeds are fixed, but
    training lasts for a time, so the number of updates is the machine's.

    Args:
        output: Folder to write to.
        seconds: Training time; None takes 170 s on a CPU and 60 s on a GPU.
        seed: Of weights, training squares and holes; the judged ones are always the same.
        device: None takes CUDA if there is some, else the CPU.
        settings: Sizes and rates.

    Returns:
        What was written: ``contact_sheet``, ``losses``, ``metrics``, ``report`` and ``model``.

    Raises:
        ImportError: scikit-image, whose photographs are used, is not installed.
    """
    settings = settings or DemoSettings()
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    seconds = seconds or (GPU_SECONDS if place.type == "cuda" else CPU_SECONDS)
    seen, unseen = (load_photographs(names, settings.size) for names in (SEEN, UNSEEN))
    train_step = _build(settings, place, seed)
    print(f"training on {', '.join(SEEN)} for {seconds:.0f} s on {place}")
    batches = training_batches(seen, settings.batch_size, settings.size, seed)
    lesson = train_for(train_step, batches, seconds, settings.updates)

    paths = {
        "contact_sheet": output / "contact_sheet.png",
        "losses": output / "losses.png",
        "metrics": output / "metrics.jsonl",
        "report": output / "report.md",
        "model": output / "model",
    }
    train_step.generator.save_pretrained(paths["model"])
    inpainter = Inpainter.from_pretrained(paths["model"], place)
    judged = [
        draw_cases(group, settings.holes_per_photograph, settings.size, 1000 + i)
        for i, group in enumerate((seen, unseen))
    ]
    scores = [compare(inpainter, cases) for cases in judged]
    speed = milliseconds_per_image(inpainter, judged[0][0])
    write_losses(paths["metrics"], paths["losses"], lesson)
    draw_contact_sheet(paths["contact_sheet"], train_step, list(zip(judged, scores, strict=True)), settings.sheet_rows)
    print("\n" + write_report(paths["report"], lesson, speed, settings.size, *scores))
    print("\n".join(f"{name.replace('_', ' '):<14}{path}" for name, path in paths.items()))
    return paths


def _build(settings: DemoSettings, device: torch.device, seed: int) -> TrainStep:
    torch.manual_seed(seed)
    generator = InpaintGenerator(settings.base_channels, head_norm=False)
    for block in generator.blocks:  # each begins as the identity, which learns faster at first
        torch.nn.init.zeros_(block.get_parameter("plain.norm.weight"))
    return TrainStep(
        generator.to(device),
        InpaintObjective(WEIGHTS),
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        muon_lr=settings.muon_lr,
    )
