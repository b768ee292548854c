"""The training loop: data in, checkpoints, samples and curves out."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastinpaint.checkpoint.training_state import (
    load_training_state,
    prune_training_states,
    save_training_state,
    training_state_path,
    training_states,
)
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.decoded import DecodedImages
from fastinpaint.data.masks import MaskSampler
from fastinpaint.files import atomic_write
from fastinpaint.losses.objective import InpaintObjective, LossWeights
from fastinpaint.models.discriminator import PatchDiscriminator
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.vgg import VGG19Features
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.distributed import Ranks, join
from fastinpaint.training.initial import initial_weights
from fastinpaint.training.interrupts import StopRequest, prepare_worker, worker_context
from fastinpaint.training.metrics import MetricsLog, draw_curves, read_metrics
from fastinpaint.training.sampler import SampleBatches, SampleStream
from fastinpaint.training.train_step import TrainStep
from fastinpaint.visualize.sheets import draw_sheet, edge_cell, gradient_cell, hole_cell, picture_cell

_SAMPLE_MASKS = 2**40  # mask steps that no run reaches, for the sample pictures
_COMPARE_EVERY = 1000  # updates after which the weights of all processes are compared
_IN_FLIGHT = 2  # updates that may be queued on a GPU before the host waits


class Trainer:
    """One run into one folder.

    In ``config.output``: ``config.yaml``, ``metrics.jsonl``, ``losses.png``, ``samples/``, ``checkpoints/`` (to resume
    from) and, when the run has ended or was stopped, ``model/`` for ``from_pretrained`` (the average of the weights
    where there is one) and ``discriminator/`` if there is one.

    Args:
        config: Every option.
        resume: Go on from the folder's checkpoint. On the CPU the weights are then bit for bit those of a run that was
            never interrupted, if its length is counted in updates; on a GPU as far as its kernels are deterministic.
        say: Called with each status message.

    Raises:
        ValueError: An option that makes no sense, or a checkpoint of other networks.
        FileExistsError: The folder holds a checkpoint and ``resume`` is False.
        FileNotFoundError: ``resume`` is True and there is no checkpoint, or no data.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False, say: Callable[[str], None] = tqdm.write) -> None:
        config.validate()
        self.ranks = join(config.device)
        self.ranks.require_divisible(config.batch_size, config.accumulate)
        self.config, self.say = config, say if self.ranks.main else _silent
        self.output = Path(config.output)
        self.checkpoints = self.output / "checkpoints"
        saved = training_states(self.checkpoints)
        if saved and not resume:
            raise FileExistsError(f"{saved[-1]} exists: pass --resume to go on, or another --output")
        if resume and not saved:
            raise FileNotFoundError(f"nothing to resume: no checkpoint in {self.checkpoints}")
        with self.ranks.first_on_machine():
            self.images = InpaintDataset(config.data, config.image_size, config.crop, config.seed, flip=config.flip)
        self.ranks.require_same("the number of images", len(self.images))
        self.masks = self._mask_sampler(config.image_size)
        self.train_step = build_train_step(config, self.say, self.ranks)
        self.step = 0
        self._stopped = False
        self.seconds = 0.0  # of training, those before a resume included
        self._saved = time.perf_counter()  # when a checkpoint was written, or the run began
        if resume:
            self._load(saved[-1])
        elif config.init_from is not None:
            self._take_weights(config.init_from)

    def run(self) -> Path:
        """Train up to ``config.steps`` updates or ``config.max_seconds``; return the folder of the finished model.

        After ``config.pause_seconds`` the run is saved as it is, and the folder returned is that of its model so far.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came; the run was saved after the update under way.
            FloatingPointError: All losses or gradients of a row of metrics, or a weight, are no longer finite.
                Weights that are still finite are saved, else the last good checkpoint is left as it was.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        if self.ranks.main:
            with atomic_write(self.output / "config.yaml") as temporary:
                temporary.write_text(self.config.to_yaml(), encoding="utf-8")
        log = MetricsLog(self.output / "metrics.jsonl", self.step) if self.ranks.main else None
        decoded = self._decode() if self.config.cache else None
        with StopRequest() as request:
            try:
                self._loop(log, request)
            except FloatingPointError:
                if self.train_step.finite():
                    self._finish(log)
                raise
            else:
                self._finish(log)
            finally:
                if decoded is not None and self.ranks.local_rank == 0:
                    decoded.close()
        if not self._ended:
            self.say(f"stopped after update {self.step}, saved in {self.checkpoints}; --resume goes on")
            if self._stopped:
                raise KeyboardInterrupt
        return self.output / "model"

    def _decode(self) -> DecodedImages:
        """Decode all images, once on each machine."""
        first = self.ranks.rank - self.ranks.local_rank  # of this machine
        mine = self.images.decode_all(self.output / self.ranks.file("decoded.u8")) if self.ranks.rank == first else None
        decoded: DecodedImages = self.ranks.gather(mine)[first]
        self.images.read_from(decoded)
        return decoded

    @property
    def _part(self) -> float:
        return self.config.part_over(self.step, self.seconds)

    @property
    def _ended(self) -> bool:
        return self._part >= 1

    def _loop(self, log: MetricsLog | None, request: StopRequest) -> None:
        config, train_step = self.config, self.train_step
        window, pace = _Window(config.batch_size), 1.0
        before, start = self.seconds, time.perf_counter()
        batches = self._batches()
        queue = _Queue(train_step.device)
        quiet = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two states of the bar
        total = None if config.max_seconds else config.steps
        self.ranks.require_same_tensors(train_step.tensors())
        self._stopped, _ = self.ranks.agree(request.stopped, self.seconds)
        bar_options: dict[str, Any] = {"dynamic_ncols": True, "mininterval": quiet, "disable": not self.ranks.main}
        with tqdm(total=total, initial=self.step, unit="step", **bar_options) as bar:
            while not self._ended:
                paused = 0 < config.pause_seconds <= self.seconds - before
                if self._stopped or paused:
                    return
                image, mask = window.time(batches)
                torch.manual_seed(config.seed + self.step)  # some terms draw: a resumed run must draw the same
                pace = config.lr_factor(self.step, self.seconds)
                train_step.scale_learning_rates(pace)
                train_step.set_adversary(self._part >= config.adversarial_start)
                window.add(train_step.update(image, mask))
                queue.add()
                self.step += 1
                elapsed = before + time.perf_counter() - start
                self._stopped, self.seconds = self.ranks.agree(request.stopped, elapsed)
                bar.update()
                if self.step % config.log_every == 0 or self._ended:
                    row = window.close()
                    counted = {"step": self.step, "seconds": round(self.seconds, 3)}
                    if log is not None:
                        log.write({**counted, "learning_rate": config.learning_rate * pace, **row})
                    self._check(row)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in row.items() if value}, refresh=False)
                if _due(self.step, _COMPARE_EVERY):
                    self.ranks.require_same_tensors(train_step.tensors())
                if log is not None and _due(self.step, config.sample_every):
                    self._draw_samples()
                    self._draw_curves(log)
                if _due(self.step, config.checkpoint_every) or self._overdue():
                    self._save()

    def _overdue(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self._saved > 60 * minutes

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, s, s) uint8 and masks (B, 1, s, s) or (1, 1, s, s) of the updates to come, s as it is then."""
        while True:
            size = self.config.size_at(self._part)
            masks = self._mask_sampler(size)
            for batch in self._loader(size, masks):
                yield (batch[0], masks.sample(self.step)) if self.config.masks.shared else (batch[0], batch[1])
                if self.config.size_at(self._part) != size:
                    self.say(f"crops of {self.config.size_at(self._part)} pixels from update {self.step} on")
                    self.train_step.forget_graph()
                    break

    def _loader(self, size: int, masks: MaskSampler) -> DataLoader[tuple[Tensor, ...]]:
        config, cuda = self.config, self.train_step.device.type == "cuda"
        images = self.images if size == self.images.image_size else self.images.of_size(size)
        workers = _spare_cores(self.ranks.local_count) if config.workers < 0 else config.workers
        return DataLoader(
            SampleStream(images, config.seed, None if config.masks.shared else masks),
            batch_sampler=SampleBatches(config.batch_size, self.step, config.steps, self.ranks.rank, self.ranks.count),
            num_workers=workers,
            worker_init_fn=prepare_worker,
            pin_memory=cuda,
            multiprocessing_context=worker_context(cuda) if workers else None,
            timeout=config.data_timeout if workers else 0,
        )

    def _mask_sampler(self, size: int) -> MaskSampler:
        return MaskSampler(self.config.masks, size, size, self.config.seed)

    def _draw_samples(self) -> None:
        rows = []
        for index in range(min(self.config.sample_count, len(self.images))):
            image = self.images[index].to(self.train_step.device)
            mask = self.masks.sample(_SAMPLE_MASKS + index).to(self.train_step.device)
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False):
                output = self.train_step.show(image[None], mask)
            result = torch.where(mask[0] > 0.5, output.images[0][0].float(), image)
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

    def _draw_curves(self, log: MetricsLog) -> None:
        try:
            draw_curves(read_metrics(log.path), self.output / "losses.png")
        except ImportError as error:
            self.say(f"no losses.png: {error}")

    def _finish(self, log: MetricsLog | None) -> None:
        """Leave everything behind that a run leaves, finished or not; the weights first."""
        self.ranks.require_same_tensors(self.train_step.tensors())
        self._save()
        if log is None:
            return
        self.train_step.result.save_pretrained(self.output / "model")
        if self.train_step.discriminator is not None:
            self.train_step.discriminator.save_pretrained(self.output / "discriminator")
        self._draw_curves(log)
        if self.config.sample_every:
            self._draw_samples()

    def _save(self) -> None:
        if not self.train_step.finite():
            raise FloatingPointError(f"a weight is not finite after update {self.step}; {self._kept()}")
        if not self.ranks.main:
            return
        state = {"step": self.step, "seconds": self.seconds, "processes": self.ranks.count}
        state |= self.train_step.state_dict()
        save_training_state(training_state_path(self.checkpoints, self.step), state)
        prune_training_states(self.checkpoints, self.config.keep_checkpoints)
        self._saved = time.perf_counter()

    def _load(self, path: Path) -> None:
        state = load_training_state(path, map_location=self.train_step.device)
        self.step, self.seconds = state.pop("step"), state.pop("seconds", 0.0)
        processes = state.pop("processes", 1)
        if processes != self.ranks.count:
            self.say(
                f"saved by {processes} {'process' if processes == 1 else 'processes'}, resumed by {self.ranks.count}: "
                "the same batches, sums in another order"
            )
        try:
            self.train_step.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} does not fit these options: {error}") from error

    def _take_weights(self, source: str) -> None:
        try:
            self.train_step.load_weights(initial_weights(source))
        except RuntimeError as error:
            raise ValueError(f"{source} does not fit these options: {error}") from error

    def _check(self, row: dict[str, float]) -> None:
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(f"loss {', '.join(wrong)} is not finite by update {self.step}; {self._kept()}")

        if row["skipped"] == 1:
            raise FloatingPointError(f"no gradients that are finite by update {self.step}; {self._kept()}")

    def _kept(self) -> str:
        saved = training_states(self.checkpoints)
        return f"{f'the last checkpoint is {saved[-1]}' if saved else 'nothing was saved'}; try a smaller learning_rate"


class _Window:
    """Losses and time since the last row of metrics; losses stay on the device until then."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rows: list[dict[str, Tensor]] = []
        self.waited = 0.0  # seconds
        self.start = time.perf_counter()

    def time(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the next batch and count how long it took to come."""
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    def add(self, terms: dict[str, Tensor]) -> None:
        self.rows.append(terms)

    def close(self) -> dict[str, float]:
        """Return speed and the means of the losses that are finite, NaN where none is, and begin anew."""
        means = {}
        for name in dict.fromkeys(name for row in self.rows for name in row):
            values = torch.stack([row[name] for row in self.rows if name in row]).tolist()
            finite = [value for value in values if math.isfinite(value)]
            means[name] = sum(finite) / len(finite) if finite else math.nan
        now = time.perf_counter()
        speed = len(self.rows) * self.batch_size / (now - self.start)
        waited = self.waited / (now - self.start)
        self.rows, self.waited, self.start = [], 0.0, now
        return {"images_per_second": speed, "data_wait": waited, **means}


class _Queue:
    """Holds the host back to a few updates ahead of a GPU, so that time is counted as it passes there."""

    def __init__(self, device: torch.device) -> None:
        self.active = device.type == "cuda"
        self.events: deque[torch.cuda.Event] = deque()

    def add(self) -> None:
        """Note that an update was queued; wait for an older one if too many are."""
        if not self.active:
            return
        event = torch.cuda.Event(blocking=True)
        event.record()
        self.events.append(event)
        if len(self.events) > _IN_FLIGHT:
            self.events.popleft().synchronize()


def build_train_step(config: TrainConfig, say: Callable[[str], None], ranks: Ranks) -> TrainStep:
    """Build what the options ask for, with weights drawn from ``config.seed``."""
    device = ranks.device
    cuda = device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True  # shapes are fixed
    torch.manual_seed(config.seed)
    generator = InpaintGenerator(config.base_channels, config.attention, config.head_norm)
    generator.checkpoint_activations = config.checkpoint_activations
    if config.identity_blocks:
        for block in generator.blocks:
            torch.nn.init.zeros_(block.get_parameter("plain.norm.weight"))
    objective = InpaintObjective(*_weights_and_features(config, say))
    discriminator = PatchDiscriminator(config.discriminator_channels) if config.losses.adversarial else None
    half = config.precision in ("bfloat16", "bf16") or (config.precision == "auto" and cuda)
    draws = config.losses.matching_image or config.losses.matching_gradient  # torch.randperm cannot be in a graph
    return TrainStep(
        generator.to(device),
        objective.to(device),
        discriminator and discriminator.to(device),
        learning_rate=config.learning_rate,
        discriminator_rate=config.discriminator_rate,
        betas=(config.beta1, config.beta2),
        muon_lr=config.muon_lr,
        clip=config.clip,
        ema=config.ema,
        precision=torch.bfloat16 if half else torch.float32,
        channels_last=cuda if config.channels_last is None else config.channels_last,
        compile=config.compile,
        known_pixels_only=config.known_pixels_only,
        cuda_graph=cuda
        and (config.cuda_graph == "on" or (config.cuda_graph == "auto" and not draws and ranks.count == 1)),
        accumulate=config.accumulate,
        ranks=ranks,
        shared_mask=config.masks.shared,
    )


def _weights_and_features(config: TrainConfig, say: Callable[[str], None]) -> tuple[LossWeights, VGG19Features | None]:
    weights = config.losses
    if not (weights.content or weights.style):
        return weights, None
    if config.vgg is None:
        say("no VGG-19 weights given (option vgg): the perceptual terms are off")
        return dataclasses.replace(weights, content=0.0, style=0.0), None
    return weights, VGG19Features.from_file(config.vgg)


def _spare_cores(processes: int = 1) -> int:
    """All cores that this process may use, shared with the others of this machine, but one; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // processes - 1, 1)


def _silent(message: str) -> None:
    """For all processes but the first."""


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
