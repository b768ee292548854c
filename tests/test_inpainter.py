import numpy as np
import pytest
import torch
from PIL import Image

from fastinpaint.inference.files import inpaint_files
from fastinpaint.inference.inpainter import Inpainter, hole_of
from fastinpaint.inference.prepare import mirror_pad, shrink
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_input, assemble_known_input


@pytest.fixture(scope="module")
def inpainter():
    torch.manual_seed(0)
    return Inpainter(InpaintGenerator(2, head_norm=False), device="cpu")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


@pytest.fixture
def hole():
    hole = np.zeros((37, 50), bool)
    hole[10:25, 12:40] = True
    hole[30:, :5] = True
    return hole


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
            (np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8), ValueError, "holds 0 and 1 only"),
            (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 2), np.uint8), ValueError, r"must be \(H, W\)"),
            (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), TypeError, "bool or uint8"),
            (np.zeros((8, 8, 3)), np.zeros((8, 8), bool), TypeError, "uint8"),
            (torch.zeros(3, 8, 8), torch.zeros(8, 8), ValueError, r"\(B, 3, H, W\)"),
            (torch.full((1, 3, 8, 8), -1.0), torch.eye(8), ValueError, r"\[0, 1\], got \[-1, -1\]"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.eye(8), TypeError, "floating point"),
            (Image.new("I;16", (8, 8)), np.eye(8, dtype=bool), TypeError, "8 bits"),
            ("photo.png", np.eye(8, dtype=bool), TypeError, "got str"),
        ],
    )
    def test_what_does_not_fit_is_named(self, inpainter, image, mask, error, message):
        with pytest.raises(error, match=message):
            inpainter(image, mask)

    def test_from_pretrained(self, inpainter, picture, hole, tmp_path):
        inpainter.generator.save_pretrained(tmp_path)
        loaded = Inpainter.from_pretrained(tmp_path, device="cpu")
        np.testing.assert_array_equal(loaded(picture, hole), inpainter(picture, hole))


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


class TestFiles:
    @pytest.fixture
    def photo(self, picture, tmp_path):
        path = tmp_path / "photo.png"
        Image.fromarray(picture).save(path)
        return path

    @pytest.fixture
    def mask(self, hole, tmp_path):
        path = tmp_path / "mask.png"
        Image.fromarray(hole.astype(np.uint8) * 255).save(path)
        return path

    def test_file(self, inpainter, photo, mask, picture, hole, tmp_path):
        output = tmp_path / "new" / "filled.png"
        summary = inpaint_files(inpainter, photo, mask, output)
        assert summary.written == [output]
        assert not summary.failed
        np.testing.assert_array_equal(np.asarray(Image.open(output)), inpainter(picture, hole))

    def test_inverted_mask(self, inpainter, photo, mask, picture, hole, tmp_path):
        inpaint_files(inpainter, photo, mask, tmp_path / "filled.png", invert_mask=True)
        found = np.asarray(Image.open(tmp_path / "filled.png"))
        np.testing.assert_array_equal(found[hole], picture[hole])

    def test_existing_files_are_left_alone(self, inpainter, photo, mask, tmp_path):
        output = tmp_path / "filled.png"
        output.write_bytes(b"mine")
        summary = inpaint_files(inpainter, photo, mask, output)
        assert "--overwrite" in summary.failed[0][1]
        assert output.read_bytes() == b"mine"
        assert inpaint_files(inpainter, photo, mask, output, overwrite=True).written == [output]
        assert Image.open(output).size == (50, 37)

    def test_orientation_profile_and_exif(self, inpainter, picture, hole, mask, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
        exif[0x010E] = "a photo"
        turned = Image.fromarray(np.rot90(picture).copy())
        turned.save(tmp_path / "turned.png", exif=exif, icc_profile=b"profile")
        inpaint_files(inpainter, tmp_path / "turned.png", mask, tmp_path / "filled.png")
        with Image.open(tmp_path / "filled.png") as filled:
            np.testing.assert_array_equal(np.asarray(filled)[~hole], picture[~hole])
            assert filled.info["icc_profile"] == b"profile"
            assert filled.getexif().get(0x010E) == "a photo"
            assert 0x0112 not in filled.getexif()

    def test_folder_with_matching_masks(self, inpainter, picture, hole, tmp_path):
        images, masks = tmp_path / "images", tmp_path / "masks"
        for folder in (images / "deep", masks / "deep"):
            folder.mkdir(parents=True)
        for name in ("a.png", "deep/b.bmp", "c.png"):
            Image.fromarray(picture).save(images / name)
        (images / "d.jpg").write_bytes(b"no image")
        for name in ("a.png", "deep/b.png", "d.png"):
            Image.fromarray(hole).save(masks / name)
        output = tmp_path / "filled"
        summary = inpaint_files(inpainter, images, masks, output, progress=False)
        assert summary.written == [output / "a.png", output / "deep" / "b.png"]
        assert [path.name for path, _ in summary.failed] == ["c.png", "d.jpg"]
        assert "no mask" in summary.failed[0][1]
        assert sorted(path.name for path in output.rglob("*.*")) == ["a.png", "b.png"]

    def test_one_mask_for_a_folder(self, inpainter, photo, mask, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        photo.rename(images / "photo.png")
        summary = inpaint_files(inpainter, images, mask, tmp_path / "filled", progress=False)
        assert summary.written == [tmp_path / "filled" / "photo.png"]

    def test_names_that_clash(self, inpainter, photo, mask, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        for suffix in ("png", "bmp"):
            Image.open(photo).save(images / f"same.{suffix}")
        with pytest.raises(ValueError, match="differ only in their suffix"):
            inpaint_files(inpainter, images, mask, tmp_path / "filled")

    @pytest.mark.parametrize(
        ("image", "mask", "output", "error"),
        [
            ("absent.png", "mask.png", "x.png", FileNotFoundError),
            ("photo.png", "absent.png", "x.png", FileNotFoundError),
            ("photo.png", "mask.png", "x.unknown", ValueError),
            ("photo.png", ".", "x.png", ValueError),
        ],
    )
    def test_wrong_paths(self, inpainter, photo, tmp_path, image, mask, output, error):
        (tmp_path / "mask.png").touch()
        with pytest.raises(error):
            inpaint_files(inpainter, tmp_path / image, tmp_path / mask, tmp_path / output)


def test_hole_of_grey_levels():
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    assert hole_of(levels)[0, 0].tolist() == [[False, False, True, True]]
    assert hole_of(Image.fromarray(levels))[0, 0].tolist() == [[False, False, True, True]]
