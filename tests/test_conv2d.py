import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import fastinpaint as fi
from fastinpaint.ops import conv2d as op
from fastinpaint.ops._backend import native_reason

LAYOUTS = [torch.contiguous_format, torch.channels_last]
NATIVE_GAP = native_reason("conv2d", torch.empty(0))
native_only = pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
# (B, C, H, W), output channels, k, padding, dilation: tiles that hang over, more tiles than are transformed at a time,
# more output channels than a task takes and a part of such, phases of a dilation that differ in size.
CASES = [
    ((2, 32, 13, 17), 48, 3, 1, 1),
    ((1, 16, 125, 131), 16, 3, 0, 1),
    ((3, 48, 5, 3), 16, 3, 2, 1),
    ((2, 16, 11, 14), 80, 3, 2, 2),
    ((1, 64, 15, 16), 64, 3, 0, 3),
    ((1, 512, 49, 50), 16, 3, 1, 1),
    ((2, 32, 9, 10), 48, 5, 2, 1),
    ((1, 16, 6, 5), 16, 5, 0, 1),
    ((2, 16, 20, 19), 32, 5, 4, 2),
]


def _operands(shape, outer, kernel, layout=torch.contiguous_format, dtype=torch.float32):
    x = torch.randn(shape, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(outer, shape[1], kernel, kernel, dtype=dtype) / (shape[1] * kernel**2) ** 0.5
    return x, weight, torch.randn(outer, dtype=dtype)


def _outcome(tensors, grad, backend, **options):
    """Result and gradients of the tensors that are there."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    result = fi.conv2d(*leaves, backend=backend, **options)
    return [result.detach(), *torch.autograd.grad(result, [t for t in leaves if t is not None], grad.to(result.dtype))]


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "outer", "kernel", "padding", "dilation"), CASES)
def test_native_equals_float64(shape, outer, kernel, padding, dilation, relu, layout, poisoned_memory):
    tensors = _operands(shape, outer, kernel, layout)
    options = {"padding": padding, "dilation": dilation, "relu": relu}
    grown = 2 * padding - dilation * (kernel - 1)
    grad = torch.randn(shape[0], outer, shape[2] + grown, shape[3] + grown).to(memory_format=layout)
    wanted = _outcome([t.double() for t in tensors], grad, "reference", **options)
    if relu:  # where the result is nearly 0, rounding decides whether the gradient passes
        grad = grad * (wanted[0] == 0).logical_or(wanted[0] > 1e-4)
        wanted = _outcome([t.double() for t in tensors], grad, "reference", **options)
    found = _outcome(tensors, grad, "native", **options)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * b.abs().max().item())
    for map_ in found[:2]:
        assert map_.is_contiguous(memory_format=layout)


@native_only
def test_native_of_no_images():
    tensors = _operands((0, 16, 9, 10), 32, 3)
    result, grad_x, grad_weight, grad_bias = _outcome(tensors, torch.zeros(0, 32, 9, 10), "native", padding=1)
    assert result.shape == (0, 32, 9, 10)
    assert grad_x.shape == (0, 16, 9, 10)
    assert not grad_weight.any()
    assert not grad_bias.any()


@native_only
@given(
    st.integers(0, 2),
    st.sampled_from([16, 48]),
    st.sampled_from([16, 32]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([3, 5]),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_native_equals_pytorch(batch, inner, outer, height, width, kernel, padding, dilation):
    assume(padding <= dilation * (kernel - 1))
    assume(min(height, width) + 2 * padding > dilation * (kernel - 1))
    x, weight, bias = _operands((batch, inner, height, width), outer, kernel)
    found = fi.conv2d(x, weight, bias, padding=padding, dilation=dilation, backend="native")
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, 1, padding, dilation), rtol=0, atol=3e-5)


@native_only
@pytest.mark.parametrize("kernel", [3, 5])
def test_native_rounds_to_a_few_units_in_the_last_place(kernel):
    """A direct convolution errs by 0.9e-6 to 1.4e-6, tiles with the points 0, +-1/2, +-2 by 2.0e-6 to 2.4e-6."""
    x, weight, _ = _operands((1, 256, 16, 16), 256, kernel)
    exact = F.conv2d(x.double(), weight.double())
    error = fi.conv2d(x, weight, backend="native") - exact
    assert error.norm() < 1.8e-6 * exact.norm()


@native_only
def test_native_same_bits_for_any_number_of_threads_and_in_any_batch():
    x, weight, bias = _operands((3, 32, 70, 61), 48, 3)
    grad, threads, results = torch.randn(3, 48, 70, 61), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            result = fi.conv2d(leaf, weight, bias, padding=1, backend="native")
            results.append([result.detach(), *torch.autograd.grad(result, leaf, grad)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert torch.equal(fi.conv2d(x[1:2], weight, bias, padding=1, backend="native")[0], results[0][0][1])


@native_only
def test_native_reads_any_strides():
    x, weight, bias = _operands((2, 16, 9, 10), 32, 3)
    wanted = fi.conv2d(x, weight, bias, backend="native")
    cropped = F.pad(x, (1, 2, 3, 4)).to(memory_format=torch.channels_last)[:, :, 3:-4, 1:-2]
    wide = torch.stack([bias, bias], 1)[:, 0]
    for kept in (weight.to(memory_format=torch.channels_last), weight.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(fi.conv2d(cropped, kept, wide, backend="native"), wanted)
    flipped = x.flip(0).transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(fi.conv2d(flipped, weight, bias, backend="native"), wanted.flip(0))


@native_only
def test_second_derivatives_are_those_of_pytorch():
    x, weight, bias = _operands((2, 16, 6, 7), 32, 3)
    outcomes = []
    for backend in ("native", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = fi.conv2d(*leaves, padding=1, relu=True, backend=backend)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        outcomes.append([y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for found, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * wanted.abs().max().item())


@native_only
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_native_nan_and_infinity_stay_near(value):
    x, weight, bias = _operands((2, 16, 24, 24), 16, 3)
    wanted = fi.conv2d(x, weight, bias, padding=1, relu=True, backend="native")
    x[1, 2, 9, 9] = value
    found = fi.conv2d(x, weight, bias, padding=1, relu=True, backend="native")
    assert not found[1, :, 8:11, 8:11].isfinite().any()
    far = torch.ones(24, 24, dtype=torch.bool)
    far[4:14, 4:14] = False
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1][:, far], wanted[1][:, far])


@native_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_opcheck(layout):
    x, weight, bias = (t.requires_grad_() for t in _operands((2, 16, 6, 7), 32, 3, layout))
    forward, backward = torch.ops.fastinpaint.conv2d.default, torch.ops.fastinpaint.conv2d_backward.default
    torch.library.opcheck(forward, (x, weight, None, 0, 1, False))
    torch.library.opcheck(forward, (x, weight, bias, 2, 2, True))
    grad = torch.randn(2, 32, 4, 5).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(backward, (grad, weight, 0, 1))
    torch.library.opcheck(backward, (grad, weight, 1, 2))
    torch.library.opcheck(torch.ops.fastinpaint.conv2d_weight_backward.default, (grad, x, weight, 0, 1))


@native_only
def test_compiled_once_for_all_sizes():
    weight, bias = (t.requires_grad_() for t in _operands((1, 32, 1, 1), 64, 3)[1:])
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if "fastinpaint" in str(node.target)])
        return graph

    torch._dynamo.reset()
    run = torch.compile(lambda x: fi.conv2d(x, weight, bias, padding=1), backend=keep, fullgraph=True, dynamic=True)
    for height, width in ((8, 9), (12, 7), (5, 30)):
        x = torch.randn(2, 32, height, width)
        assert torch.equal(run(x), fi.conv2d(x, weight, bias, padding=1, backend="native"))
    assert graphs == [["fastinpaint.conv2d"]]


def _served_by_native(x, weight, bias=None, **options):
    calls = []
    original = op.reference.conv2d
    op.reference.conv2d = lambda *args: calls.append(1) or original(*args)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fi.conv2d(x, weight, bias, **options)
    finally:
        op.reference.conv2d = original
    return not calls


@native_only
def test_auto_takes_winograd_where_it_saves_time_and_says_nothing_elsewhere():
    x, weight, bias = _operands((1, 32, 8, 8), 64, 3)
    assert _served_by_native(x, weight, bias, padding=1)
    assert _served_by_native(x, torch.randn(64, 32, 5, 5))
    assert not _served_by_native(x, weight, bias, padding=1, stride=2)
    assert not _served_by_native(x, weight, bias, padding=3)
    assert not _served_by_native(x, torch.randn(64, 32, 1, 1))
    assert not _served_by_native(x, torch.randn(72, 32, 3, 3))
    assert not _served_by_native(x, torch.randn(48, 32, 3, 3))
    assert not _served_by_native(x.double(), weight.double())
    assert not _served_by_native(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not _served_by_native(x, weight, bias)
        assert fi.conv2d(x, weight, bias).dtype == torch.bfloat16
    with fi.use_backend("reference"):
        assert not _served_by_native(x, weight, bias)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_is_torchs_convolution(layout):
    x, weight, bias = _operands((2, 3, 9, 8), 5, 4, layout)
    for stride, padding, dilation in itertools.product((1, 2), (0, 1), (1, 2)):
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        found = fi.conv2d(x, weight, bias, relu=True, **options, backend="reference")
        assert torch.equal(found, F.relu(F.conv2d(x, weight, bias, **options)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(32, 8, 8)}, r"x must have shape \(B, C, H, W\), got \(32, 8, 8\)"),
        ({"weight": torch.randn(32, 16, 3, 3)}, r"weight must have shape \(out, 32, k, k\), got \(32, 16, 3, 3\)"),
        ({"weight": torch.randn(32, 32, 3, 1)}, r"weight must be of k x k pixels, got \(32, 32, 3, 1\)"),
        ({"bias": torch.randn(31)}, r"bias must have shape \(32\), got \(31,\)"),
        ({"dilation": 4}, r"x with its padding must be at least 9 pixels high and wide, got \(1, 32, 8, 8\)"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"stride": 2, "backend": "native"}, "it takes kernels of 3 x 3 or 5 x 5, stride 1 .* stride 2"),
        (
            {"weight": torch.randn(30, 32, 3, 3), "bias": None, "backend": "native"},
            f"multiples of {op._CHANNEL_GROUP} .* got 32 and 30",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    x, weight, bias = _operands((1, 32, 8, 8), 32, 3)
    with pytest.raises(ValueError, match=message):
        fi.conv2d(**{"x": x, "weight": weight, "bias": bias, **change})


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_of_other_types_are_named(name, device):
    tensors = dict(zip(("x", "weight", "bias"), (t.to(device) for t in _operands((1, 32, 8, 8), 64, 3)), strict=True))
    tensors[name] = tensors[name].half()
    message = f"all tensors must have one dtype, got x of torch.float32, .*{name} of torch.float16"
    with pytest.raises(TypeError, match=message):
        fi.conv2d(**tensors)
    with pytest.raises(TypeError, match="x must be a tensor"):
        fi.conv2d(**tensors | {"x": [1.0]})


@native_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 16, 4, 4), torch.ones(16, 16, 4, 4), None, 0, 1, False), "3 x 3 or 5 x 5 pixels"),
        ((torch.ones(1, 8, 4, 4), torch.ones(16, 8, 3, 3), None, 0, 1, False), f"multiples of {op._CHANNEL_GROUP},"),
        ((torch.ones(1, 16, 4, 4), torch.ones(16, 16, 3, 3), None, 3, 1, False), "padding from 0 to dilation"),
        ((torch.ones(1, 16, 2, 2), torch.ones(16, 16, 3, 3), None, 0, 1, False), "as large as the kernel, 3 pixels"),
        ((torch.ones(1, 16, 4, 4), torch.ones(16, 16, 3, 3), torch.ones(15), 0, 1, False), "bias must have size 16"),
        ((torch.ones(1, 16, 4, 4).double(), torch.ones(16, 16, 3, 3), None, 0, 1, False), "x must be Float"),
    ],
)
def test_the_operator_itself_checks(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastinpaint.conv2d(*arguments)
