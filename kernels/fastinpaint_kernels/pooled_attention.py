"""softmax(Q K^T) V for narrow heads, without ever holding an N x M tensor.

The matrix unit multiplies rows of at least 16 numbers and a head has 4 or 8, so the rest of a row does the work that
would otherwise be done score by score. A launch of its own writes keys and values as rows of bfloat16 "slots":

    query  q1 q2 q3 -s      key  k k k 1      q1 + q2 + q3 = query * log2(e), s a shift of three parts
    grad   g -d             value  v 1        d = sum(output * grad), of three parts

Each group is as wide as the head. The product of the rows of query and key is log2(e) * logit - shift, ready for exp2;
that of gradient and value is what the weight's gradient multiplies; and a column of ones makes the product that adds
up the weighted values add up the weights, too.

The shift of a row is its largest logit among a sample of the keys, plus 28. Where another logit turns out to be
larger than that, so that weights above 1 appear, the block of rows is done again with the largest of all logits.

Precision. bfloat16: logits are exact products summed in float32; weights are rounded to bfloat16 before they meet the
values, numerator and denominator alike. float32 and float16: every number is a sum of three bfloat16 numbers and all
products above 2^-24 are taken; weights have 16 bits. Heads wider than 16 have rows without spare slots: the scale, the
shift and the delta are applied to each score, and float32 products are three of TensorFloat-32.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import autotune, cdiv, next_power_of_2, on_device_of, programs_bucket

MAX_WIDTH = 64
_ROWS = 128  # rows of slots are padded to a multiple of every block
_STEP = 32  # of which this many are written at a time
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_HEADROOM = tl.constexpr(40.0)  # of scores below the first guess of the largest, so that most larger ones fit


def _config(queries: int, keys: int, warps: int, poly: int = 0, stages: int = 3) -> triton.Config:
    return triton.Config({"BLOCK_N": queries, "BLOCK_M": keys, "POLY": poly}, num_warps=warps, num_stages=stages)


def _family(arguments: Mapping[str, Any]) -> str:
    width = max(arguments["WIDTH"], arguments["VALUE_WIDTH"])
    if not arguments["FOLD"]:
        return "wide float32" if arguments["p_key"].dtype == torch.float32 else "wide half"
    if arguments["EXACT"]:
        return "exact" if width <= 8 else "exact width 16"
    return "width 4" if width <= 4 else "width 16"


# The first of a family is the one predicted to be the best for the generator's shapes, see benchmarks/LOG.md.
_QUERY_BLOCKS = {
    "width 4": [_config(64, 128, 4, 3), _config(64, 128, 4, 2), _config(64, 64, 4, 2), _config(64, 64, 4, 3)],
    "width 16": [_config(64, 64, 4, 2), _config(64, 64, 4)],
    "exact": [_config(64, 64, 4, stages=2)],
    "exact width 16": [_config(64, 32, 4, stages=2)],
    "wide half": [_config(64, 32, 4, stages=2)],
    "wide float32": [_config(16, 16, 4, stages=1)],
}
_KEY_BLOCKS = {
    "width 4": [_config(64, 64, 4, 2), _config(128, 64, 4, 2), _config(64, 64, 4)],
    "width 16": [_config(64, 64, 4, 2), _config(64, 64, 4)],
    "exact": [_config(64, 64, 4, stages=2)],
    "exact width 16": [_config(32, 64, 4, stages=2)],
    "wide half": [_config(32, 32, 4, stages=2)],
    "wide float32": [_config(32, 16, 4, stages=1)],
}
_TUNED_BY = ("size", "WIDTH", "VALUE_WIDTH")


@triton.jit
def _cut(b):
    """The leading 8 bits of float32: a bfloat16 number, no farther from 0."""
    return (b.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _part(b, o_part):
    """The first, second or third bfloat16 number of three whose sum is b (float32); of infinity: itself, 0, 0."""
    b_first = _cut(b)
    b_rest = tl.where(tl.abs(b_first) < float("inf"), b - b_first, 0.0)
    b_second = _cut(b_rest)
    return tl.where(o_part == 0, b_first, tl.where(o_part == 1, b_second, b_rest - b_second))


@triton.jit
def _load_slots(
    p_rows, o_row, rows, stride_row, stride_column,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr,
    PARTS: tl.constexpr, SCALE: tl.constexpr, FOLD: tl.constexpr, FINITE: tl.constexpr = False,
):  # fmt: skip
    """(len(o_row), SLOTS) of a (rows, WIDTH) matrix, zero outside.

    FOLD: float32 with the values of bfloat16, part PARTS[g] of SCALE * column c in slot g * GROUP + c, for the digits g
    of PARTS, FINITE: infinity replaced by the largest number. Otherwise the columns as they are.
    """
    o_slot = tl.arange(0, SLOTS)
    o_group = o_slot // GROUP
    o_column = o_slot % GROUP
    p_rows += o_row.to(tl.int64)[:, None] * stride_row + o_column.to(tl.int64)[None, :] * stride_column
    m_slots = (o_row < rows)[:, None] & ((o_column < WIDTH) & (o_group < GROUPS))[None, :]
    b_rows = tl.load(p_rows, mask=m_slots, other=0.0)
    if FOLD:
        b_rows = b_rows.to(tl.float32) * SCALE
        if FINITE:  # infinity times the second part of a number, 0, would be NaN
            b_rows = tl.where(b_rows > _LARGEST, _LARGEST, tl.where(b_rows < -_LARGEST, -_LARGEST, b_rows))
        o_part = tl.where(o_group == 0, PARTS // 100, tl.where(o_group == 1, PARTS // 10 % 10, PARTS % 10))
        b_rows = _part(b_rows, o_part[None, :])
    return b_rows


@triton.jit
def _last_slots(b_row, GROUP: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr):
    """(len(b_row), SLOTS), the three parts of a number in the first slots of the last group, zero elsewhere."""
    o_part = tl.arange(0, SLOTS) - GROUPS * GROUP
    b_parts = _part(tl.broadcast_to(b_row[:, None], (b_row.shape[0], SLOTS)), o_part[None, :])
    return tl.where(((o_part >= 0) & (o_part < 3))[None, :], b_parts, 0.0)


@triton.jit
def _store_slots(p_slots, b_slots, SLOTS: tl.constexpr, STRIDE: tl.constexpr):
    p_slots += tl.arange(0, b_slots.shape[0])[:, None] * STRIDE + tl.arange(0, SLOTS)[None, :]
    tl.store(p_slots, b_slots.to(p_slots.dtype.element_ty))


@triton.jit
def _stored_slots(p_slots, ROWS: tl.constexpr, SLOTS: tl.constexpr, STRIDE: tl.constexpr):
    """(ROWS, SLOTS) of rows that are whole and dense."""
    return tl.load(p_slots + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, SLOTS)[None, :])


@triton.jit
def _product(
    b_left, b_left_2, p_slots, b_right,
    SLOTS: tl.constexpr, STRIDE: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(len(b_left), len(b_right)): rows of b_left times rows of b_right, whose second tile is loaded here."""
    b_product = tl.dot(b_left, tl.trans(b_right), input_precision=PRECISION)
    if EXACT:
        b_right_2 = _stored_slots(p_slots + SLOTS, b_right.shape[0], SLOTS, STRIDE)
        b_product = tl.dot(b_left_2, tl.trans(b_right_2), b_product)
    return b_product


@triton.jit
def _add_product(b_left, b_right, b_sum, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """b_sum + b_left b_right; EXACT: b_left is float32, and taken in three parts."""
    if EXACT:  # by bit masks: conversions to bfloat16 and back would share a unit with exp2
        b_first = _cut(b_left)
        b_rest = b_left - b_first
        b_second = _cut(b_rest)
        b_sum = tl.dot((b_rest - b_second).to(b_right.dtype), b_right, b_sum)
        b_sum = tl.dot(b_second.to(b_right.dtype), b_right, b_sum)
        b_left = b_first
    return tl.dot(b_left.to(b_right.dtype), b_right, b_sum, input_precision=PRECISION)


@triton.jit
def _sum_groups(b_sum, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """(ROWS, GROUP): the sum of the first GROUPS groups."""
    ROWS: tl.constexpr = b_sum.shape[0]
    ALL: tl.constexpr = b_sum.shape[1] // GROUP
    if ALL == 1:
        return b_sum
    b_groups = tl.reshape(b_sum, (ROWS, ALL, GROUP))
    return tl.sum(tl.where(tl.arange(0, ALL)[None, :, None] < GROUPS, b_groups, 0.0), 1)


@triton.jit
def _store_rows(p_rows, b_rows, o_row, rows, WIDTH: tl.constexpr):
    """Columns 0 to WIDTH of b_rows into a dense (rows, WIDTH) matrix."""
    o_column = tl.arange(0, b_rows.shape[1])
    p_rows += o_row.to(tl.int64)[:, None] * WIDTH + o_column[None, :]
    m_rows = (o_row < rows)[:, None] & (o_column < WIDTH)[None, :]
    tl.store(p_rows, b_rows.to(p_rows.dtype.element_ty), mask=m_rows)


@triton.jit
def _polynomial_exp2(b):
    """2^b to 2^-13 of itself on the units for sums and products; 0 from -127 down, 2 from 1 up, where b is NaN 0."""
    b = tl.clamp(b * 0.0078125 + 0.9921875, 0.0, 1.0)  # (b + 127) / 128, and one instruction
    b_whole = b + 98303.0078125  # 1.5 * 2^16 - 127 / 128: the low bits are those of the nearest integer to b
    b -= b_whole - 98303.0078125
    b_power = 0.0550098209 * 2097152.0  # minimax for an exact 1 at 0, times powers of 128
    b_power = b_power * b + 0.242211058 * 16384.0
    b_power = b_power * b + 0.693282721 * 128.0
    b_power = b_power * b + 1.0
    b_bits = b_power.to(tl.int32, bitcast=True) + (b_whole.to(tl.int32, bitcast=True) << 23)
    return b_bits.to(tl.float32, bitcast=True)


@triton.jit
def _exp2_half(b):
    """2^b of (ROWS, A, B), by polynomial where A is odd."""
    ROWS: tl.constexpr = b.shape[0]
    A: tl.constexpr = b.shape[1]
    B: tl.constexpr = b.shape[2]
    b_even, b_odd = tl.split(tl.permute(tl.reshape(b, (ROWS, A // 2, 2, B)), (0, 1, 3, 2)))
    b = tl.join(tl.exp2(b_even), _polynomial_exp2(b_odd))
    return tl.reshape(tl.permute(b, (0, 1, 3, 2)), (ROWS, A, B))


@triton.jit
def _exp2(b, POLY: tl.constexpr):
    """2^b, POLY (0, 2, 3 or 4) eighths of the columns by polynomial, so that both kinds of units are busy.

    Columns are told apart by bits 0, 3 and 4 of their number, which choose registers of a thread in the layout of the
    matrix unit's results: no data moves.
    """
    if POLY == 0:
        return tl.exp2(b)
    ROWS: tl.constexpr = b.shape[0]
    COLUMNS: tl.constexpr = b.shape[1]
    b_even, b_odd = tl.split(tl.reshape(b, (ROWS, COLUMNS // 2, 2)))
    b_even = tl.exp2(b_even)
    if POLY == 2:
        b_odd = tl.reshape(_exp2_half(tl.reshape(b_odd, (ROWS, COLUMNS // 8, 4))), (ROWS, COLUMNS // 2))
    elif POLY == 3:
        b_odd = tl.permute(tl.reshape(b_odd, (ROWS, COLUMNS // 16, 2, 4)), (0, 1, 3, 2))
        b_low, b_high = tl.split(b_odd)
        b_odd = tl.join(_exp2_half(b_low), _polynomial_exp2(b_high))
        b_odd = tl.reshape(tl.permute(b_odd, (0, 1, 3, 2)), (ROWS, COLUMNS // 2))
    else:
        b_odd = _polynomial_exp2(b_odd)
    return tl.reshape(tl.join(b_even, b_odd), (ROWS, COLUMNS))


@triton.constexpr_function
def _parts(tile: int, exact: bool) -> int:
    """A digit for each group: which part of a number it holds in a tile for right sides (0, 1) or left sides (2, 3)."""
    return (12, 10, 0, 112)[tile] if exact else 0


@triton.jit
def _left_slots(p_slots, ROWS: tl.constexpr, SLOTS: tl.constexpr, EXACT: tl.constexpr):
    """The two tiles (ROWS, SLOTS) for left sides, the same one twice unless EXACT."""
    TILES: tl.constexpr = 4 if EXACT else 1
    LEFT: tl.constexpr = 2 if EXACT else 0
    b_left = _stored_slots(p_slots + LEFT * SLOTS, ROWS, SLOTS, SLOTS * TILES)
    b_left_2 = b_left
    if EXACT:
        b_left_2 = _stored_slots(p_slots + 3 * SLOTS, ROWS, SLOTS, SLOTS * TILES)
    return b_left, b_left_2


@triton.jit
def _prepare_keys_kernel(
    p_key,  # (B, M, WIDTH)
    p_value,  # (B, M, VALUE_WIDTH)
    p_key_slots,  # out (B, padded keys, TILES * SLOTS); 4 TILES if EXACT: two for right sides of products, two for left
    p_value_slots,  # out (B, padded keys, TILES * VALUE_SLOTS)
    keys,
    padded,
    key_stride_0, key_stride_1, key_stride_2,
    value_stride_0, value_stride_1, value_stride_2,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of keys and of values, with their ones; from M to padded they are zero."""
    TILES: tl.constexpr = 4 if EXACT else 1
    GROUPS: tl.constexpr = 3 if FOLD else 1
    VALUE_GROUPS: tl.constexpr = 3 if EXACT else 1
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i_batch = first // padded
    o_key = first % padded + tl.arange(0, BLOCK)
    p_key += i_batch * key_stride_0
    p_value += i_batch * value_stride_0
    p_key_slots += first * SLOTS * TILES
    p_value_slots += first * VALUE_SLOTS * TILES
    b_one = tl.where(o_key < keys, 1.0, 0.0)
    o_one = tl.arange(0, SLOTS) - GROUPS * GROUP
    m_one = (FOLD & (o_one >= 0) & (o_one < 3))[None, :]
    o_one = tl.arange(0, VALUE_SLOTS) - VALUE_GROUPS * VALUE_GROUP
    m_value_one = ((o_one >= 0) & (o_one < 3))[None, :]
    for i_tile in tl.static_range(TILES):
        b_key = _load_slots(
            p_key, o_key, keys, key_stride_1, key_stride_2,
            WIDTH, GROUP, GROUPS, SLOTS, _parts(i_tile, EXACT), 1.0, FOLD, True,
        )  # fmt: skip
        b_value = _load_slots(
            p_value, o_key, keys, value_stride_1, value_stride_2,
            VALUE_WIDTH, VALUE_GROUP, VALUE_GROUPS, VALUE_SLOTS, _parts(i_tile, EXACT), 1.0, FOLD,
        ).to(tl.float32)  # fmt: skip
        if i_tile % 2 == 0:
            # A weight by polynomial is never NaN: the NaN of a key is kept in its column of ones.
            m_number = tl.abs(b_key) <= float("inf")
            b_value_one = tl.where(tl.max(tl.where(m_number, 0, 1), 1) > 0, float("nan"), b_one)
            b_key = tl.where(m_one, b_one[:, None], b_key.to(tl.float32))
            b_value = tl.where(m_value_one, b_value_one[:, None], b_value)
        _store_slots(p_key_slots + i_tile * SLOTS, b_key, SLOTS, SLOTS * TILES)
        _store_slots(p_value_slots + i_tile * VALUE_SLOTS, b_value, VALUE_SLOTS, VALUE_SLOTS * TILES)


@triton.jit
def _prepare_queries_kernel(
    p_query,  # (B, N, WIDTH)
    p_output,  # (B, N, VALUE_WIDTH)
    p_grad_output,  # (B, N, VALUE_WIDTH)
    p_lse,  # (B, N) float32
    p_query_slots,  # out (B, padded queries, TILES * SLOTS)
    p_grad_slots,  # out (B, padded queries, TILES * VALUE_SLOTS)
    p_delta,  # out (B, padded queries) float32, sum of output * its gradient
    queries,
    padded,
    query_stride_0, query_stride_1, query_stride_2,
    output_stride_0, output_stride_1, output_stride_2,
    grad_stride_0, grad_stride_1, grad_stride_2,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of queries with -lse and of gradients with -delta, both in three parts; from N to padded they are zero."""
    TILES: tl.constexpr = 4 if EXACT else 1
    GROUPS: tl.constexpr = 3 if FOLD else 1
    VALUE_GROUPS: tl.constexpr = 3 if EXACT else 1
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i_batch = first // padded
    o_query = first % padded + tl.arange(0, BLOCK)
    p_query += i_batch * query_stride_0
    p_output += i_batch * output_stride_0
    p_grad_output += i_batch * grad_stride_0
    p_query_slots += first * SLOTS * TILES
    p_grad_slots += first * VALUE_SLOTS * TILES

    o_column = tl.arange(0, VALUE_GROUP).to(tl.int64)[None, :]
    m_rows = (o_query < queries)[:, None] & (o_column < VALUE_WIDTH)
    o_row = o_query[:, None]
    b_output = tl.load(p_output + o_row * output_stride_1 + o_column * output_stride_2, mask=m_rows, other=0.0)
    b_grad = tl.load(p_grad_output + o_row * grad_stride_1 + o_column * grad_stride_2, mask=m_rows, other=0.0)
    b_delta = tl.sum(b_output.to(tl.float32) * b_grad.to(tl.float32), 1)
    tl.store(p_delta + first + tl.arange(0, BLOCK), b_delta)
    b_lse = tl.load(p_lse + i_batch * queries + o_query, mask=o_query < queries, other=0.0)
    for i_tile in tl.static_range(TILES):
        b_query = _load_slots(
            p_query, o_query, queries, query_stride_1, query_stride_2,
            WIDTH, GROUP, GROUPS, SLOTS, _parts(i_tile, EXACT) if EXACT else 12, _LOG2_E, FOLD,
        )  # fmt: skip
        b_grad = _load_slots(
            p_grad_output, o_query, queries, grad_stride_1, grad_stride_2,
            VALUE_WIDTH, VALUE_GROUP, VALUE_GROUPS, VALUE_SLOTS, _parts(i_tile, EXACT), 1.0, FOLD,
        )  # fmt: skip
        if FOLD and i_tile % 2 == 0:
            b_query += _last_slots(-b_lse, GROUP, GROUPS, SLOTS)
            b_grad += _last_slots(-b_delta, VALUE_GROUP, VALUE_GROUPS, VALUE_SLOTS)
        _store_slots(p_query_slots + i_tile * SLOTS, b_query, SLOTS, SLOTS * TILES)
        _store_slots(p_grad_slots + i_tile * VALUE_SLOTS, b_grad, VALUE_SLOTS, VALUE_SLOTS * TILES)


@triton.jit
def _scores(
    b_query, b_query_2, b_shift, p_key_slots, b_key,
    SLOTS: tl.constexpr, STRIDE: tl.constexpr, FOLD: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_M): log2(e) * logit - shift."""
    b_score = _product(b_query, b_query_2, p_key_slots, b_key, SLOTS, STRIDE, EXACT, PRECISION)
    if not FOLD:
        b_score = b_score * _LOG2_E - b_shift[:, None]
    return b_score


@triton.jit
def _shifted(b_query, b_shift, GROUP: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr, FOLD: tl.constexpr):
    """Queries with this shift in their last slots, and the shift; without slots for it, it is scaled."""
    if FOLD:
        b_last = _last_slots(-b_shift, GROUP, GROUPS, SLOTS).to(b_query.dtype)
        b_query = tl.where((tl.arange(0, SLOTS) < GROUPS * GROUP)[None, :], b_query, b_last)
    else:
        b_shift *= _LOG2_E
    return b_query, b_shift


@triton.jit
def _attend(
    b_query, b_query_2, b_shift, p_key, p_value, padded,
    SLOTS: tl.constexpr, VALUE_SLOTS: tl.constexpr, FOLD: tl.constexpr, EXACT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, POLY: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, VALUE_SLOTS): sums of values and of ones, weighted by 2^score."""
    TILES: tl.constexpr = 4 if EXACT else 1
    STRIDE: tl.constexpr = TILES * SLOTS
    VALUE_STRIDE: tl.constexpr = TILES * VALUE_SLOTS
    b_sum = tl.zeros((b_query.shape[0], VALUE_SLOTS), tl.float32)
    for _ in range(0, padded, BLOCK_M):
        b_key = _stored_slots(p_key, BLOCK_M, SLOTS, STRIDE)
        b_value = _stored_slots(p_value, BLOCK_M, VALUE_SLOTS, VALUE_STRIDE)
        b_score = _scores(b_query, b_query_2, b_shift, p_key, b_key, SLOTS, STRIDE, FOLD, EXACT, PRECISION)
        b_sum = _add_product(_exp2(b_score, POLY), b_value, b_sum, EXACT, PRECISION)
        p_key += BLOCK_M * STRIDE
        p_value += BLOCK_M * VALUE_STRIDE
    return b_sum


@triton.jit
def _largest(
    b_query, b_query_2, p_key, keys,
    SLOTS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N,): the largest product of each query with a key."""
    STRIDE: tl.constexpr = 4 * SLOTS if EXACT else SLOTS
    b_largest = tl.full((b_query.shape[0],), float("-inf"), tl.float32)
    for first in range(0, keys, BLOCK_M):
        b_key = _stored_slots(p_key, BLOCK_M, SLOTS, STRIDE)
        b_score = _product(b_query, b_query_2, p_key, b_key, SLOTS, STRIDE, EXACT, PRECISION)
        b_score = tl.where((first + tl.arange(0, BLOCK_M) < keys)[None, :], b_score, float("-inf"))
        b_largest = tl.maximum(b_largest, tl.max(b_score, 1))
        p_key += BLOCK_M * STRIDE
    return b_largest


@autotune(_QUERY_BLOCKS, _family, _TUNED_BY)
@triton.jit(do_not_specialize=["size"])
def _forward_kernel(
    p_query,  # (B, N, WIDTH)
    p_key,  # (B, padded keys, TILES * SLOTS), see _prepare_keys_kernel
    p_value,  # (B, padded keys, TILES * VALUE_SLOTS)
    p_output,  # out (B, N, VALUE_WIDTH)
    p_lse,  # out (B, N) float32, log2 of the sum of exp(logit)
    queries,
    keys,
    size,  # for tuning only
    query_stride_0, query_stride_1, query_stride_2,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    POLY: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = 4 if EXACT else 1
    KEY_STRIDE: tl.constexpr = SLOTS * TILES
    VALUE_STRIDE: tl.constexpr = VALUE_SLOTS * TILES
    VALUE_GROUPS: tl.constexpr = 3 if EXACT else 1
    blocks = tl.cdiv(queries, BLOCK_N)
    padded = tl.cdiv(keys, ROWS) * ROWS
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_query = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    p_query += i_batch * query_stride_0
    p_key += i_batch * padded * KEY_STRIDE
    p_value += i_batch * padded * VALUE_STRIDE

    GROUPS: tl.constexpr = 3 if FOLD else 1
    PARTS: tl.constexpr = _parts(2, EXACT) if EXACT else 12
    b_query = _load_slots(
        p_query, o_query, queries, query_stride_1, query_stride_2,
        WIDTH, GROUP, GROUPS, SLOTS, PARTS, _LOG2_E, FOLD,
    ).to(p_key.dtype.element_ty)  # fmt: skip
    b_query_2 = b_query
    if EXACT:
        b_query_2 = _load_slots(
            p_query, o_query, queries, query_stride_1, query_stride_2,
            WIDTH, GROUP, GROUPS, SLOTS, _parts(3, EXACT), _LOG2_E, FOLD,
        ).to(p_key.dtype.element_ty)  # fmt: skip

    p_sample = p_key + (tl.arange(0, BLOCK_M).to(tl.int64) * keys // BLOCK_M)[:, None] * KEY_STRIDE
    p_sample += tl.arange(0, SLOTS)[None, :]
    b_score = tl.dot(b_query, tl.trans(tl.load(p_sample)), input_precision=PRECISION)
    if EXACT:
        b_score = tl.dot(b_query_2, tl.trans(tl.load(p_sample + SLOTS)), b_score)
    b_shift = tl.max(b_score, 1) + (_HEADROOM if FOLD else 0.0)
    b_query, b_shift = _shifted(b_query, b_shift, GROUP, GROUPS, SLOTS, FOLD)
    b_sum = tl.zeros((BLOCK_N, VALUE_SLOTS), tl.float32)
    attempt = 0
    while attempt < 2:
        b_sum = _attend(
            b_query, b_query_2, b_shift, p_key, p_value, padded,
            SLOTS, VALUE_SLOTS, FOLD, EXACT, PRECISION, BLOCK_M, POLY,
        )  # fmt: skip
        attempt += 1
        # Polynomial weights end at 2, so a sum of weights below 1 (an infinity without them) is right.
        m_total = tl.arange(0, VALUE_SLOTS) == VALUE_GROUPS * VALUE_GROUP
        b_limit = tl.where(m_total, 1.0 if FOLD else float("inf"), float("inf"))
        if tl.max(tl.max(tl.where(tl.abs(b_sum) < b_limit[None, :], 0, 1), 1), 0) == 0:
            attempt = 2
        if attempt == 1:
            b_query, _ = _shifted(b_query, tl.zeros((BLOCK_N,), tl.float32), GROUP, GROUPS, SLOTS, FOLD)
            b_shift = _largest(b_query, b_query_2, p_key, keys, SLOTS, EXACT, PRECISION, BLOCK_M)
            if FOLD:  # so that no sum is larger than the values
                b_shift += tl.log2(padded.to(tl.float32))
            b_query, b_shift = _shifted(b_query, b_shift, GROUP, GROUPS, SLOTS, FOLD)
    m_total = tl.arange(0, VALUE_SLOTS) == VALUE_GROUPS * VALUE_GROUP
    b_total = tl.sum(tl.where(m_total[None, :], b_sum, 0.0), 1)
    b_output = _sum_groups(b_sum / b_total[:, None], VALUE_GROUP, VALUE_GROUPS)
    _store_rows(p_output + i_batch * queries * VALUE_WIDTH, b_output, o_query, queries, VALUE_WIDTH)
    tl.store(p_lse + i_batch * queries + o_query, b_shift + tl.log2(b_total), mask=o_query < queries)


@autotune(_QUERY_BLOCKS, _family, _TUNED_BY)
@triton.jit(do_not_specialize=["size"])
def _query_gradient_kernel(
    p_query,  # (B, padded queries, TILES * SLOTS), see _prepare_queries_kernel
    p_key,  # (B, padded keys, TILES * SLOTS), see _prepare_keys_kernel
    p_value,  # (B, padded keys, TILES * VALUE_SLOTS)
    p_grad_output,  # (B, padded queries, TILES * VALUE_SLOTS)
    p_lse,  # (B, N) float32
    p_delta,  # (B, padded queries) float32
    p_grad_query,  # out (B, N, WIDTH)
    queries,
    keys,
    size,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    POLY: tl.constexpr,
):
    TILES: tl.constexpr = 4 if EXACT else 1
    STRIDE: tl.constexpr = SLOTS * TILES
    VALUE_STRIDE: tl.constexpr = VALUE_SLOTS * TILES
    padded_queries = tl.cdiv(queries, ROWS) * ROWS
    padded = tl.cdiv(keys, ROWS) * ROWS
    first_query = tl.program_id(0).to(tl.int64) * BLOCK_N
    i_batch = first_query // padded_queries
    o_query = first_query % padded_queries + tl.arange(0, BLOCK_N)
    p_key += i_batch * padded * STRIDE
    p_value += i_batch * padded * VALUE_STRIDE
    b_query, b_query_2 = _left_slots(p_query + first_query * STRIDE, BLOCK_N, SLOTS, EXACT)
    b_grad, b_grad_2 = _left_slots(p_grad_output + first_query * VALUE_STRIDE, BLOCK_N, VALUE_SLOTS, EXACT)
    b_lse = tl.load(p_lse + i_batch * queries + o_query, mask=o_query < queries, other=0.0)
    b_delta = tl.load(p_delta + first_query + tl.arange(0, BLOCK_N))

    b_sum = tl.zeros((BLOCK_N, SLOTS), tl.float32)
    for _ in range(0, padded, BLOCK_M):
        b_key = _stored_slots(p_key, BLOCK_M, SLOTS, STRIDE)
        b_value = _stored_slots(p_value, BLOCK_M, VALUE_SLOTS, VALUE_STRIDE)
        b_score = _scores(b_query, b_query_2, b_lse, p_key, b_key, SLOTS, STRIDE, FOLD, EXACT, PRECISION)
        b_slope = _product(b_grad, b_grad_2, p_value, b_value, VALUE_SLOTS, VALUE_STRIDE, EXACT, PRECISION)
        if not FOLD:
            b_slope -= b_delta[:, None]
        b_slope *= _exp2(b_score, POLY)
        b_sum = _add_product(b_slope, b_key, b_sum, EXACT, PRECISION)
        p_key += BLOCK_M * STRIDE
        p_value += BLOCK_M * VALUE_STRIDE
    b_sum = _sum_groups(b_sum, GROUP, 3 if EXACT else 1)
    _store_rows(p_grad_query + i_batch * queries * WIDTH, b_sum, o_query, queries, WIDTH)


@autotune(_KEY_BLOCKS, _family, _TUNED_BY)
@triton.jit(do_not_specialize=["size"])
def _key_gradient_kernel(
    p_key,  # (B, padded keys, TILES * SLOTS), see _prepare_keys_kernel
    p_value,  # (B, padded keys, TILES * VALUE_SLOTS)
    p_query,  # (B, padded queries, TILES * SLOTS), see _prepare_queries_kernel
    p_grad,  # (B, padded queries, TILES * VALUE_SLOTS)
    p_lse,  # (B, N) float32
    p_delta,  # (B, padded queries) float32
    p_grad_key,  # out (B, M, WIDTH)
    p_grad_value,  # out (B, M, VALUE_WIDTH)
    queries,
    keys,
    size,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    POLY: tl.constexpr,
):
    TILES: tl.constexpr = 4 if EXACT else 1
    STRIDE: tl.constexpr = SLOTS * TILES
    GRAD_STRIDE: tl.constexpr = VALUE_SLOTS * TILES
    VALUE_GROUPS: tl.constexpr = 3 if EXACT else 1
    padded_keys = tl.cdiv(keys, ROWS) * ROWS
    padded = tl.cdiv(queries, ROWS) * ROWS
    first_key = tl.program_id(0).to(tl.int64) * BLOCK_M
    i_batch = first_key // padded_keys
    o_key = first_key % padded_keys + tl.arange(0, BLOCK_M)
    p_query += i_batch * padded * STRIDE
    p_grad += i_batch * padded * GRAD_STRIDE
    p_lse += i_batch * queries
    p_delta += i_batch * padded
    b_key, b_key_2 = _left_slots(p_key + first_key * STRIDE, BLOCK_M, SLOTS, EXACT)
    b_value, b_value_2 = _left_slots(p_value + first_key * GRAD_STRIDE, BLOCK_M, VALUE_SLOTS, EXACT)

    b_grad_key = tl.zeros((BLOCK_M, SLOTS), tl.float32)
    b_grad_value = tl.zeros((BLOCK_M, VALUE_SLOTS), tl.float32)
    for first in range(0, padded, BLOCK_N):
        b_query = _stored_slots(p_query, BLOCK_N, SLOTS, STRIDE)
        b_grad = _stored_slots(p_grad, BLOCK_N, VALUE_SLOTS, GRAD_STRIDE)
        b_weight = _product(b_key, b_key_2, p_query, b_query, SLOTS, STRIDE, EXACT, PRECISION)
        o_query = first + tl.arange(0, BLOCK_N)
        if not FOLD:
            b_lse = tl.load(p_lse + o_query, mask=o_query < queries, other=0.0)  # beyond them gradients are 0
            b_weight = b_weight * _LOG2_E - b_lse[None, :]
        b_weight = _exp2(b_weight, POLY)
        b_grad_value = _add_product(b_weight, b_grad, b_grad_value, EXACT, PRECISION)
        b_slope = _product(b_value, b_value_2, p_grad, b_grad, VALUE_SLOTS, GRAD_STRIDE, EXACT, PRECISION)
        if not FOLD:
            b_slope -= tl.load(p_delta + o_query)[None, :]
        b_grad_key = _add_product(b_weight * b_slope, b_query, b_grad_key, EXACT, PRECISION)
        p_query += BLOCK_N * STRIDE
        p_grad += BLOCK_N * GRAD_STRIDE
    if FOLD:
        b_grad_key = _sum_groups(b_grad_key, GROUP, 3) * _LN_2
    b_grad_value = _sum_groups(b_grad_value, VALUE_GROUP, VALUE_GROUPS)
    _store_rows(p_grad_key + i_batch * keys * WIDTH, b_grad_key, o_key, keys, WIDTH)
    _store_rows(p_grad_value + i_batch * keys * VALUE_WIDTH, b_grad_value, o_key, keys, VALUE_WIDTH)


class _Plan(NamedTuple):
    """Shapes of the rows of slots, in the order of the kernels' arguments."""

    width: int
    value_width: int
    group: int
    value_group: int
    slots: int
    value_slots: int
    fold: bool
    exact: bool


@cache
def _plan(width: int, value_width: int, dtype: torch.dtype) -> _Plan:
    fold = max(width, value_width) <= 16
    exact = fold and dtype != torch.bfloat16
    group, value_group = (max(4 if fold else 16, next_power_of_2(n)) for n in (width, value_width))
    slots = 4 * group if fold else group
    value_slots = 4 * value_group if exact else max(16, 2 * value_group)
    return _Plan(width, value_width, group, value_group, slots, value_slots, fold, exact)


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _size(batch: int, queries: int, keys: int, tensor: Tensor) -> int:
    """Problems of about one size share their tuning."""
    return (queries * keys).bit_length() // 2 * 4 + programs_bucket(batch * cdiv(queries, _ROWS), tensor)


def _slots(plan: _Plan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for rows of slots of a (B, rows, ...) tensor, the wide ones and those for values."""
    batch, rows, _ = like.shape
    shape, tiles = (batch, _padded(rows)), 4 if plan.exact else 1
    dtype = torch.bfloat16 if plan.fold else like.dtype
    return (
        like.new_empty((*shape, tiles * plan.slots), dtype=dtype),
        like.new_empty((*shape, tiles * plan.value_slots), dtype=dtype),
    )


def _padded(rows: int) -> int:
    return cdiv(rows, _ROWS) * _ROWS


def _prepare_keys(plan: _Plan, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, keys, _ = key.shape
    slots = _slots(plan, key)
    _prepare_keys_kernel[(batch * _padded(keys) // _STEP,)](
        key, value, *slots, keys, _padded(keys), *key.stride(), *value.stride(), *plan, _STEP
    )
    return slots


def _prepare_queries(
    plan: _Plan, query: Tensor, output: Tensor, grad_output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, _ = query.shape
    slots = _slots(plan, query)
    delta = lse.new_empty((batch, _padded(queries)))
    _prepare_queries_kernel[(batch * _padded(queries) // _STEP,)](
        query, output, grad_output, lse, *slots, delta, queries, _padded(queries),
        *query.stride(), *output.stride(), *grad_output.stride(), *plan, _STEP,
    )  # fmt: skip
    return *slots, delta


def pooled_attention_forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(query key^T) value, unscaled. Strides are free: no operand is copied.

    Args:
        query: (B, N, d), float32, bfloat16 or float16; d and dv at most ``MAX_WIDTH``.
        key: (B, M, d), M at least 1, the dtype of ``query``.
        value: (B, M, dv), the dtype of ``query``.

    Returns:
        output (B, N, dv) in the dtype of ``query``, and for ``pooled_attention_backward`` the log2 of each query's sum
        of exp(logit), (B, N) float32.
    """
    (batch, queries, width), (_, keys, value_width) = query.shape, value.shape
    output = query.new_empty((batch, queries, value_width))
    lse = query.new_empty((batch, queries), dtype=torch.float32)
    if output.numel() == 0 or width == 0:
        return output, lse
    plan = _plan(width, value_width, query.dtype)
    with on_device_of(query):
        slots = _prepare_keys(plan, key, value)
        _forward_kernel[lambda meta: (batch * cdiv(queries, meta["BLOCK_N"]),)](
            query, *slots, output, lse, queries, keys, _size(batch, queries, keys, query), *query.stride(),
            *plan, _precision(query.dtype), _ROWS,
        )  # fmt: skip
    return output, lse


def pooled_attention_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given that of the output; ``lse`` is the second result of the forward pass."""
    (batch, queries, width), (_, keys, value_width) = query.shape, value.shape
    grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    if grad_output.numel() == 0:
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    plan = _plan(width, value_width, query.dtype)
    shared = (queries, keys, _size(batch, queries, keys, query), *plan, _precision(query.dtype), _ROWS)
    with on_device_of(query):
        key_slots, value_slots = _prepare_keys(plan, key, value)
        query_slots, grad_slots, delta = _prepare_queries(plan, query, output, grad_output, lse)
        _query_gradient_kernel[lambda meta: (batch * _padded(queries) // meta["BLOCK_N"],)](
            query_slots, key_slots, value_slots, grad_slots, lse, delta, grads[0], *shared
        )
        _key_gradient_kernel[lambda meta: (batch * _padded(keys) // meta["BLOCK_M"],)](
            key_slots, value_slots, query_slots, grad_slots, lse, delta, grads[1], grads[2], *shared
        )
    return grads


def tune(
    batch: int, queries: int, keys: int, width: int, value_width: int, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Choose the configurations for a problem by running both directions on random numbers; a disk cache keeps them.

    Call it before a CUDA graph is captured: nothing can be measured in a capture.

    Args:
        batch: B of ``pooled_attention_forward``.
        queries: N.
        keys: M.
        width: d.
        value_width: dv.
        dtype: float32, bfloat16 or float16.
        device: A CUDA device.
    """
    query, key, value = (
        torch.randn(batch, rows, columns, dtype=dtype, device=device)
        for rows, columns in ((queries, width), (keys, width), (keys, value_width))
    )
    output, lse = pooled_attention_forward(query, key, value)
    pooled_attention_backward(output, query, key, value, output, lse)
