import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fastinpaint as fi
from fastinpaint.ops._backend import native_reason
from fastinpaint.reference import pooled_attention as reference

NATIVE_GAP = native_reason("pooled_attention", torch.empty(0))
native_only = pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
BACKENDS = ["reference", pytest.param("native", marks=native_only)]
# (batch, queries, keys, width, value width): the model's widths, odd ones, tails of tiles and of blocks, and more
# than one block of queries.
SHAPES = [
    (2, 37, 19, 4, 4),
    (1, 600, 130, 8, 8),
    (3, 33, 70, 16, 16),
    (1, 5, 1, 3, 2),
    (1, 70, 301, 1, 5),
    (2, 50, 23, 64, 64),
    (1, 9, 6, 70, 3),
]


def _inputs(batch, queries, keys, width, value_width, dtype=torch.float32):
    shapes = ((batch, queries, width), (batch, keys, width), (batch, keys, value_width))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def _gradients(inputs, grad, dtype, backend="reference"):
    """Output and gradients of query, key and value."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    output = fi.pooled_attention(*leaves, backend=backend)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(dtype))]


def _errors(inputs, grad, dtype, backend):
    """Relative errors of output and gradients against the reference in float64."""
    found = _gradients(inputs, grad, dtype, backend)
    wanted = _gradients(inputs, grad, torch.float64)
    return [(a - b).norm().item() / max(b.norm().item(), 1e-6) for a, b in zip(found, wanted, strict=True)]


@given(st.integers(0, 2), st.integers(0, 9), st.integers(1, 9), st.integers(1, 17), st.integers(1, 17))
def test_equals_scaled_dot_product_attention(batch, queries, keys, width, value_width):
    inputs = _inputs(batch, queries, keys, width, value_width)
    output = fi.pooled_attention(*inputs)
    assert output.shape == (batch, queries, value_width)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*inputs, scale=1.0))


def test_reference_gradcheck():
    inputs = [x.requires_grad_() for x in _inputs(1, 4, 3, 2, 3, torch.float64)]
    torch.autograd.gradcheck(reference.pooled_attention, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_float64(shape, backend, poisoned_memory):
    inputs = _inputs(*shape)
    # Scores of size 10 rounded to 2^-24 of themselves, and rounding of the sums.
    assert max(_errors(inputs, torch.randn(shape[0], shape[1], shape[4]), torch.float32, backend)) < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_no_queries(backend):
    for batch, queries in ((0, 5), (2, 0)):
        inputs = _inputs(batch, queries, 3, 4, 2)
        output, *gradients = _gradients(inputs, torch.zeros(batch, queries, 2), torch.float32, backend)
        assert output.shape == (batch, queries, 2)
        for gradient, x in zip(gradients, inputs, strict=True):
            torch.testing.assert_close(gradient, torch.zeros_like(x))


@native_only
@pytest.mark.parametrize(("scale", "offset"), [(8, 0), (30, 0), (1, 100), (1e-3, 0)])
def test_large_logits_are_as_exact_as_in_the_reference(scale, offset):
    query, key, value = _inputs(1, 256, 200, 8, 8)
    inputs = [query * scale, key + offset, value]
    grad = torch.randn(1, 256, 8)
    native = _errors(inputs, grad, torch.float32, "native")
    plain = _errors(inputs, grad, torch.float32, "reference")
    # Twice as many roundings: scores are rounded once more by the change of base. dV sums one probability
    # recomputed from the log-sum, where the reference keeps the normalised one.
    assert all(a < 4 * b + 1e-6 for a, b in zip(native, plain, strict=True))


@native_only
def test_same_bits_for_any_number_of_threads():
    inputs, grad = _inputs(2, 700, 130, 4, 4), torch.randn(2, 700, 4)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_gradients(inputs, grad, torch.float32, "native"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@native_only
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    if isa == torch.ops.fastinpaint.cpu_isa():
        pytest.skip(f"{isa} runs in this process")
    code = (
        "import torch; from tests import test_pooled_attention as t\n"
        f"if torch.ops.fastinpaint.cpu_isa() == {isa!r}:\n"
        "    for shape in t.SHAPES: t.test_float32_equals_float64(shape, 'native', None)\n"
        "    t.test_large_logits_are_as_exact_as_in_the_reference(30, 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "FASTINPAINT_ISA": isa})


@native_only
def test_nan_stays_in_its_row():
    query, key, value = _inputs(1, 40, 9, 4, 4)
    query[0, 17, 2] = float("nan")
    output = fi.pooled_attention(query, key, value, backend="native")[0]
    assert torch.nonzero(output.isnan().any(-1)).tolist() == [[17]]
    assert fi.pooled_attention(query, key * float("nan"), value, backend="native").isnan().all()


@native_only
def test_opcheck():
    inputs = [x.requires_grad_() for x in _inputs(2, 9, 5, 4, 3)]
    torch.library.opcheck(torch.ops.fastinpaint.pooled_attention.default, inputs)
    plain = [x.detach() for x in inputs]
    results = torch.ops.fastinpaint.pooled_attention(*plain)
    torch.library.opcheck(
        torch.ops.fastinpaint.pooled_attention_backward.default, (torch.randn(2, 9, 3), *plain, *results)
    )


@native_only
def test_second_derivative_is_an_error():
    query, key, value = (x.requires_grad_() for x in _inputs(1, 3, 2, 2, 2))
    (grad,) = torch.autograd.grad(
        fi.pooled_attention(query, key, value, backend="native").sum(), key, create_graph=True
    )
    with pytest.raises(RuntimeError, match='no second derivatives; use backend="reference"'):
        grad.sum().backward()


@native_only
def test_native_says_why_it_cannot_serve():
    with pytest.raises(ValueError, match="native: float64 needs the reference"):
        fi.pooled_attention(*_inputs(1, 3, 2, 2, 2, torch.float64), backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_do_not_overflow(backend):
    query, key, value = _inputs(1, 5, 6, 4, 4)
    output = fi.pooled_attention(query * 100, key * 100, value, backend=backend)
    expected = value[0, (query @ key.transpose(1, 2)).argmax(-1)[0]]
    torch.testing.assert_close(output[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_logits_in_float32(dtype, backend):
    query, key, value = _inputs(1, 16, 16, 8, 8, dtype)
    inputs, grad = (query * 4, key, value), torch.randn(1, 16, 8, dtype=dtype)
    wanted = _gradients([x.float() for x in inputs], grad, torch.float32)
    for found, expected in zip(_gradients(inputs, grad, dtype, backend), wanted, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_autocast_keeps_float32():
    inputs = _inputs(1, 16, 16, 8, 8)
    expected = fi.pooled_attention(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fi.pooled_attention(*inputs), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend):
    inputs, grad = [x.requires_grad_() for x in _inputs(1, 4, 3, 2, 2)], torch.randn(1, 4, 2)
    compiled = torch.compile(fi.pooled_attention, fullgraph=True, backend="aot_eager")(*inputs, backend=backend)
    found = [compiled.detach(), *torch.autograd.grad(compiled, inputs, grad)]
    torch.testing.assert_close(found, _gradients([x.detach() for x in inputs], grad, torch.float32, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend):
    inputs, grad = _inputs(2, 6, 5, 4, 4), torch.randn(2, 4, 6).transpose(1, 2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    found = _gradients(strided, grad, torch.float32, backend)
    torch.testing.assert_close(found, _gradients(inputs, grad, torch.float32, backend))


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
