"""Canny against scikit-image: not one pixel may differ, whatever the backend and the instruction set."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from skimage.color import rgb2gray
from skimage.feature import canny as skimage_canny

import fastinpaint
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.canny import canny_of_sizes
from fastinpaint.reference import canny as reference
from fastinpaint.reference.nearest import nearest_resize
from tests.helpers.canny_images import PATTERNS, pattern, spiral

NATIVE_GAP = native_reason("canny", torch.zeros(1))
BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))),
    "reference",
]
SIZE = 256


def _photograph(name):
    return rgb2gray(getattr(data, name)()).astype(np.float32)


def _ours(image, backend, mask=None, **options):
    """Edges of one numpy image (H, W)."""
    mask = None if mask is None else torch.from_numpy(mask)[None, None]
    edges = fastinpaint.canny(torch.from_numpy(image)[None, None], mask=mask, backend=backend, **options)
    assert edges.shape == (1, 1, *image.shape)
    assert edges.dtype == torch.bool
    return edges[0, 0].numpy()


def _assert_same(image, backend, mask=None, sigma=1.5, low_threshold=0.1, high_threshold=0.2, **more):
    options = {"sigma": sigma, "low_threshold": low_threshold, "high_threshold": high_threshold, **more}
    expected = skimage_canny(image, mask=mask, **options)
    found = _ours(image, backend, mask, **options)
    assert np.count_nonzero(expected != found) == 0
    return expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 3.0, 5.0])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "camera"])
def test_photographs(name, sigma, backend):
    image = data.camera().astype(np.float32) / 255 if name == "camera" else _photograph(name)
    assert _assert_same(image, backend, sigma=sigma).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns(kind, backend):
    for sigma in (0.0, 0.1, 0.5, 1.5, 2.3):
        _assert_same(pattern(kind, 61, 83), backend, sigma=sigma)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (3, 1),
        (1, 9),
        (2, 2),
        (3, 3),
        (4, 5),
        (5, 200),
        (64, 65),
        (65, 64),
        (130, 511),
        (70, 513),
        (33, 1090),
        (700, 66),
    ],
)
def test_sizes(shape, backend):
    mask = np.random.default_rng(1).random(shape) > 0.02
    for sigma in (0.0, 0.7, 1.5, 4.0):
        image = pattern("levels", *shape)
        _assert_same(image, backend, sigma=sigma)
        _assert_same(image, backend, mask, sigma=sigma)


@pytest.mark.parametrize("shape", [(1023, 769), (2048, 2048)])
@pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
def test_large(shape):
    image = pattern("blocks", *shape) + 0.2 * pattern("noise", *shape)
    assert _assert_same(image, "native").any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_thin_edge_is_followed_across_words_rows_and_bands(backend):
    """A weak spiral with one strong pixel at its end: hysteresis has to walk all of it."""
    image = spiral(131)
    for low in (0.01, 0.05, 0.1):
        _assert_same(image, backend, sigma=0.0, low_threshold=low, high_threshold=2.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["noise", "levels", "blocks", "flat"])
def test_masks(kind, backend):
    image = pattern(kind, 90, 140)
    rng = np.random.default_rng(2)
    masks = [rng.random(image.shape) > 0.05, np.zeros(image.shape, bool), np.ones(image.shape, bool)]
    masks.append(pattern("disc", *image.shape) > 0)
    for mask in masks:
        for sigma in (0.0, 1.5, 3.0):
            _assert_same(image, backend, mask, sigma=sigma)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_pixels_do_not_matter_even_if_not_finite(backend):
    image = pattern("noise", 40, 50)
    mask = np.ones(image.shape, bool)
    mask[10:20, 10:20] = False
    image[12:18, 12:18] = np.nan
    _assert_same(image, backend, mask)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.0), (0.0, 0.3), (-1.0, 0.2), (-2.0, -1.0), (0.2, 0.2), (0.5, 1e9), (1e-60, 1e-30), (0.1, float("inf"))],
)
def test_thresholds(low, high, backend):
    for kind in ("noise", "levels", "flat", "pixel"):
        _assert_same(pattern(kind, 50, 70), backend, sigma=1.0, low_threshold=low, high_threshold=high)
    step = 4 - 2.0**-21  # the gradient of a step of 1 / (1 + 2^-23): both thresholds are inclusive
    inclusive = {"sigma": 0.0, "low_threshold": step, "high_threshold": step}
    assert _assert_same(pattern("step", 50, 70), backend, **inclusive).any()
    faint = pattern("noise", 50, 70) * np.float32(2e-15)  # about the 1e-14 that stands in for a low threshold of 0
    _assert_same(faint, backend, sigma=0.5, low_threshold=low, high_threshold=high)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 150),
    kind=st.sampled_from(PATTERNS),
    sigma=st.floats(0.0, 5.0),
    low=st.floats(0.0, 1.0),
    span=st.floats(0.0, 1.0),
    scale=st.sampled_from([1.0, 2.0, -1.0, 255.0, 1e-3]),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_image(backend, height, width, kind, sigma, low, span, scale, masked, seed):
    image = (pattern(kind, height, width, seed) * scale).astype(np.float32)
    mask = np.random.default_rng(seed).random(image.shape) > 0.1 if masked else None
    _assert_same(image, backend, mask, sigma, low * abs(scale), (low + span) * abs(scale))


def _batch(channels=1, batch=5):
    sources = [pattern(kind, 70, 100, seed) for seed, kind in enumerate(("noise", "blocks", "levels", "disc", "step"))]
    planes = [np.roll(sources[(i + c) % 5], c) for i in range(batch) for c in range(channels)]
    return torch.from_numpy(np.stack(planes)).view(batch, channels, 70, 100)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_is_image_by_image(backend):
    batch = _batch()
    edges = fastinpaint.canny(batch, backend=backend)
    for image, found in zip(batch, edges, strict=True):
        assert (
            skimage_canny(image[0].numpy(), sigma=1.5, low_threshold=0.1, high_threshold=0.2) == found[0].numpy()
        ).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_a_batch(backend):
    batch = _batch()
    masks = torch.rand(batch.shape) > 0.05
    apart = [fastinpaint.canny(i[None], mask=m[None], backend=backend) for i, m in zip(batch, masks, strict=True)]
    assert torch.equal(fastinpaint.canny(batch, mask=masks, backend=backend), torch.cat(apart))
    shared = fastinpaint.canny(batch, mask=masks[:1].expand_as(masks), backend=backend)
    assert torch.equal(fastinpaint.canny(batch, mask=masks[:1], backend=backend), shared)


@pytest.mark.parametrize("backend", BACKENDS)
def test_colour_is_greyed_by_rgb_to_gray(backend):
    colour = _batch(channels=3)
    gray = fastinpaint.rgb_to_gray(colour)
    red, green, blue = colour.numpy().transpose(1, 0, 2, 3)
    weights = np.float32([0.2125, 0.7154, 0.0721])
    assert np.array_equal(gray[:, 0].numpy(), (weights[0] * red + weights[1] * green) + weights[2] * blue)
    assert torch.equal(fastinpaint.canny(colour, backend=backend), fastinpaint.canny(gray, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    batch = _batch(channels=3).to(dtype)
    assert torch.equal(fastinpaint.canny(batch, backend=backend), fastinpaint.canny(batch.float(), backend=backend))


def _as_type(image, dtype):
    """An image in [0, 1] with steps, as scikit-image would be given it in another type."""
    if dtype == "bool":
        return image > 0.5
    if dtype in ("float16", "float64"):
        return image.astype(dtype)
    return (image * np.iinfo(dtype).max * 0.999).astype(dtype)


DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float64")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_as_in_scikit_image(dtype, backend):
    default = {"low_threshold": None, "high_threshold": None}
    mask = np.random.default_rng(3).random((61, 83)) > 0.05
    for kind in ("noise", "levels", "checkerboard", "blocks", "disc", "step"):
        image = _as_type(pattern(kind, 61, 83), dtype)
        for sigma in (0.0, 0.5, 1.5):
            _assert_same(image, backend, sigma=sigma, **default)
            _assert_same(image, backend, mask, sigma=sigma, **default)
    unit = 1 if dtype in ("bool", "float16", "float64") else np.iinfo(dtype).max
    image = _as_type(pattern("noise", 61, 83), dtype)
    assert _assert_same(image, backend, low_threshold=unit * 0.2, high_threshold=unit * 0.3).any()
    if dtype not in ("bool", "float16", "float64"):
        negative = (image.astype(np.float64) - 1 if dtype[0] == "i" else image.astype(np.float64)).astype(dtype)
        _assert_same(negative, backend, **default)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_breaks_ties_as_in_scikit_image(backend):
    """On a picture with steps float64 finds other edges than float32; both as in scikit-image."""
    horse = data.horse()[:, :200]
    as_float64 = _assert_same(horse.astype(np.float64), backend, sigma=0.5)
    as_float32 = _assert_same(horse.astype(np.float32), backend, sigma=0.5)
    assert np.count_nonzero(as_float64 != as_float32) > 0
    assert np.array_equal(as_float64, _assert_same(horse, backend, sigma=0.5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 9), (4, 5), (65, 64), (33, 600), (70, 513)])
def test_sizes_in_float64(shape, backend):
    mask = np.random.default_rng(1).random(shape) > 0.02
    for sigma in (0.0, 1.5, 4.0):
        image = pattern("levels", *shape).astype(np.float64)
        _assert_same(image, backend, sigma=sigma)
        _assert_same(image, backend, mask, sigma=sigma)
    _assert_same(pattern("noise", *shape).astype(np.float64), backend, low_threshold=0.0, high_threshold=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_quantiles(dtype):
    for kind in ("noise", "blocks", "flat"):
        image = _as_type(pattern(kind, 61, 83), dtype) if dtype != "float32" else pattern(kind, 61, 83)
        mask = np.random.default_rng(3).random(image.shape) > 0.05
        for low, high in ((0.7, 0.9), (0.0, 1.0), (0.5, 0.5), (None, None)):
            options = {"low_threshold": low, "high_threshold": high, "use_quantiles": True}
            _assert_same(image, "reference", **options)
            _assert_same(image, "reference", mask, **options)
    batch = _batch()
    apart = [fastinpaint.canny(i[None], low_threshold=0.8, high_threshold=0.9, use_quantiles=True) for i in batch]
    together = fastinpaint.canny(batch, low_threshold=0.8, high_threshold=0.9, use_quantiles=True)
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", ["constant", "nearest", "reflect", "mirror", "wrap"])
def test_modes(mode, dtype):
    for shape in ((30, 41), (1, 1), (2, 7), (5, 1)):
        image = pattern("levels", *shape).astype(dtype)
        mask = np.random.default_rng(3).random(image.shape) > 0.05
        for sigma in (0.0, 1.5, 4.0):
            for cval in (0.0, 0.3):
                _assert_same(image, "reference", sigma=sigma, mode=mode, cval=cval)
                _assert_same(image, "reference", mask, sigma=sigma, mode=mode, cval=cval)


@pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
@pytest.mark.parametrize("options", [{"use_quantiles": True}, {"mode": "nearest"}, {"cval": 0.5}])
def test_what_native_lacks_runs_on_the_reference_and_says_so(options):
    with pytest.raises(ValueError, match="absolute thresholds"):
        fastinpaint.canny(_batch(), backend="native", **options)
    expected = fastinpaint.canny(_batch(), backend="reference", **options)
    assert torch.equal(fastinpaint.canny(_batch(), **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layout_does_not_matter(backend):
    colour = _batch(channels=3)
    expected = fastinpaint.canny(colour, backend=backend)
    mask = torch.rand(5, 1, 70, 100) > 0.05
    masked = fastinpaint.canny(colour, mask=mask, backend=backend)
    strided = colour.repeat_interleave(2, dim=3)[..., ::2]
    for view in (colour.to(memory_format=torch.channels_last), strided, colour.mT.contiguous().mT):
        assert torch.equal(fastinpaint.canny(view, backend=backend), expected)
        assert torch.equal(fastinpaint.canny(view, mask=mask.mT.contiguous().mT, backend=backend), masked)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (0, 3, 8, 8), (2, 1, 0, 5), (2, 3, 5, 0)])
def test_empty(shape, backend):
    edges = fastinpaint.canny(torch.zeros(shape), backend=backend)
    assert edges.shape == (shape[0], 1, *shape[2:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_pixel_is_written(backend, poisoned_memory):
    edges = fastinpaint.canny(_batch(), backend=backend)
    assert torch.equal(edges, fastinpaint.canny(_batch(), backend=backend))
    assert set(edges.view(torch.uint8).unique().tolist()) == {0, 1}


@pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
def test_threads_do_not_matter():
    threads = torch.get_num_threads()
    image = torch.from_numpy(_photograph("coffee"))[None, None]
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(fastinpaint.canny(image, backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_and_no_error_with_one_wanted(backend):
    image = _batch().requires_grad_()
    edges = fastinpaint.canny(image, backend=backend)
    assert not edges.requires_grad


def test_gray_is_differentiable():
    image = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fastinpaint.rgb_to_gray, image)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    def function(image, mask):
        return fastinpaint.canny(image * 2, mask=mask, sigma=2.0, backend=backend).float().mean()

    image, mask = _batch(channels=3), torch.rand(5, 1, 70, 100) > 0.1
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, mask), function(image, mask))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_with_dynamic_sizes_and_options(backend):
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph

    def edges_of(image):
        return fastinpaint.canny(image * 2, backend=backend)

    def edges_above(image, low):
        return fastinpaint.canny(image, low_threshold=low, high_threshold=2 * low, backend=backend)

    def pyramid_of(image, sigma):
        return torch.stack([m.sum() for m in fastinpaint.canny_pyramid(image, sigma=sigma, backend=backend)])

    compiled = torch.compile(edges_of, fullgraph=True, dynamic=True, backend=keep)
    for batch, height, width in ((2, 70, 100), (3, 41, 30), (2, 33, 64), (5, 90, 20)):
        image = torch.rand(batch, 1, height, width)
        assert torch.equal(compiled(image), edges_of(image))
    assert len(graphs) == 1
    compiled = torch.compile(edges_above, fullgraph=True, dynamic=True, backend=keep)
    for low in (0.1, 0.3):
        assert torch.equal(compiled(_batch(), low), edges_above(_batch(), low))
    compiled = torch.compile(pyramid_of, fullgraph=True, dynamic=True, backend=keep)
    for sigma in (1.5, 0.4, 300.0):
        assert torch.equal(compiled(_batch(3), sigma), pyramid_of(_batch(3), sigma))


@pytest.mark.parametrize("backend", BACKENDS)
def test_exports_with_dynamic_sizes(backend):
    class Edges(torch.nn.Module):
        def forward(self, image):
            return fastinpaint.canny(image, sigma=1.0, backend=backend)

    batch, height, width = (torch.export.Dim(name, min=2, max=512) for name in ("batch", "height", "width"))
    program = torch.export.export(
        Edges(), (torch.rand(2, 3, 30, 40),), dynamic_shapes=({0: batch, 2: height, 3: width},)
    )
    image = torch.rand(3, 3, 55, 71)
    assert torch.equal(program.module()(image), fastinpaint.canny(image, sigma=1.0, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_meta_tensors(backend):
    op = torch.ops.fastinpaint.canny if backend == "native" else torch.ops.fastinpaint.canny_reference
    edges = op(torch.zeros(2, 3, 40, 50, device="meta"), [1.0], 0.1, 0.2, None)
    assert edges.device.type == "meta"
    assert edges.shape == (2, 1, 40, 50)
    assert fastinpaint.canny(torch.zeros(2, 3, 40, 50, device="meta")).dtype == torch.bool


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    op = torch.ops.fastinpaint.canny if backend == "native" else torch.ops.fastinpaint.canny_reference
    mask = torch.rand(2, 1, 70, 100) > 0.1
    torch.library.opcheck(op.default, (_batch(batch=2), reference.gaussian_weights(1.5), 0.1, 0.2, mask))
    torch.library.opcheck(op.default, (_batch(3, batch=2), [0.5, 0.25], 0.0, 0.2, None))


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (torch.zeros(8, 8), {}, ValueError, r"\(B, 1 or 3, H, W\), got shape \(8, 8\)"),
        (torch.zeros(1, 2, 8, 8), {}, ValueError, r"got shape \(1, 2, 8, 8\)"),
        (
            torch.zeros(1, 1, 8, 8, dtype=torch.int64),
            {},
            TypeError,
            "up to 32 bits, got torch.int64, which scikit-image does not take either: convert it",
        ),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint64), {}, TypeError, "got torch.uint64, which scikit-image"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.complex64), {}, TypeError, "up to 32 bits, got torch.complex64"),
        (torch.zeros(1, 1, 8, 8), {"mode": "edge"}, ValueError, "mode must be one of constant, .* got 'edge'"),
        (
            torch.zeros(1, 1, 8, 8),
            {"use_quantiles": True, "high_threshold": 1.5},
            ValueError,
            "high_threshold must be a quantile from 0 to 1, got 1.5",
        ),
        (np.zeros((1, 1, 8, 8)), {}, TypeError, "got ndarray"),
        (torch.zeros(1, 1, 8, 8), {"sigma": -1.0}, ValueError, "sigma .* got -1.0"),
        (torch.zeros(1, 1, 8, 8), {"sigma": float("nan")}, ValueError, "sigma .* got nan"),
        (
            torch.zeros(1, 1, 8, 8),
            {"sigma": 1e6},
            ValueError,
            r"sigma must be at least 0 and less than 1e\+06, got 1000000.0",
        ),
        (torch.zeros(1, 1, 8, 8), {"low_threshold": 0.3}, ValueError, "at most high_threshold, got 0.3 and 0.2"),
        (torch.zeros(1, 1, 8, 8), {"mask": torch.zeros(1, 1, 8, 8)}, TypeError, "bool tensor, got torch.float32"),
        (
            torch.zeros(1, 1, 8, 8),
            {"mask": torch.zeros(8, 8, dtype=torch.bool)},
            ValueError,
            r"\(1 or 1, 1, 8, 8\), got \(8, 8\)",
        ),
        (torch.zeros(1, 1, 8, 8), {"backend": "triton"}, ValueError, "triton"),
    ],
)
def test_errors_name_what_was_wanted_and_what_came(image, options, error, message):
    with pytest.raises(error, match=message):
        fastinpaint.canny(image, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scales", [(1, 2, 4), (3,), (1, 1, 40), ()])
def test_pyramid_is_canny_of_the_nearest_pixels(scales, channels, backend):
    batch = _batch(channels)
    maps = fastinpaint.canny_pyramid(batch, scales=scales, sigma=1.0, backend=backend)
    assert len(maps) == len(scales)
    for scale, edges in zip(scales, maps, strict=True):
        height, width = -(-70 // scale), -(-100 // scale)
        rows, columns = np.arange(height) * 70 // height, np.arange(width) * 100 // width
        small = fastinpaint.canny(batch[:, :, rows[:, None], columns], sigma=1.0, backend=backend)
        assert torch.equal(edges, small)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pyramid_of_any_sizes_enlarges_too(backend):
    sizes = [(70, 100), (141, 33), (1, 1), (9, 700)]
    maps = canny_of_sizes(_batch(3), sizes, backend=backend)
    expected = [fastinpaint.canny(nearest_resize(_batch(3), *size), backend=backend) for size in sizes]
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert maps[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pyramid_of_nothing(backend):
    assert [m.shape for m in fastinpaint.canny_pyramid(torch.zeros(0, 3, 9, 8), backend=backend)] == [
        (0, 1, 9, 8),
        (0, 1, 5, 4),
        (0, 1, 3, 2),
    ]
    assert fastinpaint.canny_pyramid(torch.zeros(2, 1, 0, 8), backend=backend)[1].shape == (2, 1, 0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pyramid_opcheck_and_compile(backend):
    ops = torch.ops.fastinpaint
    op = ops.canny_pyramid if backend == "native" else ops.canny_pyramid_reference
    torch.library.opcheck(op.default, (_batch(3, batch=2), [70, 100, 35, 50], [0.5, 0.25], 0.0, 0.2))

    def function(image):
        return torch.stack([m.sum() for m in fastinpaint.canny_pyramid(image * 2, backend=backend)])

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(_batch(3)), function(_batch(3)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scales": (1, 0)}, ValueError, "scales must be at least 1, got 0"),
        ({"scales": (0.5,)}, TypeError, "each of scales must be an integer, got 0.5"),
        ({"sigma": -1.0}, ValueError, "canny_pyramid: sigma .* got -1.0"),
        ({"low_threshold": 0.3}, ValueError, "canny_pyramid: low_threshold must be at most"),
        ({"backend": "triton"}, ValueError, "triton"),
    ],
)
def test_pyramid_errors_name_what_was_wanted_and_what_came(options, error, message):
    with pytest.raises(error, match=message):
        fastinpaint.canny_pyramid(torch.zeros(1, 1, 8, 8), **options)
    with pytest.raises(ValueError, match=r"canny_pyramid: image must be \(B, 1 or 3, H, W\)"):
        fastinpaint.canny_pyramid(torch.zeros(8, 8))


@pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((1, 1, 8, 8), [8, 8, 4], "a height and a width for each map, got 3 numbers"),
        ((1, 1, 8, 8), [8, -1], "must not be negative, got 8, -1"),
        ((1, 1, 0, 8), [2, 2], r"shape \(1, 1, 0, 8\) has no pixel to make 2 x 2 of"),
    ],
)
def test_pyramid_operator_checks_its_sizes(shape, sizes, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastinpaint.canny_pyramid(torch.zeros(shape), sizes, [1.0], 0.1, 0.2)


@pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
def test_gaussians_far_wider_than_the_image():
    image = pattern("blocks", 30, 40)
    assert _assert_same(image, "native", sigma=300.0, low_threshold=1e-6, high_threshold=1e-5).any()
    assert _ours(image, "native", sigma=9e5, low_threshold=1e-12, high_threshold=1e-9).shape == image.shape


def test_low_above_high_is_an_error_in_scikit_image_too():
    with pytest.raises(ValueError, match="low_threshold"):
        skimage_canny(np.zeros((8, 8), np.float32), low_threshold=0.3, high_threshold=0.2)


def test_gaussian_weights_have_the_bits_of_scipy():
    from scipy.ndimage._filters import _gaussian_kernel1d

    for sigma in (0.2, 0.5, 1.0, 1.5, 2.7, 5.0, 15.9, 16.0, 40.0, 100.0):
        radius = int(4 * sigma + 0.5)
        assert list(reference.gaussian_weights(sigma)) == _gaussian_kernel1d(sigma, 0, radius)[radius:].tolist()


_COMPARE = """
import torch, fastinpaint
torch.manual_seed(0)
image = (torch.rand(3, 3, 75, 600) * 4).round() / 4
image[0] += torch.rand(3, 75, 600) / 8
mask = torch.rand(3, 1, 75, 600) > 0.02
for sigma in (0.0, 0.8, 1.5, 3.0):
    for valid in (None, mask):
        options = {"sigma": sigma, "mask": valid, "low_threshold": 0.02, "high_threshold": 0.1}
        a, b = (fastinpaint.canny(image, backend=k, **options) for k in ("native", "reference"))
        assert a.any() and torch.equal(a, b), (sigma, valid is None, int((a != b).sum()))
print(torch.ops.fastinpaint.cpu_isa())
"""


@pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa):
    run = subprocess.run(
        [sys.executable, "-c", _COMPARE],
        env={**os.environ, "FASTINPAINT_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    ranks = ["baseline", "avx2", "avx512"]
    best = torch.ops.fastinpaint.cpu_isa()
    assert ranks.index(run.stdout.strip()) == min(ranks.index(isa), ranks.index(best))
