"""A training step as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Terms = dict[str, Tensor]
_WARM_UP = 3  # plain steps before the capture: kernels are tuned, optimizers make their state


class Recorder(Protocol):
    """What runs a step apart and records it: CUDA's, or a test's."""

    def warm_up(self, run: Callable[[], Terms]) -> Terms:
        """Run a step on the stream that will record it."""

    def record(self, run: Callable[[], Terms]) -> tuple[Callable[[], None], Terms]:
        """Record a step without running it; return what replays it, and the tensors that a replay fills."""


class CudaRecorder:
    """Records with ``torch.cuda.graph`` on a stream of its own, as PyTorch's notes on CUDA graphs describe."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], Terms]) -> Terms:
        """Run a step on the stream that will record it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            terms = run()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        return terms

    def record(self, run: Callable[[], Terms]) -> tuple[Callable[[], None], Terms]:
        """Record a step; other threads (the one that pins the loader's memory) may use CUDA meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            terms = run()
        return graph.replay, terms


class GraphedStep:
    """Runs ``step`` plainly three times, records it, then replays the recording: the same updates, one launch each.

    ``step`` must clear gradients with ``set_to_none=True`` itself and never wait for the device. When recording fails,
    one warning tells why and plain steps go on; inputs of other shapes than the first are run plainly, too.

    Args:
        step: Takes tensors on the device and returns scalar tensors by name.
        device: Where it runs.
        recorder: Of CUDA, unless a test brings its own.
    """

    def __init__(self, step: Callable[..., Terms], device: torch.device, recorder: Recorder | None = None) -> None:
        self.step, self.device = step, device
        self.recorder = CudaRecorder(device) if recorder is None else recorder
        self.failure: str | None = None
        self._inputs: list[Tensor] = []
        self._done = 0
        self._replay: Callable[[], None] | None = None
        self._terms: Terms = {}

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed by now."""
        return self._replay is not None

    def __call__(self, *inputs: Tensor) -> Terms:
        """Run one step on inputs from any device; the result is the caller's to keep."""
        if not self._inputs:
            self._inputs = [torch.empty_like(tensor, device=self.device) for tensor in inputs]
        alike = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(inputs, self._inputs, strict=True))
        if self.failure is not None or not alike:
            return self.step(*(tensor.to(self.device, non_blocking=True) for tensor in inputs))
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor, non_blocking=True)
        self._done += 1
        if self._done <= _WARM_UP:
            return self.recorder.warm_up(self._run)
        if self._replay is None:
            self._record()
        if self._replay is None:
            return self._run()
        self._replay()
        return dict(zip(self._terms, torch.stack(list(self._terms.values())).unbind(), strict=True))

    def _run(self) -> Terms:
        return self.step(*self._inputs)

    def _record(self) -> None:
        try:
            self._replay, self._terms = self.recorder.record(self._run)
        except Exception as error:  # whatever a step does that a graph cannot hold; the run must go on
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            lines = str(first).strip().splitlines()
            self.failure = f"{type(first).__name__}: {lines[0] if lines else ''}"
            warnings.warn(
                f"no CUDA graph of the training step, plain steps go on: {self.failure}", RuntimeWarning, stacklevel=3
            )
