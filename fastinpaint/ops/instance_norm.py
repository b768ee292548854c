"""Instance norm with residual, ReLU and the reflect padding of the next convolution in one operator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import custom_op, empty_map, register
from fastinpaint.reference import instance_norm as reference

_OP = "instance_norm"


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    relu: bool = False,
    padding: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Normalise every channel of every image, then add, activate and pad.

    n = weight * (x - mean) / sqrt(variance + eps) + bias with the biased variance, as ``torch.nn.InstanceNorm2d``.
    The result is relu(n + residual), or with ``scale`` residual + scale * relu(n); either without the ReLU unless
    ``relu``. It is reflected at its border. Statistics are float32 for half-precision maps, also under autocast.

    Args:
        x: (B, C, H, W) floating point, H W at least 2. Channels-last and contiguous maps keep their layout.
        weight: (C), any floating dtype, or None for 1.
        bias: (C), any floating dtype, or None for 0.
        eps: Added to the variance.
        residual: (B, C, H, W), any floating dtype; may be the interior view of a padded map.
        scale: One element, any floating dtype.
        relu: Whether negative values become 0.
        padding: Reflect padding of the result in pixels, less than H and W.
        backend: ``"auto"``, ``"triton"`` (GPU; any dtype but float64), ``"native"`` (CPU) or ``"reference"``. The
            gradients of the first two cannot be differentiated again. Forward-mode derivatives and torch.func take
            the reference.

    Returns:
        (B, C, H + 2 padding, W + 2 padding) in the dtype of ``x``.

    Raises:
        TypeError: A tensor of the wrong type, or an option that is no number or no integer.
        ValueError: Shapes that do not fit, or different devices.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _check(x, weight, bias, eps, residual, scale, padding)
    tensors = [tensor for tensor in (x, weight, bias, residual, scale) if tensor is not None]
    chosen = _backend.choose(
        _OP, backend, x.device,
        triton=lambda: _triton_gap(tensors, padding), native=lambda: _backend.native_reason(_OP, *tensors),
    )  # fmt: skip
    if chosen == "triton":
        run = torch.ops.fastinpaint_triton.instance_norm
        return run(x, weight, bias, residual, scale, float(eps), relu, padding)[0]
    real = _real(x)
    weight, bias = (None if t is None else t.to(real) for t in (weight, bias))
    residual = None if residual is None else residual.to(x.dtype)
    if chosen == "native":
        scale = None if scale is None else scale.to(real)
        return torch.ops.fastinpaint.instance_norm(x, weight, bias, residual, scale, float(eps), relu, padding)[0]
    scale = None if scale is None else scale.to(x.dtype)
    with _checks.without_autocast(x.device):
        return reference.instance_norm(x, weight, bias, eps, residual, scale, relu, padding)


def _real(x: Tensor) -> torch.dtype:
    """The dtype of statistics and parameters."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _triton_gap(tensors: Sequence[Tensor], padding: int) -> str | None:
    gap = _backend.triton_reason(*tensors)
    if gap is not None:
        return gap
    channels, height, width = tensors[0].shape[1:]
    if channels * (height + 2 * padding) * (width + 2 * padding) >= 2**31:
        return f"it takes fewer than 2**31 elements for each image of the result, got {tuple(tensors[0].shape)}"
    return None


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    scale: Tensor | None,
    padding: int,
) -> None:
    _checks.check_tensor(_OP, "x", x, "B", "C", "H", "W")
    _checks.check_number(_OP, "eps", eps)
    _checks.check_integer(_OP, "padding", padding, least=0)
    batch, channels, height, width = x.shape
    if height * width < 2:
        raise ValueError(f"{_OP}: x must hold at least 2 pixels in each channel, got {tuple(x.shape)}")
    if not padding < min(height, width):
        raise ValueError(f"{_OP}: padding must be less than height and width, got {padding}, {tuple(x.shape)}")
    if weight is not None:
        _checks.check_tensor(_OP, "weight", weight, channels)
    if bias is not None:
        _checks.check_tensor(_OP, "bias", bias, channels)
    if residual is not None:
        _checks.check_tensor(_OP, "residual", residual, batch, channels, height, width)
    if scale is not None:
        _checks.check_tensor(_OP, "scale", scale, 1)
    _checks.check_same_device(_OP, x=x, weight=weight, bias=bias, residual=residual, scale=scale)


@custom_op("fastinpaint_triton::instance_norm")
def _triton(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    eps: float,
    relu: bool,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from fastinpaint_kernels import instance_norm as kernels

    return kernels.instance_norm_forward(x, weight, bias, residual, scale, eps, relu, padding)


@custom_op("fastinpaint_triton::instance_norm_backward")
def _triton_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    relu: bool,
    padding: int,
    residual_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from fastinpaint_kernels import instance_norm as kernels

    return kernels.instance_norm_backward(
        grad, x, mean, rstd, weight, bias, residual, scale, relu, padding, residual_gradient
    )


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    eps: float,
    relu: bool,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = [x.new_empty(x.shape[:2], dtype=_real(x)) for _ in range(2)]
    return empty_map(x, x.shape[1], 2 * padding), statistics[0], statistics[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, residual, scale, _, relu, padding = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.relu, ctx.padding = relu, padding
    ctx.residual_dtype = None if residual is None else residual.dtype
    seen = residual if relu and scale is None else None  # what the ReLU's mask depends on
    ctx.save_for_backward(x, *output[1:], weight, bias, seen, scale)


def _backward(namespace: str, ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    weight, bias, _, scale = saved[3:]
    grad_residual = None
    wanted = ctx.needs_input_grad[3]
    same = ctx.padding == 0 and (not ctx.relu or scale is not None)  # then the residual's gradient is the result's
    run = getattr(torch.ops, namespace).instance_norm_backward
    grad_x, sums, written = run(grad, *saved, ctx.relu, ctx.padding, wanted and not same)
    if wanted:
        grad_residual = (grad if same else written).to(ctx.residual_dtype)
    grad_weight = sums[1].to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
    grad_bias = sums[0].to(bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
    grad_scale = sums[2].sum(0, keepdim=True).to(scale.dtype) if scale is not None and ctx.needs_input_grad[4] else None
    return grad_x, grad_weight, grad_bias, grad_residual, grad_scale, None, None, None


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    relu: bool,
    padding: int,
    residual_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_residual = empty_map(x, x.shape[1], dtype=grad.dtype) if residual_gradient else grad.new_empty((0,))
    return empty_map(x, x.shape[1]), x.new_empty((3, x.shape[1]), dtype=_real(x)), grad_residual


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
