"""Work that is launched as one CUDA graph: its recorder, and a graph for each size that comes again."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_LARGEST = 2**20  # pixels of a batch; above, kernels take longer than their launches, and a graph keeps much memory
_GRAPHS = 4  # kept, the last used ones
_SIZES = 64  # remembered as seen once


class Recorder(Protocol):
    """What runs work apart and records it: CUDA's, or a test's."""

    def warm_up(self, run: Callable[[], Result]) -> Result:
        """Run the work on the stream that will record it."""

    def record(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record the work without running it; return what replays it, and the tensors that a replay fills."""


class CudaRecorder:
    """Records with ``torch.cuda.graph`` on a stream of its own, as PyTorch's notes on CUDA graphs describe."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], Result]) -> Result:
        """Run the work on the stream that will record it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            result = run()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        return result

    def record(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record the work; other threads (the one that pins a loader's memory) may use CUDA meanwhile."""
        drawn = torch.cuda.get_rng_state(self.stream.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                result = run()
        except Exception:
            forget_capture(self.stream.device, drawn)
            raise
        return graph.replay, result


def forget_capture(device: torch.device, drawn: Tensor) -> None:
    """Let the random generator of a GPU, ``cuda:N``, draw again from the state ``drawn`` after a capture that failed.

    It still counts for that capture otherwise, and every later draw raises.
    """
    torch.cuda.synchronize(device)
    for generator in torch.cuda.default_generators:
        if generator.device == device:
            fresh = torch.Generator(device)
            fresh.set_state(drawn)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())


def reason_of(error: BaseException) -> str:
    """Tell in one line why a recording failed: the first error, which the end of the capture may have hidden."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


class _Graph(NamedTuple):
    inputs: list[Tensor]
    replay: Callable[[], None]
    result: Tensor


class GraphPerSize:
    """Calls ``function`` plainly the first time that a size comes, records it the second time, then replays.

    Results are those of plain calls. Batches of more than 2^20 pixels and calls inside autocast stay plain, and so do
    all after a recording failed, which one warning tells. The four graphs used last are kept. Calls of several threads
    take turns; they must come from one CUDA stream.

    Args:
        function: From tensors on the device, images and what goes with them (B, C, H, W), to a tensor. It must never
            wait for the device.
        device: Where it runs.
        held: Returns the tensors that ``function`` reads beside its inputs. Their values may change; where one lies
            elsewhere, what was recorded is not replayed.
        recorder: Of CUDA, unless a test brings its own.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        device: torch.device,
        held: Callable[[], Iterable[Tensor]],
        recorder: Recorder | None = None,
    ) -> None:
        self.function, self.device, self.held = function, device, held
        self.recorder: Recorder = CudaRecorder(device) if recorder is None else recorder
        self.failure: str | None = None
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._turn = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return ``function(*inputs)``; the result is the caller's to keep."""
        area = inputs[0].shape[0] * inputs[0].shape[-2:].numel()
        if self.failure is not None or area > _LARGEST or torch.is_autocast_enabled(self.device.type):
            return self.function(*inputs)
        with self._turn:
            return self._of_size(inputs)

    def _of_size(self, inputs: tuple[Tensor, ...]) -> Tensor:
        places = tuple(tensor.data_ptr() for tensor in self.held())
        key = (places, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs))
        if key not in self._graphs:
            if key not in self._seen:
                _keep(self._seen, key, None, _SIZES)
                return self.recorder.warm_up(lambda: self.function(*inputs))
            try:
                _keep(self._graphs, key, self._record(inputs), _GRAPHS)
            except Exception as error:  # whatever a call does that a graph cannot hold; filling must go on
                self.failure = reason_of(error)
                warnings.warn(f"no CUDA graphs, plain calls go on: {self.failure}", RuntimeWarning, stacklevel=4)
                return self.function(*inputs)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        for own, tensor in zip(graph.inputs, inputs, strict=True):
            own.copy_(tensor)
        graph.replay()
        return graph.result.clone()

    def _record(self, inputs: tuple[Tensor, ...]) -> _Graph:
        own = [torch.empty_like(tensor) for tensor in inputs]
        return _Graph(own, *self.recorder.record(lambda: self.function(*own)))


Kept = TypeVar("Kept")


def _keep(kept: OrderedDict[Hashable, Kept], key: Hashable, value: Kept, most: int) -> None:
    """Add an entry; drop the one used longest ago where there are too many."""
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
