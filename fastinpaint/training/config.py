"""Everything a training run can be told, with every default."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fastinpaint.checkpoint.training_state import load_newest_training_state
from fastinpaint.data.masks import MaskConfig
from fastinpaint.losses.objective import LossWeights
from fastinpaint.training.options import from_mapping, option, read_yaml, shown, to_yaml

logger = logging.getLogger(__name__)

_LARGEST = 2**62
_RANGES = (  # option, least and largest value
    *((name, 1, _LARGEST) for name in ("base_channels", "discriminator_channels", "steps")),
    *((name, 1, _LARGEST) for name in ("batch_size", "accumulate")),
    *((name, 1, _LARGEST) for name in ("log_every", "keep_checkpoints")),
    *((name, 0, _LARGEST) for name in ("warmup_steps", "sample_every", "sample_count", "checkpoint_every", "seed")),
    *((name, 0, _LARGEST) for name in ("validate_every", "validation_count")),
    *(
        (name, 0, _LARGEST)
        for name in ("max_seconds", "pause_seconds", "discriminator_rate", "clip", "data_timeout", "checkpoint_minutes")
    ),
    *((name, 0, 1) for name in ("first_part", "adversarial_start")),
    ("workers", -1, _LARGEST),
)


@dataclass
class TrainConfig:
    """Options of one run. Values come from a YAML file, then from flags; ``validate`` checks them together."""

    data: str = option("", "folder of images (searched recursively) or a text file that lists them; required")
    output: str = option("runs/train", "folder for checkpoints, samples, curves and the finished model")
    image_size: int = option(256, "side of the square training crops in pixels, divisible by 16")
    first_size: int = option(0, "crop side in the first part of the run, in pixels, divisible by 16; 0: image_size")
    first_part: float = option(0.35, "part of the run, 0 to 1, that is trained at first_size")
    crop: Literal["center", "random"] = option("center", "which square of an image is used")
    flip: bool = option(False, "mirror every second image, at random")
    cache: bool = option(False, "decode all images once, into one file that the workers share, for sets of a few GB")
    masks: MaskConfig = field(default_factory=MaskConfig, metadata={"help": "training holes"})
    known_pixels_only: bool = option(
        True, "compute input edges and gradients without the hole's content, as filling does", formerly="hide_holes"
    )

    base_channels: int = option(64, "width of the generator's first stage")
    attention: Literal["pooled", "patch"] = option("pooled", "attention of the generator")
    head_norm: bool = option(False, "instance norm in the output heads, as the released checkpoints have it")
    poisson_blend: bool = option(
        False, "blend the filling into the known pixels inside the generator, so that it learns gradients, not colours"
    )
    identity_blocks: bool = option(False, "residual blocks begin as the identity, which learns faster at first")
    discriminator_channels: int = option(64, "width of the discriminator's first stage")
    init_from: str | None = option(
        None, "where weights are taken from at the start: the folder of a run, an export or a model, or a checkpoint"
    )
    losses: LossWeights = field(
        default_factory=LossWeights, metadata={"help": "weights of the training objective; 0 switches a term off"}
    )
    vgg: str | None = option(None, "VGG-19 weights (.mat, .pth, .safetensors); null: no perceptual terms")

    adversarial_start: float = option(0.0, "part of the run, 0 to 1, after which the adversarial term joins")
    steps: int = option(1_000_000, "number of updates")
    max_seconds: float = option(0.0, "end the run after this time, and let the schedule follow it; 0: steps alone")
    pause_seconds: float = option(0.0, "stop after this time, ready to be resumed, whatever is left to do; 0: never")
    batch_size: int = option(8, "images per update, over all processes")
    accumulate: int = option(1, "micro-batches that a process computes one after another for an update, to save memory")
    learning_rate: float = option(1e-5, "Adam's step size, for both networks")
    discriminator_rate: float = option(0.0, "Adam's step size for the discriminator; 0: learning_rate")
    beta1: float = option(0.0, "Adam's decay of the mean gradient")
    beta2: float = option(0.9, "Adam's decay of the squared gradient")
    muon_lr: float = option(
        0.0,
        "Muon's learning rate for the generator's convolution weights, relative to their norm; 0: Adam trains all",
        formerly="kernel_rate",
    )
    schedule: Literal["constant", "cosine"] = option("constant", "pace of both rates over the run; cosine falls to 0")
    warmup_steps: int = option(0, "updates over which both rates rise from 0")
    clip: float = option(0.0, "largest norm of a network's gradient; 0: any")
    ema: float = option(
        0.0,
        "decay, 0 to 1, of the average of the generator's weights that samples and the finished "
        "model show; 0: the weights themselves",
    )

    seed: int = option(0, "seed of weights, crops, order and masks")
    device: str = option("auto", "auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    precision: Literal["float32", "bfloat16", "auto", "fp32", "bf16"] = option(
        "float32", "bfloat16 runs the networks under autocast; auto does so on CUDA; fp32 and bf16 are short names"
    )
    checkpoint_activations: bool = option(
        False, "recompute the generator's activations in the backward pass: less memory, more time"
    )
    channels_last: bool | None = option(
        None, "store activations channels-last; null: unless there is no compiled extension"
    )
    cuda_graph: Literal["auto", "on", "off"] = option("auto", "replay each update as one CUDA graph; auto: on CUDA")
    compile: bool = option(False, "run the generator through torch.compile")
    workers: int = option(2, "processes that read images; 0: the training process; -1: one for each core but one")
    data_timeout: float = option(300.0, "seconds to wait for a batch from the workers before giving up; 0: for ever")

    log_every: int = option(10, "updates between rows of metrics.jsonl")
    sample_every: int = option(1000, "updates between sample pictures; 0: none")
    sample_count: int = option(4, "pictures on a sample sheet")
    validation: str | None = option(
        None, "pictures that are filled from time to time to judge the run, as for data; null: none"
    )
    validate_every: int = option(1000, "updates between validations; 0: only at the end")
    validation_count: int = option(64, "pictures that are validated on, the first ones; 0: all")
    tensorboard: bool = option(False, "write scalars and sample pictures for TensorBoard too")
    checkpoint_every: int = option(1000, "updates between checkpoints; 0: only at the end and when interrupted")
    checkpoint_minutes: float = option(10.0, "minutes after which a checkpoint is written in any case; 0: never")
    keep_checkpoints: int = option(2, "newest checkpoints that are kept")

    @property
    def networks(self) -> dict[str, object]:
        """What shapes the saved state of a run, so that a resumed run must leave it as it is."""
        shape = {name: getattr(self, name) for name in ("base_channels", "attention", "head_norm", "poisson_blend")}
        if self.losses.adversarial:
            shape["discriminator_channels"] = self.discriminator_channels
        return shape | {
            "losses.adversarial": bool(self.losses.adversarial), "ema": bool(self.ema), "muon_lr": bool(self.muon_lr)
        }  # fmt: skip

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Read a YAML file; raises FileNotFoundError, or ValueError naming the option."""
        return from_mapping(cls, read_yaml(path))

    @classmethod
    def of_run(cls, folder: str | Path) -> TrainConfig:
        """Read the options that a run was last started with: ``config.yaml``, or its newest whole checkpoint.

        Raises:
            FileNotFoundError: There is neither.
            ValueError: A damaged ``config.yaml``, and no checkpoint that holds options.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"nothing to resume: there is no run in {folder}")
        try:
            config = cls.from_yaml(Path(folder) / "config.yaml")
            if not config.data:  # as every run has it
                raise ValueError(f"{Path(folder) / 'config.yaml'} is cut off: it names no data")
        except (FileNotFoundError, ValueError) as error:
            try:
                saved = load_newest_training_state(Path(folder) / "checkpoints").state["config"]
            except (FileNotFoundError, ValueError, KeyError):
                raise error from None
            logger.warning("%s; options are taken from the checkpoint", error)
            config = from_mapping(cls, saved)
        return replace(config, output=str(folder))

    def to_yaml(self) -> str:
        """Return the options as YAML, explained."""
        return to_yaml(self)

    def validate(self) -> None:
        """Raise ValueError naming the first option that makes no sense."""
        if not self.data:
            raise ValueError("option data is required: a folder of images or a text file that lists them")
        for name, lowest in (("image_size", 16), ("first_size", 0)):
            if getattr(self, name) < lowest or getattr(self, name) % 16:
                raise ValueError(
                    f"option {name} must be a multiple of 16, at least {lowest}, got {getattr(self, name)}"
                )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                most = f" and at most {high}" if high < _LARGEST or value > high else ""
                raise ValueError(f"option {name} must be at least {low}{most}, got {shown(value)}")
        for name in ("muon_lr", "beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"option {name} must be in [0, 1), got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"option batch_size must be a multiple of accumulate, got {self.batch_size} and {self.accumulate}"
            )
        if not self.learning_rate > 0 or math.isinf(self.learning_rate):
            raise ValueError(f"option learning_rate must be above 0 and finite, got {self.learning_rate}")

    def part_over(self, step: int, seconds: float) -> float:
        """Return which part of the run is over, 0 to 1, after ``step`` updates in ``seconds``."""
        return min(max(step / self.steps, seconds / self.max_seconds if self.max_seconds else 0.0), 1.0)

    def size_at(self, part: float) -> int:
        """Return the side of the crops, pixels, when ``part`` of the run is over."""
        return self.first_size if self.first_size and part < self.first_part else self.image_size

    def lr_factor(self, step: int, seconds: float = 0.0) -> float:
        """Return the factor on both rates at update ``step``, counted from 0, that begins after ``seconds``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        if self.max_seconds:
            progress = max(progress, seconds / self.max_seconds)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
