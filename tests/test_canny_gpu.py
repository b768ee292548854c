"""What only a GPU can show of the CUDA Canny: that the compiled kernels give the CPU's edges, and how they run."""

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch

import fastinpaint as fi
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.canny import canny_of_sizes
from fastinpaint.reference.canny import gaussian_weights
from tests.golden_data import golden
from tests.helpers.canny_images import FAINT, PATTERNS, comb, pattern, serpentine, spiral

pytestmark = pytest.mark.gpu
FAR = {"sigma": 12.0, "low_threshold": 0.001, "high_threshold": 0.01}  # wider than a tile's memory
WEIGHTS = gaussian_weights(1.5)
WALK = {"sigma": 0.0, "low_threshold": 0.1, "high_threshold": 2.0}  # for lines drawn with FAINT


@pytest.fixture(autouse=True)
def _extension(cuda):
    gap = native_reason("canny_pyramid", torch.zeros(1, device=cuda))
    if gap is not None:
        pytest.skip(gap)


def _photographs():
    """Colour photographs (1, 3, H, W) in [0, 1]: scikit-image's, or where it is missing those of the golden data."""
    if importlib.util.find_spec("skimage") is None:
        images = list(golden("training_losses_w16")["image_u8"])
    else:
        from skimage import data

        images = [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    return [torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255)) for image in images]


def _image(kind, height, width, seed=0):
    return torch.from_numpy(pattern(kind, height, width, seed))[None, None]


def _assert_same(image, mask=None, **options):
    """Equal on the GPU and the CPU; returns the edges."""
    expected = fi.canny(image.float(), mask=mask, backend="native", **options)
    found = fi.canny(image.cuda(), mask=None if mask is None else mask.cuda(), backend="native", **options)
    assert found.is_cuda
    assert torch.count_nonzero(found.cpu() != expected) == 0
    return expected


def _random_batch(generator, count, height, width):
    """Noise, noise of few levels (ties), smooth noise, and all of them together."""
    noise = torch.rand(count, 1, height, width, generator=generator)
    coarse = torch.rand(count, 1, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    levels = (noise * 3).round() / 3
    kinds = (noise, levels, smooth, smooth + 0.05 * noise, (smooth * 12).round() / 12)
    return torch.cat([kinds[i % len(kinds)][i : i + 1] for i in range(count)])


def test_ten_thousand_random_images():
    generator, edges, images = torch.Generator().manual_seed(0), 0, 0
    for round_ in range(80):
        height, width = (int(n) for n in torch.randint(16, 200, (2,), generator=generator))
        batch = _random_batch(generator, 125, height, width)
        mask = torch.rand(125, 1, height, width, generator=generator) > 0.02 if round_ % 4 == 0 else None
        sigma = float(torch.rand((), generator=generator)) * 3
        edges += int(_assert_same(batch, mask, sigma=sigma).sum())
        images += len(batch)
    assert images == 10_000
    assert edges > 0


def test_crops_of_photographs():
    generator = torch.Generator().manual_seed(1)
    for photograph in _photographs():
        height, width = photograph.shape[2:]
        for side in (100, 150, 200, 256):
            corners = torch.rand(40, 2, generator=generator) * torch.tensor([height - side, width - side])
            crops = [photograph[..., y : y + side, x : x + side] for y, x in corners.long().tolist()]
            for sigma in (1.0, 1.5, 5.0):
                assert _assert_same(torch.cat(crops), sigma=sigma).any()


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_and_sizes(kind):
    for shape in ((1, 1), (3, 3), (32, 64), (33, 65), (61, 183), (300, 70)):
        image = _image(kind, *shape)
        mask = torch.rand(image.shape) > 0.02
        for sigma in (0.0, 0.5, 1.5, 5.0, 9.9, 12.0, 100.0):
            _assert_same(image, sigma=sigma)
            _assert_same(image, mask, sigma=sigma)


@pytest.mark.parametrize(
    "image",
    [
        serpentine(700, 900),
        spiral(900),
        comb(500, 700, across=True),
        comb(500, 700, across=False),
    ],
)
def test_edges_are_followed_through_every_tile(image):
    image = torch.from_numpy(image)[None, None]
    assert _assert_same(image, **WALK).sum() > 50_000
    assert not _assert_same(torch.where(image == 1, 0, image), **WALK).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_colours_and_layouts(dtype):
    batch = torch.rand(3, 3, 90, 140).to(dtype)
    masks = torch.rand(3, 1, 90, 140) > 0.02
    for view in (batch, batch.to(memory_format=torch.channels_last), batch.mT.contiguous().mT, batch[..., ::2]):
        mask = masks[..., ::2] if view.shape[3] < 140 else masks
        _assert_same(view)
        _assert_same(view, mask)
        _assert_same(view, mask[:1], **FAR)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.bool])
def test_what_calls_for_float64_runs_on_the_reference(dtype, cuda):
    image = _image("levels", 90, 140) if dtype == torch.float64 else _image("levels", 90, 140) * 255
    image = image.to(dtype)
    with pytest.raises(ValueError, match="compute in float32"):
        fi.canny(image.to(cuda), backend="native")
    found = fi.canny(image.to(cuda))
    assert torch.equal(found.cpu(), fi.canny(image, backend="native"))


@pytest.mark.parametrize("channels", [1, 3])
def test_pyramid(channels):
    image = torch.rand(4, channels, 256, 250)
    for sizes in ([(256, 250), (128, 125), (64, 63)], [(40 + 20 * i, 300 - 20 * i) for i in range(11)]):
        expected = canny_of_sizes(image, sizes, backend="native")
        found = canny_of_sizes(image.cuda(), sizes, backend="native")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def test_empty(cuda):
    for shape in ((0, 1, 8, 8), (0, 3, 8, 8), (2, 1, 0, 5)):
        assert fi.canny(torch.zeros(shape, device=cuda), backend="native").shape == (shape[0], 1, *shape[2:])


def test_every_pixel_is_written(cuda, poisoned_memory):
    assert _assert_same(torch.rand(2, 1, 130, 210)).any()
    assert _assert_same(torch.rand(2, 1, 130, 210), **FAR).any()


def _graph(function):
    """The function captured in a CUDA graph, and its outputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


@pytest.mark.parametrize("sigma", [1.5, 8.0, 12.0])
def test_graph_capture_and_replay(sigma, cuda):
    image = torch.zeros(4, 3, 200, 300, device=cuda)
    graph, maps = _graph(partial(fi.canny_pyramid, image, sigma=sigma, backend="native"))
    for _ in range(3):
        image.copy_(torch.rand(image.shape))
        graph.replay()
        expected = fi.canny_pyramid(image.cpu(), sigma=sigma, backend="native")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(maps, expected, strict=True))


def test_runs_on_the_current_stream(cuda):
    image = torch.rand(4, 1, 300, 300, device=cuda)
    expected = fi.canny(image, backend="native")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # work on another stream would overtake this copy
        found = fi.canny(image.clone(), backend="native")
    stream.synchronize()
    assert torch.equal(found, expected)


def test_runs_on_the_tensors_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices; torch sees one")
    image = torch.rand(2, 1, 100, 100)
    found = fi.canny(image.to("cuda:1"), backend="native")
    assert found.device == torch.device("cuda:1")
    assert torch.equal(found.cpu(), fi.canny(image, backend="native"))


def test_every_run_gives_the_same_bits(cuda):
    image = torch.rand(8, 1, 500, 500, device=cuda)
    image = image + 2 * (image > 0.97)
    run = partial(fi.canny, image, sigma=1.0, low_threshold=0.5, high_threshold=2.5, backend="native")
    first = run()
    assert first.any()
    for _ in range(20):
        assert torch.equal(first, run())


def test_no_memory_but_the_caching_allocators(cuda):
    image = torch.rand(4, 1, 512, 512, device=cuda)
    fi.canny(image, backend="native")
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    for _ in range(20):
        fi.canny(image, backend="native")
    torch.cuda.synchronize()
    assert (torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved(), torch.cuda.memory_allocated()) == before


def test_opcheck(cuda):
    image, mask = torch.rand(2, 3, 70, 100, device=cuda), torch.rand(2, 1, 70, 100, device=cuda) > 0.1
    torch.library.opcheck(torch.ops.fastinpaint.canny.default, (image, WEIGHTS, 0.1, 0.2, mask))
    torch.library.opcheck(torch.ops.fastinpaint.canny_pyramid.default, (image, [70, 100, 35, 50], WEIGHTS, 0.1, 0.2))


def test_compiles_without_a_graph_break(cuda):
    def function(image):
        return fi.canny_pyramid(image * 2, backend="native")[1].sum()

    image = torch.rand(2, 3, 70, 100, device=cuda)
    assert torch.equal(torch.compile(function, fullgraph=True)(image), function(image))


def test_auto_prefers_native(cuda, recwarn):
    fi.canny(torch.rand(1, 1, 20, 20, device=cuda))
    assert not [w for w in recwarn if "runs on its" in str(w.message)]


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.zeros(1, 1, 8, 8).double(), None, "image must be Float, Half or BFloat16, got Double"),
        (torch.zeros(1, 2, 8, 8), None, r"1 or 3 channels, got shape \(1, 2, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 9, dtype=torch.bool), "mask must have size 8 on axis 3"),
        (torch.zeros(1, 1, 1, 70000), None, "sides must be at most 65535 pixels"),
    ],
)
def test_operators_check_their_arguments(image, mask, message, cuda):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastinpaint.canny(image.to(cuda), WEIGHTS, 0.1, 0.2, None if mask is None else mask.to(cuda))


def _need_memory(gibibytes):
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gibibytes:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory; {free:.0f} are free")


def test_the_largest_image(cuda):
    """16384 x 16384: a comb through all of it, found from one bright end, and a corner of noise."""
    _need_memory(6)
    side, noisy = 16384, 300
    image = torch.zeros(1, 1, side, side, device=cuda, dtype=torch.float16)
    image[..., 5, 5:-5] = FAINT
    image[..., 5:-5, 5 : -2 * noisy : 500] = FAINT
    image[..., 5, 5:9] = 1
    image[..., -noisy:, -noisy:] = torch.rand(noisy, noisy, device=cuda)
    weak = fi.canny(image, sigma=0.0, low_threshold=0.1, high_threshold=0.1, backend="native")
    found = fi.canny(image, backend="native", **WALK)[..., : side - 2 * noisy]
    assert torch.equal(found, weak[..., : side - 2 * noisy])
    assert found.sum() > 1_000_000
    corner = image[..., -400:, -400:].float().cpu()
    expected = fi.canny(corner, sigma=0.0, low_threshold=0.1, high_threshold=0.1, backend="native")
    assert torch.equal(weak[..., -392:, -392:].cpu(), expected[..., 8:, 8:])


def test_offsets_beyond_2_31(cuda):
    _need_memory(8)
    batch, side = 9, 16384  # 2.4e9 pixels
    image = torch.rand(1, 1, side, side, device=cuda, dtype=torch.float16)
    found = fi.canny(image.expand(batch, -1, -1, -1), backend="native")
    assert found[0].any()
    assert all(torch.equal(one, found[0]) for one in found[1:])
