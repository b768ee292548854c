"""Repeated Gaussian blur of an edge map, as products with banded matrices: one launch for any number of blurs.

A block loads a square with all pixels that its part of the result depends on. Each blur multiplies it from both sides
with the matrix of the Gaussian, whose rows outside the image are zero: so is what the next blur reads there.
"""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import cdiv, on_device_of

SIDE = 32  # of the square that one block holds; 64 spill
MAX_REACH = 12  # pixels that all blurs together reach; what is left of the square is the result of the block


@triton.jit
def _blur_matrix(first, size, radius, falloff, scale, SIDE: tl.constexpr):
    """(SIDE, SIDE) weights of one blur along an axis, between the pixels ``first`` ... of an image of ``size``."""
    o_row = tl.arange(0, SIDE)[:, None]
    o_column = tl.arange(0, SIDE)[None, :]
    b_distance = tl.abs(o_row - o_column)
    m_inside = (first + o_row >= 0) & (first + o_row < size) & (first + o_column >= 0) & (first + o_column < size)
    b_square = (b_distance * b_distance).to(tl.float32)
    return tl.where(m_inside & (b_distance <= radius), scale * tl.exp2(falloff * b_square), 0.0)


@triton.jit(do_not_specialize=["height", "width", "radius", "iterations"])
def _blur_kernel(
    p_edges,  # (B, H, W)
    p_blurred,  # out (B, H, W)
    height,
    width,
    radius,  # of one blur, in pixels
    iterations,
    falloff,  # -log2(e) / (2 sigma^2)
    scale,  # of the Gaussian's weights, whose sum is 1
    SIDE: tl.constexpr,
):
    reach = radius * iterations
    inner = SIDE - 2 * reach
    columns = tl.cdiv(width, inner)
    tiles = tl.cdiv(height, inner) * columns
    i_program = tl.program_id(0)
    i_batch = (i_program // tiles).to(tl.int64)
    first_y = i_program % tiles // columns * inner - reach
    first_x = i_program % tiles % columns * inner - reach
    p_edges += i_batch * height * width
    p_blurred += i_batch * height * width
    o_row = tl.arange(0, SIDE)[:, None]
    o_column = tl.arange(0, SIDE)[None, :]
    o_y, o_x = first_y + o_row, first_x + o_column
    m_image = (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width)
    b_map = tl.load(p_edges + o_y * width + o_x, mask=m_image, other=0).to(tl.float32)
    b_down = _blur_matrix(first_y, height, radius, falloff, scale, SIDE)
    b_across = _blur_matrix(first_x, width, radius, falloff, scale, SIDE)
    for _ in range(iterations):
        b_map = tl.dot(b_down, b_map, input_precision="tf32x3")
        b_map = tl.dot(b_map, b_across, input_precision="tf32x3")
    m_inner = (o_row >= reach) & (o_row < reach + inner) & (o_column >= reach) & (o_column < reach + inner)
    tl.store(p_blurred + o_y * width + o_x, b_map.to(p_blurred.dtype.element_ty), mask=m_image & m_inner)


@lru_cache
def _gaussian(radius: int, sigma: float) -> tuple[float, float]:
    """``falloff`` and ``scale`` of the kernel."""
    falloff = max(-math.log2(math.e) / 2 / sigma / sigma, -1e6)  # the same weights for all below, and no infinity
    weights = [2.0 ** (falloff * distance**2) for distance in range(-radius, radius + 1)]
    return falloff, 1 / math.fsum(weights)


def edge_priority(edges: Tensor, kernel_size: int, sigma: float, iterations: int) -> Tensor:
    """(B, 1, H, W) blurred; all blurs together reach at most ``MAX_REACH`` pixels.

    Args:
        edges: bool, float32, bfloat16 or float16; one map must hold fewer than 2^31 pixels.
        kernel_size: Side of the Gaussian in pixels, odd.
        sigma: Its standard deviation in pixels, above 0.
        iterations: Number of blurs.

    Returns:
        (B, 1, H, W) contiguous, the dtype of ``edges``, float32 for bool.
    """
    boolean = edges.dtype == torch.bool
    edges = edges.contiguous()
    blurred = torch.empty_like(edges, dtype=torch.float32 if boolean else edges.dtype)
    batch, _, height, width = edges.shape
    radius = kernel_size // 2
    inner = SIDE - 2 * radius * iterations
    blocks = batch * cdiv(height, inner) * cdiv(width, inner)
    if blocks == 0:
        return blurred
    with on_device_of(edges):
        _blur_kernel[(blocks,)](
            edges.view(torch.uint8) if boolean else edges, blurred, height, width, radius, iterations,
            *_gaussian(radius, sigma), SIDE=SIDE, num_warps=4,
        )  # fmt: skip
    return blurred
