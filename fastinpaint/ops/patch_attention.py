"""Attention over similar k x k patches."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import custom_op, register
from fastinpaint.reference import patch_attention as reference

_OP = "patch_attention"
AGGREGATIONS = ("correlation", "overlap_add")
_LARGEST_KERNEL = 255  # pixels: memory of the reference grows with the square
_NATIVE_LARGEST_KERNEL = 15  # kMaxPatch of csrc/patch_attention.h


def patch_attention(
    features: Tensor,
    *,
    kernel_size: int = 3,
    stride: int = 2,
    softmax_scale: float = 10.0,
    aggregation: str = "correlation",
    backend: str = "auto",
) -> Tensor:
    """Rebuild a feature map from its own patches, weighted by cosine similarity (paper, patch similarity).

    Keys are the k x k patches at ``stride`` with TensorFlow's SAME zero padding, each divided by
    max(L2 norm, 1e-4). beta(p, n) = softmax over n of ``softmax_scale`` * <patch around p, key n>. The result is
    y(p) = sum over offsets d and keys n of beta(p + d - centre, n) * patch_n(d) / 4, a correlation: that is what the
    original system computes. ``aggregation="overlap_add"`` takes beta(p - d + centre, n), a true overlap-add.

    Args:
        features: (B, C, H, W) floating point.
        kernel_size: Patch side k in pixels, odd, at most 255.
        stride: Distance of neighbouring keys in pixels, at least 1.
        softmax_scale: Factor on the similarities.
        aggregation: ``"correlation"`` or ``"overlap_add"``.
        backend: ``"auto"``, ``"triton"`` (GPU), ``"native"`` (CPU; ``kernel_size`` up to 15) or ``"reference"``. For
            the first two memory grows with H * W, not its square; no float64, no second derivatives. Forward-mode
            derivatives and torch.func take the reference.

    Returns:
        (B, C, H, W) in the dtype of ``features``; softmax and sums are float32 for half-precision inputs.

    Raises:
        TypeError: ``features`` is no floating-point tensor, or an option is no number or no integer.
        ValueError: Wrong rank or option.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _checks.check_tensor(_OP, "features", features, "B", "C", "H", "W")
    _checks.check_odd(_OP, "kernel_size", kernel_size, most=_LARGEST_KERNEL)
    _checks.check_integer(_OP, "stride", stride, least=1)
    _checks.check_number(_OP, "softmax_scale", softmax_scale)
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"{_OP}: aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    chosen = _backend.choose(
        _OP, backend, features.device,
        triton=lambda: _backend.triton_reason(features), native=lambda: _native_gap(features, kernel_size),
    )  # fmt: skip
    options = (kernel_size, stride, float(softmax_scale), aggregation == "overlap_add")
    if chosen == "triton":
        return torch.ops.fastinpaint_triton.patch_attention(features, *options)[0]
    wide = _checks.at_least_float32(features)
    if chosen == "native":
        return torch.ops.fastinpaint.patch_attention(wide, *options).to(features.dtype)
    with _checks.without_autocast(features.device):
        return reference.patch_attention(
            wide, kernel_size=kernel_size, stride=stride, softmax_scale=softmax_scale, aggregation=aggregation
        ).to(features.dtype)


def _native_gap(features: Tensor, kernel_size: int) -> str | None:
    if features.dtype == torch.float64:
        return f"it computes in float32, got {features.dtype}"
    if kernel_size > _NATIVE_LARGEST_KERNEL:
        return f"it takes kernel_size up to {_NATIVE_LARGEST_KERNEL}, got {kernel_size}"
    return _backend.native_reason(_OP, features)


@custom_op("fastinpaint_triton::patch_attention")
def _triton(
    features: Tensor, kernel_size: int, stride: int, softmax_scale: float, overlap_add: bool
) -> tuple[Tensor, Tensor]:
    from fastinpaint_kernels import patch_attention as kernels

    with _checks.without_autocast(features.device):
        return kernels.patch_attention_forward(features, kernel_size, stride, softmax_scale, overlap_add)


@custom_op("fastinpaint_triton::patch_attention_backward")
def _triton_backward(
    grad_output: Tensor,
    features: Tensor,
    lse: Tensor,
    kernel_size: int,
    stride: int,
    softmax_scale: float,
    overlap_add: bool,
) -> Tensor:
    from fastinpaint_kernels import patch_attention as kernels

    options = (kernel_size, stride, softmax_scale, overlap_add)
    with _checks.without_autocast(features.device):
        return kernels.patch_attention_backward(grad_output, features, lse, *options)


def _fake(
    namespace: str, features: Tensor, kernel_size: int, stride: int, softmax_scale: float, overlap_add: bool
) -> Any:
    if namespace == "fastinpaint":
        return features.new_empty(features.shape)
    batch, _, height, width = features.shape
    return torch.empty_like(features), features.new_empty((batch, height * width), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    features, *ctx.options = inputs
    kept = () if isinstance(output, Tensor) else output[1:]  # Triton's log-sum-exp
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(features, *kept)


def _backward(namespace: str, ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    run = getattr(torch.ops, namespace).patch_attention_backward
    return run(grad_output, *ctx.saved_tensors, *ctx.options), None, None, None, None


def _backward_fake(namespace: str, grad_output: Tensor, features: Tensor, *options: Any) -> Tensor:
    return features.new_empty(features.shape) if namespace == "fastinpaint" else torch.empty_like(features)


def _register(namespace: str) -> None:
    register(
        namespace,
        _OP,
        fake=partial(_fake, namespace),
        setup_context=_setup_context,
        backward=_backward,
        backward_fake=partial(_backward_fake, namespace),
    )


_register("fastinpaint_triton")
if _backend.has_native(_OP):
    _register("fastinpaint")
