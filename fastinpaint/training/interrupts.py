"""Stopping a run between two updates."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from multiprocessing.context import BaseContext
from types import FrameType, TracebackType

import cv2

_REPEAT = 1.0  # seconds


class StopRequest:
    """Within the block, the first SIGINT (Ctrl-C) or SIGTERM only sets ``stopped``; one a second later acts as usual.

    Repeats within that second count as the same request: ``timeout`` and shells send a signal to a process and to its
    group. Outside the main thread, where Python cannot handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._since = 0.0
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
        if not self.stopped:
            self.stopped, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > _REPEAT:
            self._restore()
            signal.raise_signal(number)

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


def worker_context(cuda: bool) -> BaseContext | None:
    """How data workers start; None is the platform's default.

    A process that uses CUDA has threads of the driver, of a graph's capture and of the loader; a worker forked from
    it may inherit a lock that one of them holds and wait for ever. So workers are forked from a server without threads.
    """
    if not cuda or "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastinpaint.training.samples"])
    return context
