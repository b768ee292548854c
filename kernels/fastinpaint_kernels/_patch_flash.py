"""Patch attention in one pass over the keys, for Hopper: no score leaves the multiprocessor.

A program holds 64 queries, patches of k * k * C columns gathered from the map, and walks over the keys 64 at a time.
One tile of key patches in shared memory serves twice, as keys (their norms divide columns of scores) and as values.
The sums, 64 x 576 in float32 for k = 3 and C = 64, take 144 registers of each of 256 threads; deeper patches do not
fit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import cdiv, next_power_of_2

MAX_DEPTH = 576  # columns of a patch


@triton.jit
def _query_tile(
    p_map, s_map, o_query, height, width, first,
    CHANNELS: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """(len(o_query), WIDTH): columns ``first`` and on of the patches around pixels, zero outside the map."""
    o_column = first + tl.arange(0, WIDTH)
    o_tap = o_column // CHANNELS
    o_y = (o_query // width)[:, None] + (o_tap // K)[None, :] - K // 2
    o_x = (o_query % width)[:, None] + (o_tap % K)[None, :] - K // 2
    mask = (o_query < height * width)[:, None] & (o_column < DEPTH)[None, :]
    mask = mask & (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width)
    o_channel = (o_column % CHANNELS).to(tl.int64) * s_map[1]
    o_tile = o_y.to(tl.int64) * s_map[2] + o_x.to(tl.int64) * s_map[3] + o_channel[None, :]
    return tl.load(p_map + o_tile, mask=mask, other=0.0)


@triton.jit
def _key_tile(p_keys, o_key, keys, first, DEPTH: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr):
    """(len(o_key), WIDTH): columns ``first`` and on of key patches (M, DEPTH); WHOLE: no key is beyond the last."""
    o_column = first + tl.arange(0, WIDTH)
    p_tile = p_keys + o_key[:, None] * DEPTH + o_column[None, :]
    if WHOLE and first + WIDTH <= DEPTH:
        b_tile = tl.load(p_tile)
    else:
        b_tile = tl.load(p_tile, mask=(o_key < keys)[:, None] & (o_column < DEPTH)[None, :], other=0.0)
    return b_tile


@triton.jit
def _flash_kernel(
    p_map,  # (B, C, H, W), any strides
    p_keys,  # (B, M, DEPTH), columns ordered (K, K, C)
    p_factor,  # (B, M) float32, turns scores into logits in powers of two
    p_values,  # out (B, H * W, DEPTH)
    p_lse,  # out (B, H * W) float32, log2 of the sum of exp(logit)
    s_map,
    height,
    width,
    keys,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,  # the columns are cut into WIDE and REST, powers of two
    REST: tl.constexpr,
    WHOLE: tl.constexpr,  # whether BLOCK_M divides the number of keys
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    queries = height * width
    i_batch = tl.program_id(1).to(tl.int64)
    o_query = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    p_map += i_batch * s_map[0]
    p_keys += i_batch * keys * DEPTH
    p_factor += i_batch * keys
    b_query = _query_tile(p_map, s_map, o_query, height, width, 0, CHANNELS, K, DEPTH, WIDE)
    b_query_rest = _query_tile(p_map, s_map, o_query, height, width, WIDE, CHANNELS, K, DEPTH, REST)
    b_value = tl.zeros((BLOCK_N, WIDE), tl.float32)
    b_value_rest = tl.zeros((BLOCK_N, REST), tl.float32)
    b_max = tl.full((BLOCK_N,), -3.0e38, tl.float32)
    b_sum = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, keys, BLOCK_M):
        o_key = first + tl.arange(0, BLOCK_M)
        b_key = _key_tile(p_keys, o_key, keys, 0, DEPTH, WIDE, WHOLE)
        b_key_rest = _key_tile(p_keys, o_key, keys, WIDE, DEPTH, REST, WHOLE)
        b_factor = tl.load(p_factor + o_key) if WHOLE else tl.load(p_factor + o_key, mask=o_key < keys, other=0.0)
        # Both conditions always hold. Triton gives a product that leads to another one to each warp group whole, so
        # that both compute all scores; it looks no further than the end of a branch.
        b_score = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        if first != keys:
            b_score = tl.dot(b_query_rest, tl.trans(b_key_rest), b_score)
        b_larger = b_max
        b_part = b_sum
        b_weight = tl.full((BLOCK_N, BLOCK_M), first, tl.float32).to(p_values.dtype.element_ty)
        if first < keys:
            b_logit = tl.dot(b_query, tl.trans(b_key), b_score) * b_factor[None, :]
            if not WHOLE:
                b_logit = tl.where((o_key < keys)[None, :], b_logit, float("-inf"))
            b_larger = tl.maximum(b_max, tl.max(b_logit, 1))
            b_exp = tl.exp2(b_logit - b_larger[:, None])
            b_part = tl.sum(b_exp, 1)
            b_weight = b_exp.to(p_values.dtype.element_ty)
        b_shrink = tl.exp2(b_max - b_larger)
        b_sum = b_sum * b_shrink + b_part
        b_max = b_larger
        # The wide product comes last: it runs on while the next tile of keys is fetched.
        b_value_rest = tl.dot(b_weight, b_key_rest, b_value_rest * b_shrink[:, None])
        b_value = tl.dot(b_weight, b_key, b_value * b_shrink[:, None])
    m_query = o_query < queries
    tl.store(p_lse + i_batch * queries + o_query, b_max + tl.log2(b_sum), mask=m_query)
    b_inverse = (1.0 / b_sum)[:, None]
    p_rows = p_values + ((i_batch * queries + o_query) * DEPTH)[:, None]
    o_column = tl.arange(0, WIDE)[None, :]
    tl.store(p_rows + o_column, (b_value * b_inverse).to(p_values.dtype.element_ty), mask=m_query[:, None])
    o_column = WIDE + tl.arange(0, REST)[None, :]
    m_rest = m_query[:, None] & (o_column < DEPTH)
    tl.store(p_rows + o_column, (b_value_rest * b_inverse).to(p_values.dtype.element_ty), mask=m_rest)


def gap(dtype: torch.dtype, depth: int, capability: tuple[int, int] | None) -> str | None:
    """Why patches of ``depth`` columns are no work for this path; None where they are.

    Args:
        dtype: Of the features.
        depth: k * k * C.
        capability: Compute capability of the GPU; None leaves that out of account.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, got {dtype}"
    if not 32 <= depth <= MAX_DEPTH:
        return f"takes patches of 32 to {MAX_DEPTH} columns, got {depth}"
    if depth % 8:
        return f"takes patches of a multiple of 8 columns (16 bytes), got {depth}"
    if capability is not None and capability != (9, 0):
        return f"is made for compute capability 9.0, got {'.'.join(map(str, capability))}"
    return None


def weighted_patches(features: Tensor, keys: Tensor, factor: Tensor, lse: Tensor, kernel_size: int) -> Tensor:
    """Values of softmax(patches keys^T * factor * log(2)) keys, a patch for each pixel.

    Args:
        features: (B, C, H, W) bfloat16 or float16, any strides; channels-last is read fastest.
        keys: (B, M, D) of the same dtype, D = k * k * C, contiguous.
        factor: (B, M) float32, from a key's scores to logits in powers of two.
        lse: (B, H * W) float32 contiguous, filled with the log2 of each query's sum of exp(logit).
        kernel_size: Side k of the patches in pixels.

    Returns:
        (B, H * W, D) in the dtype of ``features``.
    """
    (batch, channels, height, width), (_, count, depth) = features.shape, keys.shape
    wide = max(next_power_of_2(depth) // 2, 16)
    values = features.new_empty((batch, height * width, depth))
    _flash_kernel[(cdiv(height * width, 64), batch)](
        features, keys, factor, values, lse, features.stride(), height, width, count,
        CHANNELS=channels, K=kernel_size, DEPTH=depth,
        WIDE=wide, REST=max(next_power_of_2(depth - wide), 16), WHOLE=count % 64 == 0,
        BLOCK_N=64, BLOCK_M=64, num_warps=8, num_stages=2,
    )  # fmt: skip
    return values
