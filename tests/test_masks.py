"""Masks: drawn, dilated, read and sampled; seeded, never empty, never full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from fastinpaint.data.mask_files import BINS, draw_mask, save_binned_masks, save_masks
from fastinpaint.data.masks import (
    MaskConfig,
    MaskSampler,
    box_mask,
    dilate,
    read_mask,
    resize_mask,
    stroke_mask,
)
from fastinpaint.inference.inpainter import hole_of

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90)).filter(lambda size: size[0] * size[1] > 1)


def quiet_config(**options: object) -> MaskConfig:
    """A mixture of base masks alone, unless options say otherwise."""
    silent = {"dilate_probability": 0.0, "box_probability": 0.0, "stroke_probability": 0.0}
    return MaskConfig(**(silent | options))  # type: ignore[arg-type]


@given(SIZES, st.integers(0, 2**40), st.integers(0, 2**40))
def test_samples_are_binary_reproducible_and_never_trivial(size: tuple[int, int], seed: int, step: int) -> None:
    sampler = MaskSampler(MaskConfig(), *size, seed)
    mask = sampler.sample(step)
    sampler.sample(step + 1)
    assert mask.shape == (1, 1, *size)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, sampler.sample(step))
    assert torch.equal(mask, MaskSampler(MaskConfig(), *size, seed).sample(step))


def test_steps_and_seeds_differ() -> None:
    masks = [MaskSampler(MaskConfig(), 64, 64, seed).sample(step) for seed in range(3) for step in range(10)]
    assert len({mask.numpy().tobytes() for mask in masks}) == 30


def test_coverage_of_the_default_mixture() -> None:
    for size in (64, 256):
        sampler = MaskSampler(MaskConfig(), size, size)
        coverage = np.array([sampler.sample(step).mean().item() for step in range(150)])
        assert 0.15 < coverage.mean() < 0.35
        assert coverage.max() < 0.75


@pytest.mark.parametrize(("height", "width", "side"), [(256, 256, 128), (512, 300, 128), (128, 200, 64), (3, 3, 2)])
def test_box_is_128_at_256_and_shrinks_below(height: int, width: int, side: int) -> None:
    sampler = MaskSampler(quiet_config(box_probability=1.0), height, width)
    corners = set()
    for step in range(10):
        ys, xs = sampler.sample(step)[0, 0].nonzero(as_tuple=True)
        assert len(ys) == side * side
        assert (np.ptp(ys.numpy()) + 1, np.ptp(xs.numpy()) + 1) == (side, side)
        corners.add((ys[0].item(), xs[0].item()))
    assert len(corners) > 1


def test_options_that_leave_no_usable_mask_are_warned_about_once(tmp_path: Path) -> None:
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(tmp_path / "line.png")
    grown = quiet_config(source=str(tmp_path), dilate_probability=1.0, dilate_iterations=(400, 400))
    for config in (quiet_config(box_probability=1.0, box_side=400), grown):
        sampler = MaskSampler(config, 64, 64)
        with pytest.warns(RuntimeWarning, match="16 masks of 64 x 64 .* the last one full: a centred box") as found:
            masks = [sampler.sample(step) for step in range(3)]
        assert len(found) == 1
        assert all(mask.mean() == 0.25 for mask in masks)


def test_mixture_has_the_stated_shares(tmp_path: Path) -> None:
    dot = np.zeros((256, 256), np.uint8)
    dot[30, 30] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    sampler = MaskSampler(MaskConfig(source=str(tmp_path)), 256, 256)
    radii = {sum(4 * k for k in range(1, n + 1)) + 1: n for n in range(1, 6)}  # pixels of a diamond
    counts = dict.fromkeys(["plain", "dilated", "box", "strokes"], 0)
    seen = set()
    for step in range(1200):
        holes = int(sampler.sample(step).sum())
        kind = "plain" if holes == 1 else "dilated" if holes in radii else "box" if holes == 128 * 128 else "strokes"
        counts[kind] += 1
        seen.add(radii.get(holes))
    expected = {"plain": 0.60, "dilated": 0.25, "box": 0.05, "strokes": 0.10}
    for kind, share in expected.items():
        assert abs(counts[kind] / 1200 - share) < 0.03, (kind, counts)
    assert seen >= {1, 2, 3, 4, 5}


def test_dilation_shrinks_with_the_image(tmp_path: Path) -> None:
    dot = np.zeros((64, 64), np.uint8)
    dot[30, 30] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    sampler = MaskSampler(quiet_config(source=str(tmp_path), dilate_probability=1.0), 64, 64)
    assert {int(sampler.sample(step).sum()) for step in range(30)} == {5}  # a quarter of 1 to 5, at least 1


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 1)), st.integers(0, 6)
)
def test_dilation_is_scipys(mask: np.ndarray, iterations: int) -> None:
    cross = scipy.ndimage.generate_binary_structure(2, 1)
    expected = scipy.ndimage.binary_dilation(mask, cross, iterations) if iterations else mask
    np.testing.assert_array_equal(dilate(mask, iterations), expected)


@given(SIZES, st.integers(0, 10**6))
def test_strokes_scale_with_the_image(size: tuple[int, int], seed: int) -> None:
    mask = stroke_mask(*size, np.random.default_rng(seed))
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    assert mask.any()


def test_strokes_have_the_brush_and_cover_the_same_share_at_every_size() -> None:
    shares = {
        size: np.mean([stroke_mask(size, size, np.random.default_rng(seed)).mean() for seed in range(40)])
        for size in (64, 256, 512)
    }
    assert max(shares.values()) < 1.05 * min(shares.values())
    thin = MaskConfig(brush_width=(10, 10), strokes=1, max_vertices=1)
    mask = stroke_mask(256, 256, np.random.default_rng(3), thin)
    thickest = scipy.ndimage.distance_transform_edt(np.pad(mask, 1)).max() * 2
    assert 9 <= thickest <= 11


@given(SIZES, st.integers(1, 100), st.integers(1, 100), st.integers(0, 1000))
def test_boxes_lie_inside(size: tuple[int, int], box_height: int, box_width: int, seed: int) -> None:
    mask = box_mask(*size, box_height, box_width, np.random.default_rng(seed))
    assert mask.sum() == min(size[0], box_height) * min(size[1], box_width)
    ys, xs = mask.nonzero()
    assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)


def test_box_without_rng_is_centred() -> None:
    mask = box_mask(8, 10, 2, 4)
    assert mask[3:5, 3:7].all()
    assert mask.sum() == 8


def test_mask_files_are_thresholded_above_127(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 0, 1, 1]]
    assert read_mask(tmp_path / "a.png", invert=True).tolist() == [[1, 1, 0, 0]]
    rgba = np.full((1, 2, 4), 255, np.uint8)
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"nothing\.png"):
        read_mask(tmp_path / "nothing.png")


def test_mask_folder_is_resized_inverted_and_skips_the_unreadable(tmp_path: Path) -> None:
    half = np.zeros((10, 20), np.uint8)
    half[:, :5] = 255
    Image.fromarray(half).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"broken")
    for invert, share in ((False, 0.25), (True, 0.75)):
        sampler = MaskSampler(quiet_config(source=str(tmp_path), invert=invert), 16, 16)
        with pytest.warns(RuntimeWarning, match=r"skipped an unreadable file: .*a\.png"):
            masks = [sampler.sample(step) for step in range(8)]
        assert all(mask.mean().item() == share for mask in masks)
        assert sampler.unreadable == [tmp_path / "a.png"]


@pytest.mark.parametrize(("value", "message"), [(0, "no hole"), (1, "0 to 1|1 to 1"), (76, "76 to 76"), (255, "whole")])
def test_files_without_hole_or_rest_are_skipped_by_name(tmp_path: Path, value: int, message: str) -> None:
    Image.new("L", (8, 8), value).save(tmp_path / "a.png")
    sampler = MaskSampler(quiet_config(source=str(tmp_path)), 12, 8)
    with pytest.warns(RuntimeWarning, match=rf"a\.png .*({message})"), pytest.raises(ValueError, match=message):
        sampler.sample(0)
    half = np.zeros((8, 8), np.uint8)
    half[:4] = 255
    Image.fromarray(half).save(tmp_path / "b.png")
    sampler = MaskSampler(quiet_config(source=str(tmp_path)), 8, 8)
    with pytest.warns(RuntimeWarning, match=r"a\.png"):
        masks = [sampler.sample(step)[0, 0].numpy() * 255 for step in range(8)]
    assert all((mask == half).all() for mask in masks)


def test_a_folder_without_masks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in"):
        MaskSampler(MaskConfig(source=str(tmp_path)), 8, 8)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"box_probability": 1.5}, r"box_probability in \[0, 1\], got 1.5"),
        ({"box_probability": 0.5, "stroke_probability": 0.5}, "at most 1"),
        ({"brush_width": (20, 10)}, "brush_width, got 20, 10"),
        ({"strokes": 0}, "strokes of at least 1"),
    ],
)
def test_impossible_mixtures_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MaskConfig(**options)  # type: ignore[arg-type]


def test_impossible_requests_are_refused() -> None:
    for arguments, reason in (((1, 1), "2 pixels"), ((0, 9), "2 pixels"), ((8, 8, -1), "seed")):
        with pytest.raises(ValueError, match=reason):
            MaskSampler(MaskConfig(), *arguments)
    with pytest.raises(ValueError, match="step of at least 0, got -1"):
        MaskSampler(MaskConfig(), 8, 8).sample(-1)
    with pytest.raises(ValueError, match="sizes of at least 1"):
        box_mask(8, 8, 0, 3)
    with pytest.raises(TypeError, match="mask of uint8"):
        dilate(np.zeros((4, 4)), 1)  # type: ignore[arg-type]


def test_config_accepts_the_lists_of_yaml() -> None:
    assert MaskConfig(brush_width=[3, 4]) == MaskConfig(brush_width=(3, 4))  # type: ignore[arg-type]


def test_saved_masks_read_back_as_sampled(tmp_path: Path) -> None:
    paths = save_masks(tmp_path / "new", 3, 40, 60, seed=5)
    assert [path.name for path in paths] == ["mask-000000.png", "mask-000001.png", "mask-000002.png"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    sampler = MaskSampler(MaskConfig(), 40, 60, seed=5)
    for step, path in enumerate(paths):
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}
        np.testing.assert_array_equal(read_mask(path), sampler.sample(step)[0, 0].numpy())
    with pytest.raises(ValueError, match="at least 1 mask"):
        save_masks(tmp_path, 0, 8, 8)


def stroke(height: int = 60, width: int = 80) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[20:40, 10:60] = True
    return mask


def painted(mode: str, hole: np.ndarray) -> Image.Image:
    """The picture of a mask as editors save it."""
    white = Image.fromarray(hole.astype(np.uint8) * 255)
    if mode == "stroke on a transparent layer":
        layer = Image.new("RGBA", white.size, (255, 255, 255, 0))
        layer.paste((255, 255, 255, 255), mask=white)
        return layer
    if mode == "I;16":
        return Image.fromarray(hole.astype(np.uint16) * 65535)
    if mode == "F":
        return Image.fromarray(hole.astype(np.float32))
    if mode == "LA":
        return Image.merge("LA", (white, white))
    if mode == "transparent index":
        indexed = Image.fromarray(hole.astype(np.uint8)).convert("P")
        indexed.putpalette([255, 255, 255] * 2)
        indexed.info["transparency"] = 0
        return indexed
    return white.convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "stroke on a transparent layer", "transparent index"],
)
def test_masks_of_every_mode_are_read_alike_by_files_and_pictures(tmp_path: Path, mode: str) -> None:
    hole = stroke()
    picture = painted(mode, hole)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "F", "LA") else "a.png")
    picture.save(path)
    np.testing.assert_array_equal(read_mask(path), hole)
    np.testing.assert_array_equal(hole_of(picture)[0, 0].numpy(), hole)
    np.testing.assert_array_equal(read_mask(path, invert=True), ~hole)


@pytest.mark.parametrize("quality", [20, 50, 90])
def test_jpeg_masks_and_soft_masks(tmp_path: Path, quality: int) -> None:
    hole = stroke()
    soft = Image.fromarray(hole.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(2))
    soft.save(tmp_path / "a.jpg", quality=quality)
    wrong = read_mask(tmp_path / "a.jpg").astype(bool) != hole
    near = scipy.ndimage.binary_dilation(hole, iterations=2) & ~scipy.ndimage.binary_erosion(hole, iterations=3)
    assert not wrong[~near].any()
    assert wrong.sum() < 0.05 * hole.sum()


@pytest.mark.parametrize(("colour", "highest"), [((255, 0, 0), 76), ((1, 1, 1), 1), ((0, 0, 255), 29)])
def test_masks_without_white_are_refused_with_their_highest_value(
    tmp_path: Path, colour: tuple[int, int, int], highest: int
) -> None:
    picture = Image.new("RGB", (80, 60))
    picture.paste(colour, mask=Image.fromarray(stroke()))
    picture.save(tmp_path / "red.png")
    with pytest.raises(ValueError, match=rf"red\.png marks no hole: its values are 0 to {highest}, white is above 127"):
        read_mask(tmp_path / "red.png")


@pytest.mark.parametrize(("rows", "message"), [(slice(7, 8), "nearly empty: 1 of 10000"), (slice(0, 97), "97.0% is")])
def test_nearly_trivial_masks_are_warned_about(tmp_path: Path, rows: slice, message: str) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[rows, : 1 if rows.start else 100] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    with pytest.warns(RuntimeWarning, match=rf"a\.png is .*{message}"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (511, 512), (32, 1200)])
def test_resizing_keeps_every_thin_hole(size: tuple[int, int]) -> None:
    mask = np.zeros((512, 600), np.uint8)
    mask[101] = 1
    mask[300:, 333] = 1
    mask[20, 20] = 1
    small = resize_mask(mask, *size)
    rows, columns = np.nonzero(mask)
    scale = size[0] / 512, size[1] / 600
    assert small[(rows * scale[0]).astype(int), (columns * scale[1]).astype(int)].all()
    assert small.mean() < 0.1


def test_resizing_keeps_the_rest_of_fine_masks() -> None:
    dust = (np.random.default_rng(0).random((512, 512)) < 0.05).astype(np.uint8)
    small = resize_mask(dust, 64, 64)
    assert 0.02 < small.mean() < 0.1
    full = stroke().astype(np.uint8)
    assert resize_mask(full, *full.shape) is full
    assert set(np.unique(resize_mask(full, 120, 160))) == {0, 1}
    assert resize_mask(full, 120, 160).mean() == full.mean()


@pytest.mark.parametrize("kind", ["irregular", "box", "mixture"])
@pytest.mark.parametrize("size", [(64, 96), (256, 200)])
def test_binned_masks_cover_their_share(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    paths = save_binned_masks(tmp_path / "a", 3, *size, kind=kind, seed=7)
    assert [path.relative_to(tmp_path / "a").as_posix() for path in paths[:4]] == [
        *(f"0-10/mask-00000{number}.png" for number in range(3)),
        "10-20/mask-000000.png",
    ]
    for number, path in enumerate(paths):
        low, high = BINS[number // 3]
        mask = read_mask(path)
        assert mask.shape == size
        assert low <= mask.mean() < high
        rows, columns = np.nonzero(mask)
        is_box = mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert kind == "mixture" or is_box == (kind == "box")
    assert len({path.read_bytes() for path in paths}) == len(paths)
    again = save_binned_masks(tmp_path / "b", 1, *size, BINS[2:3], kind, 7)
    assert again[0].read_bytes() == paths[6].read_bytes()


def test_impossible_shares_are_refused() -> None:
    rng = np.random.default_rng(0)
    for arguments, reason in (
        (("round", 8, 8, 0.1, 0.2), "one of mixture, irregular, box, got 'round'"),
        (("box", 8, 8, 0.2, 0.1), "low < high"),
        (("box", 2, 2, 0.3, 0.4), "no box mask of 2 x 2 pixels was found that covers 30.0% to 40.0%"),
    ):
        with pytest.raises(ValueError, match=reason):
            draw_mask(*arguments, rng)
