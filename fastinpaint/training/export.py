"""What is worth carrying away from a run, in a few small files."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from fastinpaint.checkpoint.training_state import load_newest_training_state
from fastinpaint.checkpoint.weights import save_safetensors
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.training.initial import COMPACT, NETWORKS


def export_run(run: Path, output: Path) -> list[Path]:
    """Copy a run's results, the weights as float16.

    Args:
        run: The folder of a run that has ended or was stopped.
        output: Gets ``model.safetensors`` and ``config.json`` (the finished model, for ``from_pretrained``),
            ``weights.safetensors`` (generator and discriminator as they were trained, for ``init_from``),
            ``metrics.jsonl``, and as far as they are there ``losses.png`` and the newest picture of samples.

    Returns:
        The files.

    Raises:
        FileNotFoundError: The run has left no model or no checkpoint.
        ValueError: All its checkpoints are damaged.
    """
    state = load_newest_training_state(run / "checkpoints").state
    output.mkdir(parents=True, exist_ok=True)
    InpaintGenerator.from_pretrained(run / "model").save_pretrained(output, torch.float16)
    tensors = {
        f"{name}.{key}": tensor.half()
        for name in NETWORKS
        if name in state and name != "average"  # that is the finished model
        for key, tensor in state[name].items()
    }
    save_safetensors(output / COMPACT, tensors, {"step": str(state["step"]), "seconds": f"{state['seconds']:.1f}"})
    for source in (run / "metrics.jsonl", run / "losses.png", *sorted((run / "samples").glob("*.png"))[-1:]):
        if source.is_file():
            shutil.copyfile(source, output / ("samples.png" if source.parent.name == "samples" else source.name))
    return sorted(output.iterdir())


if __name__ == "__main__":
    for path in export_run(Path(sys.argv[1]), Path(sys.argv[2])):
        print(f"{path.stat().st_size / 2**20:8.2f} MiB  {path}")
