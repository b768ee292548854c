import pytest
import torch

import fastinpaint.ops.instance_norm  # noqa: F401 - registers
from fastinpaint.reference import instance_norm as reference
from fastinpaint_kernels import instance_norm as kernels
from tests.golden_data import relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# float32 sums in another order than the reference in float64; half precision is rounded once, by the interpreter to
# bfloat16 by truncation. Gradients by the residual of a padded map pass through half precision before x's.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
EPS = 1e-6
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# (options, padding): what the generator asks for, and the rest.
MODES = [
    ("", 0),
    ("relu", 1),
    ("relu", 2),
    ("residual", 2),
    ("residual", 0),
    ("residual relu", 1),
    ("residual relu", 0),
    ("residual scale relu", 2),
    ("residual scale relu", 0),
    ("scale", 1),
]


def _case(shape, mode, dtype=torch.float32, layout=torch.contiguous_format):
    channels = shape[1]
    return {
        "x": (3 * torch.randn(shape) + torch.randn(channels, 1, 1)).to(dtype).to(memory_format=layout),
        "weight": torch.randn(channels),
        "bias": torch.randn(channels),
        "residual": torch.randn(shape).to(dtype).to(memory_format=layout) if "residual" in mode else None,
        "scale": torch.tensor([-0.7]) if "scale" in mode else None,
    }


def _run(call, case, grad, **options):
    """Result and gradients by name."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in case.items()}
    output = call(*leaves.values(), **options)
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(output, list(present.values()), grad)
    return output.detach(), dict(zip(present, gradients, strict=True))


def _found(case, grad, *, relu=False, padding=0):
    def call(*arguments):
        return torch.ops.fastinpaint_triton.instance_norm(*arguments, EPS, relu, padding)[0]

    return _run(call, case, grad)


def _expected(case, grad, *, relu=False, padding=0):
    def call(x, weight, bias, residual, scale):
        return reference.instance_norm(x, weight, bias, EPS, residual, scale, relu, padding)

    return _run(call, {n: None if t is None else t.double() for n, t in case.items()}, grad.double())


def _check(case, mode, padding):
    x = case["x"]
    last = kernels.is_channels_last(x)
    layout = torch.channels_last if last else torch.contiguous_format
    height, width = x.shape[2] + 2 * padding, x.shape[3] + 2 * padding
    grad = torch.randn(*x.shape[:2], height, width).to(x.dtype).to(memory_format=layout)
    output, gradients = _found(case, grad, relu="relu" in mode, padding=padding)
    expected, expected_gradients = _expected(case, grad, relu="relu" in mode, padding=padding)
    assert output.dtype == x.dtype
    assert output.is_contiguous(memory_format=layout)
    assert relative_error(output.double(), expected) <= TOLERANCE[x.dtype]
    assert gradients["x"].is_contiguous(memory_format=layout)
    for name, gradient in gradients.items():
        assert gradient.dtype == case[name].dtype
        if name == "scale":  # one sum of terms of both signs
            error = (gradient - expected_gradients[name]).abs() / (grad.norm() * output.norm())
        else:
            error = relative_error(gradient.double(), expected_gradients[name])
        assert error <= TOLERANCE[x.dtype], name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_equals_the_reference(mode, padding, layout):
    _check(_case((2, 2, 5, 6), mode, layout=layout), mode, padding)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mode", "padding"), [("residual relu", 1), ("residual scale relu", 2)])
def test_half_precision(mode, padding, dtype, layout):
    _check(_case((1, 3, 6, 8), mode, dtype, layout), mode, padding)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 3, 4, 3), (1, 2, 2, 5), (1, 4, 3, 3)])
def test_maps_reflected_on_both_sides_of_a_pixel(shape, layout):
    padding = min(shape[2:]) - 1
    _check(_case(shape, "relu", layout=layout), "relu", padding)
    _check(_case(shape, "residual scale relu", layout=layout), "residual scale relu", padding)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 2, 20, 30), torch.contiguous_format),
        ((1, 2, 20, 30), torch.channels_last),
        ((1, 19, 9, 8), torch.channels_last),
    ],
)
def test_several_tiles_chunks_and_blocks_of_channels(shape, layout, monkeypatch):
    monkeypatch.setattr(kernels, "_TILE_BYTES", 1024)
    monkeypatch.setattr(kernels, "_MOST_CHUNKS", 3)
    _check(_case(shape, "relu", layout=layout), "relu", 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_tiles_without_masks(layout, monkeypatch):
    monkeypatch.setattr(kernels, "_TILE_BYTES", 256)
    monkeypatch.setattr(kernels, "_MOST_CHUNKS", 2)
    shape = (1, 2, 8, 16)
    assert kernels._tiles(*shape[:2], 8 * 16, layout == torch.channels_last, 4, 256).even
    for mode, padding in (("", 0), ("residual relu", 4)):
        _check(_case(shape, mode, layout=layout), mode, padding)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_read_where_they_lie(layout, monkeypatch):
    shape, padding = (1, 4, 6, 7), 2
    case = _case(shape, "residual", layout=layout)
    padded = torch.nn.functional.pad(case["residual"], (2, 2, 2, 2)).contiguous(memory_format=layout)
    wide = torch.nn.functional.pad(case["x"], (0, 1, 0, 1)).contiguous(memory_format=layout)
    views = case | {"residual": padded[:, :, 2:-2, 2:-2], "x": wide[:, :, :-1, :-1]}
    grad = torch.randn(1, 4, 10, 11).contiguous(memory_format=layout)
    expected = _found(case, grad, padding=padding)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    torch.testing.assert_close(_found(views, grad, padding=padding), expected)


def test_other_layouts_and_expanded_gradients():
    case = _case((2, 3, 6, 7), "residual", layout=torch.channels_last)
    odd = case | {
        "x": case["x"].transpose(2, 3).contiguous().transpose(2, 3),
        "residual": case["residual"].contiguous(),
    }
    grad = torch.randn(1, 3, 1, 1).expand(2, -1, 10, 11)
    expected, found = _expected(case, grad, relu=True, padding=2), _found(odd, grad, relu=True, padding=2)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[1].items():
        assert relative_error(gradient.double(), expected[1][name]) < 1e-5, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_far_from_zero(layout, monkeypatch):
    monkeypatch.setattr(kernels, "_TILE_BYTES", 512)
    monkeypatch.setattr(kernels, "_MOST_CHUNKS", 2)
    x = torch.randn(1, 4, 16, 33)
    x[:, 1] += 3000
    x[:, 2, :4] += 1000  # the first tiles say little about the rest
    x[:, 3, 0, 0] = 1e4
    x = x.contiguous(memory_format=layout)
    _, mean, rstd = kernels.instance_norm_forward(x, None, None, None, None, EPS, False, 0)
    variance, expected = torch.var_mean(x.double(), (2, 3), correction=0)
    assert ((mean - expected).abs() <= 2e-7 * expected.abs() + 1e-6 * variance.sqrt()).all()
    # Means of chunks are rounded to 2^-24 of 3000, and their distances, far below 1, are squared.
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=5e-6, atol=0)


def test_constant_map_and_nan():
    x = torch.full((1, 2, 5, 6), 7.0)
    output = kernels.instance_norm_forward(x, None, torch.tensor([1.0, -1.0]), None, None, EPS, True, 1)[0]
    assert torch.equal(output[0, :, 3, 3], torch.tensor([1.0, 0.0]))
    x[0, 1, 2, 2] = float("nan")
    output = kernels.instance_norm_forward(x, None, None, None, None, EPS, True, 0)[0]
    assert output[0, 1].isnan().all()
    assert output[0, 0].isfinite().all()


def test_without_weight_and_bias():
    case = _case((2, 5, 6, 7), "") | {"weight": None, "bias": None}
    _check(case, "relu", 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_twice(layout):
    case, grad = _case((1, 2, 9, 10), "residual scale relu", layout=layout), torch.randn(1, 2, 11, 12)
    first, second = (_found(case, grad, relu=True, padding=1) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, second[1][name]) for name, a in first[1].items())


def test_empty_batch():
    output, gradients = _found(_case((0, 3, 4, 4), "residual"), torch.zeros(0, 3, 6, 6), padding=1)
    assert output.shape == (0, 3, 6, 6)
    assert gradients["x"].shape == gradients["residual"].shape == (0, 3, 4, 4)
    assert torch.equal(gradients["weight"], torch.zeros(3))


@pytest.mark.parametrize(("mode", "layout"), zip(["residual scale relu", "residual relu"], LAYOUTS, strict=True))
def test_registration(mode, layout):
    case = _case((1, 2, 3, 4), mode, layout=layout)
    leaves = [None if t is None else t.requires_grad_() for t in case.values()]
    relu = "relu" in mode
    torch.library.opcheck(torch.ops.fastinpaint_triton.instance_norm.default, (*leaves, EPS, relu, 1))
    plain = [None if t is None else t.detach() for t in leaves]
    output, *statistics = torch.ops.fastinpaint_triton.instance_norm(*plain, EPS, relu, 1)
    rest = (plain[1], plain[2], plain[3] if mode == "residual relu" else None, plain[4])
    for wanted in (True, False):
        arguments = (output, plain[0], *statistics, *rest, relu, 1, wanted)
        torch.library.opcheck(torch.ops.fastinpaint_triton.instance_norm_backward.default, arguments)
