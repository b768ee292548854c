import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fastinpaint as fi
from fastinpaint.reference import pooled_attention as reference


def _inputs(batch, queries, keys, width, value_width, dtype=torch.float32):
    shapes = ((batch, queries, width), (batch, keys, width), (batch, keys, value_width))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@given(st.integers(0, 2), st.integers(0, 9), st.integers(1, 9), st.integers(1, 17), st.integers(1, 17))
def test_equals_scaled_dot_product_attention(batch, queries, keys, width, value_width):
    inputs = _inputs(batch, queries, keys, width, value_width)
    output = fi.pooled_attention(*inputs)
    assert output.shape == (batch, queries, value_width)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*inputs, scale=1.0))


def test_reference_gradcheck():
    inputs = [x.requires_grad_() for x in _inputs(1, 4, 3, 2, 3, torch.float64)]
    torch.autograd.gradcheck(reference.pooled_attention, inputs)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_large_logits_do_not_overflow(backend):
    query, key, value = _inputs(1, 5, 6, 4, 4)
    output = fi.pooled_attention(query * 100, key * 100, value, backend=backend)
    expected = value[0, (query @ key.transpose(1, 2)).argmax(-1)[0]]
    torch.testing.assert_close(output[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_logits_in_float32(dtype):
    query, key, value = _inputs(1, 16, 16, 8, 8, dtype)
    expected = reference.pooled_attention(query.float() * 4, key.float(), value.float())
    output = fi.pooled_attention(query * 4, key, value)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_autocast_keeps_float32():
    inputs = _inputs(1, 16, 16, 8, 8)
    expected = fi.pooled_attention(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fi.pooled_attention(*inputs), expected)


def test_compiles_without_graph_break():
    inputs = _inputs(1, 4, 3, 2, 2)
    compiled = torch.compile(fi.pooled_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), fi.pooled_attention(*inputs))


def test_non_contiguous_inputs():
    query, key, value = _inputs(2, 6, 5, 4, 4)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    torch.testing.assert_close(fi.pooled_attention(*strided), fi.pooled_attention(query, key, value))


def test_errors_say_what_was_wanted_and_what_came():
    query, key, value = _inputs(2, 6, 5, 4, 3)
    with pytest.raises(ValueError, match=r"key must have shape \(2, M, 4\), got \(2, 5, 3\)"):
        fi.pooled_attention(query, value, value)
    with pytest.raises(ValueError, match=r"value must have shape \(2, 5, dv\), got \(2, 4, 3\)"):
        fi.pooled_attention(query, key, value[:, 1:])
    with pytest.raises(ValueError, match=r"at least one position, got \(2, 0, 4\)"):
        fi.pooled_attention(query, key[:, :0], value[:, :0])
    with pytest.raises(TypeError, match="dtypes must be equal"):
        fi.pooled_attention(query, key.double(), value)
