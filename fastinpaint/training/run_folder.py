"""The folder of a run: one process at a time, whole checkpoints, nothing left by killed processes."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from fastinpaint.checkpoint.training_state import (
    load_newest_training_state,
    prune_training_states,
    save_training_state,
    training_state_path,
    training_states,
)
from fastinpaint.files import PathLike, atomic_write, remove_temporaries

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """Where everything of a run lies.

    ``config.yaml``, ``metrics.jsonl``, ``losses.png``, ``report.html``, ``samples/``, ``checkpoints/`` (``best.pt``
    among them), ``model/``, ``discriminator/``, ``best/``, ``not-finite/`` and ``tensorboard/``.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "losses.png"
        self.report = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"
        self.model = self.path / "model"
        self.best = self.path / "best"
        self.discriminator = self.path / "discriminator"
        self.not_finite = self.path / "not-finite"
        self._lock: TextIO | None = None

    def claim(self) -> None:
        """Keep other processes out until `release` or the death of this one; remove what killed ones left.

        Raises:
            BlockingIOError: A run is going on here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            _lock(lock)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise BlockingIOError(
                f"a run is going on in {self.path}{f' ({owner})' if owner else ''}; take another --output"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self._lock = lock
        remove_temporaries(
            self.path,
            self.checkpoints,
            self.samples,
            self.model,
            self.discriminator,
            self.best,
            self.not_finite,
        )
        for decoded in self.path.glob("decoded*.u8"):
            decoded.unlink()

    def release(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write(self, path: Path, text: str) -> None:
        """Write a text file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def save(self, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Write the checkpoint of a step, then remove all but the ``keep`` newest."""
        save_training_state(training_state_path(self.checkpoints, step), state)
        prune_training_states(self.checkpoints, keep)

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Write ``checkpoints/best.pt``, which is never removed."""
        save_training_state(self.checkpoints / "best.pt", state)

    def load(self, *, set_aside: bool = True) -> tuple[Path, dict[str, Any]]:
        """Return the newest whole checkpoint; damaged newer ones are named, and renamed so that they count no more.

        Raises:
            FileNotFoundError: There is no checkpoint.
            ValueError: All of them are damaged.
        """
        newest = load_newest_training_state(self.checkpoints)
        for path in newest.damaged if set_aside else ():
            path.rename(path.with_name(f"{path.name}.damaged"))
            logger.warning("%s is now called %s.damaged", path, path.name)
        return newest.path, newest.state

    def saved(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return training_states(self.checkpoints)

    def kept(self) -> str:
        """Say in half a sentence what a failed run can go on from."""
        saved = self.saved()
        return f"the last checkpoint is {saved[-1]}" if saved else "nothing was saved"


def is_no_space(error: OSError) -> bool:
    """Say whether a write failed because the disk, the quota or the largest file size is reached."""
    return error.errno in _NO_SPACE


def _lock(file: TextIO) -> None:
    """Lock a file for this process alone. Unlike flock's, these locks do not pass on to forked data workers.

    Raises:
        BlockingIOError, PermissionError: Another process holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise
        logger.warning("%s cannot be locked (%s): see to it that no other run writes here", file.name, error)
