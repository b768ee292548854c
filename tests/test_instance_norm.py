import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fastinpaint as fi
from fastinpaint.reference import instance_norm as reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _case(shape, layout=torch.contiguous_format, dtype=torch.float32):
    x, residual = (torch.randn(shape, dtype=dtype).to(memory_format=layout) for _ in range(2))
    return x, torch.randn(shape[1]), torch.randn(shape[1]), residual


@given(
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(2, 7),
    st.integers(2, 7),
    st.sampled_from(LAYOUTS),
    st.booleans(),
    st.integers(0, 1),
)
def test_equals_separate_operators(batch, channels, height, width, layout, relu, padding):
    x, weight, bias, residual = _case((batch, channels, height, width), layout)
    if not batch:
        padded = (0, channels, height + 2 * padding, width + 2 * padding)
        assert fi.instance_norm(x, weight, bias, residual=residual, relu=relu, padding=padding).shape == padded
        return
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0, keepdim=True)
    n = (x - mean) / (variance + 1e-3).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    for scale in (None, torch.tensor([-0.5])):
        if scale is None:
            expected = (n + residual).relu() if relu else n + residual
        else:
            expected = residual + scale * (n.relu() if relu else n)
        expected = F.pad(expected, (padding,) * 4, mode="reflect")
        found = fi.instance_norm(x, weight, bias, 1e-3, residual=residual, scale=scale, relu=relu, padding=padding)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_module_of_torch(layout):
    x, weight, bias, _ = _case((2, 5, 6, 7), layout)
    norm = torch.nn.InstanceNorm2d(5, 1e-6, affine=True)
    norm.load_state_dict({"weight": weight, "bias": bias})
    found = fi.instance_norm(x, weight, bias)
    torch.testing.assert_close(found, norm(x))
    assert found.is_contiguous(memory_format=layout)
    if layout is torch.contiguous_format:
        assert torch.equal(found, norm(x))
    torch.testing.assert_close(fi.instance_norm(x, None, None), torch.nn.InstanceNorm2d(5, 1e-6)(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_reference_gradcheck(layout, scaled):
    x, weight, bias, residual = (t.double().requires_grad_() for t in _case((2, 2, 3, 4), layout))
    scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True) if scaled else None
    arguments = (x, weight, bias, 1e-6, residual, scale, True, 2)
    torch.autograd.gradcheck(reference.instance_norm, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_statistics_in_float32(dtype, layout):
    x, weight, bias, residual = _case((2, 4, 9, 8), layout, dtype)
    x += 30
    found = fi.instance_norm(x, weight, bias, residual=residual, relu=True, padding=1)
    assert found.dtype == dtype
    expected = fi.instance_norm(x.double(), weight, bias, residual=residual, relu=True, padding=1)
    eps = torch.finfo(dtype).eps  # rounded before and after the residual, both about 4 or less
    torch.testing.assert_close(found.double(), expected, rtol=eps, atol=4 * eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fi.instance_norm(x, weight, bias, residual=residual, relu=True, padding=1), found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_interior_of_a_padded_map_as_residual(layout):
    x, weight, bias, residual = _case((2, 4, 5, 6), layout)
    padded = F.pad(residual, (2,) * 4).contiguous(memory_format=layout)
    found = fi.instance_norm(x, weight, bias, residual=padded[:, :, 2:-2, 2:-2], padding=2)
    assert torch.equal(found, fi.instance_norm(x, weight, bias, residual=residual, padding=2))
    assert found.is_contiguous(memory_format=layout)


def test_large_mean_loses_nothing_but_the_rounding_of_x():
    x = (1000 + torch.randn(1, 3, 20, 20)).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        fi.instance_norm(x, None, None), fi.instance_norm(x.double(), None, None).float(), rtol=0, atol=1e-3
    )


def test_compiles_without_graph_break():
    leaves = [t.requires_grad_() for t in _case((2, 3, 4, 5))]
    grad = torch.randn(2, 3, 6, 7)

    def run(x, weight, bias, residual):
        return fi.instance_norm(x, weight, bias, residual=residual, relu=True, padding=1)

    compiled, plain = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves), run(*leaves)
    torch.testing.assert_close(compiled, plain)
    found, expected = (torch.autograd.grad(y, leaves, grad) for y in (compiled, plain))
    torch.testing.assert_close(found, expected)


def test_errors_say_what_was_wanted_and_what_came():
    x, weight, bias, residual = _case((2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"weight must have shape \(3\), got \(2,\)"):
        fi.instance_norm(x, weight[:2], bias)
    with pytest.raises(ValueError, match=r"residual must have shape \(2, 3, 4, 5\), got \(1, 3, 4, 5\)"):
        fi.instance_norm(x, weight, bias, residual=residual[:1])
    with pytest.raises(ValueError, match=r"scale must have shape \(1\), got \(3,\)"):
        fi.instance_norm(x, weight, bias, scale=weight)
    with pytest.raises(ValueError, match=r"less than height and width, got 4, \(2, 3, 4, 5\)"):
        fi.instance_norm(x, weight, bias, padding=4)
    with pytest.raises(ValueError, match=r"at least 2 pixels in each channel, got \(2, 3, 1, 1\)"):
        fi.instance_norm(x[:, :, :1, :1], weight, bias)
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        fi.instance_norm(x.long(), weight, bias)
    with pytest.raises(ValueError, match="triton: it needs CUDA tensors"):
        fi.instance_norm(x, weight, bias, backend="triton")
