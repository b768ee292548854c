"""Sobel gradients of an image with a reflected border, and their transpose as a gather.

A plane is a (H, W) channel of a contiguous image, or a whole channels-last image, whose rows hold W * C elements with
the neighbour of a channel C elements away. Each thread walks down one column of a strip, so a row is loaded once for
the three rows of gradients that need it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import cdiv, on_device_of

COLUMNS = 64  # elements of a row that one block takes
ROWS = 8
WARPS = 2


@triton.jit
def load_row(p_row, o_left, o_centre, o_right):
    """[1 2 1] and [-1 0 1] along one row, float32."""
    b_left = tl.load(p_row + o_left).to(tl.float32)
    b_centre = tl.load(p_row + o_centre).to(tl.float32)
    b_right = tl.load(p_row + o_right).to(tl.float32)
    return (b_left + b_right) + 2 * b_centre, b_right - b_left


@triton.jit
def _reflect(i, size):
    """Index -1 or ``size`` reflected into the axis; what lies beyond is cut off."""
    i = tl.where(i < 0, -i, i)
    return tl.maximum(tl.where(i >= size, 2 * size - 2 - i, i), 0)


@triton.jit
def _place(height, width, PIXEL: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Plane, first row and columns of a program."""
    i_program = tl.program_id(0)
    blocks = tl.cdiv(width * PIXEL, COLUMNS)
    strips = tl.cdiv(height, ROWS)
    i_plane = (i_program // (blocks * strips)).to(tl.int64)
    i_strip = i_program % (blocks * strips) // blocks
    o_column = i_program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    return i_plane, i_strip * ROWS, o_column


@triton.jit(do_not_specialize=["height", "width"])
def _forward_kernel(
    p_image,  # planes (H, W) or (H, W, C)
    p_gradients,  # out, for each plane dy and dx (2, H, W) or (H, W, C, 2)
    height,
    width,
    PIXEL: tl.constexpr,  # elements between neighbours: 1, or the channels of a channels-last image
    LAST: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    i_plane, first_y, o_column = _place(height, width, PIXEL, COLUMNS, ROWS)
    length = width * PIXEL
    m_column = o_column < length
    o_centre = tl.minimum(o_column, length - 1)
    o_left = tl.where(o_centre >= PIXEL, o_centre - PIXEL, o_centre + PIXEL)
    o_right = tl.where(o_centre < length - PIXEL, o_centre + PIXEL, o_centre - PIXEL)
    p_image += i_plane * height * length
    p_gradients += 2 * i_plane * height * length
    b_smooth, b_slope = load_row(p_image + _reflect(first_y - 1, height) * length, o_left, o_centre, o_right)
    b_next_smooth, b_next_slope = load_row(p_image + first_y * length, o_left, o_centre, o_right)
    for row in tl.static_range(ROWS):
        y = first_y + row
        b_up_smooth, b_up_slope, b_smooth, b_slope = b_smooth, b_slope, b_next_smooth, b_next_slope
        p_row = p_image + _reflect(y + 1, height) * length
        b_next_smooth, b_next_slope = load_row(p_row, o_left, o_centre, o_right)
        b_dy = (b_next_smooth - b_up_smooth).to(p_gradients.dtype.element_ty)
        b_dx = ((b_up_slope + b_next_slope) + 2 * b_slope).to(p_gradients.dtype.element_ty)
        m_row = m_column & (y < height)
        if LAST:
            o_pair = 2 * o_column[:, None] + tl.arange(0, 2)[None, :]
            tl.store(p_gradients + 2 * y * length + o_pair, tl.join(b_dy, b_dx), mask=m_row[:, None])
        else:
            tl.store(p_gradients + y * length + o_column, b_dy, mask=m_row)
            tl.store(p_gradients + (height + y) * length + o_column, b_dx, mask=m_row)


@triton.jit
def _load_pair(p_row, p_next, o_column, mask, LAST: tl.constexpr):
    """Gradients (dy, dx) of one row, float32: side by side in memory, or in two planes."""
    if LAST:
        o_pair = 2 * o_column[:, None] + tl.arange(0, 2)[None, :]
        return tl.split(tl.load(p_row + o_pair, mask=mask[:, None], other=0).to(tl.float32))
    b_dy = tl.load(p_row + o_column, mask=mask, other=0).to(tl.float32)
    return b_dy, tl.load(p_next + o_column, mask=mask, other=0).to(tl.float32)


@triton.jit
def _gather_row(p_gradients, y, height, length, o_column, b_weights, PIXEL: tl.constexpr, LAST: tl.constexpr):
    """What row y of the gradients hands to the rows around it: by the slope along y, and by the smoothing."""
    b_smooth_left, b_smooth_right, b_slope_left, b_slope_right = b_weights
    m_row = (y >= 0) & (y < height)
    p_row = p_gradients + (2 * y if LAST else y) * length
    p_next = p_gradients + (height + y) * length
    m_left = (o_column >= PIXEL) & (o_column < length + PIXEL) & m_row
    b_left_dy, b_left_dx = _load_pair(p_row, p_next, o_column - PIXEL, m_left, LAST)
    b_dy, _ = _load_pair(p_row, p_next, o_column, (o_column < length) & m_row, LAST)
    b_right_dy, b_right_dx = _load_pair(p_row, p_next, o_column + PIXEL, (o_column + PIXEL < length) & m_row, LAST)
    b_along_y = (b_smooth_left * b_left_dy + b_smooth_right * b_right_dy) + 2 * b_dy
    return b_along_y, b_slope_left * b_left_dx + b_slope_right * b_right_dx


@triton.jit(do_not_specialize=["height", "width"])
def _backward_kernel(
    p_gradients,  # for each plane gradients of dy and dx (2, H, W) or (H, W, C, 2)
    p_image,  # out, planes (H, W) or (H, W, C)
    height,
    width,
    PIXEL: tl.constexpr,
    LAST: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    i_plane, first_y, o_column = _place(height, width, PIXEL, COLUMNS, ROWS)
    length = width * PIXEL
    p_image += i_plane * height * length
    p_gradients += 2 * i_plane * height * length
    # The border's reflection hands the gradients of the outermost pixel to its neighbour once more: the smoothing
    # reaches that twice, the slope cancels.
    b_again_left = tl.where((o_column >= PIXEL) & (o_column < 2 * PIXEL), 1.0, 0.0)
    b_again_right = tl.where((o_column >= length - 2 * PIXEL) & (o_column < length - PIXEL), 1.0, 0.0)
    b_weights = (1 + b_again_left, 1 + b_again_right, 1 - b_again_left, b_again_right - 1)
    b_along_y, b_along_x = _gather_row(p_gradients, first_y - 1, height, length, o_column, b_weights, PIXEL, LAST)
    b_next_y, b_next_x = _gather_row(p_gradients, first_y, height, length, o_column, b_weights, PIXEL, LAST)
    for row in tl.static_range(ROWS):
        y = first_y + row
        b_up_y, b_up_x, b_along_y, b_along_x = b_along_y, b_along_x, b_next_y, b_next_x
        b_next_y, b_next_x = _gather_row(p_gradients, y + 1, height, length, o_column, b_weights, PIXEL, LAST)
        again_up, again_down = tl.where(y == 1, 1.0, 0.0), tl.where(y == height - 2, 1.0, 0.0)
        b_image = (1 - again_up) * b_up_y - (1 - again_down) * b_next_y
        b_image += ((1 + again_up) * b_up_x + (1 + again_down) * b_next_x) + 2 * b_along_x
        m_row = (o_column < length) & (y < height)
        tl.store(p_image + y * length + o_column, b_image.to(p_image.dtype.element_ty), mask=m_row)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _launch(kernel: Any, source: Tensor, result: Tensor, channels: int, last: bool) -> None:
    batch, _, height, width = source.shape
    pixel = channels if last else 1
    planes = batch * channels // pixel if pixel else 0
    blocks = planes * cdiv(width * pixel, COLUMNS) * cdiv(height, ROWS)
    if blocks == 0:
        return
    with on_device_of(source):
        kernel[(blocks,)](
            source, result, height, width, PIXEL=pixel, LAST=last, COLUMNS=COLUMNS, ROWS=ROWS, num_warps=WARPS
        )


def sobel_edges_forward(image: Tensor) -> Tensor:
    """Gradients (B, 2C, H, W) of (B, C, H, W) float32, bfloat16 or float16; H and W at least 2.

    One image must hold fewer than 2^30 elements. The result is channels-last where the image is, else contiguous.
    """
    last = _is_channels_last(image)
    layout = torch.channels_last if last else torch.contiguous_format
    batch, channels, height, width = image.shape
    shape = (batch, 2 * channels, height, width)
    gradients = torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=layout)
    _launch(_forward_kernel, image.contiguous(memory_format=layout), gradients, channels, last)
    return gradients


def sobel_edges_backward(gradients: Tensor) -> Tensor:
    """Transpose of ``sobel_edges_forward``: (B, 2C, H, W) -> (B, C, H, W), in the layout of ``gradients``."""
    last = _is_channels_last(gradients)
    layout = torch.channels_last if last else torch.contiguous_format
    batch, channels, height, width = gradients.shape
    shape = (batch, channels // 2, height, width)
    image = torch.empty(shape, dtype=gradients.dtype, device=gradients.device, memory_format=layout)
    _launch(_backward_kernel, gradients.contiguous(memory_format=layout), image, channels // 2, last)
    return image
