"""Attention over k x k patches, a run of queries at a time: patches, product, softmax, product, overlap.

Patches are as wide as k * k * C, hundreds to thousands of columns. Products of that width belong to the vendor's
matrix library, which ``torch.bmm`` calls; the kernels here do what lies around them: gather patches and the norms of
keys, scale and normalise scores, differentiate them, add patches up where they overlap. All that exists at a time stays
near ``WORKSPACE`` bytes, so there is no N x M tensor; the backward pass computes scores again. On Hopper the forward
pass over patches of up to 576 columns is one kernel instead (``_patch_flash.py``).

Precision. Scores, softmax and sums are float32 for every dtype; half-precision features keep their dtype as operands of
products, and so do attention weights. float32 products follow ``torch.backends.cuda.matmul``.
"""

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels import _patch_flash
from fastinpaint_kernels._launch import cdiv, next_power_of_2, on_device_of

NORM_FLOOR = 1e-4
WHOLE_ROW = 8192  # keys whose scores one block holds in registers
MAX_IMAGES = 65535  # second dimension of a grid
WORKSPACE = 62 * 2**20  # bytes beside inputs and outputs: 1024 queries at a time, backward, of 128 x 128 x 64
_LOG2_E = tl.constexpr(1.4426950408889634)
_FLOOR = tl.constexpr(NORM_FLOOR)


@triton.jit
def _unfold_kernel(
    p_map,  # (B, C, H, W), any strides
    p_patches,  # out (B, rows, K, K, C)
    p_inverse,  # out (B, rows) float32, gain / max(norm, floor); with NORM
    s_map,  # strides of p_map
    height,
    width,
    channels,
    first,  # patch of the grid that comes first in p_patches
    rows,
    columns,  # patches in one row of the grid
    step,  # pixels between patches
    top,  # pixels that patch 0 reaches over the border
    left,
    gain,
    K: tl.constexpr,
    FLIP: tl.constexpr,  # whether patches are turned by 180 degrees
    NORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_N)
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_row = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < rows
    o_y = (first + o_row) // columns * step - top
    o_x = (first + o_row) % columns * step - left
    p_rows = p_patches + (i_batch * rows + o_row)[:, None] * (K * K * channels)
    p_map += i_batch * s_map[0]
    b_square = tl.zeros((BLOCK_N,), tl.float32)
    for tap in range(K * K):
        source = K * K - 1 - tap if FLIP else tap
        o_tap_y = o_y + source // K
        o_tap_x = o_x + source % K
        m_tap = m_row & (o_tap_y >= 0) & (o_tap_y < height) & (o_tap_x >= 0) & (o_tap_x < width)
        p_pixel = p_map + o_tap_y.to(tl.int64) * s_map[2] + o_tap_x.to(tl.int64) * s_map[3]
        for i_channel in range(0, channels, BLOCK_C):
            o_channel = i_channel + tl.arange(0, BLOCK_C)
            m_channel = (o_channel < channels)[None, :]
            p_block = p_pixel[:, None] + (o_channel.to(tl.int64) * s_map[1])[None, :]
            b_block = tl.load(p_block, mask=m_tap[:, None] & m_channel, other=0.0)
            tl.store(p_rows + (tap * channels + o_channel)[None, :], b_block, mask=m_row[:, None] & m_channel)
            if NORM:
                b_square += tl.sum(b_block.to(tl.float32) * b_block.to(tl.float32), 1)
    if NORM:
        tl.store(p_inverse + i_batch * rows + o_row, gain / tl.maximum(tl.sqrt(b_square), _FLOOR), mask=m_row)


@triton.jit
def _fold_kernel(
    p_patches,  # (B, count, K, K, C), patches ``first`` and on of a grid
    p_base,  # (B, H * W, C) float32, what to add to; with BASE
    p_map,  # out (B, C, H, W), any strides; may be p_base
    s_base,  # stride of its batch
    s_map,
    first_pixel,  # pixels of the map to write
    pixels,
    width,
    channels,
    first,
    count,
    columns,  # patches in one row of the grid
    step,  # pixels between patches
    top,  # pixels that patch 0 of the grid reaches over the border
    left,
    factor,  # on the patches
    K: tl.constexpr,
    FLIP: tl.constexpr,  # whether patches are turned by 180 degrees
    BASE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(pixels, BLOCK_N)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    i_batch = (tl.program_id(0) // (blocks * channel_blocks)).to(tl.int64)
    i_block = tl.program_id(0) % (blocks * channel_blocks)
    o_pixel = i_block // channel_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_channel = i_block % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (o_pixel < pixels)[:, None] & (o_channel < channels)[None, :]
    o_pixel += first_pixel
    b_sum = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for tap in range(K * K):
        source = K * K - 1 - tap if FLIP else tap
        o_y = o_pixel // width + top - source // K
        o_x = o_pixel % width + left - source % K
        o_patch = o_y // step * columns + o_x // step - first
        m_patch = (o_y >= 0) & (o_y % step == 0) & (o_x >= 0) & (o_x % step == 0) & (o_x // step < columns)
        m_patch = m_patch & (o_patch >= 0) & (o_patch < count)
        o_block = ((i_batch * count + o_patch) * (K * K) + tap)[:, None] * channels + o_channel[None, :]
        b_sum += tl.load(p_patches + o_block, mask=mask & m_patch[:, None], other=0.0).to(tl.float32)
    b_sum *= factor
    if BASE:
        o_base = i_batch * s_base + (o_pixel.to(tl.int64) * channels)[:, None] + o_channel[None, :]
        b_sum += tl.load(p_base + o_base, mask=mask, other=0.0)
    o_map = (o_pixel // width).to(tl.int64) * s_map[2] + (o_pixel % width).to(tl.int64) * s_map[3]
    p_block = p_map + i_batch * s_map[0] + o_map[:, None] + (o_channel.to(tl.int64) * s_map[1])[None, :]
    tl.store(p_block, b_sum.to(p_map.dtype.element_ty), mask=mask)


@triton.jit
def _logits(p_scores, p_inverse, o_rows, m_row, first, scale, keys, BLOCK_M: tl.constexpr):
    """Logits (len(o_rows), BLOCK_M) in powers of two, -inf beyond the last key; factor, offsets and mask of them."""
    o_key = first + tl.arange(0, BLOCK_M)
    o_block = o_rows[:, None] + o_key[None, :]
    m_block = m_row[:, None] & (o_key < keys)[None, :]
    b_factor = scale * _LOG2_E * tl.load(p_inverse + o_key, mask=o_key < keys, other=0.0)
    b_score = tl.load(p_scores + o_block, mask=m_block, other=0.0)
    b_logit = tl.where((o_key < keys)[None, :], b_score * b_factor[None, :], float("-inf"))
    return b_logit, b_factor, o_block, m_block


@triton.jit
def _softmax_kernel(
    p_scores,  # (B, R, M) float32
    p_inverse,  # (B, M) float32
    p_weights,  # out (B, R, M), rows ``s_row`` apart; may lie in the memory of p_scores where WHOLE
    p_lse,  # out (B, R) float32, log2 of the sum of exp(logit)
    s_lse,  # stride of its batch
    s_row,
    scale,  # logit = scale * score * inverse
    rows,
    keys,
    WHOLE: tl.constexpr,  # whether BLOCK_M covers all keys: each score is read once
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_N)
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_row = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < rows
    o_rows = (i_batch * rows + o_row) * keys
    p_rows = p_weights + ((i_batch * rows + o_row) * s_row)[:, None]
    p_inverse += i_batch * keys
    if WHOLE:
        b_logit, _, _, m_block = _logits(p_scores, p_inverse, o_rows, m_row, 0, scale, keys, BLOCK_M)
        b_max = tl.max(b_logit, 1)
        b_weight = tl.exp2(b_logit - b_max[:, None])
        b_sum = tl.sum(b_weight, 1)
        tl.store(p_lse + i_batch * s_lse + o_row, b_max + tl.log2(b_sum), mask=m_row)
        b_weight *= (1.0 / b_sum)[:, None]
        tl.debug_barrier()  # all scores are read before weights may take their place
        tl.store(p_rows + tl.arange(0, BLOCK_M)[None, :], b_weight.to(p_weights.dtype.element_ty), mask=m_block)
    else:
        b_max = tl.full((BLOCK_N, BLOCK_M), -3.0e38, tl.float32)  # lanes without a key stay finite
        b_sum = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for first in range(0, keys, BLOCK_M):
            b_logit, _, _, _ = _logits(p_scores, p_inverse, o_rows, m_row, first, scale, keys, BLOCK_M)
            b_larger = tl.maximum(b_max, b_logit)
            b_sum = b_sum * tl.exp2(b_max - b_larger) + tl.exp2(b_logit - b_larger)
            b_max = b_larger
        b_largest = tl.max(b_max, 1)
        b_lse = b_largest + tl.log2(tl.sum(b_sum * tl.exp2(b_max - b_largest[:, None]), 1))
        tl.store(p_lse + i_batch * s_lse + o_row, b_lse, mask=m_row)
        for first in range(0, keys, BLOCK_M):
            b_logit, _, _, m_block = _logits(p_scores, p_inverse, o_rows, m_row, first, scale, keys, BLOCK_M)
            b_weight = tl.exp2(b_logit - b_lse[:, None]).to(p_weights.dtype.element_ty)
            tl.store(p_rows + (first + tl.arange(0, BLOCK_M))[None, :], b_weight, mask=m_block)


@triton.jit
def _slope_kernel(
    p_scores,  # (B, R, M) float32
    p_inverse,  # (B, M) float32
    p_lse,  # (B, R) float32
    p_grad_weights,  # (B, R, M) float32
    p_weights,  # out (B, R, M), rows ``s_row`` apart; may lie in the memory of p_scores where WHOLE
    p_slopes,  # out (B, R, M) likewise, gradient of the scores; may lie in that of p_grad_weights
    s_lse,
    s_row,
    scale,
    factor,  # on p_grad_weights
    rows,
    keys,
    WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_N)
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_row = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < rows
    o_rows = (i_batch * rows + o_row) * keys
    o_outs = ((i_batch * rows + o_row) * s_row)[:, None]
    p_inverse += i_batch * keys
    b_lse = tl.load(p_lse + i_batch * s_lse + o_row, mask=m_row, other=0.0)
    if WHOLE:
        b_logit, b_factor, o_block, m_block = _logits(p_scores, p_inverse, o_rows, m_row, 0, scale, keys, BLOCK_M)
        b_slope = tl.load(p_grad_weights + o_block, mask=m_block, other=0.0)
        b_weight = tl.exp2(b_logit - b_lse[:, None])
        b_mean = tl.sum(b_weight * b_slope, 1)
        b_slope = (b_slope - b_mean[:, None]) * b_weight * ((factor / _LOG2_E) * b_factor[None, :])
        tl.debug_barrier()  # all scores are read before weights may take their place
        o_out = o_outs + tl.arange(0, BLOCK_M)[None, :]
        tl.store(p_weights + o_out, b_weight.to(p_weights.dtype.element_ty), mask=m_block)
        tl.store(p_slopes + o_out, b_slope.to(p_slopes.dtype.element_ty), mask=m_block)
    else:
        b_delta = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for first in range(0, keys, BLOCK_M):
            b_logit, _, o_block, m_block = _logits(p_scores, p_inverse, o_rows, m_row, first, scale, keys, BLOCK_M)
            b_weight = tl.exp2(b_logit - b_lse[:, None])
            b_delta += b_weight * tl.load(p_grad_weights + o_block, mask=m_block, other=0.0)
            o_out = o_outs + (first + tl.arange(0, BLOCK_M))[None, :]
            tl.store(p_weights + o_out, b_weight.to(p_weights.dtype.element_ty), mask=m_block)
        b_mean = tl.sum(b_delta, 1)
        for first in range(0, keys, BLOCK_M):
            b_logit, b_factor, o_block, m_block = _logits(
                p_scores, p_inverse, o_rows, m_row, first, scale, keys, BLOCK_M
            )
            b_slope = tl.load(p_grad_weights + o_block, mask=m_block, other=0.0) - b_mean[:, None]
            b_slope *= (factor / _LOG2_E) * b_factor[None, :] * tl.exp2(b_logit - b_lse[:, None])
            o_out = o_outs + (first + tl.arange(0, BLOCK_M))[None, :]
            tl.store(p_slopes + o_out, b_slope.to(p_slopes.dtype.element_ty), mask=m_block)


@triton.jit
def _key_gradient_kernel(
    p_keys,  # (B, M, D), key patches before normalisation
    p_grad_scores,  # (B, M, D) float32: slopes^T queries
    p_grad_values,  # in and out (B, M, D) float32: weights^T gradients of the output; then the gradient of the patches
    factor,  # on p_grad_values
    depth,
    BLOCK: tl.constexpr,
):
    o_first = tl.program_id(0).to(tl.int64) * depth
    b_square = tl.zeros((BLOCK,), tl.float32)
    b_along = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, depth, BLOCK):
        o_block = first + tl.arange(0, BLOCK)
        b_key = tl.load(p_keys + o_first + o_block, mask=o_block < depth, other=0.0).to(tl.float32)
        b_square += b_key * b_key
        b_along += b_key * tl.load(p_grad_scores + o_first + o_block, mask=o_block < depth, other=0.0)
    square = tl.sum(b_square, 0)
    # Above the floor the norm divides the key's own length out; at the floor it is a constant.
    along = tl.where(square >= _FLOOR * _FLOOR, tl.sum(b_along, 0) / tl.maximum(square, _FLOOR * _FLOOR), 0.0)
    for first in range(0, depth, BLOCK):
        o_block = first + tl.arange(0, BLOCK)
        m_block = o_block < depth
        b_key = tl.load(p_keys + o_first + o_block, mask=m_block, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad_scores + o_first + o_block, mask=m_block, other=0.0) - along * b_key
        b_grad += factor * tl.load(p_grad_values + o_first + o_block, mask=m_block, other=0.0)
        tl.store(p_grad_values + o_first + o_block, b_grad, mask=m_block)


def _axis(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Number of keys along an axis, and TensorFlow's SAME padding before the first."""
    count = cdiv(size, stride)
    return count, max((count - 1) * stride + kernel_size - size, 0) // 2


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """(B, R, K) (B, K, S) -> ``out`` (B, R, S), summed in float32."""
    if left.dtype == out.dtype:
        return torch.bmm(left, right, out=out)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(torch.bmm(left.float(), right.float()))


def _add_product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Add (B, R, K) (B, K, S) to ``out`` (B, R, S) float32, without a tensor for the product."""
    if left.dtype == out.dtype:
        return torch.baddbmm(out, left, right, out=out)
    if left.is_cuda:
        return torch.baddbmm(out, left, right, out_dtype=out.dtype, out=out)
    return out.baddbmm_(left.float(), right.float())


def _row_blocks(keys: int) -> tuple[bool, int, int, int]:
    """Whether one block holds a row of scores, rows and keys in a block, warps: 16 or 32 scores a thread."""
    block = max(next_power_of_2(keys), 64)
    if block > WHOLE_ROW:
        return False, 8, 256, 4
    return True, max(2048 // block, 1), block, 4 if block <= 4096 else 8


def _overlay(scores: Tensor, dtype: torch.dtype, whole: bool) -> Tensor:
    """(B, R, M) of ``dtype`` at the start of each row of the scores (B, R, M) float32; elsewhere, if not ``whole``."""
    if not whole:
        return torch.empty_like(scores, dtype=dtype)
    return scores.view(dtype)[..., : scores.shape[2]]


class _Problem:
    """Sizes of one call, and its launches on a few images at a time."""

    def __init__(self, features: Tensor, kernel_size: int, stride: int, scale: float, overlap_add: bool) -> None:
        self.batch, self.channels, self.height, self.width = features.shape
        self.kernel_size, self.stride, self.scale = kernel_size, stride, scale
        self.flip = not overlap_add
        self.rows, self.top = _axis(self.height, kernel_size, stride)
        self.columns, self.left = _axis(self.width, kernel_size, stride)
        self.queries, self.keys = self.height * self.width, self.rows * self.columns
        self.depth = kernel_size**2 * self.channels

    def parts(self, fixed: int, per_query: int) -> Iterator[tuple[slice, list[slice]]]:
        """Groups of images, and runs of queries within them, that need about ``WORKSPACE`` bytes at a time.

        Args:
            fixed: Bytes that an image needs.
            per_query: Bytes that each query needs beside them.
        """
        whole = fixed + per_query * self.queries
        images = min(max(WORKSPACE // whole, 1), MAX_IMAGES)
        most = self.queries
        if whole > WORKSPACE:
            most = max(max(WORKSPACE - fixed, WORKSPACE // 2) // per_query, 1)
            most = cdiv(self.queries, cdiv(self.queries, most))  # runs of one size
            most = cdiv(most, 64) * 64 if most >= 256 else most  # whole tiles of products
        runs = [slice(first, min(first + most, self.queries)) for first in range(0, self.queries, most)]
        for first in range(0, self.batch, images):
            yield slice(first, min(first + images, self.batch)), runs

    def scores(self, queries: Tensor) -> Tensor:
        """Memory for the scores of queries (B, R, D): (B, R, M) float32."""
        return queries.new_empty((*queries.shape[:2], self.keys), dtype=torch.float32)

    def unfold_queries(self, features: Tensor, run: slice, *, flip: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, len(run), D): patches around pixels."""
        pad = self.kernel_size // 2
        return self._unfold(features, run, self.width, 1, pad, pad, flip=flip)[0]

    def unfold_keys(self, features: Tensor, gain: float = 1.0) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> keys (B, M, D) and gain / max(norm, floor) (B, M) float32."""
        run = slice(0, self.keys)
        return self._unfold(features, run, self.columns, self.stride, self.top, self.left, norm=True, gain=gain)

    def _unfold(
        self,
        features: Tensor,
        run: slice,
        columns: int,
        step: int,
        top: int,
        left: int,
        *,
        flip: bool = False,
        norm: bool = False,
        gain: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        batch, rows = features.shape[0], run.stop - run.start
        patches = features.new_empty((batch, rows, self.depth))
        inverse = features.new_empty((batch, rows if norm else 0), dtype=torch.float32)
        _unfold_kernel[(batch * cdiv(rows, 32),)](
            features, patches, inverse, features.stride(), self.height, self.width, self.channels,
            run.start, rows, columns, step, top, left, gain,
            K=self.kernel_size, FLIP=flip, NORM=norm, BLOCK_N=32, BLOCK_C=64, num_warps=4,
        )  # fmt: skip
        return patches, inverse

    def fold_queries(
        self, patches: Tensor, run: slice, base: Tensor | None, target: Tensor, factor: float, *, flip: bool
    ) -> None:
        """Add up patches (B, len(run), D) around pixels into ``target`` (B, C, H, W).

        ``base`` (B, N, C) float32 is added; a target beside which it lies keeps the pixels that no patch reaches.
        """
        pad = self.kernel_size // 2
        reach = pad * (self.width + 1) if base is not None else self.queries
        pixels = slice(max(run.start - reach, 0), min(run.stop + reach, self.queries))
        self._fold(patches, run, base, target, factor, pixels, self.width, 1, pad, pad, flip=flip)

    def fold_keys(self, patches: Tensor, base: Tensor, target: Tensor) -> None:
        """Add up patches (B, M, D) of keys, and ``base`` (B, N, C) float32, into ``target`` (B, C, H, W)."""
        run, pixels = slice(0, self.keys), slice(0, self.queries)
        self._fold(patches, run, base, target, 1.0, pixels, self.columns, self.stride, self.top, self.left, flip=False)

    def _fold(
        self,
        patches: Tensor,
        run: slice,
        base: Tensor | None,
        target: Tensor,
        factor: float,
        pixels: slice,
        columns: int,
        step: int,
        top: int,
        left: int,
        *,
        flip: bool,
    ) -> None:
        count = pixels.stop - pixels.start
        blocks = cdiv(count, 32) * cdiv(self.channels, 64)
        _fold_kernel[(target.shape[0] * blocks,)](
            patches, patches if base is None else base, target, self.queries * self.channels, target.stride(),
            pixels.start, count, self.width, self.channels, run.start, run.stop - run.start,
            columns, step, top, left, factor,
            K=self.kernel_size, FLIP=flip, BASE=base is not None, BLOCK_N=32, BLOCK_C=64, num_warps=4,
        )  # fmt: skip

    def total(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for sums over runs of queries: (B, N, C) float32, and the same as a map (B, C, H, W)."""
        shape = (features.shape[0], self.height, self.width, self.channels)
        total = torch.empty(shape, dtype=torch.float32, device=features.device)
        return total.flatten(1, 2), total.permute(0, 3, 1, 2)

    def softmax(self, scores: Tensor, inverse: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
        """Scores (B, R, M) float32 -> weights, in the memory of the scores where it can be; fills ``lse`` (B, R)."""
        batch, rows, keys = scores.shape
        whole, block_rows, block_keys, warps = _row_blocks(keys)
        weights = _overlay(scores, dtype, whole)
        _softmax_kernel[(batch * cdiv(rows, block_rows),)](
            scores, inverse, weights, lse, lse.stride(0), weights.stride(1), self.scale, rows, keys,
            WHOLE=whole, BLOCK_N=block_rows, BLOCK_M=block_keys, num_warps=warps,
        )  # fmt: skip
        return weights

    def slopes(
        self, scores: Tensor, inverse: Tensor, lse: Tensor, grad_weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Weights and the gradient of the scores, both (B, R, M), in the memory of the scores and ``grad_weights``."""
        batch, rows, keys = scores.shape
        whole, block_rows, block_keys, warps = _row_blocks(keys)
        weights, slopes = _overlay(scores, dtype, whole), _overlay(grad_weights, dtype, whole)
        _slope_kernel[(batch * cdiv(rows, block_rows),)](
            scores, inverse, lse, grad_weights, weights, slopes, lse.stride(0), weights.stride(1),
            self.scale, 0.25, rows, keys, WHOLE=whole, BLOCK_N=block_rows, BLOCK_M=block_keys, num_warps=warps,
        )  # fmt: skip
        return weights, slopes

    def key_gradient(self, keys: Tensor, grad_scores: Tensor, grad_values: Tensor) -> None:
        """Turn ``grad_values`` into the gradient of the key patches, all (B, M, D)."""
        _key_gradient_kernel[(keys.shape[0] * self.keys,)](
            keys, grad_scores, grad_values, 0.25, self.depth, BLOCK=1024, num_warps=4
        )


def choose_path(dtype: torch.dtype, depth: int, capability: tuple[int, int] | None) -> str:
    """The path of the forward pass: ``"flash"`` where it can run, else ``"bmm"``.

    Args:
        dtype: Of the features.
        depth: Columns of a patch, k * k * C.
        capability: Compute capability of the GPU; None on a CPU.
    """
    return "bmm" if capability is None or _patch_flash.gap(dtype, depth, capability) else "flash"


def patch_attention_forward(
    features: Tensor,
    kernel_size: int,
    stride: int,
    softmax_scale: float,
    overlap_add: bool,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every pixel's patch over the patches at ``stride``, put back together.

    Args:
        features: (B, C, H, W) float32, bfloat16 or float16, any strides.
        kernel_size: Patch side in pixels, odd.
        stride: Distance of neighbouring keys in pixels.
        softmax_scale: Factor on the similarities.
        overlap_add: Whether patches are laid down where they lie, instead of turned by 180 degrees (the correlation).
        path: ``"flash"``, one kernel from features to weighted patches; ``"bmm"``, chunks of scores between matrix
            products of torch; None chooses.

    Returns:
        output (B, C, H, W) in the dtype and memory layout of ``features``, and for ``patch_attention_backward`` the
        log2 of each query's sum of exp(logit), (B, H * W) float32.

    Raises:
        ValueError: An unknown path, or one that cannot take these features.
    """
    problem = _Problem(features, kernel_size, stride, softmax_scale, overlap_add)
    if path is None:
        capability = torch.cuda.get_device_capability(features.device) if features.is_cuda else None
        path = choose_path(features.dtype, problem.depth, capability)
    elif path not in ("flash", "bmm"):
        raise ValueError(f"path must be flash, bmm or None, got {path!r}")
    elif path == "flash" and (gap := _patch_flash.gap(features.dtype, problem.depth, None)):
        raise ValueError(f"path flash {gap}")
    output = torch.empty_like(features)
    lse = features.new_empty((problem.batch, problem.queries), dtype=torch.float32)
    if output.numel() == 0:
        return output, lse
    run = _forward_at_once if path == "flash" else _forward_in_runs
    with on_device_of(features):
        run(problem, features, output, lse)
    return output, lse


def _forward_at_once(problem: _Problem, features: Tensor, output: Tensor, lse: Tensor) -> None:
    size = features.element_size()
    fixed = size * (problem.depth * (problem.queries + problem.keys) + problem.channels * problem.queries)
    for images, (run,) in problem.parts(fixed, 0):
        group = features[images].contiguous(memory_format=torch.channels_last)
        keys, factor = problem.unfold_keys(group, problem.scale / math.log(2))
        values = _patch_flash.weighted_patches(group, keys, factor, lse[images], problem.kernel_size)
        problem.fold_queries(values, run, None, output[images], 0.25, flip=problem.flip)
        del group, keys, factor, values  # before the next images ask for memory


def _forward_in_runs(problem: _Problem, features: Tensor, output: Tensor, lse: Tensor) -> None:
    size = features.element_size()
    fixed = size * problem.depth * problem.keys + 4 * problem.channels * problem.queries
    per_query = 4 * problem.keys + 2 * size * problem.depth
    for images, runs in problem.parts(fixed, per_query):
        group = features[images]
        keys, inverse = problem.unfold_keys(group)
        total, sums = problem.total(group) if len(runs) > 1 else (None, output[images])
        for run in runs:
            queries = problem.unfold_queries(group, run)
            scores = _product(queries, keys.transpose(1, 2), problem.scores(queries))
            weights = problem.softmax(scores, inverse, lse[images, run], features.dtype)
            values = _product(weights, keys, torch.empty_like(queries))
            problem.fold_queries(values, run, total if run.start else None, sums, 0.25, flip=problem.flip)
            del queries, scores, weights, values  # before the next run asks for memory
        if total is not None:
            output[images].copy_(sums)
        del keys, inverse, total, sums


def patch_attention_backward(
    grad_output: Tensor,
    features: Tensor,
    lse: Tensor,
    kernel_size: int,
    stride: int,
    softmax_scale: float,
    overlap_add: bool,
) -> Tensor:
    """Gradient of the features, given that of the output; ``lse`` is the second result of the forward pass."""
    problem = _Problem(features, kernel_size, stride, softmax_scale, overlap_add)
    grad = torch.empty_like(features)
    if grad.numel() == 0:
        return grad
    size = features.element_size()
    fixed = (size + 8) * problem.depth * problem.keys + 4 * problem.channels * problem.queries
    per_query = 8 * problem.keys + (2 * size + 4) * problem.depth
    with on_device_of(features):
        for images, runs in problem.parts(fixed, per_query):
            group = features[images]
            keys, inverse = problem.unfold_keys(group)
            grad_scores, grad_values = torch.empty((2, *keys.shape), device=group.device)
            total, sums = problem.total(group)
            for run in runs:
                queries = problem.unfold_queries(group, run)
                laid = problem.unfold_queries(grad_output[images], run, flip=problem.flip)
                scores = _product(queries, keys.transpose(1, 2), problem.scores(queries))
                grad_weights = _product(laid, keys.transpose(1, 2), problem.scores(queries))
                weights, slopes = problem.slopes(scores, inverse, lse[images, run], grad_weights, features.dtype)
                accumulate = _add_product if run.start else _product
                accumulate(slopes.transpose(1, 2), queries, grad_scores)
                accumulate(weights.transpose(1, 2), laid, grad_values)
                grad_queries = _product(slopes, keys, torch.empty_like(queries, dtype=torch.float32))
                problem.fold_queries(grad_queries, run, total if run.start else None, sums, 1.0, flip=False)
                del queries, laid, scores, grad_weights, weights, slopes, grad_queries  # before the next run
            problem.key_gradient(keys, grad_scores, grad_values)
            problem.fold_keys(grad_values, total, grad[images])
            del keys, inverse, grad_scores, grad_values, total, sums
    return grad
