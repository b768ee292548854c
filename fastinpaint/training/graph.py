"""A training step as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fastinpaint.inference.graphs import CudaRecorder, Recorder, reason_of

Terms = dict[str, Tensor]
_WARM_UP = 3  # plain steps before the capture: kernels are tuned, optimizers make their state


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
        self.recorder: Recorder = CudaRecorder(device) if recorder is None else recorder
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
            self.failure = reason_of(error)
            warnings.warn(
                f"no CUDA graph of the training step, plain steps go on: {self.failure}", RuntimeWarning, stacklevel=3
            )
