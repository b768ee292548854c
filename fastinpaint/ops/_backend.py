"""Which implementation of an operator serves a call."""

import contextlib
import functools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch.autograd import forward_ad

BACKENDS = ("triton", "native", "reference")
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ORDER = {
    "cuda": ("triton", "native", "reference"),
    "cpu": ("native", "reference", "triton"),
    "meta": ("reference", "native", "triton"),
}
_Function = TypeVar("_Function", bound=Callable[..., object])
_CHOSEN: ContextVar[str] = ContextVar("fastinpaint_backend", default="auto")


class BackendUnavailable(ValueError):
    """The backend that a call names cannot run it.

    Attributes:
        op: Public name of the operator.
        backend: The backend that was named.
        reasons: Why not, for each backend that cannot run the call, ``backend`` among them.
    """

    def __init__(self, op: str, backend: str, reasons: Mapping[str, str]) -> None:
        super().__init__(op, backend, dict(reasons))
        self.op, self.backend, self.reasons = op, backend, dict(reasons)

    def __str__(self) -> str:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        return f"{self.op}: backend {self.backend!r} cannot serve this call ({reasons})"


def compile_time_constant(function: _Function) -> _Function:
    """Let torch.compile call ``function`` once, while it traces, and keep what it returned.

    It does what ``torch.compiler.assume_constant_result`` does, which imports all of torch.compile: that takes almost
    as long as importing torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend of every operator that is called without one inside the block.

    ``with fastinpaint.use_backend("reference"):`` does what ``backend="reference"`` does for each call in it, in this
    thread or task; inner blocks win over outer ones. What torch.compile has compiled keeps the backend it was compiled
    with.

    Args:
        name: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``.

    Raises:
        ValueError: Another name.
        BackendUnavailable: At a call that the backend cannot run.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"use_backend: name must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def _not_built(library: str) -> str:
    """Say what kept ``fastinpaint/<library>`` from being built; setup.py leaves it in a file."""
    path = Path(__file__).parents[1] / "_not_built.json"
    with contextlib.suppress(OSError, ValueError):
        reason = json.loads(path.read_text()).get(library)
        if reason:
            return f"the extension fastinpaint.{library} was not built: {reason}"
    return f"the extension fastinpaint.{library} was not built"


def _load(library: str) -> str | None:
    """Load a compiled library, which registers its kernels; return None, or why it cannot be had."""
    try:
        import_module(f"fastinpaint.{library}")
    except ModuleNotFoundError:
        return _not_built(library)
    except (ImportError, OSError) as error:
        return f"the extension fastinpaint.{library} does not load: {error}"
    return None


def _load_cuda() -> str | None:
    """Load the CUDA kernels where torch is a CUDA build; return None, or why there are none."""
    if NATIVE_ERROR is not None:  # `_C` declares the operators
        return NATIVE_ERROR
    return _load("_C_cuda") if torch.version.cuda else "torch is not a CUDA build"


NATIVE_ERROR = _load("_C")
CUDA_ERROR = _load_cuda()


def has_native(op: str) -> bool:
    """Tell whether the extension knows ``fastinpaint::op``; one that was built before the operator does not."""
    return NATIVE_ERROR is None and hasattr(torch.ops.fastinpaint, op)


@compile_time_constant
def _inside_transform() -> bool:
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _is_transformed(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` has a tangent, or is one that grad, vjp or jvp of torch.func differentiate by."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)  # of vmap
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _transform_gap(tensors: tuple[torch.Tensor, ...]) -> str | None:
    """Why the kernels cannot serve: torch.library drops tangents, and does not let torch.func differentiate."""
    if not _inside_transform():
        return None
    transformed = torch.compiler.is_compiling() or any(map(_is_transformed, tensors))
    return 'forward-mode derivatives and torch.func take backend="reference"' if transformed else None


def _only_device(tensors: tuple[torch.Tensor, ...]) -> torch.device | None:
    """The device of all tensors; None if they lie on different ones."""
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            return None
    return device


@functools.cache
def _native_gap(op: str, device_type: str) -> str | None:
    if NATIVE_ERROR is not None:
        return NATIVE_ERROR
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if (
        key is None
        or not has_native(op)
        or not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastinpaint::{op}", key)
    ):
        why = f" ({CUDA_ERROR})" if key == "CUDA" and CUDA_ERROR is not None else ""
        return f"the extension has no {op} for {device_type} tensors{why}"
    return None


@compile_time_constant
def _native_reason(op: str, device_type: str) -> str | None:
    return _native_gap(op, device_type)


def cpu_isa() -> str | None:
    """Name the instruction set that the extension's CPU kernels run on; None without the extension."""
    return str(torch.ops.fastinpaint.cpu_isa()) if NATIVE_ERROR is None else None


def native_reason(op: str, *tensors: torch.Tensor, differentiable: bool = True) -> str | None:
    """Say why ``fastinpaint::op`` of the extension cannot take these tensors; None when it can."""
    gap = _transform_gap(tensors) if differentiable else None
    if gap is not None:
        return gap
    device = _only_device(tensors)
    if device is None:
        return f"tensors lie on different devices: {', '.join(sorted({str(tensor.device) for tensor in tensors}))}"
    return _native_reason(op, device.type)


@functools.cache
def _triton_gap(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if device.type != "cuda":
        return f"it needs CUDA tensors, got {device.type} tensors"
    for package in ("triton", "fastinpaint_kernels"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    unknown = [dtype for dtype in dtypes if dtype not in (*_TRITON_DTYPES, torch.bool)]
    if unknown:
        return f"it takes float32, bfloat16 and float16, got {unknown[0]}"
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or above"
    return None


@compile_time_constant
def _triton_reason(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    return _triton_gap(device, dtypes)


def triton_reason(*tensors: torch.Tensor) -> str | None:
    """Say why the Triton kernels cannot take these tensors; None when they can. Bool maps count as bytes."""
    device = _only_device(tensors)
    if device is None:
        return "tensors lie on different devices"
    return _triton_reason(device, tuple([tensor.dtype for tensor in tensors])) or _transform_gap(tensors)


def ranked(device: torch.device, **gaps: str | None) -> dict[str, str | None]:
    """Candidates for ``select``, best first, from the reasons why the kernels cannot serve.

    Triton comes first on a GPU; elsewhere it is not even worth a warning. On the meta device, where nothing runs, no
    kernel is.
    """
    candidates: dict[str, str | None] = {"reference": None, **gaps}
    return {name: candidates[name] for name in _ORDER.get(device.type, _ORDER["cpu"]) if name in candidates}


@functools.cache
def _announce(op: str, chosen: str, gaps: tuple[tuple[str, str], ...]) -> None:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in gaps)
    warnings.warn(f"fastinpaint.{op} runs on its {chosen} backend ({reasons})", RuntimeWarning, stacklevel=2)


def _first_able(op: str, candidates: tuple[tuple[str, str | None], ...]) -> str | None:
    for index, (name, gap) in enumerate(candidates):
        if gap is None:
            passed_over = tuple((other, reason) for other, reason in candidates[:index] if reason)
            if passed_over:
                _announce(op, name, passed_over)
            return name
    return None


@compile_time_constant
def _wanted(requested: str) -> str:
    """What the call names, or else ``use_backend``, or else the environment; ``"auto"`` if none does."""
    named = _CHOSEN.get() if requested == "auto" else requested
    return (os.environ.get("FASTINPAINT_BACKEND") or "auto") if named == "auto" else named


@compile_time_constant
def _select(op: str, requested: str, candidates: tuple[tuple[str, str | None], ...]) -> str:
    wanted = _wanted(requested)
    requested = _CHOSEN.get() if requested == "auto" else requested
    if wanted not in ("auto", *BACKENDS):
        where = "FASTINPAINT_BACKEND" if requested == "auto" else "backend"
        raise ValueError(f"{op}: {where} must be one of auto, {', '.join(BACKENDS)}, got {wanted!r}")
    table: dict[str, str | None] = {wanted: f"{op} has no such backend", **dict(candidates)}
    if requested == "auto":
        preferred = [] if wanted == "auto" else [(wanted, table[wanted])]
        chosen = _first_able(op, (*preferred, *candidates))
        if chosen is not None:
            return chosen
    elif table[wanted] is None:
        return wanted
    raise BackendUnavailable(op, wanted, {name: gap for name, gap in table.items() if gap and name != "auto"})


def select(op: str, requested: str, candidates: Mapping[str, str | None]) -> str:
    """Choose the backend for one call.

    Args:
        op: Public name of the operator, for messages.
        requested: ``"auto"`` or one of ``BACKENDS``. ``"auto"`` is what `use_backend` names, or else
            ``FASTINPAINT_BACKEND`` where that is set and can serve, else the first candidate that can; it warns once
            about each it had to pass over.
        candidates: Backend name to None (it can serve this call) or to the reason why not; best first.

    Returns:
        The name of the chosen backend.

    Raises:
        ValueError: Unknown backend.
        BackendUnavailable: The requested backend cannot run the call.
    """
    return _select(op, requested, tuple(candidates.items()))


def choose(op: str, requested: str, device: torch.device, **gaps: Callable[[], str | None]) -> str:
    """``select`` among the candidates that ``ranked`` gives, without looking for reasons that do not matter.

    Args:
        op: As for ``select``.
        requested: As for ``select``.
        device: Of the tensors.
        gaps: For each backend beside the reference a function of no arguments, which returns the reason why it cannot
            serve, or None. Most calls ask the best backend of the device alone.
    """
    for best in _ORDER.get(device.type, _ORDER["cpu"]):
        if best == "reference" or best in gaps:
            break
    if _wanted(requested) in ("auto", best) and (best == "reference" or gaps[best]() is None):
        return best
    return select(op, requested, ranked(device, **{name: gap() for name, gap in gaps.items()}))
