"""Pyramid structure loss: all scales in one launch, a small launch that adds up, one launch for the gradients.

The gradient of a mean absolute error needs the sign of the error, the priority of the pixel and the sum of priorities.
The forward pass keeps the six signs of a pixel in one int16 and its priority in one float32, so the backward pass
reads 6 bytes a pixel instead of the image, the edges and the predictions.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import on_device_of

MAX_SCALES = 8
MAX_SIDE = 16384  # offsets inside one image stay below 2^31
BLOCK_H, BLOCK_W = 16, 32  # pixels of one tile: four for each thread, and one dot that no warp repeats
PIXELS = 256  # of one block of the backward pass
# The 5-tap Gaussian of sigma 1, sum 1.
_TAPS = tl.constexpr(
    (0.05448868454964294, 0.24420134200323332, 0.4026199468942474, 0.24420134200323332, 0.05448868454964294)
)


@triton.jit
def _scale_of(firsts, i_program, SCALES: tl.constexpr):
    """The scale of a program; ``firsts`` holds the first program of each."""
    i_scale = 0
    for scale in tl.static_range(1, SCALES):
        i_scale += tl.where(i_program >= firsts[scale], 1, 0)
    return i_scale


@triton.jit
def _pick(values, i_scale, SCALES: tl.constexpr):
    """``values[i_scale]``, for values known at run time only."""
    value = values[0]
    for scale in tl.static_range(1, SCALES):
        value = tl.where(i_scale >= scale, values[scale], value)
    return value


@triton.jit
def _reach(o_pixel, size):
    """Weights of the five neighbours in one blur along one axis; those outside hand nothing on to a second blur."""
    b_before_2 = tl.where(o_pixel >= 2, _TAPS[0], 0.0)
    b_before_1 = tl.where(o_pixel >= 1, _TAPS[1], 0.0)
    b_here = tl.full(o_pixel.shape, _TAPS[2], tl.float32)
    b_after_1 = tl.where(o_pixel < size - 1, _TAPS[3], 0.0)
    b_after_2 = tl.where(o_pixel < size - 2, _TAPS[4], 0.0)
    return b_before_2, b_before_1, b_here, b_after_1, b_after_2


@triton.jit
def _two_blurs(b_reach, T: tl.constexpr):
    """Weight of the neighbour at distance T - 4 in two blurs along one axis."""
    FIRST: tl.constexpr = T - 4 if T > 4 else 0
    LAST: tl.constexpr = T if T < 4 else 4
    b_weight = b_reach[FIRST] * _TAPS[T - FIRST]
    for step in tl.static_range(FIRST + 1, LAST + 1):
        b_weight += b_reach[step] * _TAPS[T - step]
    return b_weight


@triton.jit
def _priority(p_edges, first_y, o_x, height, width, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr):
    """(BLOCK_H, BLOCK_W) priority: nine shifted loads blur along x, a banded matrix blurs along y."""
    o_row = tl.arange(0, ROWS)
    o_y = tl.arange(0, BLOCK_H)
    o_source = first_y - 4 + o_row
    m_row = ((o_source >= 0) & (o_source < height) & (o_row < BLOCK_H + 8))[:, None]
    p_edges += (o_source * width)[:, None]
    b_reach_y = _reach(first_y + o_y, height)
    b_reach_x = _reach(o_x, width)
    b_band = tl.zeros((BLOCK_H, ROWS), tl.float32)
    b_blurred = tl.zeros((ROWS, BLOCK_W), tl.float32)
    for t in tl.static_range(9):
        o_column = (o_x + (t - 4))[None, :]
        b_edges = _load(p_edges + o_column, m_row & (o_column >= 0) & (o_column < width))
        b_blurred += _two_blurs(b_reach_x, t)[None, :] * b_edges
        b_band += tl.where(o_row[None, :] - o_y[:, None] == t, _two_blurs(b_reach_y, t)[:, None], 0.0)
    return tl.dot(b_band, b_blurred, input_precision="tf32x3")


@triton.jit
def _source(o_pixel, size, image_size, WHOLE: tl.constexpr):
    """Pixel of the image behind a pixel of the resized image, which is reflected at its border."""
    o_pixel = tl.abs(o_pixel)
    o_pixel = tl.where(o_pixel >= size, 2 * size - 2 - o_pixel, o_pixel)
    if WHOLE:
        return o_pixel * (image_size // size)
    return o_pixel * image_size // size


@triton.jit
def _load(p_block, mask):
    return tl.load(p_block, mask=mask, other=0).to(tl.float32)


@triton.jit
def _sobel(p_channel, o_up, o_middle, o_down, o_left, o_centre, o_right, mask):
    """Sobel gradients (dy, dx) of one channel; row and column offsets of the neighbours are given."""
    b_up_left = _load(p_channel + o_up + o_left, mask)
    b_up_right = _load(p_channel + o_up + o_right, mask)
    b_down_left = _load(p_channel + o_down + o_left, mask)
    b_down_right = _load(p_channel + o_down + o_right, mask)
    b_dy = 2 * (_load(p_channel + o_down + o_centre, mask) - _load(p_channel + o_up + o_centre, mask))
    b_dx = 2 * (_load(p_channel + o_middle + o_right, mask) - _load(p_channel + o_middle + o_left, mask))
    b_dy += (b_down_left - b_up_left) + (b_down_right - b_up_right)
    b_dx += (b_up_right - b_up_left) + (b_down_right - b_down_left)
    return b_dy, b_dx


@triton.jit
def _error(p_prediction, b_target, mask):
    """Absolute error and its sign as two bits: 1 above the target, 2 below it."""
    b_error = tl.where(mask, _load(p_prediction, mask) - b_target, 0.0)
    return tl.abs(b_error), tl.where(b_error > 0, 1, 0) + tl.where(b_error < 0, 2, 0)


@triton.jit
def _forward_kernel(
    p_image,  # (B, 3, H, W)
    p_predictions,  # for each scale (B, 6, h, w)
    p_edges,  # for each scale (B, 1, h, w)
    p_signs,  # out, for each scale (B, h, w) int16
    p_priorities,  # out, for each scale (B, h, w) float32
    p_partials,  # out (tiles, 3) float32: sums of priority * error, of errors, of priorities
    first_tiles,  # of each scale, and the number of all tiles
    image_height,
    image_width,
    heights,
    widths,
    SCALES: tl.constexpr,
    IMAGE_LAST: tl.constexpr,  # whether the channels of a pixel lie side by side in memory
    PREDICTIONS_LAST: tl.constexpr,
    WHOLE: tl.constexpr,  # whether the image's sides are multiples of every scale's: no division for each pixel
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
):
    i_program = tl.program_id(0)
    i_scale = _scale_of(first_tiles, i_program, SCALES)
    i_tile = i_program - _pick(first_tiles, i_scale, SCALES)
    height = _pick(heights, i_scale, SCALES)
    width = _pick(widths, i_scale, SCALES)
    columns = tl.cdiv(width, BLOCK_W)
    tiles = tl.cdiv(height, BLOCK_H) * columns
    i_batch = (i_tile // tiles).to(tl.int64)
    first_y = i_tile % tiles // columns * BLOCK_H
    first_x = i_tile % tiles % columns * BLOCK_W
    # One flat axis: with two, Triton may let the lanes of a warp run down a column.
    o_flat = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = first_y + o_flat // BLOCK_W
    o_x = first_x + o_flat % BLOCK_W
    m_tile = (o_y < height) & (o_x < width)
    o_tile = o_y * width + o_x
    o_image = i_batch * height * width

    p_map = _pick(p_edges, i_scale, SCALES) + o_image
    o_column = first_x + tl.arange(0, BLOCK_W)
    b_priority = _priority(p_map, first_y, o_column, height, width, BLOCK_H, BLOCK_W, ROWS)
    b_priority = tl.where(m_tile, tl.reshape(b_priority, (BLOCK_H * BLOCK_W,)), 0.0)

    PIXEL: tl.constexpr = 3 if IMAGE_LAST else 1
    row = image_width * PIXEL
    o_up = _source(o_y - 1, height, image_height, WHOLE) * row
    o_middle = _source(o_y, height, image_height, WHOLE) * row
    o_down = _source(o_y + 1, height, image_height, WHOLE) * row
    o_left = _source(o_x - 1, width, image_width, WHOLE) * PIXEL
    o_centre = _source(o_x, width, image_width, WHOLE) * PIXEL
    o_right = _source(o_x + 1, width, image_width, WHOLE) * PIXEL
    p_channel = p_image + i_batch * 3 * image_height * image_width
    p_prediction = _pick(p_predictions, i_scale, SCALES) + 6 * o_image
    o_prediction = o_tile * (6 if PREDICTIONS_LAST else 1)
    next_gradient = 1 if PREDICTIONS_LAST else height * width

    b_errors = tl.zeros((BLOCK_H * BLOCK_W,), tl.float32)
    b_signs = tl.zeros((BLOCK_H * BLOCK_W,), tl.int32)
    for i_channel in range(3):
        b_dy, b_dx = _sobel(p_channel, o_up, o_middle, o_down, o_left, o_centre, o_right, m_tile)
        b_error, b_sign = _error(p_prediction + o_prediction, b_dy, m_tile)
        b_errors += b_error
        b_signs += b_sign << (4 * i_channel)
        b_error, b_sign = _error(p_prediction + next_gradient + o_prediction, b_dx, m_tile)
        b_errors += b_error
        b_signs += b_sign << (4 * i_channel + 2)
        p_channel += 1 if IMAGE_LAST else image_height * image_width
        p_prediction += 2 * next_gradient

    p_sign = _pick(p_signs, i_scale, SCALES) + o_image
    tl.store(p_sign + o_tile, b_signs.to(tl.int16), mask=m_tile)
    p_priority = _pick(p_priorities, i_scale, SCALES) + o_image
    tl.store(p_priority + o_tile, b_priority, mask=m_tile)
    p_partial = p_partials + i_program.to(tl.int64) * 3
    tl.store(p_partial, tl.sum(b_priority * b_errors))
    tl.store(p_partial + 1, tl.sum(b_errors))
    tl.store(p_partial + 2, tl.sum(b_priority))


@triton.jit
def _terms_kernel(
    p_partials,  # (tiles, 3) float32
    p_terms,  # out (scales, 2) float32: edge term, gradient term
    p_slopes,  # out (scales, 2) float32: their derivatives by priority * error and by error
    first_tiles,
    edge_alpha,
    gradient_slopes,  # for each scale grad_alpha / number of elements
    SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_scale = tl.program_id(0)
    first = _pick(first_tiles, i_scale, SCALES)
    last = _pick(first_tiles, i_scale + 1, SCALES + 1)
    b_weighted = tl.zeros((BLOCK,), tl.float32)
    b_errors = tl.zeros((BLOCK,), tl.float32)
    b_priority = tl.zeros((BLOCK,), tl.float32)
    for i_first in range(first, last, BLOCK):
        o_tile = i_first + tl.arange(0, BLOCK)
        p_tile = p_partials + o_tile.to(tl.int64) * 3
        b_weighted += _load(p_tile, o_tile < last)
        b_errors += _load(p_tile + 1, o_tile < last)
        b_priority += _load(p_tile + 2, o_tile < last)
    weight = edge_alpha * tl.sum(b_priority)
    edge_slope = edge_alpha / tl.where(weight > 0, weight, 1.0) / 6
    gradient_slope = _pick(gradient_slopes, i_scale, SCALES)
    tl.store(p_terms + 2 * i_scale, edge_slope * tl.sum(b_weighted))
    tl.store(p_terms + 2 * i_scale + 1, gradient_slope * tl.sum(b_errors))
    tl.store(p_slopes + 2 * i_scale, edge_slope)
    tl.store(p_slopes + 2 * i_scale + 1, gradient_slope)


@triton.jit
def _backward_kernel(
    p_grad_terms,  # (scales, 2) float32, any strides
    s_grad_terms,
    p_slopes,  # (scales, 2) float32
    p_signs,  # for each scale (B, h, w) int16
    p_priorities,  # for each scale (B, h, w) float32
    p_grads,  # out, for each scale (B, 6, h, w)
    first_blocks,  # of each scale
    pixel_counts,  # for each scale h * w
    SCALES: tl.constexpr,
    LAST: tl.constexpr,  # whether the channels of a pixel lie side by side in memory
    BLOCK: tl.constexpr,
):
    i_program = tl.program_id(0)
    i_scale = _scale_of(first_blocks, i_program, SCALES)
    i_block = i_program - _pick(first_blocks, i_scale, SCALES)
    pixels = _pick(pixel_counts, i_scale, SCALES)
    blocks = tl.cdiv(pixels, BLOCK)
    i_batch = (i_block // blocks).to(tl.int64)
    o_pixel = i_block % blocks * BLOCK + tl.arange(0, BLOCK)
    m_pixel = o_pixel < pixels
    o_image = i_batch * pixels
    b_signs = tl.load(_pick(p_signs, i_scale, SCALES) + o_image + o_pixel, mask=m_pixel, other=0).to(tl.int32)
    b_priority = _load(_pick(p_priorities, i_scale, SCALES) + o_image + o_pixel, m_pixel)
    p_grad_terms += i_scale * s_grad_terms[0]
    edge_slope = tl.load(p_grad_terms) * tl.load(p_slopes + 2 * i_scale)
    gradient_slope = tl.load(p_grad_terms + s_grad_terms[1]) * tl.load(p_slopes + 2 * i_scale + 1)
    b_slope = edge_slope * b_priority + gradient_slope

    p_grad = _pick(p_grads, i_scale, SCALES) + 6 * o_image
    o_channel = tl.arange(0, 8)
    b_sign = (b_signs[:, None] >> (2 * o_channel)[None, :]) & 3
    b_grad = tl.where(b_sign == 1, b_slope[:, None], tl.where(b_sign == 2, -b_slope[:, None], 0.0))
    o_grad = o_pixel[:, None] * (6 if LAST else 1) + o_channel[None, :] * (1 if LAST else pixels)
    tl.store(p_grad + o_grad, b_grad.to(p_grad.dtype.element_ty), mask=m_pixel[:, None] & (o_channel < 6)[None, :])


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side in memory (and do not lie in planes as well)."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _edge_maps(edges: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The edge maps, contiguous and in one dtype."""
    dtype = edges[0].dtype if len({e.dtype for e in edges}) == 1 else torch.float32
    maps = (e.to(dtype).contiguous() for e in edges)
    return tuple(e.view(torch.uint8) if dtype == torch.bool else e for e in maps)


def _parts(flat: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Views into one flat tensor, one value for each pixel of each map (B, C, h, w)."""
    return flat.split([m.shape[0] * m.shape[2] * m.shape[3] for m in maps])


def structure_loss_forward(
    image: Tensor, predictions: Sequence[Tensor], edges: Sequence[Tensor], edge_alpha: float, grad_alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted terms of every scale, and what ``structure_loss_backward`` needs.

    Args:
        image: (B, 3, H, W) float32, bfloat16 or float16; as all sides, H and W at most ``MAX_SIDE``.
        predictions: At most ``MAX_SCALES`` maps (B, 6, h, w) of one dtype, float32, bfloat16 or float16; all
            contiguous or all channels-last.
        edges: For each prediction (B, 1, h, w), bool or floating point; copied where the dtypes differ.
        edge_alpha: Weight of the priorities.
        grad_alpha: Weight of the mean absolute error.

    Returns:
        terms (scales, 2) float32, their slopes (scales, 2) float32, and for all pixels of all scales priorities float32
        and signs int16.
    """
    batch, _, image_height, image_width = image.shape
    heights, widths = (tuple(p.shape[axis] for p in predictions) for axis in (2, 3))
    tiles = (batch * triton.cdiv(h, BLOCK_H) * triton.cdiv(w, BLOCK_W) for h, w in zip(heights, widths, strict=True))
    first_tiles = (0, *accumulate(tiles))
    scales = len(heights)
    whole = not any(image_height % h or image_width % w for h, w in zip(heights, widths, strict=True))
    terms, slopes = (image.new_empty((scales, 2), dtype=torch.float32) for _ in range(2))
    partials = image.new_empty((first_tiles[-1], 3), dtype=torch.float32)
    pixels = sum(edge_map.numel() for edge_map in edges)
    priorities, signs = (image.new_empty((pixels,), dtype=dtype) for dtype in (torch.float32, torch.int16))
    image_last = is_channels_last(image)
    with on_device_of(image):
        if first_tiles[-1] > 0:
            _forward_kernel[(first_tiles[-1],)](
                image.contiguous(memory_format=torch.channels_last if image_last else torch.contiguous_format),
                tuple(predictions), _edge_maps(edges), _parts(signs, edges), _parts(priorities, edges),
                partials, first_tiles, image_height, image_width, heights, widths,
                SCALES=scales, IMAGE_LAST=image_last, PREDICTIONS_LAST=all(is_channels_last(p) for p in predictions),
                WHOLE=whole, BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W, ROWS=32, num_warps=4, maxnreg=168,
            )  # fmt: skip
        gradient_slopes = tuple(grad_alpha / max(p.numel(), 1) for p in predictions)
        _terms_kernel[(scales,)](
            partials, terms, slopes, first_tiles, edge_alpha, gradient_slopes, SCALES=scales, BLOCK=1024, num_warps=8
        )
    return terms, slopes, priorities, signs


def structure_loss_backward(
    grad_terms: Tensor, slopes: Tensor, priorities: Tensor, signs: Tensor, predictions: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients (B, 6, h, w) of all predictions, given that of the terms (scales, 2) float32.

    The values of ``predictions`` are not read: they give shapes, dtype and layout. ``slopes``, ``priorities`` and
    ``signs`` are what ``structure_loss_forward`` returned.
    """
    grads = [torch.empty_like(p) for p in predictions]
    pixels = tuple(p.shape[2] * p.shape[3] for p in predictions)
    blocks = (p.shape[0] * triton.cdiv(count, PIXELS) for p, count in zip(predictions, pixels, strict=True))
    first_blocks = (0, *accumulate(blocks))
    if first_blocks[-1] == 0:
        return grads
    with on_device_of(grad_terms):
        _backward_kernel[(first_blocks[-1],)](
            grad_terms, grad_terms.stride(), slopes, _parts(signs, predictions), _parts(priorities, predictions),
            tuple(grads), first_blocks, pixels,
            SCALES=len(grads), LAST=all(is_channels_last(p) for p in predictions), BLOCK=PIXELS, num_warps=4,
        )  # fmt: skip
    return grads
