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


def _rounding(inputs, grad):
    """How far output and gradients in float32 may be from those in float64, as norms.

    A logit is a sum of d products: rounded d times, twice more when its base changes, and once when the shift is
    subtracted. Errors of random sign add up to their root (times 5: exceeded once in a million); they are relative
    errors of the weights, and so are those of exp and of a sum of weights (8 units). Every product that a weight
    enters is then off by that share of its absolute value, before any terms cancel.
    """
    query, key, value, grad = (x.double() for x in (*inputs, grad))
    unit = 2.0**-24
    logits = (query.abs() @ key.abs().transpose(1, 2)).amax().item()
    share = 5 * unit * (query.shape[2] + 3) ** 0.5 * logits + 8 * unit
    weight = torch.softmax(query @ key.transpose(1, 2), -1)
    delta = ((weight @ value).abs() * grad.abs()).sum(-1, keepdim=True)
    slope = weight * (grad.abs() @ value.abs().transpose(1, 2) + delta)
    products = [weight @ value.abs(), slope @ key.abs(), slope.transpose(1, 2) @ query.abs()]
    return [share * x.norm().item() for x in (*products, weight.transpose(1, 2) @ grad.abs())]


def _check_rounding(inputs, grad, backend):
    found = _gradients(inputs, grad, torch.float32, backend)
    wanted = _gradients(inputs, grad, torch.float64)
    for a, b, bound in zip(found, wanted, _rounding(inputs, grad), strict=True):
        assert (a - b).norm().item() <= bound


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
    _check_rounding(_inputs(*shape), torch.randn(shape[0], shape[1], shape[4]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_no_queries(backend):
    for batch, queries in ((0, 5), (2, 0)):
        inputs = _inputs(batch, queries, 3, 4, 2)
        output, *gradients = _gradients(inputs, torch.zeros(batch, queries, 2), torch.float32, backend)
        assert output.shape == (batch, queries, 2)
        for gradient, x in zip(gradients, inputs, strict=True):
            torch.testing.assert_close(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scale", "offset"), [(8, 0), (30, 0), (1, 100), (1e-3, 0)])
def test_large_logits_are_exact(scale, offset, backend):
    query, key, value = _inputs(1, 256, 200, 8, 8)
    _check_rounding([query * scale, key + offset, value], torch.randn(1, 256, 8), backend)


OUTLIERS = [-1e4, -1e6, -1e9, torch.finfo(torch.float32).min, float("-inf")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("spread", [1, 30])
def test_one_key_far_away_changes_nothing_but_its_own_weight(spread, outlier, backend):
    query, key, value = _inputs(2, 40, 23, 4, 3)
    query, key = query.abs() + 0.5, key * spread
    key[:, 7] = outlier
    grad = torch.randn(2, 40, 3)
    others = torch.arange(23) != 7
    rest = [query, key[:, others], value[:, others]]
    wanted, bounds = _gradients(rest, grad, torch.float64), _rounding(rest, grad)
    output, *gradients = _gradients([query, key, value], grad, torch.float32, backend)
    assert not gradients[1][:, 7].any()
    assert not gradients[2][:, 7].any()
    found = [output, gradients[0], gradients[1][:, others], gradients[2][:, others]]
    for i, (a, b, bound) in enumerate(zip(found, wanted, bounds, strict=True)):
        if backend == "reference" and outlier == float("-inf") and i == 1:
            continue  # autograd multiplies the weight 0 by the key
        assert (a - b).norm().item() <= bound


@native_only
def test_one_key_far_away_as_reported():
    key = torch.tensor([[[1.0, 2.0], [2.0, 0.0], [-1e9, -1e9]]])
    output = fi.pooled_attention(torch.ones(1, 1, 2), key, torch.tensor([[[1.0], [2.0], [3.0]]]), backend="native")
    assert output.item() == pytest.approx(1.2689414)  # (e^3 + 2 e^2) / (e^3 + e^2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e24, 1e37])
def test_large_values_do_not_overflow(size, backend):
    query, key, value = _inputs(1, 33, 200, 8, 3)
    aligned = torch.zeros(8)
    aligned[0] = 5.8  # logits of up to 33.6, so powers of two of up to 2^48.5
    value = value.abs() + 0.5
    opposite = aligned * (-1.0) ** torch.arange(200)[:, None]
    for q, k in ((query, key), (query * 5, key), (query * 0.01 + aligned, key * 0.01 + opposite)):
        output = fi.pooled_attention(q, k, value * size, backend=backend)
        torch.testing.assert_close(output / size, fi.pooled_attention(q, k, value, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_key_mask_is_as_if_the_other_keys_were_not_there(dtype, backend):
    if backend == "native" and dtype == torch.float64:
        pytest.skip("float64 needs the reference")
    query, key, value = _inputs(2, 40, 23, 4, 3, dtype)
    mask = torch.rand(23) > 0.4
    grad = torch.randn(2, 40, 3, dtype=dtype)
    rest = [query, key[:, mask], value[:, mask]]
    wanted = _gradients(rest, grad, dtype)
    for hidden in (1.0, 1e4, float("inf"), float("nan")):
        key[:, ~mask] = value[:, ~mask] = hidden
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        output = fi.pooled_attention(*leaves, key_mask=mask.expand(2, 23), backend=backend)
        gradients = torch.autograd.grad(output, leaves, grad)
        assert not gradients[1][:, ~mask].any()
        assert not gradients[2][:, ~mask].any()
        found = [output.detach(), gradients[0], gradients[1][:, mask], gradients[2][:, mask]]
        torch.testing.assert_close(found, wanted, rtol=1e-5 if dtype != torch.bfloat16 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entry_without_keys_to_attend_to_is_zero(backend):
    leaves = [x.requires_grad_() for x in _inputs(2, 5, 7, 4, 3)]
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0] = False
    output = fi.pooled_attention(*leaves, key_mask=mask, backend=backend)
    assert not output[0].any()
    torch.testing.assert_close(output[1], fi.pooled_attention(*leaves, backend="reference")[1])
    for gradient in torch.autograd.grad(output.sum(), leaves):
        assert not gradient[0].any()
        assert gradient[1].isfinite().all()


def test_errors_of_key_mask():
    inputs = _inputs(2, 6, 5, 4, 3)
    with pytest.raises(TypeError, match=r"pooled_attention: key_mask must be bool, got torch.float32"):
        fi.pooled_attention(*inputs, key_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"key_mask must have shape \(2, 5\), got \(2, 6\)"):
        fi.pooled_attention(*inputs, key_mask=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"key_mask must be a tensor \(2, 5\), got list"):
        fi.pooled_attention(*inputs, key_mask=[True] * 5)


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
        "torch.manual_seed(0)\n"
        f"if torch.ops.fastinpaint.cpu_isa() == {isa!r}:\n"
        "    for shape in t.SHAPES: t.test_float32_equals_float64(shape, 'native', None)\n"
        "    for scale, offset in ((8, 0), (30, 0), (1, 100)): t.test_large_logits_are_exact(scale, offset, 'native')\n"
        "    for outlier in t.OUTLIERS:\n"
        "        t.test_one_key_far_away_changes_nothing_but_its_own_weight(30, outlier, 'native')"
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_float32(backend):
    inputs = _inputs(1, 16, 16, 8, 8)
    expected = fi.pooled_attention(*inputs)
    with fi.use_backend(backend):
        exported = torch.export.export(_Attention(), tuple(inputs)).module()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(fi.pooled_attention(*inputs), expected)
            torch.testing.assert_close(exported(*inputs), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend):
    inputs, grad = [x.requires_grad_() for x in _inputs(1, 4, 3, 2, 2)], torch.randn(1, 4, 2)
    compiled = torch.compile(fi.pooled_attention, fullgraph=True, backend="aot_eager")(*inputs, backend=backend)
    found = [compiled.detach(), *torch.autograd.grad(compiled, inputs, grad)]
    torch.testing.assert_close(found, _gradients([x.detach() for x in inputs], grad, torch.float32, backend))


class _Attention(torch.nn.Module):
    def forward(self, query, key, value):
        return fi.pooled_attention(query, key, value)


def test_exports_with_symbolic_sizes():
    batch, queries, keys = (torch.export.Dim(name, min=2, max=4096) for name in ("batch", "queries", "keys"))
    shapes = ({0: batch, 1: queries}, {0: batch, 1: keys}, {0: batch, 1: keys})
    inputs = tuple(_inputs(2, 7, 5, 4, 3))
    program = torch.export.export(_Attention(), inputs, dynamic_shapes=shapes, strict=True)
    other = _inputs(3, 4, 9, 4, 3)
    torch.testing.assert_close(program.module()(*other), fi.pooled_attention(*other))


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
