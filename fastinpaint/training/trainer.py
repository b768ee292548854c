"""The training loop: data in, checkpoints, samples and curves out."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastinpaint.checkpoint.training_state import save_training_state
from fastinpaint.training.batches import Batches
from fastinpaint.training.build import build_train_step
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.distributed import join
from fastinpaint.training.initial import blended, initial_weights
from fastinpaint.training.interrupts import StopRequest
from fastinpaint.training.metrics import NotFinite, Window
from fastinpaint.training.options import to_mapping
from fastinpaint.training.record import Record
from fastinpaint.training.resume import compare_circumstances, compare_options, modern_names
from fastinpaint.training.run_folder import RunFolder, is_no_space
from fastinpaint.training.validation import JUDGED

logger = logging.getLogger(__name__)

_COMPARE_EVERY = 1000  # updates after which the weights of all processes are compared
_IN_FLIGHT = 2  # updates that may be queued on a GPU before the host waits


class Trainer:
    """One run into one folder, which no other process can train into meanwhile; see `RunFolder` for its files.

    ``model/`` is for ``from_pretrained`` (the average of the weights where there is one). Messages go to ``logging``.

    Args:
        config: Every option.
        resume: Go on from the folder's newest whole checkpoint. On the CPU the weights are then bit for bit those of a
            run that was never interrupted, if its length is counted in updates; on a GPU as far as its kernels are
            deterministic. Options that differ from those of the run so far are applied and logged.

    Raises:
        ValueError: An option that makes no sense, a checkpoint of other networks, or no whole one.
        FileExistsError: The folder holds a checkpoint and ``resume`` is False.
        FileNotFoundError: ``resume`` is True and there is no checkpoint, or no data.
        BlockingIOError: Another process trains into the folder.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        config.validate()
        self.config = config
        self.ranks = join(config.device)
        self.ranks.require_divisible(config.batch_size, config.accumulate)
        if not self.ranks.main:
            logging.getLogger("fastinpaint").setLevel(logging.ERROR)
        self.folder = RunFolder(config.output)
        saved = self.folder.saved()
        if saved and not resume:
            raise FileExistsError(f"{saved[-1]} exists: pass --resume to go on, or another --output")
        if resume and not saved:
            raise FileNotFoundError(f"nothing to resume: no checkpoint in {self.folder.checkpoints}")
        self.batches = Batches(config, self.ranks)
        self.record = Record(config, self.folder, self.batches) if self.ranks.main else None
        self.ranks.on_main(self.folder.claim)
        self.train_step = build_train_step(config, self.ranks)
        self.step = 0
        self.seconds = 0.0  # of training, those before a resume included
        self.best: dict[str, float] = {}  # step and scores of the best validation
        self.stopped = False  # by a signal
        self._whole = True  # no update is under way
        self._saved_at = time.perf_counter()  # when a checkpoint was written, or the run began
        if resume:
            self._load()
        elif config.init_from is not None:
            self._take_weights(config.init_from)

    def run(self) -> Path:
        """Train up to ``config.steps`` updates or ``config.max_seconds``; return the folder of the finished model.

        After ``config.pause_seconds``, or on SIGINT, SIGTERM or SIGHUP after the update under way (``stopped`` is then
        True), the run is saved as it is, and the folder returned is that of its model so far.

        Raises:
            FloatingPointError: A loss, all gradients of a row of metrics, or a weight are not finite. Weights that are
                still finite are saved, else the last good checkpoint is left as it was.
            OSError: A file cannot be written; the last checkpoint is whole.
        """
        try:
            with StopRequest() as request, logging_redirect_tqdm():
                self._run(request)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self.folder.kept()}; try a smaller learning_rate") from error
        except OSError as error:
            if not is_no_space(error):
                raise
            raise OSError(error.errno, f"no space left for the run: {error}; {self.folder.kept()}") from error
        finally:
            self.folder.release()
        if not self._ended:
            logger.info("stopped after update %d, saved in %s; --resume goes on", self.step, self.folder.checkpoints)
        return self.folder.model

    def _run(self, request: StopRequest) -> None:
        if self.record is not None:
            self.record.open(self.step)
        decoded = self.batches.decode(self.folder.path / self.ranks.file("decoded.u8")) if self.config.cache else None
        try:
            self._loop(request)
        except FloatingPointError:
            if self.train_step.finite():
                self._finish()
            raise
        except Exception:
            if self._whole:
                with suppress(OSError):
                    self._save()
            raise
        else:
            self._finish()
        finally:
            if decoded is not None and self.ranks.local_rank == 0:
                decoded.close()
            if self.record is not None:
                self.record.close()

    @property
    def _part(self) -> float:
        return self.config.part_over(self.step, self.seconds)

    @property
    def _ended(self) -> bool:
        return self._part >= 1

    def _loop(self, request: StopRequest) -> None:
        config, train_step, record = self.config, self.train_step, self.record
        window, pace = Window(config.batch_size, self.step), 1.0
        before, start = self.seconds, time.perf_counter()
        batches = self._batches()
        queue = _Queue(train_step.device)
        quiet = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two states of the bar
        total = None if config.max_seconds else config.steps
        self.ranks.require_same_tensors(train_step.tensors())
        self.stopped, _ = self.ranks.agree(request.stopped, self.seconds)
        bar_options: dict[str, Any] = {"dynamic_ncols": True, "mininterval": quiet, "disable": not self.ranks.main}
        with tqdm(total=total, initial=self.step, unit="step", **bar_options) as bar:
            while not self._ended:
                paused = 0 < config.pause_seconds <= self.seconds - before
                if self.ranks.count == 1:
                    self.stopped = request.stopped  # it need not stop after the same update as others
                if self.stopped or paused:
                    return
                asked = time.perf_counter()
                batch = self._next(batches, request)
                if batch is None:
                    self.stopped = True
                    return
                waited = time.perf_counter() - asked
                torch.manual_seed(config.seed + self.step)  # some terms draw: a resumed run must draw the same
                pace = config.lr_factor(self.step, self.seconds)
                train_step.scale_learning_rates(pace)
                train_step.set_adversary(self._part >= config.adversarial_start)
                self._whole = False
                window.add(batch[0].shape[-1], train_step.update(*batch), waited)
                queue.add()
                self.step, self._whole = self.step + 1, True
                elapsed = before + time.perf_counter() - start
                self.stopped, self.seconds = self.ranks.agree(request.stopped, elapsed)
                bar.update()
                if self.step % config.log_every == 0 or self._ended:
                    row, not_finite = window.close()
                    if record is not None:
                        record.write({**self._counted, "learning_rate": config.learning_rate * pace, **row})
                    self._check(row, not_finite)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in row.items() if value}, refresh=False)
                if _due(self.step, _COMPARE_EVERY):
                    self.ranks.require_same_tensors(train_step.tensors())
                if record is not None and _due(self.step, config.validate_every) and not self._ended:
                    self._validate(record)
                if record is not None and _due(self.step, config.sample_every):
                    record.draw(train_step, self.step)
                if _due(self.step, config.checkpoint_every) or self._overdue():
                    self._save()

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]], request: StopRequest) -> tuple[Tensor, Tensor] | None:
        """Return the next batch, or None when the run is to stop."""
        try:
            with request.waiting() if self.ranks.count == 1 else nullcontext():  # several agree after an update
                return next(batches)
        except KeyboardInterrupt:
            if request.stopped:
                return None
            raise

    def _overdue(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self._saved_at > 60 * minutes

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and masks of the updates to come, in crops of the size that is due."""
        while True:
            size = self.config.size_at(self._part)
            for batch in self.batches.stream(self.step, size):
                yield batch
                if self.config.size_at(self._part) != size:
                    logger.info("crops of %d pixels from update %d on", self.config.size_at(self._part), self.step)
                    self.train_step.forget_graph()
                    break

    @property
    def _counted(self) -> dict[str, float]:
        return {"step": self.step, "seconds": round(self.seconds, 3)}

    def _validate(self, record: Record) -> None:
        """Measure; keep the weights and the state of the best."""
        scores = record.validate(self.train_step, self._counted)
        if scores is not None and (not self.best or scores[JUDGED] > self.best[JUDGED]):
            self.best = {"step": self.step, **scores}
            self.train_step.result.save_pretrained(self.folder.best)
            self.folder.save_best(self._state())

    def _finish(self) -> None:
        """Leave everything behind that a run leaves, finished or not; the weights first."""
        self.ranks.require_same_tensors(self.train_step.tensors())
        self._save()
        record = self.record
        if record is None:
            return
        self.train_step.result.save_pretrained(self.folder.model)
        if self.train_step.discriminator is not None:
            self.train_step.discriminator.save_pretrained(self.folder.discriminator)
        if self._ended and not record.validated(self.step):
            self._validate(record)
            self._save()
        record.draw_curves()
        if self.config.sample_every:
            record.draw_samples(self.train_step, self.step)
        done = "Ended" if self._ended else "Stopped, to be resumed,"
        record.report(f"{done} after {self.step:,} updates in {self.seconds:,.0f} s of training.", self.best)

    def _state(self) -> dict[str, Any]:
        options = to_mapping(self.config)
        state = {"step": self.step, "seconds": self.seconds, "best": self.best, "config": options}
        state |= {"images": len(self.batches.images), "processes": self.ranks.count}
        return {**state, **self.train_step.state_dict()}

    def _save(self) -> None:
        if not self.train_step.finite():
            raise FloatingPointError(f"a weight is not finite after update {self.step}")
        if self.ranks.main:
            self.folder.save(self.step, self._state(), self.config.keep_checkpoints)
        self._saved_at = time.perf_counter()

    def _load(self) -> None:
        path, saved = self.folder.load(set_aside=self.ranks.main)
        state = modern_names(saved)
        self.step, self.seconds = state.pop("step"), state.pop("seconds", 0.0)
        self.best = state.pop("best", {})
        compare_options(path, state.pop("config", None), self.config, self.step)
        images, processes = state.pop("images", None), state.pop("processes", 1)
        self.ranks.require_same("the update to resume after", self.step)
        compare_circumstances((images, len(self.batches.images)), (processes, self.ranks.count), self.step)
        try:
            self.train_step.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not fit these options: {error}") from error

    def _take_weights(self, source: str) -> None:
        try:
            self.train_step.load_weights(initial_weights(source))
        except RuntimeError as error:
            raise ValueError(f"{source} does not fit these options: {error}") from error
        before, now = blended(source), self.config.poisson_blend
        if before not in (None, now):
            logger.warning("%s was trained with poisson_blend %s, this run has %s", source, before, now)

    def _check(self, row: dict[str, float], not_finite: NotFinite | None) -> None:
        if not_finite is not None:
            path = self.folder.not_finite / f"update-{not_finite.step + 1:08d}.pt"
            if self.ranks.main:
                batch = self.batches.of_update(not_finite.step, not_finite.size)
                save_training_state(path, {"step": not_finite.step, "terms": not_finite.terms, **batch})
            raise FloatingPointError(f"{not_finite}; its batch is in {path}")
        if row["skipped"] == 1:
            raise FloatingPointError(f"no gradients that are finite by update {self.step}")


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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
