"""Large pictures: regions around holes, tiles, coarse to fine."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.inference.regions import (
    MARGIN,
    OVERLAP,
    SIZE,
    Box,
    feather,
    fill_region,
    plan_regions,
    tiles,
)
from fastinpaint.models.generator import InpaintGenerator


def boxes_of_holes(size, *boxes):
    hole = np.zeros(size, bool)
    for top, bottom, left, right in boxes:
        hole[top:bottom, left:right] = True
    return hole


class TestPlan:
    @pytest.mark.parametrize("seed", range(20))
    def test_every_hole_has_its_margin_and_no_regions_overlap(self, seed):
        rng = np.random.default_rng(seed)
        size = tuple(rng.integers(40, 1500, 2))
        hole = np.zeros(size, bool)
        for _ in range(rng.integers(1, 8)):
            top, left = (int(rng.integers(0, side)) for side in size)
            hole[top : top + int(rng.integers(1, 90)), left : left + int(rng.integers(1, 200))] = True
        found = plan_regions(hole)
        cover = np.zeros(size, int)
        for box in found:
            cover[box.area] += 1
            assert all(side >= min(SIZE, whole) for side, whole in zip(box.sides, size, strict=True))
            assert all(
                side % 16 == 0 or side == whole or side > SIZE for side, whole in zip(box.sides, size, strict=True)
            )
        assert cover.max() == 1
        rows, columns = np.nonzero(hole)
        for shift in (-MARGIN, MARGIN):
            assert cover[np.clip(rows + shift, 0, size[0] - 1), columns].all()
            assert cover[rows, np.clip(columns + shift, 0, size[1] - 1)].all()

    def test_distant_holes_are_filled_apart_and_near_ones_together(self):
        far = plan_regions(boxes_of_holes((1000, 2000), (500, 520, 300, 320), (500, 520, 1700, 1720)))
        assert [box.sides for box in far] == [(SIZE, SIZE)] * 2
        assert far[0] == Box(382, 638, 182, 438)
        near = plan_regions(boxes_of_holes((1000, 2000), (500, 520, 300, 320), (500, 520, 420, 440)))
        assert len(near) == 1

    def test_a_region_inside_the_corner_of_another_is_merged(self):
        """The box around an L holds a third hole that neither of its arms comes near."""
        hole = boxes_of_holes((2000, 2000), (0, 1500, 0, 10), (1490, 1500, 0, 1500), (200, 210, 1000, 1010))
        assert plan_regions(hole) == [Box(0, 1568, 0, 1568)]

    def test_nothing_to_fill(self):
        assert plan_regions(np.zeros((300, 300), bool)) == []


def test_weights_of_neighbouring_tiles_sum_to_one():
    size = (300, 290)
    total = np.zeros(size)
    for tile in tiles(size):
        wide, weight = feather(tile, size)
        assert weight.shape == wide.sides
        assert (weight > 0).all()
        total[wide.area] += weight
        assert weight[tile.top - wide.top + OVERLAP, tile.left - wide.left + OVERLAP] == 1
    away = total[:100]  # only two tiles meet here
    np.testing.assert_allclose(away, 1, atol=1e-6)


class _Recorder:
    """A filler that knows the answer, looks at nothing in the hole, and keeps what it was asked."""

    def __init__(self, offset=0.0):
        self.offset, self.asked = offset, []

    def __call__(self, image, hole):
        assert image[~hole.expand_as(image)].isfinite().all()
        self.asked.append((tuple(image.shape[-2:]), hole[0, 0].clone()))
        known = torch.where(hole, 0.0, image)
        share = (~hole).float().mean()
        return (known.mean((-2, -1), keepdim=True) / share + self.offset).expand_as(image)


class TestFillRegion:
    def filled(self, hole, fill, largest=SIZE):
        image = torch.full((1, 3, *hole.shape), 0.25)
        image[..., torch.from_numpy(hole)] = float("nan")
        result = fill_region(image, hole, fill, largest)
        known = torch.from_numpy(~hole)
        assert torch.equal(result[..., known], image[..., known])
        assert result.isfinite().all()
        return result

    def test_small_regions_take_one_pass(self):
        fill = _Recorder()
        self.filled(boxes_of_holes((200, SIZE), (20, 150, 30, 160)), fill)
        assert [size for size, _ in fill.asked] == [(200, SIZE)]

    @pytest.mark.parametrize("size", [(600, 700), (70, 900), (257, 257)])
    def test_thin_holes_are_filled_at_full_size(self, size):
        hole = boxes_of_holes(size, (size[0] // 2, size[0] // 2 + 9, 0, size[1]))
        fill = _Recorder()
        result = self.filled(hole, fill)
        torch.testing.assert_close(result, torch.full_like(result, 0.25))
        assert all(max(asked) <= SIZE for asked, _ in fill.asked)
        # each pass is a window of the region at its own size, where the scratch is 9 rows high
        assert all(int(part.any(1).sum()) == 9 for _, part in fill.asked)

    def test_large_holes_are_filled_coarse_to_fine(self):
        hole = boxes_of_holes((900, 1000), (100, 800, 100, 900))
        fill = _Recorder()
        result = self.filled(hole, fill)
        torch.testing.assert_close(result, torch.full_like(result, 0.25))
        assert all(max(asked) <= SIZE for asked, _ in fill.asked)
        assert any(asked == (225, 250) for asked, _ in fill.asked)
        assert all(part.float().mean() < 0.8 for _, part in fill.asked)

    def test_dust_everywhere_needs_no_coarse_filling(self):
        hole = np.zeros((400, 500), bool)
        hole[::3, ::3] = True
        fill = _Recorder()
        self.filled(hole, fill)
        assert len(fill.asked) == len(list(tiles(hole.shape)))

    def test_dense_dust_leaves_known_pixels_at_half_the_size(self):
        hole = np.ones((400, 500), bool)
        hole[::2, ::2] = False
        self.filled(hole, _Recorder())

    def test_tiles_have_no_visible_seams(self):
        """A filler that is 0.1 brighter with each call differs by a step between tiles; the blend spreads it."""
        hole = boxes_of_holes((300, 900), (140, 160, 0, 900))
        fill = _Recorder()

        def brighter(image, mask):
            fill(image, mask)
            return torch.full_like(image, 0.1 * len(fill.asked))

        row = self.filled(hole, brighter)[0, 0, 150]
        assert row.unique().numel() > 20
        assert (row[1:] - row[:-1]).abs().max() < 0.1 * len(fill.asked) / OVERLAP


@pytest.fixture(scope="module")
def inpainter():
    torch.manual_seed(0)
    return Inpainter(InpaintGenerator(2, head_norm=False), device="cpu", max_side=300)


@pytest.fixture(scope="module")
def picture():
    small = np.random.default_rng(0).integers(0, 256, (20, 35, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((700, 400), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def hole():
    return boxes_of_holes((400, 700), (100, 130, 60, 100), (350, 400, 640, 700))


class TestLargePictures:
    def test_regions_are_filled_as_pictures_of_their_own(self, inpainter, picture, hole):
        filled = inpainter(picture, hole)
        np.testing.assert_array_equal(filled[~hole], picture[~hole])
        boxes = plan_regions(hole)
        assert len(boxes) == 2
        for box in boxes:
            alone = inpainter(picture[box.area], hole[box.area]).astype(int)
            assert np.abs(filled[box.area] - alone).max() <= 1  # batches round otherwise
        whole = Inpainter(inpainter.generator, "cpu", max_side=300, strategy="original")(picture, hole)
        assert (whole[hole] != filled[hole]).any()
        np.testing.assert_array_equal(whole, Inpainter(inpainter.generator, "cpu", max_side=0)(picture, hole))

    @pytest.mark.parametrize("strategy", ["crop", "resize", "original"])
    def test_content_of_the_hole_does_not_matter(self, inpainter, picture, strategy):
        hole = boxes_of_holes((400, 700), (100, 300, 60, 400), (350, 400, 640, 700))
        fill = Inpainter(inpainter.generator, "cpu", max_side=300, strategy=strategy)
        spoiled = picture.copy()
        spoiled[hole] = 255 - spoiled[hole]
        filled = fill(picture, hole)
        np.testing.assert_array_equal(fill(spoiled, hole), filled)
        np.testing.assert_array_equal(filled[~hole], picture[~hole])

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
    def test_modes(self, inpainter, picture, hole, mode):
        image = Image.fromarray(picture).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(picture[..., 0]))
        filled = inpainter(image, hole)
        assert filled.mode == ("RGB" if mode == "P" else mode)
        before, after = np.asarray(image.convert(filled.mode)), np.asarray(filled)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert (after[hole] != before[hole]).any()
        if mode in ("RGBA", "LA"):
            np.testing.assert_array_equal(after[..., -1], before[..., -1])
        if mode != "LA":
            np.testing.assert_array_equal(after, inpainter(before, hole))

    def test_tensors(self, inpainter, picture, hole):
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        images = torch.cat([tensor, tensor.flip(-1)]).double()
        holes = torch.from_numpy(np.stack([hole, np.zeros_like(hole)]))[:, None]
        before = images.clone()
        filled = inpainter(images, holes)
        assert torch.equal(images, before)
        assert filled.dtype == torch.float64
        assert torch.equal(filled[1], images[1])
        assert torch.equal(filled[:1][..., ~holes[0, 0]], images[:1][..., ~holes[0, 0]])
        found = (filled[0].permute(1, 2, 0) * 255).round().numpy()
        assert np.abs(found - inpainter(picture, hole)).max() <= 1

    def test_the_generator_sees_the_region_only(self, inpainter, picture, hole, monkeypatch):
        seen = []
        predict = inpainter._predict
        monkeypatch.setattr(inpainter, "_predict", lambda image, mask: seen.append(image.shape) or predict(image, mask))
        inpainter(Image.fromarray(picture), hole)
        assert [tuple(shape) for shape in seen] == [(2, 3, SIZE, SIZE)]

    def test_masks_that_do_not_fit(self, inpainter, picture):
        for image in (picture, Image.fromarray(picture)):
            with pytest.raises(ValueError, match="height and width 400x700, got 400x699"):
                inpainter(image, np.zeros((400, 699), bool))
            with pytest.raises(ValueError, match="covers the whole picture"):
                inpainter(image, np.ones((400, 700), bool))

    def test_unknown_strategy(self, inpainter):
        with pytest.raises(ValueError, match="one of crop, resize, original, got 'tile'"):
            Inpainter(inpainter.generator, "cpu", strategy="tile")
