"""Convolution with bias and ReLU; on a CPU by Winograd's method where that takes less time."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import empty_map, register
from fastinpaint.reference import conv2d as reference

_OP = "conv2d"
_CHANNEL_GROUP = 16  # kChannelGroup of csrc/cpu/conv2d.h
_KERNELS = (3, 5)
_MOST = 2**31 - 1  # pixels
_LEAST_PRODUCT = 64 * 32  # of the numbers of channels: with fewer, transforms take longer than what they save


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` does, and activate.

    The native backend uses Winograd's method (Lavin and Gray, 2016) on tiles of 6 x 6 pixels: a kernel of 3 x 3 takes
    a quarter of the products, one of 5 x 5 36 in place of 100. Rounding errors are one to two times those of a
    direct convolution. A NaN or an infinity reaches every pixel of the tiles that read it.

    Args:
        x: (B, C, H, W). Channels-last maps keep their layout and are faster; contiguous ones are copied twice.
        weight: (out, C, k, k).
        bias: (out), or None.
        stride: Step in pixels.
        padding: Zeros on every side, in pixels.
        dilation: Distance of neighbouring taps in pixels.
        relu: Whether negative values become 0.
        backend: ``"auto"``, ``"native"`` (CPU, float32, stride 1, kernels of 3 x 3 or 5 x 5, padding at most
            dilation (k - 1), numbers of channels that are multiples of 16) or ``"reference"`` (PyTorch). ``"auto"`` is
            the first for at least 2048 pairs of channels outside autocast, unless `use_backend` or
            ``FASTINPAINT_BACKEND`` says otherwise. Forward-mode derivatives and torch.func take the reference.

    Returns:
        (B, out, h, w) with h = floor((H + 2 padding - dilation (k - 1) - 1) / stride) + 1, in the dtype of ``x``.

    Raises:
        TypeError: A tensor or an option of the wrong type, or different dtypes outside autocast.
        ValueError: Shapes that do not fit, or different devices.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _check(x, weight, bias, stride, padding, dilation)
    if backend == "auto" and x.device.type != "cpu":  # nothing to choose
        return reference.conv2d(x, weight, bias, stride, padding, dilation, relu)
    gap = _native_gap(x, weight, bias, stride, padding, dilation)
    considered = backend != "auto" or (gap is None and _pays(x, weight))
    if considered and _backend.choose(_OP, backend, x.device, native=lambda: gap) == "native":
        return torch.ops.fastinpaint.conv2d(x, weight, bias, padding, dilation, relu)
    return reference.conv2d(x, weight, bias, stride, padding, dilation, relu)


def _pays(x: Tensor, weight: Tensor) -> bool:
    # Of channels only, so that a compiled graph holds for every size of picture.
    return weight.shape[0] * weight.shape[1] >= _LEAST_PRODUCT and not torch.is_autocast_enabled("cpu")


def _native_gap(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int) -> str | None:
    """Why the extension cannot run the call."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    outer, inner, kernel, _ = weight.shape
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return f"it takes float32, got {', '.join(str(tensor.dtype) for tensor in tensors)}"
    if kernel not in _KERNELS or stride != 1 or padding > dilation * (kernel - 1):
        return (
            "it takes kernels of 3 x 3 or 5 x 5, stride 1 and padding up to dilation (k - 1), "
            f"got {kernel} x {kernel}, stride {stride}, padding {padding}"
        )
    if inner % _CHANNEL_GROUP or outer % _CHANNEL_GROUP or not inner:
        return f"it takes multiples of {_CHANNEL_GROUP} channels, got {inner} and {outer}"
    return _backend.native_reason(_OP, *tensors)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int) -> None:
    _checks.check_tensor(_OP, "x", x, "B", "C", "H", "W")
    _checks.check_tensor(_OP, "weight", weight, "out", x.shape[1], "k", "k")
    _checks.check_integer(_OP, "stride", stride, least=1)
    _checks.check_integer(_OP, "padding", padding, least=0, most=_MOST)
    _checks.check_integer(_OP, "dilation", dilation, least=1, most=_MOST)
    outer, _, height, width = weight.shape
    if height != width or height == 0:
        raise ValueError(f"{_OP}: weight must be of k x k pixels, got {tuple(weight.shape)}")
    if min(x.shape[2:]) + 2 * padding <= dilation * (height - 1):
        raise ValueError(
            f"{_OP}: x with its padding must be at least {dilation * (height - 1) + 1} pixels high and wide, "
            f"got {tuple(x.shape)} and padding {padding}"
        )
    tensors = {"x": x, "weight": weight}
    if bias is not None:
        tensors["bias"] = _checks.check_tensor(_OP, "bias", bias, outer)
    _checks.check_same_device(_OP, **tensors)
    casts = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if not casts and any(tensor.dtype != x.dtype for tensor in tensors.values()):
        found = ", ".join(f"{name} of {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(f"{_OP}: all tensors must have one dtype, got {found}")


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, relu: bool) -> Tensor:
    return empty_map(x, weight.shape[0], 2 * padding - dilation * (weight.shape[2] - 1))


def _backward_fake(grad: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    return empty_map(grad, weight.shape[1], dilation * (weight.shape[2] - 1) - 2 * padding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.padding, ctx.dilation, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)


def _backward(namespace: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, output = ctx.saved_tensors
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    geometry, ops = (ctx.padding, ctx.dilation), torch.ops.fastinpaint
    grad_x = ops.conv2d_backward(grad, weight, *geometry) if ctx.needs_input_grad[0] else None
    grad_weight = ops.conv2d_weight_backward(grad, x, weight, *geometry) if ctx.needs_input_grad[1] else None
    grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias, None, None, None


# Both gradients are linear in each of their operands, and their own gradients are convolutions again.


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(grad, weight)


def _backward_of_backward(namespace: str, ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    geometry, ops = (ctx.padding, ctx.dilation), torch.ops.fastinpaint
    grad_grad = ops.conv2d(slope, weight, None, *geometry, False) if ctx.needs_input_grad[0] else None
    grad_weight = ops.conv2d_weight_backward(grad, slope, weight, *geometry) if ctx.needs_input_grad[1] else None
    return grad_grad, grad_weight, None, None


def _weight_fake(grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    return torch.empty_like(weight)


def _setup_weight_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, _, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(grad, x)


def _backward_of_weight(namespace: str, ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    geometry, ops = (ctx.padding, ctx.dilation), torch.ops.fastinpaint
    grad_grad = ops.conv2d(x, slope, None, *geometry, False) if ctx.needs_input_grad[0] else None
    grad_x = ops.conv2d_backward(grad, slope, *geometry) if ctx.needs_input_grad[1] else None
    return grad_grad, grad_x, None, None, None


if _backend.has_native(_OP):
    register(
        "fastinpaint",
        _OP,
        fake=_fake,
        setup_context=_setup_context,
        backward=_backward,
        backward_fake=_backward_fake,
        backward_of_backward=_backward_of_backward,
        setup_backward_context=_setup_backward_context,
    )
    register(
        "fastinpaint",
        "conv2d_weight_backward",
        fake=_weight_fake,
        setup_context=_setup_weight_context,
        backward=_backward_of_weight,
    )
