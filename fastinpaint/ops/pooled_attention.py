"""Attention of all positions over pooled keys."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import pooled_attention as reference

_OP = "pooled_attention"


def pooled_attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """softmax(query key^T) value, without the usual 1 / sqrt(d) (paper, attention layer).

    Logits, softmax and sums are float32 for half-precision inputs, also under autocast: unscaled logits would lose
    their order in half precision.

    Args:
        query: (B, N, d) floating point.
        key: (B, M, d), M at least 1, the dtype of ``query``.
        value: (B, M, dv), the dtype of ``query``.
        backend: ``"auto"``, ``"native"`` (CPU; memory grows with N + M, not with N * M; the gradients cannot be
            differentiated again) or ``"reference"``.

    Returns:
        (B, N, dv) in the dtype of ``query``; each row a convex combination of the rows of ``value``.

    Raises:
        TypeError: A tensor of the wrong type, or dtypes that differ.
        ValueError: Shapes that do not fit, different devices, or a backend that cannot serve.
    """
    _check(query, key, value)
    chosen = _backend.select(_OP, backend, {"native": _native_reason(query, key, value), "reference": None})
    with torch.autocast(query.device.type, enabled=False):
        wide = (_checks.at_least_float32(tensor) for tensor in (query, key, value))
        if chosen == "native":
            return torch.ops.fastinpaint.pooled_attention(*wide)[0].to(query.dtype)
        return reference.pooled_attention(*wide).to(query.dtype)


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


def _fake(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, queries, _ = query.shape
    return query.new_empty((batch, queries, value.shape[2])), query.new_empty((batch, queries))


def _backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.fastinpaint.pooled_attention_backward(grad, *ctx.saved_tensors)
    return gradients


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(f'{_OP}: the native backend has no second derivatives; use backend="reference"')


if hasattr(torch.ops.fastinpaint, _OP):
    torch.library.register_fake("fastinpaint::pooled_attention", _fake)
    torch.library.register_autograd("fastinpaint::pooled_attention", _backward, setup_context=_setup)
    torch.library.register_fake("fastinpaint::pooled_attention_backward", _backward_fake)
    torch.library.register_autograd("fastinpaint::pooled_attention_backward", _no_second_derivative)
