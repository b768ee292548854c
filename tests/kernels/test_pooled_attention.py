import importlib

import pytest
import torch
import triton
import triton.language as tl

import fastinpaint as fi
from fastinpaint.reference import pooled_attention as reference
from fastinpaint_kernels import pooled_attention as kernels

operator = importlib.import_module("fastinpaint.ops.pooled_attention")  # registers
pytestmark = pytest.mark.usefixtures("poisoned_memory")

# bfloat16: weights and the gradients of logits are rounded between the products, by the interpreter towards 0. float16:
# results are rounded.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 6e-4}


def _inputs(batch, queries, keys, width, value_width, dtype=torch.float32):
    shapes = ((batch, queries, width), (batch, keys, width), (batch, keys, value_width))
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _check(inputs, tolerance=None):
    leaves = [x.double().requires_grad_() for x in inputs]
    expected = reference.pooled_attention(*leaves)
    grad_output = torch.randn(expected.shape).to(inputs[0].dtype)
    expected_grads = torch.autograd.grad(expected, leaves, grad_output.double())
    output, lse = kernels.pooled_attention_forward(*inputs)
    grads = kernels.pooled_attention_backward(grad_output, *inputs, output, lse)
    for found, wanted in zip((output, *grads), (expected, *expected_grads), strict=True):
        assert found.dtype == inputs[0].dtype
        scale = max(wanted.norm(), grad_output.double().norm())  # some gradients vanish: those of a single key
        assert (found.double() - wanted).norm() <= (tolerance or TOLERANCE[found.dtype]) * scale


@pytest.fixture
def long_steps(monkeypatch):
    """A program for 128 rows of slots in place of four, each of which takes the interpreter a while."""
    monkeypatch.setattr(kernels, "_STEP", kernels._ROWS)


@pytest.mark.parametrize("widths", [(4, 4), (1, 3), (16, 16), (33, 64)])
@pytest.mark.parametrize("sizes", [(2, 70, 130), (1, 3, 1), (1, 128, 64)])
def test_equals_the_reference(sizes, widths):
    _check(_inputs(*sizes, *widths))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    _check(_inputs(1, 70, 65, 8, 8, dtype))


def test_large_logits_do_not_overflow():
    query, key, value = _inputs(1, 5, 6, 4, 4)
    output, _ = kernels.pooled_attention_forward(query * 100, key * 100, value)
    torch.testing.assert_close(output[0], value[0, (query @ key.transpose(1, 2)).argmax(-1)[0]])


def test_very_small_logits_do_not_vanish():
    query, key, value = _inputs(1, 3, 5, 4, 4)
    _check([query.abs() + 6, key - 6, value], tolerance=3e-5)  # float32 knows a logit of -150 to about 1e-5


@pytest.mark.usefixtures("long_steps")
@pytest.mark.parametrize("attended", ["some", "one", "none"])
def test_key_mask_is_that_of_the_reference(attended, monkeypatch):
    monkeypatch.setattr(operator, "_triton_gap", lambda *_: None)  # the interpreter takes CPU tensors
    inputs = _inputs(2, 5, 13, 3, 2)
    mask = torch.rand(2, 13) > 0.4
    if attended != "some":
        mask[0] = False
        mask[0, 6] = attended == "one"
    for tensor in inputs[1:]:
        tensor[~mask] = float("nan")
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = fi.pooled_attention(*leaves, key_mask=mask, backend=backend)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("long_steps")
def test_memory_layout_does_not_matter_and_costs_no_copy(monkeypatch):
    inputs = _inputs(2, 6, 5, 4, 4)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    grad = torch.randn(2, 4, 6).transpose(1, 2)
    expected = kernels.pooled_attention_forward(*inputs)
    expected_grads = kernels.pooled_attention_backward(grad.contiguous(), *inputs, *expected)

    def refuse(*_, **__):
        raise AssertionError("a copy")

    for name in ("contiguous", "clone"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    found = kernels.pooled_attention_forward(*strided)
    found_grads = kernels.pooled_attention_backward(grad, *strided, *found)
    for a, b in zip((*found, *found_grads), (*expected, *expected_grads), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 0, 4)])
def test_no_query(sizes):
    inputs = _inputs(*sizes, 4, 4)
    output, lse = kernels.pooled_attention_forward(*inputs)
    assert output.shape == inputs[0].shape
    for grad in kernels.pooled_attention_backward(output, *inputs, output, lse):
        assert not grad.any()


@pytest.mark.usefixtures("long_steps")
def test_registration():
    inputs = [x.requires_grad_() for x in _inputs(1, 3, 2, 2, 4)]
    torch.library.opcheck(torch.ops.fastinpaint_triton.pooled_attention.default, inputs)
    plain = [x.detach() for x in inputs]
    output, lse = kernels.pooled_attention_forward(*plain)
    torch.library.opcheck(
        torch.ops.fastinpaint_triton.pooled_attention_backward.default, (torch.rand_like(output), *plain, output, lse)
    )


@triton.jit
def _exp2_kernel(p_x, p_y, POLY: tl.constexpr):
    o_x = tl.arange(0, 16)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(p_y + o_x, kernels._exp2(tl.load(p_x + o_x), POLY))


def _exp2(x, eighths):
    y = torch.empty_like(x)
    _exp2_kernel[(1,)](x, y, eighths)
    return y


@pytest.mark.parametrize("eighths", [0, 2, 3, 4])
def test_polynomial_exp2(eighths):
    columns = torch.arange(64)
    odd, high = columns % 2 == 1, columns // 8 % 2 == 1
    polynomial = {0: odd & ~odd, 2: odd & high, 3: odd & (high | (columns // 16 % 2 == 1)), 4: odd}[eighths]
    assert polynomial.float().mean() * 8 == eighths
    x = torch.linspace(-126, 0.5, 1024).reshape(64, 16).t().contiguous()
    error = (_exp2(x, eighths) / x.double().exp2() - 1).abs()
    assert error[:, ~polynomial].max() < 1e-6
    assert not polynomial.any() or 5e-5 < error[:, polynomial].max() < 1.1e-4
    assert torch.equal(_exp2(torch.zeros(16, 64), eighths), torch.ones(16, 64))
    for small in (-127, -127.3, -128, -255, -1e6, -float("inf")):
        y = _exp2(torch.full((16, 64), float(small)), eighths)
        assert y.min() >= 0
        assert y.max() <= 2.0**-127
        assert not y[:, polynomial].any()
    for large in (1, 1.3, 2, 100, 1e6, float("inf")):
        assert _exp2(torch.full((16, 64), float(large)), eighths).min() >= 2


@pytest.mark.parametrize("eighths", [0, 2, 4])
def test_any_share_of_the_scores_may_be_polynomial(eighths, monkeypatch):
    for kernel in (kernels._forward_kernel, kernels._query_gradient_kernel, kernels._key_gradient_kernel):
        monkeypatch.setitem(kernel.tuners["width 4"].configs[0].kwargs, "POLY", eighths)
    _check(_inputs(1, 70, 130, 4, 4, torch.bfloat16))


SAMPLE = {torch.float32: 64, torch.bfloat16: 128}  # keys that the first guess of the largest logit looks at
FAR = [-1e4, -1e6, -1e9, torch.finfo(torch.float32).min, -float("inf")]


@pytest.mark.usefixtures("long_steps")
@pytest.mark.parametrize(
    ("outlier", "dtype"), [*((x, torch.float32) for x in FAR), (-1e9, torch.bfloat16), (FAR[-1], torch.bfloat16)]
)
def test_a_key_far_away_changes_nothing_but_its_own_weight(outlier, dtype):
    query, key, value = _inputs(1, 40, 200, 4, 3, dtype)
    query = query.abs() + 0.5
    sampled = torch.zeros(200, dtype=torch.bool)
    sampled[torch.arange(SAMPLE[dtype]) * 200 // SAMPLE[dtype]] = True
    for far in (torch.arange(200) == 7, sampled):
        spoilt = key.clone()
        spoilt[:, far] = outlier
        grad = torch.randn(1, 40, 3).to(dtype)
        output, lse = kernels.pooled_attention_forward(query, spoilt, value)
        grads = kernels.pooled_attention_backward(grad, query, spoilt, value, output, lse)
        assert not grads[1][:, far].any()
        assert not grads[2][:, far].any()
        leaves = [x.double().requires_grad_() for x in (query, key[:, ~far], value[:, ~far])]
        expected = reference.pooled_attention(*leaves)
        wanted = expected, *torch.autograd.grad(expected, leaves, grad.double())
        found = output, grads[0], grads[1][:, ~far], grads[2][:, ~far]
        for a, b in zip(found, wanted, strict=True):
            assert (a.double() - b).norm() <= TOLERANCE[dtype] * max(b.norm(), grad.double().norm())


@pytest.mark.parametrize("above", [8, 200])  # within the headroom, and far out of it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_logit_above_all_that_were_sampled(dtype, above):
    query, key, value = _inputs(1, 20, 200, 4, 4, dtype)
    query = query.abs() + 0.5
    key[:, 2] = above  # not sampled
    output, lse = kernels.pooled_attention_forward(query, key, value)
    expected = reference.pooled_attention(query.double(), key.double(), value.double())
    assert (output.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    logit = (query.double() @ key.double().transpose(1, 2)).logsumexp(-1) / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(lse.double(), logit, rtol=1e-6, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e24, 1e37])
def test_large_values_do_not_overflow(size, dtype):
    query, key, value = _inputs(1, 20, 200, 4, 4, dtype)
    value = value.abs() + 0.5
    output, _ = kernels.pooled_attention_forward(query, key, (value.double() * size).to(dtype))
    expected = reference.pooled_attention(query.double(), key.double(), value.double())
    assert (output.double() / size - expected).norm() <= max(TOLERANCE[dtype], 3e-6) * expected.norm()


@pytest.mark.usefixtures("long_steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_seen_where_it_belongs(dtype):
    query, key, value = _inputs(1, 40, 70, 4, 4, dtype)
    spoilt = query.clone()
    spoilt[0, 17, 2] = float("nan")
    output, _ = kernels.pooled_attention_forward(spoilt, key, value)
    assert torch.nonzero(output[0].isnan().any(-1)).tolist() == [[17]]
    for i in (0, 1, 9, 69):  # weights by both kinds of exp2
        spoilt = key.clone()
        spoilt[0, i, 3] = float("nan")
        assert kernels.pooled_attention_forward(query, spoilt, value)[0].isnan().all()


def test_tune_runs_every_kernel(monkeypatch):
    launched = []
    for name in ("_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(kernel, "_launch", lambda *_, name=name: launched.append(name))
    kernels.tune(1, 9, 5, 4, 3, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert launched == ["_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel"]
