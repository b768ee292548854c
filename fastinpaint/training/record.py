"""What a run leaves for people to see: rows of metrics, curves, samples, validation, TensorBoard, a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastinpaint.training.batches import Batches
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.metrics import MetricsLog, draw_curves, read_metrics
from fastinpaint.training.report import write_report
from fastinpaint.training.run_folder import RunFolder
from fastinpaint.training.samples import COLUMNS, draw_samples
from fastinpaint.training.tensorboard import TensorBoard
from fastinpaint.training.train_step import TrainStep
from fastinpaint.training.validation import JUDGED, Validation
from fastinpaint.visualize.sheets import draw_sheet

logger = logging.getLogger(__name__)


class Record:
    """Written into the run's folder by its main process.

    Args:
        config: Options of the run.
        folder: Of the run.
        batches: Whose first images are the samples.

    Raises:
        FileNotFoundError, ValueError: Nothing to read at ``config.validation``.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, batches: Batches) -> None:
        self.config, self.folder, self.batches = config, folder, batches
        self.validation = (
            Validation(config.validation, config.masks, config.image_size, config.validation_count)
            if config.validation is not None
            else None
        )
        self._board: TensorBoard | None = None
        self._log: MetricsLog | None = None

    def open(self, step: int) -> None:
        """Begin to write after update ``step``; rows of later updates are dropped.

        Raises:
            ImportError: TensorBoard is asked for and not installed.
        """
        self.folder.write(self.folder.config, self.config.to_yaml())
        self._board = TensorBoard(self.folder.tensorboard, step) if self.config.tensorboard else None
        self._log = MetricsLog(self.folder.metrics, step, self._board)

    def close(self) -> None:
        """Finish writing."""
        if self._board is not None:
            self._board.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics."""
        if self._log is not None:
            self._log.write(row)

    def draw(self, train_step: TrainStep, step: int) -> None:
        """Draw the samples and the curves as they are after update ``step``."""
        self.draw_samples(train_step, step)
        self.draw_curves()

    def draw_samples(self, train_step: TrainStep, step: int) -> None:
        """Draw what the generator makes of the first pictures."""
        rows = draw_samples(train_step, self.batches.images, self.batches.masks, self.config.sample_count)
        if self._board is not None:
            self._board.add_samples(rows, step)
        if rows:
            sheet = [{name: row[name] for name in COLUMNS} for row in rows]
            draw_sheet(sheet, self.folder.samples / f"step_{step:08d}.png")

    def draw_curves(self) -> None:
        """Draw the losses so far; without matplotlib a warning says so."""
        try:
            draw_curves(read_metrics(self.folder.metrics), self.folder.curves)
        except ImportError as error:
            logger.warning("no %s: %s", self.folder.curves.name, error)

    def validate(self, train_step: TrainStep, counted: Mapping[str, float]) -> dict[str, float] | None:
        """Measure, write and return the scores; None without pictures to validate on.

        Args:
            train_step: Whose ``result`` is measured.
            counted: ``step`` and ``seconds`` so far.
        """
        if self.validation is None:
            return None
        scores = self.validation.measure(train_step, self.config.batch_size)
        self.write({**counted, **scores})
        logger.info(
            "update %d: %s", counted["step"], ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        )
        return scores

    def validated(self, step: int) -> bool:
        """Whether there are scores of update ``step``."""
        return any(row["step"] == step and JUDGED in row for row in read_metrics(self.folder.metrics))

    def report(self, state: str, best: Mapping[str, float]) -> None:
        """Write the report; ``state`` says in a sentence what became of the run, ``best`` are its best scores."""
        write_report(self.folder, self.config, state, best)
