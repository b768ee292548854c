"""The CUDA kernels of Canny without a GPU: compiled for those there are, and run thread by thread on the CPU."""

import ctypes
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

import fastinpaint as fi
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.canny import canny_of_sizes
from tests.helpers import cuda_on_cpu, nvcc_aot
from tests.helpers.canny_images import PATTERNS, comb, pattern, serpentine, spiral

NATIVE_GAP = native_reason("canny_pyramid", torch.zeros(1))
needs_native = pytest.mark.skipif(NATIVE_GAP is not None, reason=str(NATIVE_GAP))
FAR = {"sigma": 12.0, "low_threshold": 0.001, "high_threshold": 0.01}  # wider than a tile's memory
WALK = {"sigma": 0.0, "low_threshold": 0.1, "high_threshold": 2.0}  # for lines drawn with FAINT


# ---- Compiled ahead -----------------------------------------------------------------------------------------------


# Half a minute of compilation each, so H100 alone unless `make aot` asks for all.
CAPABILITIES = nvcc_aot.CAPABILITIES if os.environ.get("FASTINPAINT_AOT") == "all" else (90,)


@pytest.fixture(scope="module")
def compiled():
    gap = nvcc_aot.missing()
    if gap is not None:
        pytest.skip(gap)
    return nvcc_aot.compile_all(CAPABILITIES)


def test_no_kernel_spills(compiled):
    assert compiled
    for name, (registers, memory, shared) in compiled.items():
        assert memory == 0, f"{name} spills: {memory} bytes"
        assert registers <= 255
        assert shared == 0


def test_resources_are_as_recorded(compiled):
    recorded, release = json.loads(nvcc_aot.RECORDED.read_text()), nvcc_aot.version()
    if release not in recorded:
        pytest.skip(f"resources were recorded with nvcc {', '.join(recorded)}, not {release}")
    wanted = {
        name: needs
        for name, needs in recorded[release].items()
        if any(name.endswith(f"sm_{capability}") for capability in CAPABILITIES)
    }
    assert compiled == wanted, "after a change that is meant: python -m tests.helpers.nvcc_aot"


# ---- On the CPU, thread by thread ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """The launches of canny.cu on a CPU that stands in for the GPU."""
    if cuda_on_cpu.compiler() is None:
        pytest.skip("needs a C++ compiler; set CXX")
    library = tmp_path_factory.mktemp("cuda_on_cpu") / "canny.so"
    done = cuda_on_cpu.build(library, "-shared", "-fPIC")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return cuda_on_cpu.CannyOnCpu(library)


def _image(kind, height, width, seed=0):
    return torch.from_numpy(pattern(kind, height, width, seed))[None, None]


def _batch(channels=1, batch=3, height=70, width=100):
    kinds = ("noise", "blocks", "levels", "disc", "step")
    planes = [pattern(kinds[i % 5], height, width, i) for i in range(batch * channels)]
    return torch.from_numpy(np.stack(planes)).view(batch, channels, height, width)


def _assert_same(device, image, mask=None, seed=0, resident=2, **options):
    expected = fi.canny(image, mask=mask, backend="native", **options)
    found = device.canny(image, mask=mask, seed=seed, resident=resident, **options)
    assert torch.count_nonzero(found != expected) == 0
    return expected


@needs_native
@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns(kind, device):
    for sigma in (0.0, 0.1, 0.5, 1.5, 2.3):
        _assert_same(device, _image(kind, 61, 83), sigma=sigma)


@needs_native
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_photographs(name, device):
    image = torch.from_numpy(getattr(data, name)()[60:190, 100:300].transpose(2, 0, 1)[None] / np.float32(255))
    edges = [_assert_same(device, image, sigma=sigma, seed=1) for sigma in (0.5, 1.5, 3.0)]
    assert edges[0].any()


@needs_native
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3, 1), (1, 9), (2, 2), (3, 3), (31, 63), (32, 64), (33, 65), (34, 66), (5, 200), (65, 129), (97, 40)],
)
def test_sizes(shape, device):
    mask = torch.rand(1, 1, *shape) > 0.02
    image = _image("levels", *shape)
    for sigma in (0.0, 1.5, 4.0):
        _assert_same(device, image, sigma=sigma)
        _assert_same(device, image, mask, sigma=sigma)


@needs_native
@pytest.mark.parametrize(
    "sigma", [0.0, 1e-16, 0.1, 0.12, 0.13, 1.0, 2.9, 3.7, 4.0, 5.2, 9.8, 10.0, 10.2, 20.0, 300.0, 9e5]
)
def test_every_sigma(sigma, device):
    """From no blur over what fits a tile's memory to Gaussians wider than the image."""
    image = _image("blocks", 45, 75) + 0.3 * _image("noise", 45, 75)
    mask = _image("disc", 45, 75) > 0
    for valid in (None, mask):
        _assert_same(device, image, valid, sigma=sigma, low_threshold=0.001, high_threshold=0.01)


@needs_native
@pytest.mark.parametrize("kind", ["noise", "levels", "blocks", "flat"])
def test_masks(kind, device):
    image = _image(kind, 70, 140)
    masks = [torch.rand(image.shape) > 0.05, torch.zeros(image.shape, dtype=torch.bool), _image("disc", 70, 140) > 0]
    for mask in masks:
        for options in ({"sigma": 0.0}, {"sigma": 1.5}, FAR):
            _assert_same(device, image, mask, **options)


@needs_native
def test_masked_pixels_do_not_matter_even_if_not_finite(device):
    image, mask = _image("noise", 40, 80), torch.ones(1, 1, 40, 80, dtype=torch.bool)
    mask[..., 10:20, 10:70] = False
    image[..., 12:18, 12:68] = float("nan")
    for options in ({"sigma": 1.5}, FAR):
        _assert_same(device, image, mask, **options)


@needs_native
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.0), (0.0, 0.3), (-1.0, 0.2), (-2.0, -1.0), (0.2, 0.2), (0.5, 1e9), (1e-60, 1e-30), (0.1, float("inf"))],
)
def test_thresholds(low, high, device):
    for kind in ("noise", "levels", "flat", "pixel"):
        _assert_same(device, _image(kind, 50, 70), sigma=1.0, low_threshold=low, high_threshold=high)
    step = 4 - 2.0**-21  # the gradient of a step of 1 / (1 + 2^-23): both thresholds are inclusive
    inclusive = {"sigma": 0.0, "low_threshold": step, "high_threshold": step}
    assert _assert_same(device, _image("step", 50, 70), **inclusive).any()
    faint = _image("noise", 50, 70) * 2e-15  # about the 1e-14 that stands in for a low threshold of 0
    _assert_same(device, faint, sigma=0.5, low_threshold=low, high_threshold=high)


@needs_native
def test_batches_colours_layouts_and_masks_of_a_batch(device):
    for channels in (1, 3):
        batch = _batch(channels)
        masks = torch.rand(3, 1, 70, 100) > 0.05
        strided = batch.repeat_interleave(2, dim=3)[..., ::2]
        for view in (batch, batch.to(memory_format=torch.channels_last), strided, batch.mT.contiguous().mT):
            assert _assert_same(device, view).any()
            _assert_same(device, view, masks)
            assert _assert_same(device, view, masks[:1], **FAR).any()
            _assert_same(device, view, masks.mT.contiguous().mT)
        _assert_same(device, batch[:1].expand(3, -1, -1, -1))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, device):
    for channels in (1, 3):
        batch = _batch(channels).to(dtype)
        for options in ({"sigma": 1.5}, FAR):
            assert torch.equal(device.canny(batch, **options), fi.canny(batch.float(), backend="native", **options))


@needs_native
@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("serpentine", serpentine(140, 210)),
        ("serpentine, upright", serpentine(210, 140).T),
        ("spiral", spiral(150)),
        ("comb across", comb(140, 210, across=True)),
        ("comb down", comb(140, 210, across=False)),
    ],
)
def test_edges_are_followed_through_every_tile(name, image, device):
    """From one bright end along faint lines that cross every border of tiles; without it there is no edge at all."""
    image = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    for view in (image, image.flip(2), image.flip(3), image.flip(2, 3)):
        expected = _assert_same(device, view, **WALK)
        assert expected.sum() > 4000
        for seed in (1, 2, 3):
            _assert_same(device, view, seed=seed, resident=4, **WALK)
    dark = torch.where(image == 1, 0, image)
    assert not _assert_same(device, dark, **WALK).any()


@needs_native
def test_blocks_at_work_together_whatever_their_order(device):
    """Up to all blocks at a time, threads giving way at random: hundreds of interleavings of the same unions."""
    noise = _image("noise", 100, 200)
    image = noise + 2 * (noise > 0.97)
    options = {"sigma": 1.0, "low_threshold": 0.5, "high_threshold": 2.5}
    for seed in range(1, 40):
        edges = _assert_same(device, image, seed=seed, resident=seed % 16 + 1, **options)
    assert edges.any()
    assert edges.sum() < fi.canny(image, **{**options, "high_threshold": 0.5}).sum()


@needs_native
@settings(max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 150),
    kind=st.sampled_from(PATTERNS),
    sigma=st.floats(0.0, 13.0),
    low=st.floats(0.0, 1.0),
    span=st.floats(0.0, 1.0),
    scale=st.sampled_from([1.0, 2.0, -1.0, 255.0, 1e-3]),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
    resident=st.integers(1, 6),
)
def test_any_image(device, height, width, kind, sigma, low, span, scale, masked, seed, resident):
    image = _image(kind, height, width, seed) * scale
    mask = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)) > 0.1 if masked else None
    thresholds = {"low_threshold": low * abs(scale), "high_threshold": (low + span) * abs(scale)}
    _assert_same(device, image, mask, sigma=sigma, seed=seed, resident=resident, **thresholds)


@needs_native
def test_all_scales_of_a_pyramid_in_one_call(device):
    for channels in (1, 3):
        image = _batch(channels, 2, 90, 141)
        for sizes in ([(90, 141), (45, 71), (23, 36)], [(17, 200), (90, 141), (130, 30), (1, 1)], [(90, 141)] * 8):
            for options in ({"sigma": 1.0}, FAR):
                expected = canny_of_sizes(image, sizes, backend="native", **options)
                found = device.pyramid(image, sizes, seed=3, **options)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_launches_depend_on_shapes_and_sigma_alone(device):
    def launches(image, sizes=None, **options):
        device.pyramid(image, sizes or [tuple(image.shape[2:])], **options)
        return device.launches

    for image in (_batch(), torch.zeros(3, 1, 70, 100), torch.from_numpy(serpentine(70, 100))[None, None]):
        assert launches(image) == 3  # detect, join, resolve
        assert launches(image, [(70, 100), (35, 50), (18, 25)]) == 3
        assert launches(image, sigma=11.0) == 6  # weights, down and across before that
    assert launches(_batch(batch=5)[..., :32, :64]) == 1  # a tile has no other to join
    assert launches(torch.zeros(1, 1, 8, 1000), sigma=1e5) == 8  # 1,000 weights in three parts


@pytest.fixture(scope="module")
def race_finder(tmp_path_factory):
    """The same as a program under ThreadSanitizer."""
    if cuda_on_cpu.compiler() is None:
        pytest.skip("needs a C++ compiler; set CXX")
    program = tmp_path_factory.mktemp("race_finder") / "canny"
    done = cuda_on_cpu.build(program, "-fsanitize=thread")
    if done.returncode != 0 and "tsan" in done.stderr:
        pytest.skip("needs ThreadSanitizer's library (GCC: libtsan)")
    assert done.returncode == 0, done.stderr
    return program


@needs_native
@pytest.mark.parametrize(
    ("kind", "sigma", "masked", "scales"),
    [("levels", 1.5, False, 1), ("noise", 1.0, True, 1), ("serpentine", 0.0, False, 1), ("levels", 12.0, True, 2)],
)
def test_no_race(kind, sigma, masked, scales, race_finder, tmp_path):
    """ThreadSanitizer, for which a barrier is the only order between threads of a block, and nothing that of blocks."""
    height, width = 80, 150
    image = torch.from_numpy(serpentine(height, width)) if kind == "serpentine" else _image(kind, height, width)
    image = image.view(1, 1, height, width)
    mask = torch.rand(image.shape) > 0.02 if masked else None
    low, high = (0.1, 2.0) if kind == "serpentine" else (0.1, 0.2)
    sizes = [(height, width), (40, 75)][:scales]
    found = _run_program(
        race_finder, tmp_path / "call", image, sizes[: 1 if masked else scales], sigma, low, high, mask
    )
    expected = fi.canny(image, sigma=sigma, low_threshold=low, high_threshold=high, mask=mask, backend="native")
    assert torch.equal(found[: expected.numel()], expected.flatten())


def _run_program(program: Path, file: Path, image, sizes, sigma, low, high, mask):
    weights = cuda_on_cpu.canny_weights(sigma, sizes)
    call = cuda_on_cpu.describe(image, sizes, weights=weights, low=low, high=high, mask=mask)
    call.seed, call.resident = 3, 4
    flat = [side for size in sizes for side in size]
    sides, taps = (ctypes.c_int64 * len(flat))(*flat), (ctypes.c_double * len(weights))(*weights)
    parts = [bytes(call), bytes(sides), bytes(taps), image.numpy().tobytes()]
    file.write_bytes(b"".join([*parts, b"" if mask is None else mask.numpy().tobytes()]))
    done = subprocess.run([program, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.frombuffer(bytearray(Path(f"{file}.out").read_bytes()), dtype=torch.bool)
