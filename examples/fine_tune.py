"""Fine-tune the model that ships on a folder of your photographs, then fill a hole with it.

python examples/fine_tune.py FOLDER --output runs/mine --minutes 10

The same on the command line: see "Fine-tune" in docs/training.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastinpaint as fi
from fastinpaint.models.pretrained import find_model
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.presets import find_config
from fastinpaint.training.trainer import Trainer


def fine_tune(folder: Path, output: Path, minutes: float, model: str = "small", **options: Any) -> fi.Inpainter:
    """Go on from ``model`` for some minutes; ``options`` are those of ``fastinpaint train --print-config``."""
    source = find_model(model)
    generator = fi.InpaintGenerator.from_pretrained(source)
    config = replace(
        TrainConfig.from_yaml(find_config("small")),
        data=str(folder),
        output=str(output),
        init_from=str(source),
        **generator.config,
        max_seconds=60 * minutes,  # the learning rate falls to 0 over this time
        first_size=0,  # at full size from the first update on
        learning_rate=5e-4,  # a quarter of the preset's, so that little is forgotten
        muon_lr=0.003,
        warmup_steps=10,
    )
    config = replace(config, **options)
    config.validate()
    return fi.Inpainter.from_pretrained(str(Trainer(config).run()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    fine_tune(arguments.folder, arguments.output, arguments.minutes)
    print(f"fastinpaint inpaint --model {arguments.output}/model --image I --mask K --output O")
