"""Canny edges and the grey image that they are taken of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinpaint.ops._backend import choose, compile_time_constant, has_native, native_reason
from fastinpaint.ops._checks import check_dense, check_integer, check_number
from fastinpaint.ops._registration import register_vmap
from fastinpaint.reference import canny as reference
from fastinpaint.reference.canny import gaussian_weights
from fastinpaint.reference.nearest import nearest_resize

_WIDE_SIGMA = (
    256.0  # pixels: the 1,025 weights of a Gaussian up to here are handed over whole, whatever the image's size
)
MAX_SIGMA = 1e6  # pixels
_INTEGERS_AND_BOOL = (
    torch.bool, torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32
)  # fmt: skip


def rgb_to_gray(image: Tensor) -> Tensor:
    """Grey image of a colour image: ``(0.2125 R + 0.7154 G) + 0.0721 B``, in that order of operations.

    The weights are those of ``skimage.color.rgb2gray``, whose last bit depends on the BLAS that NumPy uses; this
    one's does not.

    Args:
        image: (B, 3, H, W), floating point, any range.

    Returns:
        (B, 1, H, W) of the same dtype. Differentiable.

    Raises:
        TypeError: ``image`` is not a floating-point tensor.
        ValueError: ``image`` has another shape.
    """
    _check_image("rgb_to_gray", image, channels=(3,))
    return reference.rgb_to_gray(image)


def canny(
    image: Tensor,
    *,
    sigma: float = 1.5,
    low_threshold: float | None = None,
    high_threshold: float | None = None,
    mask: Tensor | None = None,
    use_quantiles: bool = False,
    mode: str = "constant",
    cval: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Edges of each image, pixel for pixel those of ``skimage.feature.canny`` (0.26) on the same grey image.

    Gaussian blur (with zeros outside, renormalised by the part of the Gaussian that lies inside), Sobel gradients,
    non-maximum suppression with bilinear interpolation, and hysteresis over 8-connected pixels. A pixel of the
    outermost ring is never an edge. Source: Canny, "A Computational Approach to Edge Detection", PAMI 1986, in the form
    that scikit-image gives it.

    It is computed in float64 for images of float64, integers and bool, in float32 for all others. Where an image has
    ties (steps, few levels), the two find different edges, as in scikit-image.

    Args:
        image: (B, 1, H, W) grey or (B, 3, H, W) RGB (greyed by ``rgb_to_gray``). Floating point: finite, any range.
            Integers of up to 32 bits, as in scikit-image: divided by their type's largest value. Bool: 0 and 1.
        sigma: Standard deviation of the Gaussian in pixels; 0 leaves the image unblurred. Cut off at 4 sigma.
        low_threshold: Least gradient magnitude of an edge pixel, in units of the image's values (of its integers, if it
            has integers): absolute, as in scikit-image. The Sobel weights are not normalised (a unit step has magnitude
            4). None: 0.1, and for integers 0.1 of their type's largest value.
        high_threshold: Gradient magnitude that at least one pixel of an edge must reach. None: 0.2 likewise.
        mask: (B, 1, H, W) or (1, 1, H, W) bool, True where the image counts; None: everywhere. A pixel next to one
            that does not count is never an edge.
        use_quantiles: The thresholds are quantiles of each image's gradient magnitudes, from 0 to 1.
        mode: What lies outside the image for the blur: ``"constant"`` (``cval``), ``"nearest"``, ``"reflect"``,
            ``"mirror"`` or ``"wrap"``, as in ``scipy.ndimage``.
        cval: See ``mode``.
        backend: ``"auto"``, ``"native"`` or ``"reference"``. The native kernels take absolute thresholds, mode
            ``"constant"`` and a ``cval`` of 0; on CUDA float32 and less alone.

    Returns:
        (B, 1, H, W) bool, True on an edge. Not differentiable: no gradient reaches ``image``.

    Raises:
        TypeError: ``image`` has another type, ``mask`` is not bool, or an option is no number.
        ValueError: A shape, ``sigma``, the thresholds or ``mode`` do not fit.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _check_image("canny", image, channels=(1, 3), floating=False)
    if mode not in reference.MODES:
        raise ValueError(f"canny: mode must be one of {', '.join(reference.MODES)}, got {mode!r}")
    check_number("canny", "sigma", sigma, least=0, below=MAX_SIGMA)
    check_number("canny", "cval", cval)
    low, high = _thresholds("canny", image, low_threshold, high_threshold, use_quantiles)
    _check_mask(image, mask)
    image = _as_taken(image)
    plain = not use_quantiles and mode == "constant" and cval == 0
    chosen = choose("canny", backend, image.device, native=lambda: _native_gap("canny", image, mask, plain))
    if chosen == "native":
        weights = _weights(sigma, [image.shape[-2:]])
        result: Tensor = torch.ops.fastinpaint.canny(image, weights, low, high, mask)
        return result
    weights = _weights(sigma, [image.shape[-2:]] if plain else None)
    return _canny_reference(image, weights, low, high, mask, bool(use_quantiles), mode, float(cval))


def canny_pyramid(
    image: Tensor,
    *,
    scales: Sequence[int] = (1, 2, 4),
    sigma: float = 1.5,
    low_threshold: float | None = None,
    high_threshold: float | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Edges of the image at several scales, all in one pass: ``canny`` of its nearest-neighbour reductions.

    At scale s the image is reduced to (ceil(H / s), ceil(W / s)), row i showing row floor(i * H / h). Sigma and the
    thresholds mean the same at every scale. ``pyramid_structure_loss`` takes the result as its ``edges``.

    Args:
        image: (B, 1 or 3, H, W) as for ``canny``.
        scales: By what to divide the sides; positive integers.
        sigma: Standard deviation of the Gaussian in pixels of each scale.
        low_threshold: As for ``canny``.
        high_threshold: As for ``canny``.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.

    Returns:
        A (B, 1, ceil(H / s), ceil(W / s)) bool map for each scale.

    Raises:
        TypeError: ``image`` has another type, a scale is not an integer, or an option is no number.
        ValueError: A shape, a scale, ``sigma`` or the thresholds do not fit.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _check_image("canny_pyramid", image, channels=(1, 3), floating=False)
    for scale in scales:
        check_integer("canny_pyramid", "each of scales", scale, least=1)
    height, width = image.shape[-2:]
    sizes = [(-(-height // scale), -(-width // scale)) for scale in scales]
    return canny_of_sizes(
        image, sizes, sigma=sigma, low_threshold=low_threshold, high_threshold=high_threshold, backend=backend
    )


def canny_of_sizes(
    image: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    sigma: float = 1.5,
    low_threshold: float | None = None,
    high_threshold: float | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """``canny_pyramid`` with the (h, w) of every map given."""
    _check_image("canny_pyramid", image, channels=(1, 3), floating=False)
    check_number("canny_pyramid", "sigma", sigma, least=0, below=MAX_SIGMA)
    low, high = _thresholds("canny_pyramid", image, low_threshold, high_threshold, use_quantiles=False)
    image = _as_taken(image)
    chosen = choose(
        "canny_pyramid", backend, image.device, native=lambda: _native_gap("canny_pyramid", image, None, plain=True)
    )
    run = torch.ops.fastinpaint.canny_pyramid if chosen == "native" else _canny_pyramid_reference
    flat = [side for size in sizes for side in size]
    result: list[Tensor] = run(image, flat, _weights(sigma, sizes), low, high)
    return result


def _as_taken(image: Tensor) -> Tensor:
    """The image as the operators take it: float32 or float64, or half precision on CUDA, where the kernel widens it."""
    image = image.detach()
    if image.is_cuda and image.dtype in (torch.float16, torch.bfloat16):
        return image
    return reference.image_as_float(image)


def _native_gap(op: str, image: Tensor, mask: Tensor | None, plain: bool) -> str | None:
    tensors = (image,) if mask is None else (image, mask)
    gap = native_reason(op, *tensors, differentiable=False)
    if gap is None and not plain:
        gap = 'it computes absolute thresholds, mode "constant" and a cval of 0 alone'
    if gap is None and image.dtype == torch.float64 and image.is_cuda:
        gap = "its CUDA kernels compute in float32, the image calls for float64"
    return gap


def _weights(sigma: float, sizes: Sequence[Sequence[int]] | None) -> tuple[float, ...]:
    """The Gaussian's weights by distance; those of a wide one as far as maps of the given (h, w), if any, reach."""
    if torch.compiler.is_compiling():  # the weights are constants of a graph, so sigma is one
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        sigma = guard_scalar(sigma)
    if sizes is None or sigma <= _WIDE_SIGMA:
        return _constant_weights(sigma, None)
    longest = 1
    for height, width in sizes:
        longest = max(longest, height, width)
    if torch.compiler.is_compiling():
        longest = int(guard_scalar(longest))
    return _constant_weights(sigma, longest - 1)


@compile_time_constant
def _constant_weights(sigma: float, reach: int | None) -> tuple[float, ...]:
    return gaussian_weights(float(sigma), reach)


def _check_image(op: str, image: Tensor, channels: tuple[int, ...], floating: bool = True) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{op}: image must be a tensor, got {type(image).__name__}")
    check_dense(op, "image", image)
    if floating and not image.is_floating_point():
        raise TypeError(f"{op}: image must be a floating-point tensor, got {image.dtype}")
    if image.dtype in (torch.int64, torch.uint64):  # their largest value would make any picture black
        raise TypeError(
            f"{op}: image must be floating point, bool or integers of up to 32 bits, got {image.dtype}, which "
            "scikit-image does not take either: convert it to the type whose range its values use, such as torch.uint8"
        )
    if not image.is_floating_point() and image.dtype not in _INTEGERS_AND_BOOL:
        raise TypeError(f"{op}: image must be floating point, bool or integers of up to 32 bits, got {image.dtype}")
    if image.dim() != 4 or image.shape[1] not in channels:
        wanted = " or ".join(map(str, channels))
        raise ValueError(f"{op}: image must be (B, {wanted}, H, W), got shape {tuple(image.shape)}")


def _thresholds(
    op: str, image: Tensor, low: float | None, high: float | None, use_quantiles: bool
) -> tuple[float, float]:
    """Both thresholds in units of the image as ``image_as_float`` makes it, or as quantiles."""
    for name, threshold in (("low_threshold", low), ("high_threshold", high)):
        if threshold is not None:
            check_number(op, name, threshold)
            if use_quantiles and not 0 <= threshold <= 1:
                raise ValueError(f"{op}: {name} must be a quantile from 0 to 1, got {threshold}")
    has_integers = not image.is_floating_point() and image.dtype != torch.bool
    unit = torch.iinfo(image.dtype).max if has_integers and not use_quantiles else 1
    low = 0.1 if low is None else low / unit
    high = 0.2 if high is None else high / unit
    if not low <= high:
        raise ValueError(f"{op}: low_threshold must be at most high_threshold, got {low} and {high}")
    return float(low), float(high)


def _check_mask(image: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"canny: mask must be a bool tensor, got {found}")
    check_dense("canny", "mask", mask)
    batch, _, height, width = image.shape
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[1:] != (1, height, width):
        wanted = f"({batch} or 1, 1, {height}, {width})"
        raise ValueError(f"canny: mask must have shape {wanted}, got {tuple(mask.shape)}")


# Opaque to torch.compile: the number of hysteresis steps depends on the data.
@torch.library.custom_op("fastinpaint::canny_reference", mutates_args=())
def _canny_reference(
    image: Tensor,
    weights: Sequence[float],
    low_threshold: float,
    high_threshold: float,
    mask: Tensor | None,
    use_quantiles: bool = False,
    mode: str = "constant",
    cval: float = 0.0,
) -> Tensor:
    return reference.canny_of_weights(
        image, weights, low_threshold, high_threshold, mask, use_quantiles=use_quantiles, mode=mode, cval=cval
    )


@torch.library.custom_op("fastinpaint::canny_pyramid_reference", mutates_args=())
def _canny_pyramid_reference(
    image: Tensor, sizes: list[int], weights: Sequence[float], low_threshold: float, high_threshold: float
) -> list[Tensor]:
    resized = (nearest_resize(image, *size) for size in zip(sizes[::2], sizes[1::2], strict=True))
    return [reference.canny_of_weights(i, weights, low_threshold, high_threshold) for i in resized]


def _fake(
    image: Tensor,
    weights: Sequence[float],
    low_threshold: float,
    high_threshold: float,
    mask: Tensor | None,
    use_quantiles: bool = False,
    mode: str = "constant",
    cval: float = 0.0,
) -> Tensor:
    batch, _, height, width = image.shape
    return image.new_empty((batch, 1, height, width), dtype=torch.bool)


def _pyramid_fake(
    image: Tensor, sizes: list[int], weights: Sequence[float], low_threshold: float, high_threshold: float
) -> list[Tensor]:
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    return [image.new_empty((image.shape[0], 1, height, width), dtype=torch.bool) for height, width in pairs]


def _register(namespace: str, suffix: str = "") -> None:
    """Tell torch about shapes and batching; there is no gradient."""
    for op, fake in (("canny", _fake), ("canny_pyramid", _pyramid_fake)):
        name = f"{op}{suffix}"
        if suffix or has_native(op):
            torch.library.register_fake(f"{namespace}::{name}", fake)
            register_vmap(f"{namespace}::{name}")


_register("fastinpaint", "_reference")
_register("fastinpaint")
