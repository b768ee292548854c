import numpy as np
import pytest
import torch
from PIL import Image

from fastinpaint.inference.inpainter import Inpainter, hole_of
from fastinpaint.inference.precision import layout_on, precision_of
from fastinpaint.inference.prepare import mirror_pad, shrink
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_input, assemble_known_input
from tests.helpers.photographs import crops


def spoiled(picture, hole):
    other = picture.copy()
    other[hole] = 255 - other[hole]
    return other


class TestInpainter:
    def test_array(self, inpainter, picture, hole):
        before = picture.copy()
        filled = inpainter(picture, hole)
        assert filled.shape == picture.shape
        assert filled.dtype == np.uint8
        np.testing.assert_array_equal(filled[~hole], picture[~hole])
        assert (filled[hole] != picture[hole]).mean() > 0.5
        np.testing.assert_array_equal(picture, before)

    @pytest.mark.parametrize("size", [(1, 40), (16, 16), (17, 31), (64, 96)])
    def test_any_size(self, inpainter, size):
        picture = np.full((*size, 3), 90, np.uint8)
        hole = np.zeros(size, bool)
        hole[0, 3:9] = True
        filled = inpainter(picture, hole)
        np.testing.assert_array_equal(filled[~hole], picture[~hole])

    def test_content_of_the_hole_does_not_matter(self, inpainter, picture, hole):
        wanted = inpainter(picture, hole)
        np.testing.assert_array_equal(inpainter(spoiled(picture, hole), hole), wanted)
        small = Inpainter(inpainter.generator, "cpu", max_side=32, strategy="resize")
        np.testing.assert_array_equal(small(spoiled(picture, hole), hole), small(picture, hole))

    def test_kinds_agree(self, inpainter, picture, hole):
        wanted = inpainter(picture, hole)
        mask = Image.fromarray(hole.astype(np.uint8) * 255)
        np.testing.assert_array_equal(np.asarray(inpainter(Image.fromarray(picture), mask)), wanted)
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        filled = inpainter(tensor, torch.from_numpy(hole))
        assert filled.dtype == torch.float32
        found = (filled[0].permute(1, 2, 0) * 255).round().numpy()
        assert np.abs(found - wanted).max() <= 1
        assert torch.equal(filled[..., torch.from_numpy(~hole)], tensor[..., torch.from_numpy(~hole)])

    def test_batch_with_a_mask_for_each(self, inpainter):
        image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        mask = torch.zeros(2, 1, 32, 32)
        mask[1, :, 8:20, 8:20] = 1
        filled = inpainter(image, mask)
        assert filled.dtype == torch.float64
        assert torch.equal(filled[0], image[0])
        assert not torch.equal(filled[1], image[1])

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
    def test_mode_and_alpha_are_kept(self, inpainter, picture, hole, mode):
        image = Image.fromarray(picture).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(picture[..., 0]))
        filled = inpainter(image, hole)
        assert filled.mode == mode
        before, after = np.asarray(image), np.asarray(filled)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        if mode in ("RGBA", "LA"):
            np.testing.assert_array_equal(after[..., -1], before[..., -1])

    def test_empty_mask_returns_the_picture(self, inpainter, picture):
        filled = inpainter(picture, np.zeros(picture.shape[:2], bool))
        np.testing.assert_array_equal(filled, picture)
        assert filled is not picture

    def test_large_pictures_are_filled_small(self, inpainter, picture, hole):
        filled = Inpainter(inpainter.generator, "cpu", max_side=20, strategy="resize")(picture, hole)
        np.testing.assert_array_equal(filled[~hole], picture[~hole])
        assert (filled[hole] != picture[hole]).any()

    @pytest.mark.parametrize(
        ("image", "mask", "error", "message"),
        [
            (np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), bool), ValueError, "height and width 8x9, got 8x8"),
            (np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), ValueError, "covers the whole picture"),
            (
                np.zeros((8, 8, 3), np.uint8),
                np.eye(8, dtype=np.uint8),
                ValueError,
                "is 1: give bool, or 0 and",
            ),
            (
                np.zeros((8, 8, 3), np.uint8),
                Image.fromarray(np.eye(8, dtype=np.uint8)),
                ValueError,
                "above 127, but the highest value of this one is 1: give bool",
            ),
            (np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8) * 76, ValueError, "value of this one is 76$"),
            (torch.zeros(1, 3, 8, 8), torch.eye(8) * 0.3, ValueError, r"above 0\.5, but the highest value .* is 0\.3"),
            (torch.zeros(1, 3, 8, 8), torch.full((8, 8), torch.nan), ValueError, "highest value of this one is nan"),
            (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 2), np.uint8), ValueError, r"must be \(H, W\)"),
            (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), TypeError, "bool or uint8"),
            (np.zeros((8, 8, 3)), np.zeros((8, 8), bool), TypeError, "uint8"),
            (torch.zeros(3, 8, 8), torch.zeros(8, 8), ValueError, r"\(B, 3, H, W\)"),
            (torch.full((1, 3, 8, 8), -1.0), torch.eye(8), ValueError, r"\[0, 1\], got \[-1, -1\]"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.eye(8), TypeError, "floating point"),
            (np.zeros((8, 8, 3), np.uint32), np.eye(8, dtype=bool), TypeError, "uint8 or uint16"),
            (Image.fromarray(np.full((8, 8), np.nan, np.float32)), np.eye(8, dtype=bool), ValueError, "NaN"),
            ("photo.png", np.eye(8, dtype=bool), TypeError, "got str"),
        ],
    )
    def test_what_does_not_fit_is_named(self, inpainter, image, mask, error, message):
        with pytest.raises(error, match=message):
            inpainter(image, mask)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
    def test_arrays_of_both_depths(self, inpainter, hole, dtype, channels):
        values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (37, 50, *channels), dtype, endpoint=True)
        filled = inpainter(values, hole)
        assert (filled.dtype, filled.shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(filled[~hole], values[~hole])
        assert (filled[hole] != values[hole]).any()
        spoiled = values.copy()
        spoiled[hole] = np.iinfo(dtype).max - spoiled[hole]
        if channels != (4,):
            np.testing.assert_array_equal(inpainter(spoiled, hole), filled)
        else:
            np.testing.assert_array_equal(filled[..., 3], values[..., 3])

    def test_depths_agree(self, inpainter, picture, hole):
        deep = inpainter(picture.astype(np.uint16) * 257, hole)
        assert np.abs(deep / 257 - inpainter(picture, hole)).max() <= 0.51
        assert len(np.unique(deep[hole] % 257)) > 20

    @pytest.mark.parametrize("size", [(37, 50), (400, 700)])
    def test_many_pictures_are_filled_as_one_by_one(self, inpainter, size):
        rng = np.random.default_rng(2)
        pictures, holes = [], []
        for number in range(5):
            pictures.append(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            hole = np.zeros(size, bool)
            hole[5 + number : 20, 10 : 30 - number] = number > 0
            holes.append(hole)
        pictures[2], holes[2] = pictures[2][:-3], holes[2][:-3]
        filled = inpainter.fill_many(pictures, holes, batch_size=3)
        for found, image, hole in zip(filled, pictures, holes, strict=True):
            assert found is not image
            np.testing.assert_array_equal(found[~hole], image[~hole])
            assert np.abs(found.astype(int) - inpainter(image, hole)).max() <= 1

    def test_regions_of_one_size_share_a_pass(self, inpainter, picture, hole, monkeypatch):
        seen, predict = [], inpainter._predict
        monkeypatch.setattr(inpainter, "_predict", lambda image, mask: seen.append(len(image)) or predict(image, mask))
        inpainter.fill_many([picture] * 5, [hole] * 5, batch_size=2)
        assert seen == [2, 2, 1]
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            inpainter.fill_many([], [], batch_size=0)

    def test_in_place(self, inpainter, picture, hole):
        for image in (picture.copy(), Image.fromarray(picture)):
            (filled,) = inpainter.fill_many([image], [hole], in_place=True)
            assert filled is image
            np.testing.assert_array_equal(np.asarray(filled), inpainter(picture, hole))

    def test_weights_that_overflow_are_an_error(self, picture, hole):
        generator = InpaintGenerator(2, head_norm=False)
        with torch.no_grad():
            next(generator.parameters()).fill_(float("nan"))
        with pytest.raises(ValueError, match="not finite"):
            Inpainter(generator, "cpu")(picture, hole)

    def test_a_device_that_is_not_there(self, inpainter):
        with pytest.raises(ValueError, match="device nowhere cannot be used"):
            Inpainter(inpainter.generator, "nowhere")

    @pytest.mark.parametrize("strategy", ["crop", "resize"])
    def test_fine_masks_on_large_pictures_keep_known_pixels(self, inpainter, strategy):
        """Every 4 x 4 pixels have a hole, so none of a small picture would be known if holes spread."""
        picture = np.full((400, 500, 3), 90, np.uint8)
        hole = np.zeros((400, 500), bool)
        hole[::4, ::4] = True
        fill = Inpainter(inpainter.generator, "cpu", max_side=100, strategy=strategy)
        filled = fill(picture, hole)
        np.testing.assert_array_equal(filled[~hole], 90)
        if strategy == "resize":
            assert np.abs(filled[hole].astype(int) - 90).max() <= 1

    def test_from_pretrained(self, inpainter, picture, hole, tmp_path):
        inpainter.generator.save_pretrained(tmp_path)
        loaded = Inpainter.from_pretrained(tmp_path, device="cpu")
        np.testing.assert_array_equal(loaded(picture, hole), inpainter(picture, hole))


class TestPrecision:
    @pytest.mark.parametrize(
        ("device", "features", "capability", "wanted"),
        [
            ("cpu", {"avx512_bf16": True}, None, torch.bfloat16),
            ("cpu", {"amx_bf16": True}, None, torch.bfloat16),
            ("cpu", {"avx512_f": True, "avx512_bf16": False}, None, torch.float32),
            ("cuda", {}, (8, 0), torch.bfloat16),
            ("cuda", {}, (7, 5), torch.float32),
            ("mps", {}, None, torch.float32),
        ],
    )
    def test_auto_is_what_the_processor_computes_faster(self, device, features, capability, wanted, monkeypatch):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        place = torch.device(device)
        assert precision_of("auto", place) == wanted
        assert precision_of("float32", place) == torch.float32
        assert precision_of("bfloat16", place) == torch.bfloat16

    def test_bfloat16_is_within_45_db_of_float32_on_photographs(self):
        """Inside the hole, with trained weights."""
        exact, half = (Inpainter.from_pretrained("small", "cpu", precision=p) for p in ("float32", "bfloat16"))
        hole = torch.zeros(64, 64, dtype=torch.bool)
        hole[20:44, 16:40] = True
        photographs = torch.from_numpy(np.stack(crops(2, 64))).permute(0, 3, 1, 2) / 255
        error = (exact(photographs, hole) - half(photographs, hole))[..., hole].square().mean((1, 2))
        assert (error > 0).all()  # it was another precision
        assert (-10 * error.log10() > 45).all()
        ((_, gradients),) = half.structure(np.zeros((64, 64, 3), np.uint8), hole)
        assert gradients.dtype == torch.float32

    def test_channels_last_where_the_norm_has_a_kernel(self, monkeypatch):
        def weight_layout():
            weight = Inpainter(InpaintGenerator(2), "cpu").generator.blocks[0].plain.convolution.weight
            return torch.contiguous_format if weight.is_contiguous() else torch.channels_last

        assert layout_on(torch.device("cuda", 1)) is torch.channels_last
        assert weight_layout() is layout_on(torch.device("cpu"))
        for native, wanted in ((True, torch.channels_last), (False, torch.contiguous_format)):
            monkeypatch.setattr("fastinpaint.inference.precision.has_native", lambda _, native=native: native)
            assert weight_layout() is wanted

    def test_another_one_is_refused(self, inpainter):
        with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, got 'half'"):
            Inpainter(inpainter.generator, "cpu", precision="half")


class TestPrepare:
    def test_blind_input_differs_from_the_whole_pictures_only_near_the_hole(self):
        image = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1) * 2 - 1
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 24:40, 24:40] = 1
        whole, blind = assemble_input(image, mask), assemble_known_input(image, mask)
        assert torch.equal(blind[:, :3], whole[:, :3])
        assert torch.equal(blind[:, 4], whole[:, 4])
        far = torch.nn.functional.max_pool2d(mask, 3, 1, 1)[0, 0] == 0
        assert torch.equal(blind[0, 5:, far], whole[0, 5:, far])

    def test_blind_input_ignores_values_that_are_no_numbers(self):
        image = torch.rand(1, 3, 32, 32)
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., 8:20, 8:20] = 1
        wanted = assemble_known_input(image, mask)
        image[..., 10, 10] = float("nan")
        assert torch.equal(assemble_known_input(image, mask), wanted)

    @pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 17)])
    def test_mirror_pad(self, size):
        x = torch.rand(1, 2, *size)
        padded = mirror_pad(x)
        assert padded.shape[-2:] == tuple(-(-side // 16) * 16 for side in size)
        height, width = (min(2 * side - 1, 16) if side > 1 else side for side in size)
        wanted = np.pad(x.numpy(), ((0, 0), (0, 0), (0, height - size[0]), (0, max(width - size[1], 0))), "reflect")
        np.testing.assert_array_equal(padded[..., : wanted.shape[-2], : wanted.shape[-1]].numpy(), wanted)

    def test_shrink_keeps_the_hole_out_of_known_pixels(self):
        image, mask = torch.full((1, 3, 40, 60), 0.25), torch.zeros(1, 1, 40, 60)
        image[..., 10:15, 20:29], mask[..., 10:15, 20:29] = float("inf"), 1
        small, small_mask = shrink(image, mask, 24)
        assert small.shape[-2:] == small_mask.shape[-2:] == (16, 24)
        known = small_mask[0, 0] == 0
        torch.testing.assert_close(small[0, :, known], torch.full_like(small[0, :, known], 0.25))
        assert small_mask.any()

    def test_shrink_averages_known_pixels(self):
        image, mask = torch.rand(2, 3, 12, 16), (torch.rand(2, 1, 12, 16) < 0.6).float()
        small, small_mask = shrink(torch.where(mask > 0, torch.nan, image), mask, 4)
        cells = [x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2) for x in (image, 1 - mask)]
        known = cells[1].sum(-1)
        wanted = (cells[0] * cells[1]).sum(-1) / known.clamp_min(1)
        torch.testing.assert_close(small, wanted)
        assert torch.equal(small_mask, (known == 0).float())


def test_hole_of_grey_levels():
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    assert hole_of(levels)[0, 0].tolist() == [[False, False, True, True]]
    assert hole_of(Image.fromarray(levels))[0, 0].tolist() == [[False, False, True, True]]
