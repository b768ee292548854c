"""Instance norm, affine, residual, ReLU and the reflect padding of the next convolution.

Forward: one launch takes the mean and the sum of squared deviations of chunks of pixels, one merges those of its
channels (Chan's formula) and writes the padded result. Backward: one launch sums over chunks, one writes the gradient.
Nothing is tuned at run time, nothing is atomic, and every sum has a fixed order.

A chunk sums deviations from the mean of its first tile. That tile is a share f of the chunk, so the square of its
mean's distance from the chunk's mean is at most 1 / f variances: cancellation costs at most log2(tiles) bits.

A program works on tiles of (BLOCK_P pixels, BLOCK_C channels). In channels-last maps neighbouring lanes take
neighbouring channels, in contiguous maps BLOCK_C is 1 and they take neighbouring pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import cdiv, next_power_of_2, on_device_of

_WARPS = 8
_TILE_BYTES = 8192  # two 16-byte loads for each of 256 threads; the backward pass has one each of two maps
_PROGRAMS = 528  # four blocks on each of 132 multiprocessors
_MOST_CHUNKS = 32  # each program of the second launch reads as many partial sums for each of its channels
_LINE, _SECTOR = 128, 32  # bytes of a cache line, and the least that is worth reading of it


@triton.jit
def _program(programs, channel_blocks, chunks, REVERSED: tl.constexpr):
    """Block of channels, chunk and image of a program; the last images first if they are still cached."""
    i_program = tl.program_id(0)
    if REVERSED:
        i_program = programs - 1 - i_program
    i_map = i_program // channel_blocks
    return i_program % channel_blocks, i_map % chunks, (i_map // chunks).to(tl.int64)


@triton.jit
def _load(p_block, m_pixel, m_channel, EVEN: tl.constexpr):
    """(BLOCK_P, BLOCK_C) in float32, zero outside."""
    if EVEN:
        return tl.load(p_block).to(tl.float32)
    return tl.load(p_block, mask=m_pixel[:, None] & m_channel[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store(p_block, b_value, m_pixel, m_channel, EVEN: tl.constexpr):
    b_value = b_value.to(p_block.dtype.element_ty)
    if EVEN:
        tl.store(p_block, b_value)
    else:
        tl.store(p_block, b_value, mask=m_pixel[:, None] & m_channel[None, :])


@triton.jit
def _load_channels(p_vector, o_channel, m_channel, DEFAULT: tl.constexpr):
    """(BLOCK_C,) in float32; ``DEFAULT`` where there is no vector."""
    if p_vector is None:
        return tl.full(o_channel.shape, DEFAULT, tl.float32)
    return tl.load(p_vector + o_channel, mask=m_channel, other=0.0).to(tl.float32)


@triton.jit
def _place(o_pixel, width, s_y, s_x, FLAT: tl.constexpr):
    """Offsets of pixels, counted row by row, in a map; in a ``FLAT`` one they are equally far apart."""
    if FLAT:
        return o_pixel * s_x
    return (o_pixel // width) * s_y + (o_pixel % width) * s_x


@triton.jit
def _reflected(o_position, size):
    """Where a position at most size - 1 outside of 0 to size - 1 is reflected to."""
    o_position = tl.abs(o_position)
    return tl.where(o_position >= size, 2 * size - 2 - o_position, o_position)


@triton.jit
def _statistics_kernel(
    p_x,  # (B, C, H, W)
    p_partials,  # out (B, chunks, 2, C) float32: mean, sum of squared deviations from it
    channels,
    width,
    pixels,  # H W
    chunk,  # pixels of a chunk, a multiple of BLOCK_P
    chunks,
    channel_blocks,
    s_b,
    s_c,
    s_y,
    s_x,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,  # whether tiles need no mask
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_channels, i_chunk, i_batch = _program(0, channel_blocks, chunks, False)
    o_channel = i_channels * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    first = i_chunk * chunk
    last = tl.minimum(first + chunk, pixels)
    p_map = p_x + i_batch * s_b + (o_channel * s_c)[None, :]

    o_pixel = first + tl.arange(0, BLOCK_P)
    m_pixel = o_pixel < last
    b_x = _load(p_map + _place(o_pixel, width, s_y, s_x, FLAT)[:, None], m_pixel, m_channel, EVEN)
    b_shift = tl.sum(b_x, 0) / tl.minimum(BLOCK_P, last - first)  # (BLOCK_C,)
    b_far = b_x - b_shift[None, :]
    if not EVEN:
        b_far = tl.where(m_pixel[:, None], b_far, 0.0)
    b_sum = b_far
    b_square = b_far * b_far
    for start in range(first + BLOCK_P, last, BLOCK_P):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < last
        b_x = _load(p_map + _place(o_pixel, width, s_y, s_x, FLAT)[:, None], m_pixel, m_channel, EVEN)
        b_far = b_x - b_shift[None, :]
        if not EVEN:
            b_far = tl.where(m_pixel[:, None], b_far, 0.0)
        b_sum += b_far
        b_square += b_far * b_far

    b_mean = tl.sum(b_sum, 0) / (last - first)  # less the shift
    b_deviations = tl.maximum(tl.sum(b_square, 0) - b_mean * b_mean * (last - first), 0.0)
    p_partial = p_partials + (i_batch * chunks + i_chunk) * 2 * channels + o_channel
    tl.store(p_partial, b_shift + b_mean, mask=m_channel)
    tl.store(p_partial + channels, b_deviations, mask=m_channel)


@triton.jit
def _merged(p_partials, o_channel, m_channel, channels, pixels, chunk, chunks, CHUNKS: tl.constexpr):
    """Mean and variance (BLOCK_C,) of an image's channels, from those of its chunks."""
    o_chunk = tl.arange(0, CHUNKS)
    b_count = tl.maximum(tl.minimum(chunk, pixels - o_chunk * chunk), 0).to(tl.float32)[:, None]
    m_partial = (o_chunk < chunks)[:, None] & m_channel[None, :]
    p_partial = p_partials + (o_chunk * 2 * channels)[:, None] + o_channel[None, :]
    b_mean = tl.load(p_partial, mask=m_partial, other=0.0)
    b_deviations = tl.load(p_partial + channels, mask=m_partial, other=0.0)
    b_total = tl.sum(b_count * b_mean, 0) / pixels
    b_far = b_mean - b_total[None, :]
    return b_total, tl.sum(b_deviations + b_count * b_far * b_far, 0) / pixels


@triton.jit
def _apply_kernel(
    p_x,  # (B, C, H, W)
    p_partials,  # (B, statistics_chunks, 2, C) float32
    p_weight,  # (C,) or None
    p_bias,  # (C,) or None
    p_residual,  # (B, C, H, W) or None
    p_scale,  # (1,) or None
    p_output,  # out (B, C, H + 2 PADDING, W + 2 PADDING)
    p_mean,  # out (B, C) float32
    p_rstd,  # out (B, C) float32
    channels,
    height,
    width,
    eps,
    statistics_chunk,
    statistics_chunks,
    chunk,  # of output pixels
    chunks,
    channel_blocks,
    programs,
    s_b,
    s_c,
    s_y,
    s_x,
    s_residual_b,
    s_residual_c,
    s_residual_y,
    s_residual_x,
    s_output_c,
    s_output_x,
    RELU: tl.constexpr,
    PADDING: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNKS: tl.constexpr,  # statistics_chunks or above
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_channels, i_chunk, i_batch = _program(programs, channel_blocks, chunks, True)
    o_channel = i_channels * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    p_partials += i_batch * statistics_chunks * 2 * channels
    b_mean, b_variance = _merged(
        p_partials, o_channel, m_channel, channels, height * width, statistics_chunk, statistics_chunks, CHUNKS
    )
    b_rstd = 1.0 / tl.sqrt(b_variance + eps)
    if i_chunk == 0:
        tl.store(p_mean + i_batch * channels + o_channel, b_mean, mask=m_channel)
        tl.store(p_rstd + i_batch * channels + o_channel, b_rstd, mask=m_channel)
    b_factor = b_rstd * _load_channels(p_weight, o_channel, m_channel, 1.0)
    b_bias = _load_channels(p_bias, o_channel, m_channel, 0.0)
    if p_scale is not None:
        scale = tl.load(p_scale).to(tl.float32)

    wide = width + 2 * PADDING
    pixels = (height + 2 * PADDING) * wide
    p_map = p_x + i_batch * s_b + (o_channel * s_c)[None, :]
    if p_residual is not None:
        p_added = p_residual + i_batch * s_residual_b + (o_channel * s_residual_c)[None, :]
    p_result = p_output + i_batch * channels * pixels + (o_channel * s_output_c)[None, :]
    for start in range(i_chunk * chunk, tl.minimum(i_chunk * chunk + chunk, pixels), BLOCK_P):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < pixels
        if FLAT:
            o_place = o_pixel * s_x
        else:
            o_y = _reflected(o_pixel // wide - PADDING, height)
            o_x = _reflected(o_pixel % wide - PADDING, width)
            o_place = o_y * s_y + o_x * s_x
        b_x = _load(p_map + o_place[:, None], m_pixel, m_channel, EVEN)
        b_y = (b_x - b_mean[None, :]) * b_factor[None, :] + b_bias[None, :]
        if p_scale is not None:
            if RELU:
                b_y = tl.maximum(b_y, 0.0, propagate_nan=tl.PropagateNan.ALL)
            b_y *= scale
        if p_residual is not None:
            o_place = o_pixel * s_residual_x if FLAT else o_y * s_residual_y + o_x * s_residual_x
            b_y += _load(p_added + o_place[:, None], m_pixel, m_channel, EVEN)
        if RELU and p_scale is None:
            b_y = tl.maximum(b_y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        _store(p_result + (o_pixel * s_output_x)[:, None], b_y, m_pixel, m_channel, EVEN)


@triton.jit
def _mirror(o_position, size, PADDING: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Where the padded map repeats a position before (``FIRST``) or after the map (``LAST``), and whether it does."""
    m_first = (o_position >= 1) & (o_position <= PADDING)
    m_last = (o_position >= size - 1 - PADDING) & (o_position <= size - 2)
    o_first = PADDING - o_position
    o_last = PADDING + 2 * (size - 1) - o_position
    if FIRST and LAST:
        return tl.where(m_first, o_first, o_last), m_first | m_last
    if FIRST:
        return o_first, m_first
    return o_last, m_last


@triton.jit
def _row_gradient(
    p_grad, o_row, m_row, o_x, m_channel, width, s_x,
    PADDING: tl.constexpr, SMALL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Sum of the gradients along one padded row that came from the pixel in column ``o_x``."""
    b_grad = _load(p_grad + (o_row + (o_x + PADDING) * s_x)[:, None], m_row, m_channel, EVEN)
    if SMALL:
        o_mirror, m_mirror = _mirror(o_x, width, PADDING, True, False)
        b_grad += _load(p_grad + (o_row + o_mirror * s_x)[:, None], m_row & m_mirror, m_channel, False)
        o_mirror, m_mirror = _mirror(o_x, width, PADDING, False, True)
        b_grad += _load(p_grad + (o_row + o_mirror * s_x)[:, None], m_row & m_mirror, m_channel, False)
    else:
        o_mirror, m_mirror = _mirror(o_x, width, PADDING, True, True)
        b_grad += _load(p_grad + (o_row + o_mirror * s_x)[:, None], m_row & m_mirror, m_channel, False)
    return b_grad


@triton.jit
def _gradient(
    p_grad, o_pixel, m_pixel, m_channel, height, width, s_y, s_x,
    PADDING: tl.constexpr, SMALL: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """(BLOCK_P, BLOCK_C) gradient before padding: a pixel gathers from every position that repeats it.

    ``SMALL`` maps are those of which one pixel may be repeated on both sides.
    """
    if PADDING == 0:
        return _load(p_grad + _place(o_pixel, width, s_y, s_x, FLAT)[:, None], m_pixel, m_channel, EVEN)
    o_y = o_pixel // width
    o_x = o_pixel % width
    o_row = (o_y + PADDING) * s_y
    b_grad = _row_gradient(p_grad, o_row, m_pixel, o_x, m_channel, width, s_x, PADDING, SMALL, EVEN)
    m_border = m_pixel & ((o_y <= PADDING) | (o_y >= height - 1 - PADDING))
    if tl.max(m_border.to(tl.int32), 0) > 0:
        if SMALL:
            o_mirror, m_mirror = _mirror(o_y, height, PADDING, True, False)
            b_grad += _row_gradient(
                p_grad, o_mirror * s_y, m_pixel & m_mirror, o_x, m_channel, width, s_x, PADDING, SMALL, False
            )
            o_mirror, m_mirror = _mirror(o_y, height, PADDING, False, True)
            b_grad += _row_gradient(
                p_grad, o_mirror * s_y, m_pixel & m_mirror, o_x, m_channel, width, s_x, PADDING, SMALL, False
            )
        else:
            o_mirror, m_mirror = _mirror(o_y, height, PADDING, True, True)
            b_grad += _row_gradient(
                p_grad, o_mirror * s_y, m_pixel & m_mirror, o_x, m_channel, width, s_x, PADDING, SMALL, False
            )
    return b_grad


@triton.jit
def _backward_sums_kernel(
    p_grad,  # (B, C, H + 2 PADDING, W + 2 PADDING)
    p_x,  # (B, C, H, W)
    p_mean,  # (B, C) float32
    p_rstd,  # (B, C) float32
    p_weight,  # (C,) or None
    p_bias,  # (C,) or None
    p_residual,  # (B, C, H, W), None unless the ReLU saw it
    p_scale,  # (1,) or None
    p_grad_residual,  # out (B, C, H, W), or None; in the layout of x and dense
    p_partials,  # out (B, chunks, 3, C) float32: sums of the gradient, of it times x normalised, of scale's gradient
    channels,
    height,
    width,
    chunk,
    chunks,
    channel_blocks,
    s_grad_b,
    s_grad_c,
    s_grad_y,
    s_grad_x,
    s_b,
    s_c,
    s_y,
    s_x,
    s_residual_b,
    s_residual_c,
    s_residual_y,
    s_residual_x,
    s_dense_c,
    s_dense_x,
    RELU: tl.constexpr,
    PADDING: tl.constexpr,
    SMALL: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_channels, i_chunk, i_batch = _program(0, channel_blocks, chunks, False)
    o_channel = i_channels * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    pixels = height * width
    b_mean = _load_channels(p_mean + i_batch * channels, o_channel, m_channel, 0.0)
    b_rstd = _load_channels(p_rstd + i_batch * channels, o_channel, m_channel, 0.0)
    b_weight = _load_channels(p_weight, o_channel, m_channel, 1.0)
    b_bias = _load_channels(p_bias, o_channel, m_channel, 0.0)
    p_gradient = p_grad + i_batch * s_grad_b + (o_channel * s_grad_c)[None, :]
    p_map = p_x + i_batch * s_b + (o_channel * s_c)[None, :]
    b_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_dot = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_scale = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(i_chunk * chunk, tl.minimum(i_chunk * chunk + chunk, pixels), BLOCK_P):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < pixels
        b_grad = _gradient(
            p_gradient, o_pixel, m_pixel, m_channel, height, width, s_grad_y, s_grad_x, PADDING, SMALL, FLAT, EVEN
        )
        b_x = _load(p_map + _place(o_pixel, width, s_y, s_x, FLAT)[:, None], m_pixel, m_channel, EVEN)
        b_hat = (b_x - b_mean[None, :]) * b_rstd[None, :]
        b_y = b_hat * b_weight[None, :] + b_bias[None, :]
        b_masked = b_grad
        if RELU:
            if p_residual is not None:
                p_added = p_residual + i_batch * s_residual_b + (o_channel * s_residual_c)[None, :]
                o_place = _place(o_pixel, width, s_residual_y, s_residual_x, FLAT)
                b_y += _load(p_added + o_place[:, None], m_pixel, m_channel, EVEN)
            b_masked = tl.where(b_y > 0, b_grad, 0.0)
        if p_scale is not None:
            b_scale += b_masked * b_y
        if p_grad_residual is not None:
            p_kept = p_grad_residual + i_batch * channels * pixels + (o_channel * s_dense_c)[None, :]
            b_kept = b_masked if p_scale is None else b_grad
            _store(p_kept + (o_pixel * s_dense_x)[:, None], b_kept, m_pixel, m_channel, EVEN)
        b_sum += b_masked
        b_dot += b_masked * b_hat
    p_partial = p_partials + (i_batch * chunks + i_chunk) * 3 * channels + o_channel
    tl.store(p_partial, tl.sum(b_sum, 0), mask=m_channel)
    tl.store(p_partial + channels, tl.sum(b_dot, 0), mask=m_channel)
    tl.store(p_partial + 2 * channels, tl.sum(b_scale, 0), mask=m_channel)


@triton.jit
def _total(p_partials, o_channel, m_channel, channels, chunks, CHUNKS: tl.constexpr):
    """(BLOCK_C,) sum of one of the three partial sums over all chunks."""
    o_chunk = tl.arange(0, CHUNKS)
    m_partial = (o_chunk < chunks)[:, None] & m_channel[None, :]
    return tl.sum(
        tl.load(p_partials + (o_chunk * 3 * channels)[:, None] + o_channel[None, :], mask=m_partial, other=0.0), 0
    )


@triton.jit
def _backward_apply_kernel(
    p_grad,  # (B, C, H + 2 PADDING, W + 2 PADDING)
    p_x,  # (B, C, H, W)
    p_mean,  # (B, C) float32
    p_rstd,  # (B, C) float32
    p_weight,  # (C,) or None
    p_bias,  # (C,) or None
    p_scale,  # (1,) or None
    p_partials,  # (B, chunks, 3, C) float32
    p_grad_x,  # out (B, C, H, W), in the layout of x and dense
    p_sums,  # out (3, B, C) float32: gradients of bias, weight and scale in each image
    batch,
    channels,
    height,
    width,
    chunk,
    chunks,
    channel_blocks,
    programs,
    s_grad_b,
    s_grad_c,
    s_grad_y,
    s_grad_x,
    s_b,
    s_c,
    s_y,
    s_x,
    s_dense_c,
    s_dense_x,
    RELU: tl.constexpr,
    PADDING: tl.constexpr,
    SMALL: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_channels, i_chunk, i_batch = _program(programs, channel_blocks, chunks, True)
    o_channel = i_channels * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    pixels = height * width
    p_partials += i_batch * chunks * 3 * channels
    b_sum = _total(p_partials, o_channel, m_channel, channels, chunks, CHUNKS)
    b_dot = _total(p_partials + channels, o_channel, m_channel, channels, chunks, CHUNKS)
    b_mean = _load_channels(p_mean + i_batch * channels, o_channel, m_channel, 0.0)
    b_rstd = _load_channels(p_rstd + i_batch * channels, o_channel, m_channel, 0.0)
    b_weight = _load_channels(p_weight, o_channel, m_channel, 1.0)
    b_bias = _load_channels(p_bias, o_channel, m_channel, 0.0)
    scale = 1.0
    if p_scale is not None:
        scale = tl.load(p_scale).to(tl.float32)
    if i_chunk == 0:
        p_sum = p_sums + i_batch * channels + o_channel
        tl.store(p_sum, scale * b_sum, mask=m_channel)
        tl.store(p_sum + batch * channels, scale * b_dot, mask=m_channel)
        b_scale = _total(p_partials + 2 * channels, o_channel, m_channel, channels, chunks, CHUNKS)
        tl.store(p_sum + 2 * batch * channels, b_scale, mask=m_channel)
    b_factor = scale * b_weight * b_rstd
    b_sum /= pixels
    b_dot /= pixels
    p_gradient = p_grad + i_batch * s_grad_b + (o_channel * s_grad_c)[None, :]
    p_map = p_x + i_batch * s_b + (o_channel * s_c)[None, :]
    p_result = p_grad_x + i_batch * channels * pixels + (o_channel * s_dense_c)[None, :]
    for start in range(i_chunk * chunk, tl.minimum(i_chunk * chunk + chunk, pixels), BLOCK_P):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < pixels
        b_grad = _gradient(
            p_gradient, o_pixel, m_pixel, m_channel, height, width, s_grad_y, s_grad_x, PADDING, SMALL, FLAT, EVEN
        )
        b_x = _load(p_map + _place(o_pixel, width, s_y, s_x, FLAT)[:, None], m_pixel, m_channel, EVEN)
        b_hat = (b_x - b_mean[None, :]) * b_rstd[None, :]
        if RELU:
            b_grad = tl.where(b_hat * b_weight[None, :] + b_bias[None, :] > 0, b_grad, 0.0)
        b_grad = b_factor[None, :] * (b_grad - b_sum[None, :] - b_hat * b_dot[None, :])
        _store(p_result + (o_pixel * s_dense_x)[:, None], b_grad, m_pixel, m_channel, EVEN)


class _Tiles(NamedTuple):
    """How maps are cut: blocks of channels, and chunks of pixels that are whole tiles."""

    block_p: int
    block_c: int
    channel_blocks: int
    chunk: int
    chunks: int
    programs: int
    even: bool


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side in memory (and do not lie in planes as well)."""
    return x.stride(1) == 1 and not x.is_contiguous()


@lru_cache
def _tiles(batch: int, channels: int, pixels: int, last: bool, size: int, tile_bytes: int) -> _Tiles:
    """Of maps, channels-last if ``last``, with elements of ``size`` bytes."""
    block_c = 1
    if last:
        widest = next_power_of_2(channels)
        block_c = min(widest, _LINE // size)
        while block_c > _SECTOR // size and batch * cdiv(channels, block_c) < 16:
            block_c //= 2
    block_p = tile_bytes // size // block_c
    channel_blocks = cdiv(channels, block_c)
    tiles = cdiv(pixels, block_p)
    chunks = min(tiles, _MOST_CHUNKS, max(1, _PROGRAMS // max(1, batch * channel_blocks)))
    chunk = cdiv(tiles, chunks) * block_p
    chunks = cdiv(pixels, chunk)
    even = pixels % block_p == 0 and channels % block_c == 0
    return _Tiles(block_p, block_c, channel_blocks, chunk, chunks, batch * channel_blocks * chunks, even)


def _readable(tensor: Tensor, last: bool) -> Tensor:
    """The tensor itself if neighbouring lanes would read neighbouring elements, else a copy in that layout."""
    if tensor.stride(1 if last else 3) == 1:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _is_flat(tensor: Tensor) -> bool:
    return tensor.stride(2) == tensor.shape[3] * tensor.stride(3)


def _empty(x: Tensor, last: bool, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A dense map on the device of ``x``, channels-last if ``last``."""
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


def instance_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    eps: float,
    relu: bool,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, H, W) -> result (B, C, H + 2 padding, W + 2 padding), mean (B, C) and 1 / deviation (B, C) in float32.

    With ``scale`` the result is residual + scale * relu(norm), else relu(norm + residual). Fewer than 2^31 elements in
    an image of the result. Layout as ``x``; a map that is not dense but has neighbouring channels or columns side by
    side, such as the interior of a padded one, is read where it lies.
    """
    last = is_channels_last(x)
    x = _readable(x, last)
    batch, channels, height, width = x.shape
    out_height, out_width = height + 2 * padding, width + 2 * padding
    output = _empty(x, last, (batch, channels, out_height, out_width), x.dtype)
    mean = torch.empty((batch, channels), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if not batch:
        return output, mean, rstd
    size = x.element_size()
    cut = _tiles(batch, channels, height * width, last, size, _TILE_BYTES)
    out_cut = _tiles(batch, channels, out_height * out_width, last, size, _TILE_BYTES)
    partials = torch.empty((batch, cut.chunks, 2, channels), dtype=torch.float32, device=x.device)
    flat = _is_flat(x)
    residual_strides: tuple[int, ...] = (0, 0, 0, 0)
    if residual is not None:
        residual = _readable(residual, last)
        residual_strides = residual.stride()
    out_flat = padding == 0 and flat and (residual is None or _is_flat(residual))
    dense = (1, channels) if last else (out_height * out_width, 1)
    strides = x.stride()
    with on_device_of(x):
        _statistics_kernel[(cut.programs,)](
            x, partials, channels, width, height * width, cut.chunk, cut.chunks, cut.channel_blocks, *strides,
            FLAT=flat, EVEN=cut.even, BLOCK_P=cut.block_p, BLOCK_C=cut.block_c, num_warps=_WARPS,
        )  # fmt: skip
        _apply_kernel[(out_cut.programs,)](
            x, partials, weight, bias, residual, scale, output, mean, rstd, channels, height, width, eps,
            cut.chunk, cut.chunks, out_cut.chunk, out_cut.chunks, out_cut.channel_blocks, out_cut.programs,
            *strides, *residual_strides, *dense,
            RELU=relu, PADDING=padding, FLAT=out_flat, EVEN=out_cut.even, CHUNKS=next_power_of_2(cut.chunks),
            BLOCK_P=out_cut.block_p, BLOCK_C=out_cut.block_c, num_warps=_WARPS,
        )  # fmt: skip
    return output, mean, rstd


def instance_norm_backward(
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
    """Gradients of x (B, C, H, W), of bias, weight and scale (3, C) in float32, and of the residual.

    The last is (B, C, H, W) in the dtype of ``grad``, or (0,) unless ``residual_gradient`` asks for it. Scale's
    gradient is the sum of its row. ``residual`` is wanted only where the ReLU saw it (relu without scale).
    """
    last = is_channels_last(x)
    x, grad = _readable(x, last), _readable(grad, last)
    batch, channels, height, width = x.shape
    grad_x = _empty(x, last, x.shape, x.dtype)
    grad_residual = _empty(x, last, x.shape, grad.dtype) if residual_gradient else None
    sums = torch.empty((3, batch, channels), dtype=torch.float32, device=x.device)
    if batch:
        seen_residual = None
        residual_strides: tuple[int, ...] = (0, 0, 0, 0)
        if residual is not None and relu and scale is None:
            seen_residual = _readable(residual, last)
            residual_strides = seen_residual.stride()
            if grad_residual is None:  # the second launch needs the masked gradient
                grad_residual = _empty(x, last, x.shape, grad.dtype)
        cut = _tiles(batch, channels, height * width, last, x.element_size(), _TILE_BYTES // 2)
        partials = torch.empty((batch, cut.chunks, 3, channels), dtype=torch.float32, device=x.device)
        maps = [x, grad] if seen_residual is None else [x, grad, seen_residual]
        dense = (1, channels) if last else (height * width, 1)
        small = min(height, width) <= 2 * padding + 1
        with on_device_of(x):
            _backward_sums_kernel[(cut.programs,)](
                grad, x, mean, rstd, weight, bias, seen_residual, scale, grad_residual, partials,
                channels, height, width, cut.chunk, cut.chunks, cut.channel_blocks,
                *grad.stride(), *x.stride(), *residual_strides, *dense,
                RELU=relu, PADDING=padding, SMALL=small, FLAT=all(_is_flat(m) for m in maps), EVEN=cut.even,
                BLOCK_P=cut.block_p, BLOCK_C=cut.block_c, num_warps=_WARPS,
            )  # fmt: skip
            masked = relu and scale is None and grad_residual is not None
            if grad_residual is not None:
                grad, padding, maps = grad_residual, 0, [x]
            _backward_apply_kernel[(cut.programs,)](
                grad, x, mean, rstd, weight, bias, scale, partials, grad_x, sums, batch, channels, height, width,
                cut.chunk, cut.chunks, cut.channel_blocks, cut.programs, *grad.stride(), *x.stride(), *dense,
                RELU=relu and not masked, PADDING=padding, SMALL=small, FLAT=all(_is_flat(m) for m in maps),
                EVEN=cut.even, CHUNKS=next_power_of_2(cut.chunks),
                BLOCK_P=cut.block_p, BLOCK_C=cut.block_c, num_warps=_WARPS,
            )  # fmt: skip
    if not residual_gradient or grad_residual is None:
        grad_residual = grad.new_empty((0,))
    return grad_x, sums.sum(1), grad_residual
