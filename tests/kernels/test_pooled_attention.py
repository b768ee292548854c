import pytest
import torch

import fastinpaint.ops.pooled_attention  # noqa: F401 - registers
from fastinpaint.reference import pooled_attention as reference
from fastinpaint_kernels import pooled_attention as kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Weights and the gradients of logits are rounded to the input's dtype between the products; the interpreter rounds to
# bfloat16 by truncation.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


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


def test_memory_layout_does_not_matter():
    inputs = _inputs(2, 6, 5, 4, 4)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    for found, wanted in zip(
        kernels.pooled_attention_forward(*strided), kernels.pooled_attention_forward(*inputs), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 0, 4)])
def test_no_query(sizes):
    inputs = _inputs(*sizes, 4, 4)
    output, lse = kernels.pooled_attention_forward(*inputs)
    assert output.shape == inputs[0].shape
    for grad in kernels.pooled_attention_backward(output, *inputs, output, lse):
        assert not grad.any()


def test_registration():
    inputs = [x.requires_grad_() for x in _inputs(1, 3, 2, 2, 4)]
    torch.library.opcheck(torch.ops.fastinpaint_triton.pooled_attention.default, inputs)
