"""Everything a training run can be told, with every default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastinpaint.data.masks import MaskConfig
from fastinpaint.losses.objective import LossWeights
from fastinpaint.training.options import from_mapping, option, read_yaml, to_yaml


@dataclass
class TrainConfig:
    """Options of one run. Values come from a YAML file, then from flags; ``validate`` checks them together."""

    data: str = option("", "folder of images (searched recursively) or a text file that lists them; required")
    output: str = option("runs/train", "folder for checkpoints, samples, curves and the finished model")
    image_size: int = option(256, "side of the square training crops in pixels, divisible by 16")
    crop: Literal["center", "random"] = option("center", "which square of an image is used")
    masks: MaskConfig = field(
        default_factory=MaskConfig, metadata={"help": "training holes; one mask is shared by a batch"}
    )
    hide_holes: bool = option(True, "compute input edges and gradients without the hole's content, as filling does")

    base_channels: int = option(64, "width of the generator's first stage")
    attention: Literal["pooled", "patch"] = option("pooled", "attention of the generator")
    head_norm: bool = option(False, "instance norm in the output heads, as the released checkpoints have it")
    discriminator_channels: int = option(64, "width of the discriminator's first stage")
    losses: LossWeights = field(
        default_factory=LossWeights, metadata={"help": "weights of the training objective; 0 switches a term off"}
    )
    vgg: str | None = option(None, "VGG-19 weights (.mat, .pth, .safetensors); null: no perceptual terms")

    steps: int = option(1_000_000, "number of updates")
    batch_size: int = option(8, "images per update")
    learning_rate: float = option(1e-5, "Adam's step size, for both networks")
    beta1: float = option(0.0, "Adam's decay of the mean gradient")
    beta2: float = option(0.9, "Adam's decay of the squared gradient")
    kernel_rate: float = option(0.0, "relative step of Muon on the generator's kernels; 0: Adam trains everything")
    schedule: Literal["constant", "cosine"] = option("constant", "pace of both rates over the run; cosine falls to 0")
    warmup_steps: int = option(0, "updates over which both rates rise from 0")

    seed: int = option(0, "seed of weights, crops, order and masks")
    device: str = option("auto", "auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    precision: Literal["float32", "bfloat16"] = option("float32", "bfloat16 runs the networks under autocast")
    channels_last: bool = option(False, "store activations channels-last")
    compile: bool = option(False, "run the generator through torch.compile")
    workers: int = option(2, "processes that read images; 0 reads in the training process")

    log_every: int = option(10, "updates between rows of metrics.jsonl")
    sample_every: int = option(1000, "updates between sample pictures; 0: none")
    sample_count: int = option(4, "pictures on a sample sheet")
    checkpoint_every: int = option(1000, "updates between checkpoints; 0: only at the end and when interrupted")
    keep_checkpoints: int = option(2, "newest checkpoints that are kept")

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Read a YAML file; raises FileNotFoundError, or ValueError naming the option."""
        return from_mapping(cls, read_yaml(path))

    def to_yaml(self) -> str:
        """Return the options as YAML, explained."""
        return to_yaml(self)

    def validate(self) -> None:
        """Raise ValueError naming the first option that makes no sense."""
        if not self.data:
            raise ValueError("option data is required: a folder of images or a text file that lists them")
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(f"option image_size must be a positive multiple of 16, got {self.image_size}")
        for name in ("base_channels", "discriminator_channels", "steps", "batch_size", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"option {name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "warmup_steps", "sample_every", "sample_count", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must be at least 0, got {getattr(self, name)}")
        if not self.learning_rate > 0 or math.isinf(self.learning_rate):
            raise ValueError(f"option learning_rate must be above 0 and finite, got {self.learning_rate}")
        if not 0 <= self.kernel_rate < 1:
            raise ValueError(f"option kernel_rate must be in [0, 1), got {self.kernel_rate}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"option {name} must be in [0, 1), got {getattr(self, name)}")

    def pace_at(self, step: int) -> float:
        """Return the factor on both rates at update ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
