"""Pyramid structure loss: all scales and their terms in one launch, all gradients in another.

The gradient of a mean absolute error needs the sign of the error, the priority of the pixel and the sum of priorities.
The forward pass keeps the six signs of a pixel in one int16 and its priority in one float32, so the backward pass
reads 6 bytes a pixel instead of the image, the edges and the predictions.

Each thread of the forward pass walks down one column of a strip: what it makes of a row of the image (smoothed and
differentiated along x) serves three rows of gradients, what it makes of a row of edges (blurred twice along x) nine
rows of priorities. The block that finishes a scale last adds up the scale's partial sums, in a fixed order.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import cdiv, on_device_of
from fastinpaint_kernels.sobel_edges import load_row

MAX_SCALES = 8
MAX_SIDE = 16384  # offsets inside one image stay below 2^31
COLUMNS, ROWS, WARPS = 64, 16, 2  # of one block of the forward pass
STEP = 2  # rows that its loops take at a time; compilation takes the cube of it
PIXELS, LANES = 1024, 1024  # of one program of the backward pass
LAST_PIXELS, LAST_LANES = 640, 2048  # the same for channels-last predictions

# The 5-tap Gaussian of sigma 1, sum 1, by distance; and twice, which reaches 4 pixels.
_G0, _G1, _G2 = 0.4026199468942474, 0.24420134200323332, 0.05448868454964294
_TWICE = tl.constexpr(
    (
        _G0 * _G0 + 2 * _G1 * _G1 + 2 * _G2 * _G2,
        2 * _G0 * _G1 + 2 * _G1 * _G2,
        2 * _G0 * _G2 + _G1 * _G1,
        2 * _G1 * _G2,
        _G2 * _G2,
    )
)
# What two blurs lose where the first one's result outside the image is cut off, by the sum of the distances of both
# pixels from the border: the outermost to itself, to the second and back, the second to itself.
_LOST = tl.constexpr((_G1 * _G1 + _G2 * _G2, _G1 * _G2, _G2 * _G2))
_ONE = tl.constexpr(2.0**30)  # fixed point in which bool edges are blurred along x


@triton.jit
def _pick(values, i_scale, SCALES: tl.constexpr):
    """``values[i_scale]``, for values known at run time only."""
    value = values[0]
    for scale in tl.static_range(1, SCALES):
        value = tl.where(i_scale >= scale, values[scale], value)
    return value


@triton.jit
def _unpack(size):
    """Height and width of a scale, see ``_Scales``."""
    return size >> 16, (size >> 1) & 0x7FFF


@triton.jit
def _programs(height, width, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Number of programs for one image of a scale: tiles, or with ROWS = 0 runs of COLUMNS pixels."""
    if ROWS == 0:
        return tl.cdiv(height * width, COLUMNS)
    return tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)


@triton.jit
def _locate(i_program, batch, sizes, SCALES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Scale of a program, and the scale's first program, first pixel, height and width."""
    i_scale, first_program, end_program = 0, 0, 0
    first_pixel, end_pixel = batch.to(tl.int64) * 0, batch.to(tl.int64) * 0
    for scale in tl.static_range(SCALES):
        height, width = _unpack(sizes[scale])
        if scale > 0:
            beyond = i_program >= end_program
            i_scale += tl.where(beyond, 1, 0)
            first_program = tl.where(beyond, end_program, first_program)
            first_pixel = tl.where(beyond, end_pixel, first_pixel)
        end_program += batch * _programs(height, width, COLUMNS, ROWS)
        end_pixel += batch.to(tl.int64) * height * width
    height, width = _unpack(_pick(sizes, i_scale, SCALES))
    return i_scale, first_program, first_pixel, height, width


@triton.jit
def _lost(o_out, o_source):
    """Weight that two blurs lose at a border, given the distances of both pixels from it."""
    b_lost = tl.where(o_out + o_source == 1, _LOST[1], 0.0)
    b_lost = tl.where(o_out + o_source == 0, _LOST[0], b_lost)
    return tl.where((o_out == 1) & (o_source == 1), _LOST[2], b_lost)


@triton.jit
def _weight(o_x, o_first, width, K: tl.constexpr, NARROW: tl.constexpr):
    """Weight of column ``o_first`` + K in two blurs along x, with zeros outside the image before each."""
    o_source = o_first + K
    o_distance = tl.abs(o_x - o_source)
    b_weight = tl.where(o_distance == 4, _TWICE[4], 0.0)
    for distance in tl.static_range(4):
        b_weight = tl.where(o_distance == distance, _TWICE[distance], b_weight)
    # Nine columns from the border on, only the outermost two can lose.
    if K < 2:
        b_weight -= _lost(o_x, o_source)
    if NARROW or K > 6:
        b_weight -= _lost(width - 1 - o_x, width - 1 - o_source)
    return tl.where(o_source < width, b_weight, 0.0) if NARROW else b_weight


@triton.jit
def _column_weights(o_x, o_first, width, NARROW: tl.constexpr, FIXED: tl.constexpr):
    """Weights of nine columns from ``o_first`` on: those around a pixel, moved inside the image near its border."""
    b_weights = ()
    for k in tl.static_range(9):
        b_weight = _weight(o_x, o_first, width, k, NARROW)
        b_weight = (b_weight * _ONE + 0.5).to(tl.int32) if FIXED else b_weight
        b_weights = b_weights + (b_weight,)  # type: ignore[assignment]  # noqa: RUF005
    return b_weights


@triton.jit
def _blur_row(p_first, y, height, width, o_first, b_weights, NARROW: tl.constexpr):
    """A row of edges, blurred twice along x; zero outside the image."""
    p_row = p_first + tl.minimum(tl.maximum(y, 0), height - 1) * width
    b_row = tl.zeros(o_first.shape, b_weights[0].dtype)
    for k in tl.static_range(9):
        b_edges = tl.load(p_row + k, mask=o_first + k < width, other=0) if NARROW else tl.load(p_row + k)
        b_row += b_weights[k] * b_edges.to(b_row.dtype)
    return tl.where(y.to(tl.uint32) < height.to(tl.uint32), b_row.to(tl.float32), 0.0)


@triton.jit
def _blur_down(b_rows, y, height, REGULAR: tl.constexpr, STEP: tl.constexpr, ROW: tl.constexpr):
    """Priority of row y, the ROWth of its step, from the nine rows around it (y - 4, ..., y + 4)."""
    b_priority = _TWICE[0] * b_rows[4]
    for distance in tl.static_range(1, 5):
        b_priority += _TWICE[distance] * (b_rows[4 - distance] + b_rows[4 + distance])
    if ROW == 0:
        b_priority -= tl.where(y == 0, _LOST[0] * b_rows[4] + _LOST[1] * b_rows[5], 0.0)
    if ROW == 1:
        b_priority -= tl.where(y == 1, _LOST[1] * b_rows[3] + _LOST[2] * b_rows[4], 0.0)
    if not REGULAR or ROW == STEP - 1:
        b_priority -= tl.where(y == height - 1, _LOST[0] * b_rows[4] + _LOST[1] * b_rows[3], 0.0)
    if not REGULAR or ROW == STEP - 2:
        b_priority -= tl.where(y == height - 2, _LOST[1] * b_rows[5] + _LOST[2] * b_rows[4], 0.0)
    return b_priority


@triton.jit
def _source(o_pixel, size, image_size, REGULAR: tl.constexpr):
    """Pixel of the image behind a pixel of the resized image, which is reflected at its border; further out, any."""
    o_pixel = tl.abs(o_pixel)
    o_pixel = tl.maximum(tl.where(o_pixel >= size, 2 * size - 2 - o_pixel, o_pixel), 0)
    if REGULAR:
        return o_pixel * (image_size // size)
    return o_pixel * image_size // size


@triton.jit
def _image_row(p_row, plane, o_left, o_centre, o_right):
    """For each channel [1 2 1] and [-1 0 1] along one row of the image."""
    b_smooth_0, b_slope_0 = load_row(p_row, o_left, o_centre, o_right)
    b_smooth_1, b_slope_1 = load_row(p_row + plane, o_left, o_centre, o_right)
    b_smooth_2, b_slope_2 = load_row(p_row + 2 * plane, o_left, o_centre, o_right)
    return b_smooth_0, b_slope_0, b_smooth_1, b_slope_1, b_smooth_2, b_slope_2


@triton.jit
def _load_pair(p_pixel, plane, o_x, LAST: tl.constexpr):
    """(dy, dx) of one channel of a row, float32."""
    if LAST:
        o_pair = 6 * o_x[:, None] + tl.arange(0, 2)[None, :]
        return tl.split(tl.load(p_pixel + o_pair).to(tl.float32))
    return tl.load(p_pixel + o_x).to(tl.float32), tl.load(p_pixel + plane + o_x).to(tl.float32)


@triton.jit
def _sign(b_error, BIT: tl.constexpr):
    """Two bits: BIT above the target, the next one below it, neither at it."""
    return tl.where(b_error > 0, 1 << BIT, 0) + tl.where(b_error < 0, 2 << BIT, 0)


@triton.jit
def _errors(p_pixel, plane, o_x, b_up, b_here, b_down, LAST: tl.constexpr):
    """Sum of a pixel's six absolute errors, and their signs."""
    b_errors = tl.zeros(o_x.shape, tl.float32)
    b_signs = tl.zeros(o_x.shape, tl.int32)
    for channel in tl.static_range(3):
        b_dy, b_dx = _load_pair(p_pixel + 2 * channel * plane, plane, o_x, LAST)
        b_dy -= b_down[2 * channel] - b_up[2 * channel]
        b_dx -= (b_up[2 * channel + 1] + b_down[2 * channel + 1]) + 2 * b_here[2 * channel + 1]
        b_errors += tl.abs(b_dy) + tl.abs(b_dx)
        b_signs += _sign(b_dy, 4 * channel) + _sign(b_dx, 4 * channel + 2)
    return b_errors, b_signs


@triton.jit(do_not_specialize=["batch", "image_height", "image_width"])
def _forward_kernel(  # noqa: PLR0915
    p_image,  # (B, 3, H, W)
    p_predictions,  # for each scale (B, 6, h, w)
    p_edges,  # for each scale (B, 1, h, w)
    p_signs,  # out, the scales one after the other, each (B, h, w), int16
    p_priorities,  # out, likewise, float32
    p_partials,  # scratch (tiles, 3) float32: sums of priority * error, of errors, of priorities
    p_counts,  # (scales,) int32, zero before and after: tiles that are done
    p_terms,  # out (scales, 2) float32: edge term, gradient term
    p_slopes,  # out (scales, 2) float32: their derivatives by priority * error and by error
    batch,
    image_height,
    image_width,
    sizes,  # of each scale, see ``_Scales``
    edge_alpha,
    gradient_slopes,  # for each scale grad_alpha / number of elements
    SCALES: tl.constexpr,
    IMAGE_LAST: tl.constexpr,  # whether the channels of a pixel lie side by side in memory
    PREDICTIONS_LAST: tl.constexpr,
    REGULAR: tl.constexpr,  # see ``_is_regular``
    KEEP: tl.constexpr,  # whether signs and priorities are written
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,  # partial sums that the last block of a scale reads at a time
):
    i_program = tl.program_id(0)
    i_scale, first_tile, first_pixel, height, width = _locate(i_program, batch, sizes, SCALES, COLUMNS, ROWS)
    blocks = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * blocks
    i_tile = i_program - first_tile
    i_batch = (i_tile // tiles).to(tl.int64)
    first_y = i_tile % tiles // blocks * ROWS
    o_x = i_tile % tiles % blocks * COLUMNS + tl.arange(0, COLUMNS)
    m_x = o_x < width
    o_x = tl.minimum(o_x, width - 1)

    NARROW: tl.constexpr = not REGULAR
    o_first = tl.maximum(tl.minimum(o_x - 4, width - 9), 0)
    p_map = _pick(p_edges, i_scale, SCALES) + i_batch * height * width + o_first
    FIXED: tl.constexpr = p_map.dtype.element_ty == tl.uint8
    b_weights = _column_weights(o_x, o_first, width, NARROW, FIXED)
    b_rows = (tl.zeros((COLUMNS,), tl.float32),) * 8
    for first_row in range(-4, 4, STEP):
        for row in tl.static_range(STEP):
            y = first_y + first_row + row
            b_rows = b_rows[1:] + (_blur_row(p_map, y, height, width, o_first, b_weights, NARROW),)  # noqa: RUF005

    PIXEL: tl.constexpr = 3 if IMAGE_LAST else 1
    o_left = _source(o_x - 1, width, image_width, REGULAR) * PIXEL
    o_centre = _source(o_x, width, image_width, REGULAR) * PIXEL
    o_right = _source(o_x + 1, width, image_width, REGULAR) * PIXEL
    image_plane = 1 if IMAGE_LAST else image_height * image_width
    p_image += i_batch * 3 * image_height * image_width
    row_length = image_width * PIXEL
    p_row = p_image + _source(first_y - 1, height, image_height, REGULAR) * row_length
    b_up = _image_row(p_row, image_plane, o_left, o_centre, o_right)
    p_row = p_image + _source(first_y, height, image_height, REGULAR) * row_length
    b_here = _image_row(p_row, image_plane, o_left, o_centre, o_right)

    p_prediction = _pick(p_predictions, i_scale, SCALES) + i_batch * 6 * height * width
    prediction_plane = 1 if PREDICTIONS_LAST else height * width
    first_pixel += i_batch * height * width
    b_weighted_sum = tl.zeros((COLUMNS,), tl.float32)
    b_error_sum = tl.zeros((COLUMNS,), tl.float32)
    b_priority_sum = tl.zeros((COLUMNS,), tl.float32)
    for first_row in range(0, ROWS, STEP):
        for row in tl.static_range(STEP):
            y = first_y + first_row + row
            m_row = m_x if REGULAR else m_x & (y < height)
            b_row = _blur_row(p_map, y + 4, height, width, o_first, b_weights, NARROW)
            b_nine = b_rows + (b_row,)  # noqa: RUF005
            b_priority = _blur_down(b_nine, y, height, REGULAR, STEP, row) * (1 / _ONE if FIXED else 1.0)
            b_priority = tl.where(m_row, b_priority, 0.0)
            b_rows = b_nine[1:]

            p_row = p_image + _source(y + 1, height, image_height, REGULAR) * row_length
            b_down = _image_row(p_row, image_plane, o_left, o_centre, o_right)
            o_row = (y if REGULAR else tl.minimum(y, height - 1)) * width
            p_pixel = p_prediction + o_row * (6 if PREDICTIONS_LAST else 1)
            b_errors, b_signs = _errors(p_pixel, prediction_plane, o_x, b_up, b_here, b_down, PREDICTIONS_LAST)
            b_up = b_here
            b_here = b_down
            b_errors = tl.where(m_row, b_errors, 0.0)
            b_weighted_sum += b_priority * b_errors
            b_error_sum += b_errors
            b_priority_sum += b_priority
            if KEEP:
                tl.store(p_signs + first_pixel + o_row + o_x, b_signs.to(tl.int16), mask=m_row)
                tl.store(p_priorities + first_pixel + o_row + o_x, b_priority, mask=m_row)

    p_partial = p_partials + i_program.to(tl.int64) * 3
    tl.store(p_partial, tl.sum(b_weighted_sum))
    tl.store(p_partial + 1, tl.sum(b_error_sum))
    tl.store(p_partial + 2, tl.sum(b_priority_sum))
    tl.debug_barrier()
    done = tl.atomic_add(p_counts + i_scale, 1, sem="acq_rel", scope="gpu")
    if done == batch * tiles - 1:
        _add_up(
            p_partials, p_terms + 2 * i_scale, p_slopes + 2 * i_scale, first_tile, first_tile + batch * tiles,
            edge_alpha, _pick(gradient_slopes, i_scale, SCALES), BLOCK,
        )  # fmt: skip
        tl.store(p_counts + i_scale, 0)


@triton.jit
def _add_up(p_partials, p_terms, p_slopes, first_tile, last_tile, edge_alpha, gradient_slope, BLOCK: tl.constexpr):
    """Terms and slopes of one scale from the partial sums of its tiles."""
    b_weighted = tl.zeros((BLOCK,), tl.float32)
    b_errors = tl.zeros((BLOCK,), tl.float32)
    b_priority = tl.zeros((BLOCK,), tl.float32)
    for i_first in range(first_tile, last_tile, BLOCK):
        o_tile = i_first + tl.arange(0, BLOCK)
        p_tile = p_partials + o_tile.to(tl.int64) * 3
        # Past the first-level cache, which may hold what was there before.
        b_weighted += tl.load(p_tile, mask=o_tile < last_tile, other=0, cache_modifier=".cg")
        b_errors += tl.load(p_tile + 1, mask=o_tile < last_tile, other=0, cache_modifier=".cg")
        b_priority += tl.load(p_tile + 2, mask=o_tile < last_tile, other=0, cache_modifier=".cg")
    weight = edge_alpha * tl.sum(b_priority)
    edge_slope = edge_alpha / tl.where(weight > 0, weight, 1.0) / 6
    tl.store(p_terms, edge_slope * tl.sum(b_weighted))
    tl.store(p_terms + 1, gradient_slope * tl.sum(b_errors))
    tl.store(p_slopes, edge_slope)
    tl.store(p_slopes + 1, gradient_slope)


@triton.jit(do_not_specialize=["batch"])
def _backward_kernel(
    p_grad_terms,  # (scales, 2) float32, any strides
    s_grad_terms,
    p_slopes,  # (scales, 2) float32
    p_signs,  # the scales one after the other, each (B, h, w), int16
    p_priorities,  # likewise, float32
    p_grads,  # out, for each scale (B, 6, h, w)
    batch,
    sizes,  # of each scale, see ``_Scales``
    SCALES: tl.constexpr,
    LAST: tl.constexpr,  # whether the channels of a pixel lie side by side in memory
    VECTORS: tl.constexpr,  # whether every scale's pixels are a multiple of 8: then so are the places of planes
    PIXELS: tl.constexpr,  # of one program
    LANES: tl.constexpr,  # a power of 2, no less than its pixels, or channels-last its pairs of gradients
):
    i_program = tl.program_id(0)
    i_scale, first_program, first_pixel, height, width = _locate(i_program, batch, sizes, SCALES, PIXELS, 0)
    pixels = height * width
    if VECTORS:
        pixels = pixels // 8 * 8
        first_pixel = first_pixel // 8 * 8
    runs = tl.cdiv(pixels, PIXELS)
    i_batch = ((i_program - first_program) // runs).to(tl.int64)
    o_first = (i_program - first_program) % runs * PIXELS
    first_pixel += i_batch * pixels
    p_grad = _pick(p_grads, i_scale, SCALES) + 6 * i_batch * pixels
    p_grad_terms += i_scale * s_grad_terms[0]
    edge_slope = tl.load(p_grad_terms) * tl.load(p_slopes + 2 * i_scale)
    gradient_slope = tl.load(p_grad_terms + s_grad_terms[1]) * tl.load(p_slopes + 2 * i_scale + 1)
    dtype = p_grad.dtype.element_ty

    o_lane = tl.arange(0, LANES)
    o_pixel = o_first + (o_lane // 3 if LAST else o_lane)
    m_pixel = (o_pixel < pixels) & (o_lane < (3 * PIXELS if LAST else PIXELS))
    b_signs = tl.load(p_signs + first_pixel + o_pixel, mask=m_pixel, other=0).to(tl.int32)
    b_priority = tl.load(p_priorities + first_pixel + o_pixel, mask=m_pixel, other=0)
    b_slope = edge_slope * b_priority + gradient_slope
    if LAST:  # a pair (dy, dx) for each lane
        b_signs = b_signs >> (4 * (o_lane % 3))
        b_pair = tl.join(_signed(b_slope, b_signs).to(dtype), _signed(b_slope, b_signs >> 2).to(dtype))
        o_pair = 6 * o_first + 2 * o_lane[:, None] + tl.arange(0, 2)[None, :]
        tl.store(p_grad + o_pair, b_pair, mask=m_pixel[:, None])
    else:
        for channel in tl.static_range(6):
            b_grad = _signed(b_slope, b_signs >> (2 * channel)).to(dtype)
            tl.store(p_grad + channel * pixels + o_pixel, b_grad, mask=m_pixel)


@triton.jit
def _signed(b_slope, b_sign):
    """The slope with the sign that two bits tell: 1 plus, 2 minus, 0 none."""
    b_grad = tl.where((b_sign & 1) != 0, b_slope, 0.0)
    return tl.where((b_sign & 2) != 0, -b_slope, b_grad)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side in memory (and do not lie in planes as well)."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _all_channels_last(tensors: Sequence[Tensor]) -> bool:
    return all([is_channels_last(tensor) for tensor in tensors])


def _edge_maps(edges: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The edge maps, contiguous and in one dtype."""
    dtypes = {e.dtype for e in edges}
    if len(dtypes) > 1:
        return tuple([e.to(torch.float32).contiguous() for e in edges])
    maps = [e.contiguous() for e in edges]
    return tuple([e.view(torch.uint8) for e in maps] if torch.bool in dtypes else maps)


class _Scales(NamedTuple):
    """Predictions by their sizes.

    Args:
        packed: Height and width of each in one integer, odd and never 1: Triton compiles anew for integers in tuples
            that are 1 or turn into multiples of 16.
        areas: Pixels of each.
        tiles: Programs of the forward pass for one image.
    """

    packed: tuple[int, ...]
    areas: tuple[int, ...]
    tiles: int


@lru_cache
def _scales(sizes: tuple[tuple[int, int], ...]) -> _Scales:
    return _Scales(
        packed=tuple(h << 16 | w << 1 | 1 for h, w in sizes),
        areas=tuple(h * w for h, w in sizes),
        tiles=sum(cdiv(h, ROWS) * cdiv(w, COLUMNS) for h, w in sizes),
    )


@lru_cache
def _is_regular(image_height: int, image_width: int, sizes: tuple[tuple[int, int], ...]) -> bool:
    """Whether the image's sides are multiples of every scale's, and the scales made of whole strips, nine columns wide.

    Then the kernel divides nothing for a pixel and asks for fewer bounds.
    """
    return not any(image_height % h or image_width % w or h % ROWS or w < 9 for h, w in sizes)


# By device and stream; and for each device what graphs to come will use.
_counts: dict[tuple[int, int], Tensor] = {}
_counts_for_graphs: dict[int, list[Tensor]] = {}


def _zeroed_counts(image: Tensor) -> Tensor:
    """(MAX_SCALES,) int32 zeros. The kernel leaves them zero, so calls that cannot run at the same time share them.

    These are the calls on one stream. A graph may be replayed beside anything, so each call that is captured has its
    own for ever, or one that the graph itself fills with zeros. What is kept must not lie in a graph's memory, where
    ``torch.compile`` may run a warm-up.
    """
    if image.is_cuda and torch.cuda.is_current_stream_capturing():
        spare = _counts_for_graphs.get(image.get_device())
        if spare:
            return spare.pop()
    elif image.is_cuda:
        key = image.get_device(), torch.cuda.current_stream(image.device).cuda_stream
        if key not in _counts and "torch._inductor.cudagraph_trees" not in sys.modules:
            _counts[key], *spare = image.new_zeros((16, MAX_SCALES), dtype=torch.int32)
            _counts_for_graphs.setdefault(key[0], []).extend(spare)
        if key in _counts:
            return _counts[key]
    return image.new_zeros((MAX_SCALES,), dtype=torch.int32)


def structure_loss_forward(
    image: Tensor,
    predictions: Sequence[Tensor],
    edges: Sequence[Tensor],
    edge_alpha: float,
    grad_alpha: float,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted terms of every scale, and what ``structure_loss_backward`` needs.

    Args:
        image: (B, 3, H, W) float32, bfloat16 or float16; as all sides, H and W at most ``MAX_SIDE``.
        predictions: At most ``MAX_SCALES`` maps (B, 6, h, w) of one dtype, float32, bfloat16 or float16; all
            contiguous or all channels-last.
        edges: For each prediction (B, 1, h, w), bool or floating point; copied where the dtypes differ.
        edge_alpha: Weight of the priorities.
        grad_alpha: Weight of the mean absolute error.
        keep: Whether gradients will be asked for.

    Returns:
        terms (scales, 2) float32, their slopes (scales, 2) float32, and for all pixels of all scales priorities float32
        and signs int16, or for none without ``keep``.
    """
    batch, _, image_height, image_width = image.shape
    sizes = tuple([p.shape[2:] for p in predictions])
    scales = _scales(sizes)
    tiles = batch * scales.tiles
    pixels = batch * sum(scales.areas) if keep else 0
    fill = torch.empty if tiles > 0 else torch.zeros
    terms = fill((len(sizes), 2), dtype=torch.float32, device=image.device)
    slopes = fill((len(sizes), 2), dtype=torch.float32, device=image.device)
    priorities = image.new_empty((pixels,), dtype=torch.float32)
    signs = image.new_empty((pixels,), dtype=torch.int16)
    if tiles == 0:
        return terms, slopes, priorities, signs
    partials = image.new_empty((tiles, 3), dtype=torch.float32)
    image_last = is_channels_last(image)
    with on_device_of(image):
        _forward_kernel[(tiles,)](
            image.contiguous(memory_format=torch.channels_last if image_last else torch.contiguous_format),
            tuple(predictions), _edge_maps(edges), signs, priorities, partials, _zeroed_counts(image), terms, slopes,
            batch, image_height, image_width, scales.packed,
            edge_alpha, tuple([grad_alpha / (6 * batch * area) for area in scales.areas]),
            SCALES=len(sizes), IMAGE_LAST=image_last, PREDICTIONS_LAST=_all_channels_last(predictions),
            REGULAR=_is_regular(image_height, image_width, sizes), KEEP=keep,
            COLUMNS=COLUMNS, ROWS=ROWS, STEP=STEP, BLOCK=1024, num_warps=WARPS,
        )  # fmt: skip
    return terms, slopes, priorities, signs


def structure_loss_backward(
    grad_terms: Tensor, slopes: Tensor, priorities: Tensor, signs: Tensor, predictions: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients (B, 6, h, w) of all predictions, given that of the terms (scales, 2) float32.

    The values of ``predictions`` are not read: they give shapes, dtype and layout. ``slopes``, ``priorities`` and
    ``signs`` are what ``structure_loss_forward`` returned.
    """
    grads = [torch.empty_like(p) for p in predictions]
    last = _all_channels_last(predictions)
    run, lanes = (LAST_PIXELS, LAST_LANES) if last else (PIXELS, LANES)
    scales = _scales(tuple([p.shape[2:] for p in predictions]))
    batch = predictions[0].shape[0]
    programs = batch * sum([cdiv(area, run) for area in scales.areas])
    if programs == 0:
        return grads
    with on_device_of(grad_terms):
        _backward_kernel[(programs,)](
            grad_terms, grad_terms.stride(), slopes, signs, priorities, tuple(grads), batch,
            scales.packed, SCALES=len(grads), LAST=last, VECTORS=not any([area % 8 for area in scales.areas]),
            PIXELS=run, LANES=lanes, num_warps=4,
        )  # fmt: skip
    return grads
