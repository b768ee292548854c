"""Jobs, the threads that do them, and the one thread that owns the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from fastinpaint.models.generator import GeneratorOutput

_job: ContextVar[Job | None] = ContextVar("job", default=None)


class Cancelled(Exception):
    """The client left, the time was up, or the server stops."""


class Job:
    """One request's work: queued, running, finished or cancelled.

    Attributes:
        passes: How often the generator has run for it.
        expected: How often it will have to, about; 0 while unknown.
        running: Whether it has left the queue.
    """

    def __init__(self, work: Callable[[Job], Any]) -> None:
        self._work = work
        self._cancelled = threading.Event()
        self.passes = 0
        self.expected = 0
        self.running = False

    def cancel(self) -> None:
        """Stop before the next pass of the generator."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise `Cancelled` if it is."""
        if self._cancelled.is_set():
            raise Cancelled

    def run(self) -> Any:
        """Do the work in this thread."""
        self.check()
        self.running = True
        token = _job.set(self)
        try:
            return self._work(self)
        finally:
            _job.reset(token)


class Worker:
    """Does jobs in the order in which they came, ``threads`` at once."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job; the future gives its result, or the error that it raised."""
        with self._lock:
            self._jobs.append(job)
        future = self._pool.submit(job.run)
        future.add_done_callback(lambda _: self._forget(job))
        return future

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._jobs.remove(job)

    def ahead_of(self, job: Job) -> int:
        """Count the jobs that come before this one."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def counts(self) -> tuple[int, int]:
        """Count jobs that wait, and jobs that run."""
        with self._lock:
            running = sum(job.running for job in self._jobs)
            return len(self._jobs) - running, running

    def close(self) -> None:
        """Cancel what waits or runs, and wait until it has stopped."""
        with self._lock:
            for job in self._jobs:
                job.cancel()
        self._pool.shutdown()


class _Call:
    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.output: Future[GeneratorOutput] = Future()


class SharedGenerator(nn.Module):
    """A generator that many threads call and one thread runs.

    Calls with inputs of one size that wait at the same time share a pass. A call raises `Cancelled` if the job that its
    thread runs is cancelled.

    Args:
        generator: (B, 11, H, W) -> `GeneratorOutput`.
        batch_size: Most calls that share a pass.
    """

    def __init__(self, generator: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.generator = generator
        self.batch_size = batch_size
        self.passes = 0
        self.calls = 0
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    def forward(self, inputs: Tensor) -> GeneratorOutput:
        """Wait for the turn of this call; inputs (1, 11, H, W)."""
        job = _job.get()
        if job is not None:
            job.check()
        call = _Call(inputs)
        self._queue.put(call)
        output = call.output.result()
        if job is not None:
            job.passes += 1
        return output

    def close(self) -> None:
        """End the thread, after the calls that wait."""
        self._queue.put(None)
        self._thread.join()

    @torch.no_grad()
    def _serve(self) -> None:
        held: list[_Call] = []
        while True:
            if not held:
                call = self._queue.get()
                if call is None:
                    return
                held.append(call)
            while not self._queue.empty():
                call = self._queue.get()
                if call is None:
                    self._queue.put(None)
                    break
                held.append(call)
            shape = held[0].inputs.shape
            batch = [call for call in held if call.inputs.shape == shape][: self.batch_size]
            held = [call for call in held if call not in batch]
            self._run(batch)

    def _run(self, batch: list[_Call]) -> None:
        self.passes += 1
        self.calls += len(batch)
        try:
            output = self.generator(torch.cat([call.inputs for call in batch]))
        except Exception as error:  # it belongs to the callers, whatever it is
            for call in batch:
                call.output.set_exception(error)
            return
        for index, call in enumerate(batch):
            call.output.set_result(_item(output, index))


def _item(output: Any, index: int) -> GeneratorOutput:
    images, gradients = (tuple(scale[index : index + 1] for scale in scales) for scales in output)
    return GeneratorOutput(images, gradients)
