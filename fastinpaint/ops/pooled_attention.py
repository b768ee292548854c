"""Attention of all positions over pooled keys."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import custom_op, register
from fastinpaint.reference import pooled_attention as reference

_OP = "pooled_attention"
_TRITON_WIDEST = 64  # MAX_WIDTH of fastinpaint_kernels.pooled_attention
_MASKED_SCORE = -1e30  # exp of its distance from any other score is 0


def pooled_attention(
    query: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """softmax(query key^T) value, without the usual 1 / sqrt(d) (paper, attention layer).

    Logits, softmax and sums are float32 for half-precision inputs, also under autocast: unscaled logits would lose
    their order in half precision.

    Args:
        query: (B, N, d) floating point.
        key: (B, M, d), M at least 1, the dtype of ``query``.
        value: (B, M, dv), the dtype of ``query``.
        key_mask: (B, M) bool, True at the keys to attend to; None: all. The others have weight 0 whatever key and
            value hold. Where a batch entry has no key to attend to, its output is 0.
        backend: ``"auto"``, ``"triton"`` (GPU; d and dv up to 64, with ``key_mask`` d up to 63, any dtype but
            float64; logits in float32, see ``fastinpaint_kernels.pooled_attention`` for their precision),
            ``"native"`` (CPU) or ``"reference"``. The first two need memory for N + M, not for N * M, and their
            gradients cannot be differentiated again. Forward-mode derivatives and torch.func take the reference.

    Returns:
        (B, N, dv) in the dtype of ``query``; each row a convex combination of the rows of ``value``.

    Raises:
        TypeError: A tensor of the wrong type, or dtypes that differ.
        ValueError: Shapes that do not fit, or different devices.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _check(query, key, value, key_mask)
    width = query.shape[2] + (key_mask is not None)
    tensors = query, key, value
    chosen = _backend.choose(
        _OP, backend, query.device,
        triton=lambda: _triton_gap(*tensors, width), native=lambda: _native_gap(*tensors),
    )  # fmt: skip
    if chosen == "triton" and key_mask is None:
        return torch.ops.fastinpaint_triton.pooled_attention(query, key, value)[0]
    dtype = query.dtype
    with _checks.without_autocast(query.device):
        query, key, value = (_checks.at_least_float32(tensor) for tensor in (query, key, value))
        if chosen == "reference":
            return reference.pooled_attention(query, key, value, key_mask).to(dtype)
        if key_mask is not None:
            query, key, value = _masked(query, key, value, key_mask)
        namespace = torch.ops.fastinpaint_triton if chosen == "triton" else torch.ops.fastinpaint
        # Native reads dense rows: made so once, for both directions.
        return namespace.pooled_attention(query.contiguous(), key.contiguous(), value.contiguous())[0].to(dtype)


def _masked(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operands with a column more, which gives masked keys their score; their keys and values are 0."""
    masked = ~key_mask[..., None]  # (B, M, 1)
    lowered = masked & key_mask.any(1)[:, None, None]  # equal scores where all are masked: 1e30 has no precision left
    query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
    key = torch.cat([key.masked_fill(masked, 0.0), lowered.to(key.dtype) * _MASKED_SCORE], -1)
    return query, key, value.masked_fill(masked, 0.0)


def _triton_gap(query: Tensor, key: Tensor, value: Tensor, query_width: int) -> str | None:
    gap = _backend.triton_reason(query, key, value)
    if gap is not None:
        return gap
    width = max(query_width, value.shape[2])
    if not 1 <= width <= _TRITON_WIDEST:
        return f"it takes widths up to {_TRITON_WIDEST}, got {width}"
    rows = max(query.shape[1], key.shape[1])
    if rows * width >= 2**31:
        return f"it takes fewer than 2**31 elements for each image, got {rows} x {width}"
    return None


def _native_gap(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if query.dtype == torch.float64:
        return "float64 needs the reference"
    return _backend.native_reason(_OP, query, key, value)


def _check(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
    _checks.check_tensor(_OP, "query", query, "B", "N", "d")
    batch, _, width = query.shape
    _checks.check_tensor(_OP, "key", key, batch, "M", width)
    _checks.check_tensor(_OP, "value", value, batch, key.shape[1], "dv")
    if key.shape[1] == 0:
        raise ValueError(f"{_OP}: key must hold at least one position, got {tuple(key.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"{_OP}: dtypes must be equal, got {query.dtype}, {key.dtype}, {value.dtype}")
    if key_mask is not None:
        _checks.check_tensor(_OP, "key_mask", key_mask, batch, key.shape[1], floating=False)
        if key_mask.dtype != torch.bool:
            raise TypeError(f"{_OP}: key_mask must be bool, got {key_mask.dtype}")
    _checks.check_same_device(_OP, query=query, key=key, value=value, key_mask=key_mask)


@custom_op("fastinpaint_triton::pooled_attention")
def _triton(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from fastinpaint_kernels import pooled_attention as kernels

    return kernels.pooled_attention_forward(query, key, value)


@custom_op("fastinpaint_triton::pooled_attention_backward")
def _triton_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from fastinpaint_kernels import pooled_attention as kernels

    return kernels.pooled_attention_backward(grad, query, key, value, output, lse)


def _fake(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, queries, _ = query.shape
    output = query.new_empty((batch, queries, value.shape[2]))
    return output, query.new_empty((batch, queries), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(namespace: str, ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    run = getattr(torch.ops, namespace).pooled_attention_backward
    gradients: tuple[Tensor, Tensor, Tensor] = run(grad, *ctx.saved_tensors)
    return gradients


def _backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _register(namespace: str) -> None:
    register(
        namespace,
        _OP,
        fake=_fake,
        setup_context=_setup_context,
        backward=_backward,
        backward_fake=_backward_fake,
    )


_register("fastinpaint_triton")
if _backend.has_native(_OP):
    _register("fastinpaint")
