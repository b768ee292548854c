"""Stopping a run between two updates, and data workers that survive the signal that stops it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import FrameType, TracebackType

from fastinpaint.extras import extra

with extra("opencv"):
    import cv2


STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_REPEAT = 1.0  # seconds


class StopRequest:
    """Within the block, SIGINT (Ctrl-C), SIGTERM and SIGHUP (a lost terminal) only set ``stopped``.

    A second SIGINT acts as usual; one within a second of the first counts as the same, because ``timeout`` and shells
    signal a process and its group. A signal that is ignored when the block begins stays ignored (``nohup``). Outside
    the main thread, where Python cannot handle signals, the block does nothing.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._since = 0.0
        self._waiting = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this block a signal raises KeyboardInterrupt at once: nothing is half done while waiting for data."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stopped:
            self.stopped, self._since = True, time.monotonic()
            if self._waiting:
                raise KeyboardInterrupt
        elif number == signal.SIGINT and time.monotonic() - self._since > _REPEAT:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Hold back the signals that stop a run; processes that are started within the block never receive them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(worker: int) -> None:
    """Let a data worker outlive signals that reach the trainer's whole process group; only the trainer ends it.

    Start workers within `blocked_signals`, or a signal that comes before this call ends them. OpenCV's own threads are
    off: workers are as many as cores, and its pool does not survive a fork.
    """
    cv2.setNumThreads(0)
    for number in STOPPING:
        if number != signal.SIGTERM or not hasattr(signal, "sigwaitinfo"):
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_the_trainer_says, daemon=True).start()


def _exit_when_the_trainer_says() -> None:
    """End this worker on a SIGTERM that its trainer sent, as the loader does when a worker hangs; ignore others."""
    trainer = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (trainer.pid if trainer else os.getppid()):
        pass
    os._exit(0)


def worker_context(cuda: bool) -> BaseContext:
    """How data workers start: as is the platform's default, but never forked from a process that uses CUDA.

    Such a process has threads of the driver, of a graph's capture and of the loader; a worker forked from it may
    inherit a lock that one of them holds and wait for ever. So workers are forked from a server without threads.
    """
    server = cuda and "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else None)
    if context.get_start_method() != "fork":
        from multiprocessing import forkserver, resource_tracker

        resource_tracker.ensure_running()  # by itself, because it unblocks signals when it starts
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(["fastinpaint.training.sampler"])
            with blocked_signals():
                forkserver.ensure_running()
    return context
