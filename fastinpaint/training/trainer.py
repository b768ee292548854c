"""The training loop: data in, checkpoints, samples and curves out."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastinpaint.checkpoint.files import atomic_write
from fastinpaint.checkpoint.training_state import (
    load_training_state,
    prune_training_states,
    save_training_state,
    training_state_path,
    training_states,
)
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.masks import MaskSampler
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.vgg import VGG19Features
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.interrupts import StopRequest, ignore_interrupts
from fastinpaint.training.learner import Learner
from fastinpaint.training.metrics import MetricsLog, draw_curves, read_metrics
from fastinpaint.training.samples import SampleBatches, SampleStream
from fastinpaint.visualize.sheets import draw_sheet, edge_cell, gradient_cell, hole_cell, picture_cell

_SAMPLE_MASKS = 2**40  # mask steps that no run reaches, for the sample pictures


class Trainer:
    """One run into one folder.

    In ``config.output``: ``config.yaml``, ``metrics.jsonl``, ``losses.png``, ``samples/``, ``checkpoints/`` (to resume
    from) and, when the run has ended, ``model/`` for ``from_pretrained`` and ``discriminator/`` if there is one.

    Args:
        config: Every option.
        resume: Go on from the folder's checkpoint. On the CPU the weights are then bit for bit those of a run that was
            never interrupted; on a GPU as far as its kernels are deterministic.
        say: Takes each line of news.

    Raises:
        ValueError: An option that makes no sense, or a checkpoint of other networks.
        FileExistsError: The folder holds a checkpoint and ``resume`` is False.
        FileNotFoundError: ``resume`` is True and there is no checkpoint, or no data.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False, say: Callable[[str], None] = tqdm.write) -> None:
        config.validate()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("training runs on one device, but WORLD_SIZE asks for several")
        self.config, self.say = config, say
        self.output = Path(config.output)
        self.checkpoints = self.output / "checkpoints"
        saved = training_states(self.checkpoints)
        if saved and not resume:
            raise FileExistsError(f"{saved[-1]} exists: pass --resume to go on, or another --output")
        if resume and not saved:
            raise FileNotFoundError(f"nothing to resume: no checkpoint in {self.checkpoints}")
        self.images = InpaintDataset(config.data, config.image_size, config.crop, config.seed)
        self.masks = MaskSampler(config.masks, config.image_size, config.image_size, config.seed)
        self.learner = build_learner(config, say)
        self.step = 0
        if resume:
            self._load(saved[-1])

    def run(self) -> Path:
        """Train up to ``config.steps`` updates; return the folder of the finished model.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came; the run was saved after the update under way.
            FloatingPointError: A loss or a weight is no longer finite; the last good checkpoint is left as it was.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output / "config.yaml") as temporary:
            temporary.write_text(self.config.to_yaml(), encoding="utf-8")
        log = MetricsLog(self.output / "metrics.jsonl", self.step)
        with StopRequest() as request:
            self._loop(log, request)
        self._save()
        draw_curves(read_metrics(log.path), self.output / "losses.png")
        if self.step < self.config.steps:
            self.say(f"stopped after update {self.step}, saved in {self.checkpoints}; --resume goes on")
            raise KeyboardInterrupt
        for name, network in self.learner.networks.items():
            network.save_pretrained(self.output / ("model" if name == "generator" else name))
        return self.output / "model"

    def _loop(self, log: MetricsLog, request: StopRequest) -> None:
        config = self.config
        window = _Window(config.batch_size)
        with tqdm(total=config.steps, initial=self.step, unit="step", dynamic_ncols=True) as bar:
            for image in self._batches():
                if request.stopped:
                    return
                torch.manual_seed(config.seed + self.step)  # some terms draw: a resumed run must draw the same
                self.learner.set_pace(config.pace_at(self.step))
                window.add(self.learner.update(image.to(self.learner.device), self._mask(self.step)))
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    row = window.close()
                    self._check(row)
                    rate = config.learning_rate * config.pace_at(self.step - 1)
                    log.write({"step": self.step, "learning_rate": rate, **row})
                    bar.set_postfix({name: f"{value:.3g}" for name, value in row.items() if value})
                if _due(self.step, config.sample_every):
                    self._draw_samples()
                    draw_curves(read_metrics(log.path), self.output / "losses.png")
                if _due(self.step, config.checkpoint_every):
                    self._save()

    def _batches(self) -> Iterable[Tensor]:
        return DataLoader(
            SampleStream(self.images, self.config.seed),
            batch_sampler=SampleBatches(self.config.batch_size, self.step, self.config.steps),
            num_workers=self.config.workers,
            worker_init_fn=ignore_interrupts,
            pin_memory=self.learner.device.type == "cuda",
        )

    def _mask(self, step: int) -> Tensor:
        """(1, 1, H, W) of one update, shared by its batch."""
        return self.masks.sample(step).to(self.learner.device)

    @torch.no_grad()
    def _draw_samples(self) -> None:
        rows = []
        for index in range(min(self.config.sample_count, len(self.images))):
            image = self.images[index].to(self.learner.device)
            mask = self._mask(_SAMPLE_MASKS + index)
            output = self.learner.predict(image[None], mask)
            result = torch.where(mask[0] > 0.5, output.images[0][0], image)
            gradients = output.gradients[0][0]
            rows.append(
                {
                    "hole": hole_cell(image, mask[0]),
                    "result": picture_cell(result),
                    "truth": picture_cell(image),
                    "edges": edge_cell(gradients),
                    "gradients": gradient_cell(gradients),
                }
            )
        if rows:
            draw_sheet(rows, self.output / "samples" / f"step_{self.step:08d}.png")

    def _save(self) -> None:
        if not self.learner.finite():
            raise FloatingPointError(f"a weight is not finite after update {self.step}; {self._kept()}")
        state = {"step": self.step, **self.learner.state_dict()}
        save_training_state(training_state_path(self.checkpoints, self.step), state)
        prune_training_states(self.checkpoints, self.config.keep_checkpoints)

    def _load(self, path: Path) -> None:
        state = load_training_state(path, map_location=self.learner.device)
        self.step = state.pop("step")
        try:
            self.learner.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} does not fit these options: {error}") from error

    def _check(self, row: dict[str, float]) -> None:
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(f"loss {', '.join(wrong)} is not finite by update {self.step}; {self._kept()}")

    def _kept(self) -> str:
        saved = training_states(self.checkpoints)
        return f"{f'the last checkpoint is {saved[-1]}' if saved else 'nothing was saved'}; try a smaller learning_rate"


class _Window:
    """Losses and time since the last row of metrics; kept on the device until then."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rows: list[dict[str, Tensor]] = []
        self.start = time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        self.rows.append(terms)

    def close(self) -> dict[str, float]:
        """Return speed and mean losses, and begin anew."""
        means = {name: float(torch.stack([row[name] for row in self.rows]).mean()) for name in self.rows[0]}
        now = time.perf_counter()
        speed = len(self.rows) * self.batch_size / (now - self.start)
        self.rows, self.start = [], now
        return {"images_per_second": speed, **means}


def build_learner(config: TrainConfig, say: Callable[[str], None]) -> Learner:
    """Build what the options ask for, with weights drawn from ``config.seed``."""
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    )
    torch.manual_seed(config.seed)
    generator = InpaintGenerator(config.base_channels, config.attention, config.head_norm)
    objective = InpaintObjective(*_weights_and_features(config, say))
    discriminator = PatchDiscriminator(config.discriminator_channels) if config.losses.adversarial else None
    return Learner(
        generator.to(device),
        objective.to(device),
        discriminator and discriminator.to(device),
        learning_rate=config.learning_rate,
        betas=(config.beta1, config.beta2),
        kernel_rate=config.kernel_rate,
        precision=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        channels_last=config.channels_last,
        compile=config.compile,
        hide_holes=config.hide_holes,
    )


def _weights_and_features(config: TrainConfig, say: Callable[[str], None]) -> tuple[LossWeights, VGG19Features | None]:
    weights = config.losses
    if not (weights.content or weights.style):
        return weights, None
    if config.vgg is None:
        say("no VGG-19 weights given (option vgg): the perceptual terms are off")
        return dataclasses.replace(weights, content=0.0, style=0.0), None
    return weights, VGG19Features.from_file(config.vgg)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
