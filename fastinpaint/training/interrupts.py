"""Stopping a run between two updates."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import cv2


class StopRequest:
    """Within the block, the first SIGINT (Ctrl-C) or SIGTERM only sets ``stopped``; a second one acts as usual.

    Outside the main thread, where Python cannot handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}


def prepare_worker(worker: int) -> None:
    """Let a data worker outlive signals that reach the trainer's whole process group; the trainer ends its workers.

    OpenCV's own threads are off: workers are as many as cores, and its pool does not survive a fork.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
