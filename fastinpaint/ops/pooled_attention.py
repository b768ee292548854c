"""Attention of all positions over pooled keys."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import pooled_attention as reference

_OP = "pooled_attention"
_TRITON_WIDEST = 64  # MAX_WIDTH of fastinpaint_kernels.pooled_attention


def pooled_attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """softmax(query key^T) value, without the usual 1 / sqrt(d) (paper, attention layer).

    Logits, softmax and sums are float32 for half-precision inputs, also under autocast: unscaled logits would lose
    their order in half precision.

    Args:
        query: (B, N, d) floating point.
        key: (B, M, d), M at least 1, the dtype of ``query``.
        value: (B, M, dv), the dtype of ``query``.
        backend: ``"auto"``, ``"triton"`` (GPU; d and dv up to 64, any dtype but float64; logits in float32, see
            ``fastinpaint_kernels.pooled_attention`` for their precision), ``"native"`` (CPU) or ``"reference"``. The
            first two need memory for N + M, not for N * M, and their gradients cannot be differentiated again.

    Returns:
        (B, N, dv) in the dtype of ``query``; each row a convex combination of the rows of ``value``.

    Raises:
        TypeError: A tensor of the wrong type, or dtypes that differ.
        ValueError: Shapes that do not fit, different devices, or a backend that cannot serve.
    """
    _check(query, key, value)
    triton, native = _triton_reason(query, key, value), _native_reason(query, key, value)
    chosen = _backend.select(_OP, backend, _backend.ranked(query.device, triton=triton, native=native))
    if chosen == "triton":
        return torch.ops.fastinpaint_triton.pooled_attention(query, key, value)[0]
    with torch.autocast(query.device.type, enabled=False):
        wide = (_checks.at_least_float32(tensor) for tensor in (query, key, value))
        if chosen == "native":  # reads dense rows: made so once, for both directions
            dense = (tensor.contiguous() for tensor in wide)
            return torch.ops.fastinpaint.pooled_attention(*dense)[0].to(query.dtype)
        return reference.pooled_attention(*wide).to(query.dtype)


def _triton_reason(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    width = max(query.shape[2], value.shape[2])
    if not 1 <= width <= _TRITON_WIDEST:
        return f"it takes widths up to {_TRITON_WIDEST}, got {width}"
    rows = max(query.shape[1], key.shape[1])
    if rows * width >= 2**31:
        return f"it takes fewer than 2**31 elements for each image, got {rows} x {width}"
    return _backend.triton_reason(query, key, value)


def _native_reason(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if query.dtype == torch.float64:
        return "float64 needs the reference"
    return _backend.native_reason(_OP, query, key, value)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    _checks.check_tensor(_OP, "query", query, "(B, N, d)")
    batch, _, width = query.shape
    _checks.check_tensor(_OP, "key", key, f"({batch}, M, {width})")
    _checks.check_tensor(_OP, "value", value, f"({batch}, {key.shape[1]}, dv)")
    if key.shape[1] == 0:
        raise ValueError(f"{_OP}: key must hold at least one position, got {tuple(key.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"{_OP}: dtypes must be equal, got {query.dtype}, {key.dtype}, {value.dtype}")
    _checks.check_same_device(_OP, query=query, key=key, value=value)


@torch.library.custom_op("fastinpaint_triton::pooled_attention", mutates_args=())
def _triton_forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from fastinpaint_kernels import pooled_attention as kernels

    return kernels.pooled_attention_forward(query, key, value)


@torch.library.custom_op("fastinpaint_triton::pooled_attention_backward", mutates_args=())
def _triton_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from fastinpaint_kernels import pooled_attention as kernels

    return kernels.pooled_attention_backward(grad, query, key, value, output, lse)


def _fake(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, queries, _ = query.shape
    output = query.new_empty((batch, queries, value.shape[2]))
    return output, query.new_empty((batch, queries), dtype=torch.float32)


def _backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _register(namespace: str) -> None:
    """Tell torch about shapes and gradients of the operator and of its backward pass."""
    forward, backward = f"{namespace}::{_OP}", f"{namespace}::{_OP}_backward"

    def run_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        run = getattr(torch.ops, namespace).pooled_attention_backward
        gradients: tuple[Tensor, Tensor, Tensor] = run(grad, *ctx.saved_tensors)
        return gradients

    torch.library.register_fake(forward, _fake)
    torch.library.register_autograd(forward, run_backward, setup_context=_setup)
    torch.library.register_fake(backward, _backward_fake)
    torch.library.register_autograd(backward, _backend.no_second_derivative(_OP))


_register("fastinpaint_triton")
if _backend.has_native(_OP):
    _register("fastinpaint")
