"""softmax(Q K^T) V for narrow heads, without ever holding an N x M tensor.

The matrix unit wants 16 columns. Narrower heads are padded by masked loads, and the padding of the values is put to
use: a column of ones makes the product that adds up the weighted values add up the weights, too.

Precision. bfloat16 and float16: the logits are exact products summed in float32; weights are rounded to the input's
dtype before they meet the values, numerator and denominator alike. float32: each product is taken as three products of
TensorFloat-32 halves, so a logit is off by at most about 2^-20 of the sum of its absolute products.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastinpaint_kernels._launch import autotune, on_device_of

MAX_WIDTH = 64
_LOG2_E = tl.constexpr(1.4426950408889634)


def _config(queries: int, keys: int, warps: int, stages: int = 2) -> triton.Config:
    return triton.Config({"BLOCK_N": queries, "BLOCK_M": keys}, num_warps=warps, num_stages=stages)


def _family(arguments: Mapping[str, Any]) -> str:
    """Wide rows need registers, and so do the three products that float32 takes in place of one: smaller blocks."""
    half = arguments["p_query"].dtype != torch.float32
    width = max(arguments["WIDTH"], arguments["VALUE_WIDTH"])
    if half:
        return "narrow half" if width < 16 else "half" if width <= 32 else "wide half"
    return "narrow float32" if width <= 16 else "wide float32"


_QUERY_BLOCKS = {
    "narrow half": [_config(64, 64, 4), _config(64, 128, 4), _config(128, 128, 8)],
    "half": [_config(64, 64, 4), _config(128, 64, 8)],
    "wide half": [_config(64, 32, 4)],
    "narrow float32": [_config(64, 32, 4)],
    "wide float32": [_config(16, 16, 4, stages=1)],
}
_KEY_BLOCKS = {
    "narrow half": [_config(64, 64, 4), _config(128, 64, 4), _config(64, 128, 8)],
    "half": [_config(64, 64, 4), _config(64, 128, 8)],
    "wide half": [_config(32, 32, 4)],
    "narrow float32": [_config(32, 64, 4)],
    "wide float32": [_config(32, 16, 4, stages=1)],
}
_TUNED_BY = ("size", "WIDTH", "VALUE_WIDTH")


@triton.jit
def _rows(p_tensor, o_row, rows, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """(len(o_row), PAD) of a contiguous (rows, WIDTH) matrix, zero outside."""
    o_column = tl.arange(0, PAD)
    p_rows = p_tensor + o_row[:, None] * WIDTH + o_column[None, :]
    return tl.load(p_rows, mask=(o_row < rows)[:, None] & (o_column < WIDTH)[None, :], other=0.0)


@triton.jit
def _store_rows(p_tensor, b_rows, o_row, rows, WIDTH: tl.constexpr, PAD: tl.constexpr):
    o_column = tl.arange(0, PAD)
    p_rows = p_tensor + o_row[:, None] * WIDTH + o_column[None, :]
    b_rows = b_rows.to(p_tensor.dtype.element_ty)
    tl.store(p_rows, b_rows, mask=(o_row < rows)[:, None] & (o_column < WIDTH)[None, :])


@triton.jit
def _attend(
    b_query, b_sum, b_max, p_key, p_value, first, keys,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_PAD: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the sums (BLOCK_N, VALUE_PAD) and the largest logits (BLOCK_N,)."""
    o_key = first + tl.arange(0, BLOCK_M)
    b_key = _rows(p_key, o_key, keys, WIDTH, b_query.shape[1])
    b_value = _rows(p_value, o_key, keys, VALUE_WIDTH, VALUE_PAD)
    m_ones = (tl.arange(0, VALUE_PAD) == VALUE_WIDTH)[None, :]
    b_value = tl.where(m_ones, 1.0, b_value.to(tl.float32)).to(b_value.dtype)
    b_logit = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION)
    if TAIL:
        b_logit = tl.where((o_key < keys)[None, :], b_logit, float("-inf"))
    b_larger = tl.maximum(b_max, tl.max(b_logit, 1))
    b_weight = tl.exp2(b_logit * _LOG2_E - (b_larger * _LOG2_E)[:, None])
    b_sum *= tl.exp2((b_max - b_larger) * _LOG2_E)[:, None]
    b_sum = tl.dot(b_weight.to(b_value.dtype), b_value, b_sum, input_precision=PRECISION)
    return b_sum, b_larger


@autotune(_QUERY_BLOCKS, _family, _TUNED_BY)
@triton.jit(do_not_specialize=["size"])
def _forward_kernel(
    p_query,  # (B, N, WIDTH)
    p_key,  # (B, M, WIDTH)
    p_value,  # (B, M, VALUE_WIDTH)
    p_output,  # out (B, N, VALUE_WIDTH)
    p_lse,  # out (B, N) float32, log2 of the sum of exp(logit)
    queries,
    keys,
    size,  # for tuning only
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,  # above VALUE_WIDTH: the column of ones
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_N)
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_query = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    p_key += i_batch * keys * WIDTH
    p_value += i_batch * keys * VALUE_WIDTH
    b_query = _rows(p_query + i_batch * queries * WIDTH, o_query, queries, WIDTH, PAD)
    b_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_N, VALUE_PAD), tl.float32)
    whole = keys // BLOCK_M * BLOCK_M
    for first in range(0, whole, BLOCK_M):
        b_sum, b_max = _attend(
            b_query, b_sum, b_max, p_key, p_value, first, keys, WIDTH, VALUE_WIDTH, VALUE_PAD, PRECISION, BLOCK_M, False
        )
    if whole < keys:
        b_sum, b_max = _attend(
            b_query, b_sum, b_max, p_key, p_value, whole, keys, WIDTH, VALUE_WIDTH, VALUE_PAD, PRECISION, BLOCK_M, True
        )
    b_total = tl.sum(tl.where(tl.arange(0, VALUE_PAD)[None, :] == VALUE_WIDTH, b_sum, 0.0), 1)
    p_output += i_batch * queries * VALUE_WIDTH
    _store_rows(p_output, b_sum / b_total[:, None], o_query, queries, VALUE_WIDTH, VALUE_PAD)
    b_lse = b_max * _LOG2_E + tl.log2(b_total)
    tl.store(p_lse + i_batch * queries + o_query, b_lse, mask=o_query < queries)


@triton.jit
def _gather_query_gradient(
    b_query, b_grad, b_lse, b_delta, b_sum, p_key, p_value, first, keys,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the gradient of the queries (BLOCK_N, PAD)."""
    o_key = first + tl.arange(0, BLOCK_M)
    b_key = _rows(p_key, o_key, keys, WIDTH, b_query.shape[1])
    b_value = _rows(p_value, o_key, keys, VALUE_WIDTH, b_grad.shape[1])
    b_logit = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION)
    if TAIL:
        b_logit = tl.where((o_key < keys)[None, :], b_logit, float("-inf"))
    b_weight = tl.exp2(b_logit * _LOG2_E - b_lse[:, None])
    b_slope = tl.dot(b_grad, tl.trans(b_value), input_precision=PRECISION)
    b_slope = b_weight * (b_slope - b_delta[:, None])
    return tl.dot(b_slope.to(b_key.dtype), b_key, b_sum, input_precision=PRECISION)


@autotune(_QUERY_BLOCKS, _family, _TUNED_BY)
@triton.jit(do_not_specialize=["size"])
def _query_gradient_kernel(
    p_query,  # (B, N, WIDTH)
    p_key,  # (B, M, WIDTH)
    p_value,  # (B, M, VALUE_WIDTH)
    p_output,  # (B, N, VALUE_WIDTH)
    p_lse,  # (B, N) float32
    p_grad_output,  # (B, N, VALUE_WIDTH)
    p_grad_query,  # out (B, N, WIDTH)
    p_delta,  # out (B, N) float32, sum of output * its gradient
    queries,
    keys,
    size,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_N)
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_query = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m_query = o_query < queries
    p_key += i_batch * keys * WIDTH
    p_value += i_batch * keys * VALUE_WIDTH
    o_values = i_batch * queries * VALUE_WIDTH
    b_query = _rows(p_query + i_batch * queries * WIDTH, o_query, queries, WIDTH, PAD)
    b_grad = _rows(p_grad_output + o_values, o_query, queries, VALUE_WIDTH, VALUE_PAD)
    b_output = _rows(p_output + o_values, o_query, queries, VALUE_WIDTH, VALUE_PAD)
    b_delta = tl.sum(b_output.to(tl.float32) * b_grad.to(tl.float32), 1)
    tl.store(p_delta + i_batch * queries + o_query, b_delta, mask=m_query)
    b_lse = tl.load(p_lse + i_batch * queries + o_query, mask=m_query, other=0.0)
    b_sum = tl.zeros((BLOCK_N, PAD), tl.float32)
    whole = keys // BLOCK_M * BLOCK_M
    for first in range(0, whole, BLOCK_M):
        b_sum = _gather_query_gradient(
            b_query, b_grad, b_lse, b_delta, b_sum, p_key, p_value, first, keys,
            WIDTH, VALUE_WIDTH, PRECISION, BLOCK_M, False,
        )  # fmt: skip
    if whole < keys:
        b_sum = _gather_query_gradient(
            b_query, b_grad, b_lse, b_delta, b_sum, p_key, p_value, whole, keys,
            WIDTH, VALUE_WIDTH, PRECISION, BLOCK_M, True,
        )  # fmt: skip
    _store_rows(p_grad_query + i_batch * queries * WIDTH, b_sum, o_query, queries, WIDTH, PAD)


@autotune(_KEY_BLOCKS, _family, _TUNED_BY)
@triton.jit(do_not_specialize=["size"])
def _key_gradient_kernel(
    p_query,  # (B, N, WIDTH)
    p_key,  # (B, M, WIDTH)
    p_value,  # (B, M, VALUE_WIDTH)
    p_lse,  # (B, N) float32
    p_delta,  # (B, N) float32
    p_grad_output,  # (B, N, VALUE_WIDTH)
    p_grad_key,  # out (B, M, WIDTH)
    p_grad_value,  # out (B, M, VALUE_WIDTH)
    queries,
    keys,
    size,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    blocks = tl.cdiv(keys, BLOCK_M)
    i_batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_key = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    p_query += i_batch * queries * WIDTH
    p_grad_output += i_batch * queries * VALUE_WIDTH
    p_lse += i_batch * queries
    p_delta += i_batch * queries
    b_key = _rows(p_key + i_batch * keys * WIDTH, o_key, keys, WIDTH, PAD)
    b_value = _rows(p_value + i_batch * keys * VALUE_WIDTH, o_key, keys, VALUE_WIDTH, VALUE_PAD)
    b_grad_key = tl.zeros((BLOCK_M, PAD), tl.float32)
    b_grad_value = tl.zeros((BLOCK_M, VALUE_PAD), tl.float32)
    for first in range(0, queries, BLOCK_N):
        o_query = first + tl.arange(0, BLOCK_N)
        m_query = o_query < queries
        b_query = _rows(p_query, o_query, queries, WIDTH, PAD)
        b_grad = _rows(p_grad_output, o_query, queries, VALUE_WIDTH, VALUE_PAD)
        b_lse = tl.load(p_lse + o_query, mask=m_query, other=0.0)  # beyond the last query gradients are 0
        b_delta = tl.load(p_delta + o_query, mask=m_query, other=0.0)
        b_logit = tl.dot(b_key, tl.trans(b_query), input_precision=PRECISION)
        b_weight = tl.exp2(b_logit * _LOG2_E - b_lse[None, :])
        b_grad_value = tl.dot(b_weight.to(b_grad.dtype), b_grad, b_grad_value, input_precision=PRECISION)
        b_slope = tl.dot(b_value, tl.trans(b_grad), input_precision=PRECISION)
        b_slope = b_weight * (b_slope - b_delta[None, :])
        b_grad_key = tl.dot(b_slope.to(b_query.dtype), b_query, b_grad_key, input_precision=PRECISION)
    _store_rows(p_grad_key + i_batch * keys * WIDTH, b_grad_key, o_key, keys, WIDTH, PAD)
    _store_rows(p_grad_value + i_batch * keys * VALUE_WIDTH, b_grad_value, o_key, keys, VALUE_WIDTH, VALUE_PAD)


def _pad(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _size(queries: int, keys: int) -> int:
    """Problems of about one size share their tuning."""
    return (queries * keys).bit_length() // 2


def pooled_attention_forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(query key^T) value, unscaled.

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
    with on_device_of(query):
        _forward_kernel[lambda meta: (batch * triton.cdiv(queries, meta["BLOCK_N"]),)](
            query.contiguous(), key.contiguous(), value.contiguous(), output, lse,
            queries, keys, _size(queries, keys), width, value_width, _pad(width), _pad(value_width + 1),
            _precision(query.dtype),
        )  # fmt: skip
    return output, lse


def pooled_attention_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given that of the output; ``lse`` is the second result of the forward pass."""
    (batch, queries, width), (_, keys, value_width) = query.shape, value.shape
    query, key, value, grad_output = (tensor.contiguous() for tensor in (query, key, value, grad_output))
    if grad_output.numel() == 0:
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    delta = torch.empty_like(lse)
    sizes = (queries, keys, _size(queries, keys), width, value_width, _pad(width), _pad(value_width))
    precision = _precision(query.dtype)
    with on_device_of(query):
        _query_gradient_kernel[lambda meta: (batch * triton.cdiv(queries, meta["BLOCK_N"]),)](
            query, key, value, output.contiguous(), lse, grad_output, grads[0], delta, *sizes, precision
        )
        _key_gradient_kernel[lambda meta: (batch * triton.cdiv(keys, meta["BLOCK_M"]),)](
            query, key, value, lse, delta, grad_output, grads[1], grads[2], *sizes, precision
        )
    return grads
