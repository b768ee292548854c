"""Attention over k x k patches, a chunk of queries at a time: patches, product, softmax, product, overlap.

Patches are as wide as k * k * C, hundreds to thousands of columns. Products of that width belong to the vendor's
matrix library, which ``torch.bmm`` calls; the kernels here do what lies around them: gather patches and the norms of
keys, scale and normalise scores, differentiate them, add patches up where they overlap. A chunk of scores stays below
``CHUNK`` bytes, so that no N x M tensor exists; the backward pass computes scores again.

Precision. Scores, softmax and sums are float32 for every dtype; half-precision features keep their dtype as operands of
products, and so do attention weights. float32 products follow ``torch.backends.cuda.matmul``.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import on_device_of

NORM_FLOOR = 1e-4
WHOLE_ROW = 8192  # keys whose scores one block holds in registers
CHUNK = 88 * 2**20  # bytes of scores that exist at a time: for 4096 keys, tiles of 128 x 192 for 132 multiprocessors
_LOG2_E = tl.constexpr(1.4426950408889634)
_FLOOR = tl.constexpr(NORM_FLOOR)


@triton.jit
def _unfold_kernel(
    p_map,  # (B, C, H, W), any strides
    p_patches,  # out (B, rows, K, K, C)
    p_inverse,  # out (B, rows) float32, 1 / max(norm, floor); with NORM
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
        tl.store(p_inverse + i_batch * rows + o_row, 1.0 / tl.maximum(tl.sqrt(b_square), _FLOOR), mask=m_row)


@triton.jit
def _overlap(
    p_patches, i_batch, o_pixel, o_channel, mask, width, channels, rows, columns, step, top, left,
    K: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """(pixels, channels) float32: what the patches (B, rows * columns, K, K, C) hold at each pixel, added up."""
    b_sum = tl.zeros(mask.shape, tl.float32)
    for tap in range(K * K):
        source = K * K - 1 - tap if FLIP else tap
        o_y = o_pixel // width + top - source // K
        o_x = o_pixel % width + left - source % K
        m_patch = (o_y >= 0) & (o_y % step == 0) & (o_y // step < rows)
        m_patch = m_patch & (o_x >= 0) & (o_x % step == 0) & (o_x // step < columns)
        o_patch = i_batch * rows * columns + o_y // step * columns + o_x // step
        o_block = (o_patch * (K * K) + tap)[:, None] * channels + o_channel[None, :]
        b_sum += tl.load(p_patches + o_block, mask=mask & m_patch[:, None], other=0.0).to(tl.float32)
    return b_sum


@triton.jit
def _fold_kernel(
    p_queries,  # (B, H * W, K, K, C), patches around all pixels
    p_keys,  # (B, rows * columns, K, K, C) float32, patches of the grid of keys; with KEYS
    p_map,  # out (B, C, H, W), any strides
    s_map,
    height,
    width,
    channels,
    rows,
    columns,
    step,
    top,
    left,
    factor,
    K: tl.constexpr,
    FLIP: tl.constexpr,  # of the patches around pixels
    KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(height * width, BLOCK_N)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    i_batch = (tl.program_id(0) // (blocks * channel_blocks)).to(tl.int64)
    i_block = tl.program_id(0) % (blocks * channel_blocks)
    o_pixel = i_block // channel_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_channel = i_block % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (o_pixel < height * width)[:, None] & (o_channel < channels)[None, :]
    b_sum = _overlap(
        p_queries, i_batch, o_pixel, o_channel, mask, width, channels, height, width, 1, K // 2, K // 2, K, FLIP
    )
    if KEYS:
        b_sum += _overlap(
            p_keys, i_batch, o_pixel, o_channel, mask, width, channels, rows, columns, step, top, left, K, False
        )
    o_map = (o_pixel // width).to(tl.int64) * s_map[2] + (o_pixel % width).to(tl.int64) * s_map[3]
    p_block = p_map + i_batch * s_map[0] + o_map[:, None] + (o_channel.to(tl.int64) * s_map[1])[None, :]
    tl.store(p_block, (factor * b_sum).to(p_map.dtype.element_ty), mask=mask)


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
    count = triton.cdiv(size, stride)
    return count, max((count - 1) * stride + kernel_size - size, 0) // 2


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """(B, R, K) (B, K, S) -> ``out`` (B, R, S), its rows any distance apart, summed in float32."""
    if left.dtype == out.dtype:
        return torch.bmm(left, right, out=out)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(torch.bmm(left.float(), right.float()))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add (B, R, K) (B, K, S) to ``total`` (B, R, S) float32, without a tensor for the product."""
    if left.dtype == total.dtype:
        torch.baddbmm(total, left, right, out=total)
    elif left.is_cuda:
        torch.baddbmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.baddbmm_(left.float(), right.float())


def _row_blocks(keys: int) -> tuple[bool, int, int, int]:
    """Whether one block holds a row of scores, rows and keys in a block, warps: 32 scores a thread."""
    block = max(triton.next_power_of_2(keys), 64)
    if block > WHOLE_ROW:
        return False, 8, 256, 4
    rows = max(4096 // block, 1)
    return True, rows, block, 4 if rows * block <= 4096 else 8


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

    def images(self) -> Iterator[slice]:
        """Groups of images whose scores, and whose patches around all pixels, stay small."""
        count = min(CHUNK // (4 * self.queries * self.keys), 2 * CHUNK // (4 * self.queries * self.depth))
        count = max(count, 1)
        return (slice(first, min(first + count, self.batch)) for first in range(0, self.batch, count))

    def chunks(self, images: int) -> Iterator[slice]:
        """Runs of queries whose scores stay below ``CHUNK`` bytes."""
        count = max(CHUNK // (4 * images * self.keys), 1)
        return (slice(first, min(first + count, self.queries)) for first in range(0, self.queries, count))

    def scores(self, queries: Tensor) -> Tensor:
        """Memory for the scores of queries (B, R, D): (B, R, M) float32."""
        return queries.new_empty((*queries.shape[:2], self.keys), dtype=torch.float32)

    def unfold_queries(self, features: Tensor, run: slice, *, flip: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, len(run), D): patches around pixels."""
        pad = self.kernel_size // 2
        return self._unfold(features, run, self.width, 1, pad, pad, flip=flip)[0]

    def unfold_keys(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> keys (B, M, D) and 1 / max(norm, floor) (B, M) float32."""
        run = slice(0, self.keys)
        return self._unfold(features, run, self.columns, self.stride, self.top, self.left, norm=True)

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
    ) -> tuple[Tensor, Tensor]:
        batch, rows = features.shape[0], run.stop - run.start
        patches = features.new_empty((batch, rows, self.depth))
        inverse = features.new_empty((batch, rows if norm else 0), dtype=torch.float32)
        _unfold_kernel[(batch * triton.cdiv(rows, 32),)](
            features, patches, inverse, features.stride(), self.height, self.width, self.channels,
            run.start, rows, columns, step, top, left,
            K=self.kernel_size, FLIP=flip, NORM=norm, BLOCK_N=32, BLOCK_C=64, num_warps=4,
        )  # fmt: skip
        return patches, inverse

    def fold(self, queries: Tensor, keys: Tensor | None, target: Tensor, factor: float, *, flip: bool) -> None:
        """Add up patches around pixels, and those of keys, into ``target`` (B, C, H, W)."""
        blocks = triton.cdiv(self.queries, 32) * triton.cdiv(self.channels, 64)
        _fold_kernel[(target.shape[0] * blocks,)](
            queries, queries if keys is None else keys, target, target.stride(),
            self.height, self.width, self.channels, self.rows, self.columns, self.stride, self.top, self.left, factor,
            K=self.kernel_size, FLIP=flip, KEYS=keys is not None, BLOCK_N=32, BLOCK_C=64, num_warps=4,
        )  # fmt: skip

    def softmax(self, scores: Tensor, inverse: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
        """Scores (B, R, M) float32 -> weights, in the memory of the scores where it can be; fills ``lse`` (B, R)."""
        batch, rows, keys = scores.shape
        whole, block_rows, block_keys, warps = _row_blocks(keys)
        weights = _overlay(scores, dtype, whole)
        _softmax_kernel[(batch * triton.cdiv(rows, block_rows),)](
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
        _slope_kernel[(batch * triton.cdiv(rows, block_rows),)](
            scores, inverse, lse, grad_weights, weights, slopes, lse.stride(0), weights.stride(1),
            self.scale, 0.25, rows, keys, WHOLE=whole, BLOCK_N=block_rows, BLOCK_M=block_keys, num_warps=warps,
        )  # fmt: skip
        return weights, slopes

    def key_gradient(self, keys: Tensor, grad_scores: Tensor, grad_values: Tensor) -> None:
        """Turn ``grad_values`` into the gradient of the key patches, all (B, M, D)."""
        _key_gradient_kernel[(keys.shape[0] * self.keys,)](
            keys, grad_scores, grad_values, 0.25, self.depth, BLOCK=1024, num_warps=4
        )


def patch_attention_forward(
    features: Tensor, kernel_size: int, stride: int, softmax_scale: float, overlap_add: bool
) -> tuple[Tensor, Tensor]:
    """Attention of every pixel's patch over the patches at ``stride``, put back together.

    Args:
        features: (B, C, H, W) float32, bfloat16 or float16, any strides.
        kernel_size: Patch side in pixels, odd.
        stride: Distance of neighbouring keys in pixels.
        softmax_scale: Factor on the similarities.
        overlap_add: Whether patches are laid down where they lie, instead of turned by 180 degrees (the correlation).

    Returns:
        output (B, C, H, W) in the dtype and memory layout of ``features``, and for ``patch_attention_backward`` the
        log2 of each query's sum of exp(logit), (B, H * W) float32.
    """
    problem = _Problem(features, kernel_size, stride, softmax_scale, overlap_add)
    output = torch.empty_like(features)
    lse = features.new_empty((problem.batch, problem.queries), dtype=torch.float32)
    if output.numel() == 0:
        return output, lse
    with on_device_of(features):
        for images in problem.images():
            group = features[images]
            keys, inverse = problem.unfold_keys(group)
            values = group.new_empty((group.shape[0], problem.queries, problem.depth))
            for run in problem.chunks(group.shape[0]):
                queries = problem.unfold_queries(group, run)
                scores = _product(queries, keys.transpose(1, 2), problem.scores(queries))
                weights = problem.softmax(scores, inverse, lse[images, run], features.dtype)
                _product(weights, keys, values[:, run])
                del queries, scores, weights  # before the next chunk asks for memory
            problem.fold(values, None, output[images], 0.25, flip=problem.flip)
    return output, lse


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
    with on_device_of(features):
        for images in problem.images():
            group = features[images]
            keys, inverse = problem.unfold_keys(group)
            grad_queries = torch.empty((group.shape[0], problem.queries, problem.depth), device=group.device)
            grad_scores, grad_values = torch.zeros((2, *keys.shape), device=group.device)
            for run in problem.chunks(group.shape[0]):
                queries = problem.unfold_queries(group, run)
                laid = problem.unfold_queries(grad_output[images], run, flip=problem.flip)
                scores = _product(queries, keys.transpose(1, 2), problem.scores(queries))
                grad_weights = _product(laid, keys.transpose(1, 2), problem.scores(queries))
                weights, slopes = problem.slopes(scores, inverse, lse[images, run], grad_weights, features.dtype)
                _product(slopes, keys, grad_queries[:, run])
                _add_product(grad_scores, slopes.transpose(1, 2), queries)
                _add_product(grad_values, weights.transpose(1, 2), laid)
                del queries, laid, scores, grad_weights, weights, slopes  # before the next chunk asks for memory
            problem.key_gradient(keys, grad_scores, grad_values)
            problem.fold(grad_queries, grad_values, grad[images], 1.0, flip=False)
    return grad
