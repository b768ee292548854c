"""Finding, reading and cropping images: every mode, orientation and kind of source."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fastinpaint.data.images import (
    find_images,
    read_image,
    refuse_output_inside,
    square_crop_resize,
    to_rgb,
    to_signed_tensor,
    to_uint8_image,
)

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def colours(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_folders_are_searched_recursively_and_sorted(tmp_path: Path) -> None:
    wanted = [touch(tmp_path / name) for name in ("a/b.JPG", "a/c.png", "z.TiFf")]
    for name in ("a/notes.txt", "a/._b.jpg", ".hidden/d.png", "jpg"):
        touch(tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert find_images(tmp_path) == wanted
    assert find_images(str(tmp_path / "z.TiFf")) == wanted[2:]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert find_images(tmp_path / "data") == [tmp_path / "data" / "link" / "a.png"]


def test_lists_keep_their_order_relative_to_their_folder(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(f"﻿z.png\r\n\r\nsub dir/ä.jpg \r\n{tmp_path}/x.png\n".encode())
    assert find_images(tmp_path / "list.txt") == [
        tmp_path / "z.png",
        tmp_path / "sub dir" / "ä.jpg",
        tmp_path / "x.png",
    ]


def test_nothing_to_find_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no images in .* looked for \*\.jpg, "):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        find_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="empty: expected one path per line"):
        find_images(touch(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match=r"expected a folder, an image .* got .*\.zip"):
        find_images(touch(tmp_path / "a.zip"))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        find_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGB", "png"), ("1", "png"), ("P", "gif"), ("RGB", "bmp"), ("L", "tif")]
)
def test_opaque_modes_keep_their_colours(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(colours()).convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    read = read_image(path)
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = np.asarray(read_image(tmp_path / "a.jpg")).astype(int)
    assert (abs(red - (255, 0, 0)) < 12).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path, suffix: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(read, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_float_grey(tmp_path: Path, scale: float) -> None:
    Image.fromarray(GREY.astype(np.float32) * np.float32(scale)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif"))[..., 1], GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_composited_over_the_background(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 1] = (200, 200, 200, 255)
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1, 0]] * 2, np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 200, 200, 200])
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    assert np.asarray(to_rgb(image))[:, :, 0].tolist() == [[255, 200, 255]] * 2
    assert np.asarray(to_rgb(image, background=(0, 0, 0)))[:, :, 0].tolist() == [[0, 200, 0]] * 2
    if mode in ("RGBA", "LA"):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(to_rgb(image)))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(colours(2, 3), 16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), turned)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    Image.fromarray(colours(64, 64)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for damaged in (b"", b"text", content[:20], content[: len(content) // 2]):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
            read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"nothing\.png cannot be read"):
        read_image(tmp_path / "nothing.png")
    os.mkdir(tmp_path / "folder.png")
    with pytest.raises(ValueError, match=r"folder\.png cannot be read"):
        read_image(tmp_path / "folder.png")


@pytest.mark.parametrize(("height", "width"), [(50, 80), (81, 50), (40, 40)])
def test_center_crop_is_pillows(height: int, width: int) -> None:
    image = Image.fromarray(colours(height, width))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.asarray(image)[top : top + side, left : left + side])
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.asarray(square_crop_resize(image, 32)), expected)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 100))
def test_random_crops_are_squares_inside_the_picture(height: int, width: int, size: int, seed: int) -> None:
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    image = Image.fromarray(np.dstack([y, x, y]))
    first, second = (
        np.asarray(square_crop_resize(image, size, crop="random", rng=np.random.default_rng(seed))) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == (size, size, 3)
    extent = np.ptp(first.astype(int), axis=(0, 1))[:2] + 1
    assert extent[0] <= height
    assert extent[1] <= width
    if size <= min(height, width) // 2:
        assert extent.min() >= min(height, width) // 2 * (1 - 1 / size) - 1  # averaging pulls the ends in


def test_random_crops_reach_every_place_and_scale() -> None:
    y, x = np.mgrid[:20, :40].astype(np.uint8)
    image = Image.fromarray(np.dstack([y, x, y]))
    rng = np.random.default_rng(0)
    crops = [np.asarray(square_crop_resize(image, 10, crop="random", rng=rng)) for _ in range(400)]
    assert min(crop[..., 1].min() for crop in crops) <= 1
    assert max(crop[..., 1].max() for crop in crops) >= 38
    spans = [int(np.ptp(crop[..., 0])) for crop in crops]
    assert min(spans) == 9  # not enlarged
    assert max(spans) >= 17  # the whole short side
    small = [crop for crop, span in zip(crops, spans, strict=True) if span < 13]
    assert min(crop[..., 0].min() for crop in small) == 0
    assert max(crop[..., 0].max() for crop in small) >= 18


def test_crop_options_are_checked() -> None:
    image = Image.fromarray(colours())
    with pytest.raises(ValueError, match="expected a crop of center or random, got 'middle'"):
        square_crop_resize(image, 8, crop="middle")
    with pytest.raises(ValueError, match="needs rng"):
        square_crop_resize(image, 8, crop="random")
    with pytest.raises(ValueError, match="size of at least 1, got 0"):
        square_crop_resize(image, 0)


def test_signed_tensor_values_and_round_trip() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    values[..., 1] = 255 - values[..., 1]
    tensor = to_signed_tensor(values)
    assert tensor.shape == (3, 16, 16)
    assert tensor.is_contiguous()
    expected = torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1)
    torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-7)
    assert tensor.min() == -1
    assert tensor.max() == 1
    np.testing.assert_array_equal(to_uint8_image(tensor), values)
    assert to_uint8_image(tensor * 2).max() == 255


def test_tensor_conversions_check_their_input() -> None:
    with pytest.raises(TypeError, match="uint8 values, got float64"):
        to_signed_tensor(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"\(H, W, 3\), got \(4, 4\)"):
        to_signed_tensor(GREY[:, :4])
    with pytest.raises(ValueError, match=r"\(3, H, W\), got \(1, 3, 4, 4\)"):
        to_uint8_image(torch.zeros(1, 3, 4, 4))


def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "a pipe"), ("device.png", "a device")):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: .* is {kind}"):
            read_image(tmp_path / name)
        with pytest.raises(ValueError, match=f"expected a regular file, but .*{name} is {kind}"):
            find_images(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_broken_exif_does_not_stop_a_picture(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(colours(32, 48))
    image.save(tmp_path / f"a.{suffix}", **({} if suffix == "tif" else {"exif": b"Exif\0\0" + bytes(range(9, 90))}))
    image.save(tmp_path / f"sound.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(np.asarray(read), np.asarray(read_image(tmp_path / f"sound.{suffix}")))


def test_broken_png_text_does_not_stop_a_picture(tmp_path: Path) -> None:
    image = Image.fromarray(colours(32, 48))
    text = PngInfo()
    text.add_text("note", "some words")
    image.save(tmp_path / "a.png", pnginfo=text)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content.replace(b"some words", b"some w\0rds"))  # its checksum is wrong now
    with pytest.warns(RuntimeWarning, match=r"a\.png: its metadata is left out"):
        read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))


def test_outputs_inside_the_input_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for inside in ("images", "images/run", "link/run"):
        with pytest.raises(ValueError, match="would be read again"):
            refuse_output_inside(tmp_path / "images", tmp_path / inside)
    refuse_output_inside(tmp_path / "images", tmp_path / "images-filled")
    refuse_output_inside(tmp_path / "list.txt", tmp_path)
