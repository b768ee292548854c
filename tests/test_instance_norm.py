import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import fastinpaint as fi
from fastinpaint.ops._backend import native_reason
from fastinpaint.reference import instance_norm as reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
NATIVE_GAP = native_reason("instance_norm", torch.empty(0))
native_only = pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
both_backends = pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native_only)])
# Shapes and paddings: rows of several pieces and of a part of one, groups of several strips, the last of them shorter,
# channels that fill no vector and more of them than a piece has columns, a border reflected onto itself.
SHAPES = [
    ((1, 1, 1, 2), 0),
    ((2, 3, 5, 7), 4),
    ((3, 6, 2, 3), 1),
    ((2, 16, 20, 33), 2),
    ((1, 200, 9, 14), 1),
    ((1, 2, 300, 301), 3),
    ((1, 5, 3, 300), 0),
]


def _case(shape, layout=torch.contiguous_format, dtype=torch.float32):
    x, residual = (torch.randn(shape, dtype=dtype).to(memory_format=layout) for _ in range(2))
    return x, torch.randn(shape[1]), torch.randn(shape[1]), residual


@both_backends
@given(
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(2, 7),
    st.integers(2, 7),
    st.sampled_from(LAYOUTS),
    st.booleans(),
    st.integers(0, 1),
)
def test_equals_separate_operators(backend, batch, channels, height, width, layout, relu, padding):
    x, weight, bias, residual = _case((batch, channels, height, width), layout)
    if not batch:
        padded = (0, channels, height + 2 * padding, width + 2 * padding)
        found = fi.instance_norm(x, weight, bias, residual=residual, relu=relu, padding=padding, backend=backend)
        assert found.shape == padded
        return
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0, keepdim=True)
    n = (x - mean) / (variance + 1e-3).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    for scale in (None, torch.tensor([-0.5])):
        if scale is None:
            expected = (n + residual).relu() if relu else n + residual
        else:
            expected = residual + scale * (n.relu() if relu else n)
        expected = F.pad(expected, (padding,) * 4, mode="reflect")
        options = {"residual": residual, "scale": scale, "relu": relu, "padding": padding, "backend": backend}
        found = fi.instance_norm(x, weight, bias, 1e-3, **options)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@both_backends
def test_activations_may_be_recomputed(backend):
    """Checkpointing hands out each saved tensor once."""
    leaves = [tensor.requires_grad_() for tensor in _case((2, 3, 6, 7))]

    def call(x, weight, bias, residual):
        return fi.instance_norm(x, weight, bias, residual=residual, relu=True, padding=1, backend=backend)

    wanted = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    found = torch.autograd.grad(checkpoint(call, *leaves, use_reentrant=False).square().sum(), leaves)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@both_backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_module_of_torch(layout, backend):
    x, weight, bias, _ = _case((2, 5, 6, 7), layout)
    norm = torch.nn.InstanceNorm2d(5, 1e-6, affine=True)
    norm.load_state_dict({"weight": weight, "bias": bias})
    found = fi.instance_norm(x, weight, bias, backend=backend)
    torch.testing.assert_close(found, norm(x))
    assert found.is_contiguous(memory_format=layout)
    if layout is torch.contiguous_format and backend == "reference":
        assert torch.equal(found, norm(x))
    torch.testing.assert_close(fi.instance_norm(x, None, None, backend=backend), torch.nn.InstanceNorm2d(5, 1e-6)(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_reference_gradcheck(layout, scaled):
    x, weight, bias, residual = (t.double().requires_grad_() for t in _case((2, 2, 3, 4), layout))
    scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True) if scaled else None
    arguments = (x, weight, bias, 1e-6, residual, scale, True, 2)
    torch.autograd.gradcheck(reference.instance_norm, arguments)


def _outcome(tensors, backend, grad, eps=1e-3, **options):
    """Result and gradients of x, weight, bias, residual and scale, as far as they are there."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, weight, bias, residual, scale = leaves
    result = fi.instance_norm(x, weight, bias, eps, residual=residual, scale=scale, backend=backend, **options)
    given = [leaf for leaf in leaves if leaf is not None]
    return [result.detach(), *torch.autograd.grad(result, given, grad.to(result.dtype))]


def _operands(shape, layout, dtype, added, scaled):
    x, weight, bias, residual = _case(shape, layout, dtype)
    return x, weight, bias, residual if added else None, torch.tensor([-0.7]) if scaled else None


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "padding"), SHAPES)
@pytest.mark.parametrize(
    ("added", "scaled", "relu"), [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
)
def test_native_equals_float64(shape, padding, added, scaled, relu, layout, poisoned_memory):
    tensors = _operands(shape, layout, torch.float32, added, scaled)
    grad = torch.randn(shape[0], shape[1], shape[2] + 2 * padding, shape[3] + 2 * padding)
    options = {"relu": bool(relu), "padding": padding}
    wide = [None if t is None else t.double() for t in tensors]
    wanted = _outcome(wide, "reference", grad, **options)
    found = _outcome(tensors, "native", grad, **options)
    for a, b, size in zip(
        found, wanted, [1, 1 / tensors[0].std(), *[shape[0] * shape[2] * shape[3]] * 3], strict=False
    ):
        # A few roundings of numbers of about 4, divided by the spread, or added up.
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6 * float(size) * (b.abs().max().item() + 1))
    assert found[1].is_contiguous(memory_format=layout)


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_native_gradcheck(layout, scaled, relu):
    x, weight, bias, residual = (t.double().requires_grad_() for t in _case((2, 2, 3, 4), layout))
    scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True) if scaled else None

    def run(x, weight, bias, residual, scale):
        options = {"residual": residual, "scale": scale, "relu": relu, "padding": 2, "backend": "native"}
        return fi.instance_norm(x, weight, bias, **options)

    torch.autograd.gradcheck(run, (x, weight, bias, residual, scale))


@both_backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_statistics_in_float32(dtype, layout, backend):
    x, weight, bias, residual = _case((2, 4, 9, 8), layout, dtype)
    x += 30
    options = {"residual": residual, "relu": True, "padding": 1}
    found = fi.instance_norm(x, weight, bias, **options, backend=backend)
    assert found.dtype == dtype
    expected = fi.instance_norm(x.double(), weight, bias, **options, backend="reference")
    eps = torch.finfo(dtype).eps  # rounded before and after the residual, both about 4 or less
    torch.testing.assert_close(found.double(), expected, rtol=eps, atol=4 * eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fi.instance_norm(x, weight, bias, **options, backend=backend), found)


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_native_rounds_half_precision_once(dtype, scaled, layout):
    tensors = _operands((2, 5, 9, 8), layout, dtype, True, scaled)
    grad = torch.randn(2, 5, 13, 12).to(dtype)
    wide = [None if t is None else t.float() for t in tensors]
    wanted = _outcome(wide, "native", grad, relu=True, padding=2)
    found = _outcome(tensors, "native", grad, relu=True, padding=2)
    for a, b, t in zip(found, wanted, [tensors[0], *(t for t in tensors if t is not None)], strict=True):
        assert torch.equal(a, b.to(t.dtype))


@both_backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interior_of_a_padded_map_as_residual(layout, backend):
    x, weight, bias, residual = _case((2, 4, 5, 6), layout)
    padded = F.pad(residual, (2,) * 4).contiguous(memory_format=layout)
    options = {"relu": True, "padding": 2}
    grad = torch.randn(2, 4, 9, 10)
    found = _outcome((x, weight, bias, padded[:, :, 2:-2, 2:-2], None), backend, grad, **options)
    wanted = _outcome((x, weight, bias, residual, None), backend, grad, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[0].is_contiguous(memory_format=layout)


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_reads_any_strides(layout):
    x, weight, bias, residual = _case((2, 4, 5, 6), layout)
    grad = torch.randn(2, 4, 7, 8)
    wanted = _outcome((x, weight, bias, residual, None), "native", grad, padding=1)
    strided = torch.empty(2, 8, 5, 12).to(memory_format=layout)[:, ::2, :, ::2].copy_(x)
    cropped = torch.empty(2, 4, 6, 9).to(memory_format=layout)[:, :, 1:, 2:8].copy_(x)
    other = residual.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (strided, cropped):
        found = _outcome((same, weight, bias, other, None), "native", grad.expand(2, 4, 7, 8), padding=1)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[0].is_contiguous(memory_format=layout)
    total = fi.instance_norm(x.requires_grad_(), weight, bias, relu=True, backend="native").sum()
    expected = fi.instance_norm(x, weight, bias, relu=True, backend="reference").sum()
    torch.testing.assert_close(torch.autograd.grad(total, x), torch.autograd.grad(expected, x), rtol=1e-4, atol=1e-5)


@both_backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_mean_loses_nothing_but_the_rounding_of_x(layout, backend):
    x = (1000 + torch.randn(1, 3, 20, 20)).contiguous(memory_format=layout)
    exact = fi.instance_norm(x.double(), None, None, backend="reference").float()
    torch.testing.assert_close(fi.instance_norm(x, None, None, backend=backend), exact, rtol=0, atol=1e-3)


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_statistics_are_those_of_float64(layout):
    """Also where the mean is ten thousand deviations away, and differs from row to row."""
    x = torch.randn(1, 3, 200, 130) + torch.linspace(-1e4, 1e4, 3)[:, None, None]
    x += 30 * torch.sin(torch.arange(200.0))[:, None]
    _, mean, rstd = torch.ops.fastinpaint.instance_norm(
        x.to(memory_format=layout), None, None, None, None, 1e-6, False, 0
    )
    variance, exact = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-7, atol=1e-5)
    torch.testing.assert_close(rstd.double(), (variance + 1e-6).rsqrt(), rtol=3e-7, atol=0)


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1e25, 1e37])
def test_native_squares_of_large_values_do_not_overflow(layout, size):
    x = torch.randn(1, 3, 9, 12).to(memory_format=layout)
    torch.testing.assert_close(
        fi.instance_norm(x * size, None, None, backend="native"), fi.instance_norm(x, None, None, 0.0)
    )


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_native_nan_and_infinity_stay_in_their_channel(layout, value):
    x, weight, bias, _ = _case((2, 3, 5, 6), layout)
    expected = fi.instance_norm(x, weight, bias, relu=True, padding=1, backend="native")
    x[1, 2, 3, 4] = value
    found, grad_x, *_ = _outcome((x, weight, bias, None, None), "native", torch.ones(2, 3, 7, 8), relu=True, padding=1)
    assert found[1, 2].isnan().all()
    assert grad_x[1, 2].isnan().all()
    assert torch.equal(found[0], fi.instance_norm(x[:1], weight, bias, 1e-3, relu=True, padding=1, backend="native")[0])
    assert found[1, :2].isfinite().all()
    assert expected.isfinite().all()


@native_only
def test_native_same_bits_for_any_number_of_threads():
    tensors = [_operands((2, 6, 200, 130), layout, torch.float32, True, False) for layout in LAYOUTS]
    grad, threads, results = torch.randn(2, 6, 202, 132), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([r for t in tensors for r in _outcome(t, "native", grad, relu=True, padding=1)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def isa_results():
    """Results and gradients of all shapes and layouts, with drawn operands."""
    torch.manual_seed(0)
    results = []
    for shape, padding in SHAPES:
        for layout in LAYOUTS:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                tensors = _operands(shape, layout, dtype, True, False)
                grad = torch.randn(shape[0], shape[1], shape[2] + 2 * padding, shape[3] + 2 * padding)
                results += _outcome(tensors, "native", grad, relu=True, padding=padding)
    return results


@native_only
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_native_same_bits_on_lesser_instruction_sets(isa, tmp_path):
    if isa == torch.ops.fastinpaint.cpu_isa():
        pytest.skip(f"{isa} runs in this process")
    code = (
        "import torch; from tests.test_instance_norm import isa_results\n"
        f"torch.save((torch.ops.fastinpaint.cpu_isa(), isa_results()), {str(tmp_path / 'results.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "FASTINPAINT_ISA": isa})
    ran, found = torch.load(tmp_path / "results.pt")
    if ran != isa:
        pytest.skip(f"this processor has no {isa}")
    assert all(torch.equal(a, b) for a, b in zip(found, isa_results(), strict=True))


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_native_opcheck(layout, dtype):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, bias, residual = _case((2, 3, 4, 5), layout, dtype)
    weight, bias = (t.to(real).requires_grad_() for t in (weight, bias))
    x, residual, scale = x.requires_grad_(), residual.requires_grad_(), torch.ones(1, dtype=real, requires_grad=True)
    forward, backward = (
        torch.ops.fastinpaint.instance_norm.default,
        torch.ops.fastinpaint.instance_norm_backward.default,
    )
    torch.library.opcheck(forward, (x, None, None, None, None, 1e-6, False, 0))
    for added, scaled in ((residual, None), (residual, scale)):
        torch.library.opcheck(forward, (x, weight, bias, added, scaled, 1e-6, True, 1))
        plain = [None if t is None else t.detach() for t in (x, weight, bias, added, scaled)]
        output, mean, rstd = forward(*plain, 1e-6, True, 1)
        for wanted in (False, True):
            arguments = (torch.randn_like(output), plain[0], mean, rstd, *plain[1:], True, 1, wanted)
            torch.library.opcheck(backward, arguments)


@native_only
def test_native_has_no_second_derivatives():
    x, weight, bias, _ = (t.requires_grad_() for t in _case((1, 2, 3, 4)))
    out = fi.instance_norm(x, weight, bias, relu=True, backend="native")
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"instance_norm: .* no second derivatives; use backend=\"reference\""):
        grad.sum().backward()


@native_only
def test_transforms_take_the_reference():
    x, weight, bias, _ = _case((1, 2, 3, 4))
    grad = torch.func.grad(lambda x: fi.instance_norm(x, weight, bias, relu=True).square().sum())(x)
    leaf = x.clone().requires_grad_()
    fi.instance_norm(leaf, weight, bias, relu=True, backend="reference").square().sum().backward()
    torch.testing.assert_close(grad, leaf.grad)
    with pytest.raises(ValueError, match=r"native: forward-mode derivatives and torch\.func"):
        torch.func.grad(lambda x: fi.instance_norm(x, weight, bias, backend="native").sum())(x)


@both_backends
def test_compiles_without_graph_break(backend):
    leaves = [t.requires_grad_() for t in _case((2, 3, 4, 5))]
    grad = torch.randn(2, 3, 6, 7)

    def run(x, weight, bias, residual):
        return fi.instance_norm(x, weight, bias, residual=residual, relu=True, padding=1, backend=backend)

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


@native_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x must be \(B, C, H, W\), got shape \(2, 3, 4\)"),
        ({"x": torch.zeros(1, 3, 4, 5).int()}, "x must be float32, float64, bfloat16 or float16, got Int"),
        ({"weight": torch.ones(2)}, r"weight must have size 3 on axis 0 .* got shape \(2\)"),
        ({"bias": torch.ones(3).double()}, "bias must be Float, got Double"),
        ({"residual": torch.zeros(1, 3, 4, 6)}, r"residual must have size 5 on axis 3 .* got shape \(1, 3, 4, 6\)"),
        ({"residual": torch.zeros(1, 3, 4, 5).half()}, "residual must be Float, got Half"),
        ({"scale": torch.ones(2)}, r"scale must have size 1 on axis 0 .* got shape \(2\)"),
        ({"padding": 4}, r"padding must be less than height and width, got 4, \(1, 3, 4, 5\)"),
    ],
)
def test_native_operator_checks_its_arguments(change, message):
    arguments = {"x": torch.zeros(1, 3, 4, 5), "weight": None, "bias": None, "residual": None, "scale": None}
    arguments |= {"eps": 1e-6, "relu": False, "padding": 0} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastinpaint.instance_norm(**arguments)
    if "padding" not in change and "x" not in change:
        return
    tensors = (torch.zeros(1, 3, 4, 5), arguments["x"], *[torch.zeros(1, 3)] * 2, *[None] * 4)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastinpaint.instance_norm_backward(*tensors, False, arguments["padding"], False)
