"""Filling files: formats, depths, metadata, masks, folders, and what goes wrong."""

import base64
import errno
import functools
import io
import itertools
import os
import warnings

import cv2
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import IFD, Base
from PIL.IptcImagePlugin import getiptcinfo
from PIL.PngImagePlugin import PngInfo

from fastinpaint.inference import files
from fastinpaint.inference.files import FileOptions, inpaint_files
from fastinpaint.inference.formats import FORMATS, encode
from fastinpaint.inference.metadata import read_metadata
from fastinpaint.inference.photo import read_photo


@pytest.fixture
def photo(picture, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def mask(hole, tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(hole.astype(np.uint8) * 255).save(path)
    return path


def quiet_fill(inpainter, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return inpaint_files(inpainter, *arguments, progress=False)


# Whatever a picture may be: what Pillow or OpenCV makes of it, and the mode in which it comes back.
def source(kind, path):
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (37, 50, 3), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (37, 50), dtype=np.uint8))
    if kind in ("RGB;16", "RGBA;16"):
        cv2.imwrite(str(path), rng.integers(0, 65536, (37, 50, 3 if kind == "RGB;16" else 4), dtype=np.uint16))
        return
    if kind in ("RGBA", "LA"):
        color = color.convert(kind[:-1])
        color.putalpha(alpha)
    elif kind == "PA":
        color = color.convert("P").convert("RGBA").convert("PA")
    elif kind == "I;16":
        color = Image.fromarray(rng.integers(0, 65536, (37, 50), dtype=np.uint16))
    elif kind == "I":
        color = Image.fromarray(rng.integers(0, 2**20, (37, 50), dtype=np.int32))
    elif kind == "F":
        color = Image.fromarray(rng.random((37, 50), dtype=np.float32))
    elif kind == "P with a transparent index":
        color = color.convert("P")
        color.info["transparency"] = 3
    elif kind == "RGB with a transparent colour":
        color.info["transparency"] = color.getpixel((0, 0))
        color.save(path, transparency=color.getpixel((0, 0)))
        return
    else:
        color = color.convert(kind)
    color.save(path)


def seen(path):
    """The pixels as (H, W, C), whatever holds them: 16 bits, CMYK and one channel as they are, the rest as RGBA."""
    deep = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if deep is not None and deep.dtype == np.uint16 and deep.ndim == 3:
        return deep
    with Image.open(path) as image:
        if (image.format, image.mode) == ("PPM", "I"):
            return np.atleast_3d(np.asarray(image).astype(np.uint16))
        return np.atleast_3d(np.asarray(image if image.mode in ("I", "I;16", "F", "CMYK") else image.convert("RGBA")))


PNG_KINDS = (
    *("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "RGB;16", "RGBA;16"),
    *("P with a transparent index", "RGB with a transparent colour"),
)
CASES = [
    *(("png", kind) for kind in PNG_KINDS),
    *(("tif", kind) for kind in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "RGB;16")),
    *(("webp", kind) for kind in ("RGB", "RGBA")),
    *(("gif", kind) for kind in ("L", "P", "P with a transparent index")),
    *itertools.product(("bmp", "ppm", "jp2", "tga"), ("L", "RGB")),
    *itertools.product(("jp2", "tga"), ("LA", "RGBA")),
    ("avif", "RGBA"), ("jpg", "CMYK"), ("pgm", "L"), ("pgm", "I;16"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "kind"), CASES)
def test_known_pixels_come_back_bit_for_bit(inpainter, hole, mask, tmp_path, suffix, kind):
    """In every lossless format that takes the picture; each other format refuses it and writes nothing."""
    path = tmp_path / f"in.{suffix}"
    source(kind, path)
    before = seen(path)
    written = []
    for target in FORMATS:
        output = tmp_path / f"out{target}"
        summary = quiet_fill(inpainter, path, mask, output)
        if summary.failed:
            assert "unchanged: choose another format" in summary.failed[0][1]
            assert not output.exists()
            continue
        written.append(target)
        if FORMATS[target].lossless:
            after = seen(output)
            np.testing.assert_array_equal(after[~hole], before[~hole])
            assert (after[hole] != before[hole]).any()
            assert after.dtype == before.dtype
    assert {".tif"} <= set(written)
    if kind not in ("CMYK", "I", "F"):
        assert ".png" in written
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]


@functools.cache  # it holds the time
def profile(space):
    if space == "RGB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    header = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    header[16:20] = space.ljust(4).encode()
    return bytes(header)


def rich_exif():
    """EXIF data of a camera: turned, with a thumbnail and a preview in the maker's note."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 12), (255, 0, 0)).save(thumbnail, "JPEG")
    exif = Image.Exif()
    exif[Base.Orientation] = 6  # shown turned by 90 degrees clockwise
    exif[Base.ImageDescription] = "a photo"
    exif[Base.Copyright] = "somebody"
    exif.get_ifd(IFD.Exif).update({
        Base.DateTimeOriginal: "2020:02:07 12:00:00", Base.ExifImageWidth: 37, Base.ExifImageHeight: 50,
        Base.MakerNote: b"note" + thumbnail.getvalue(),
    })  # fmt: skip
    exif.get_ifd(IFD.GPSInfo)[1] = "N"
    block = exif.tobytes()
    start = len(block)  # the thumbnail's directory goes behind, and the first one's link points at it
    tiff = bytearray(block[6:])
    order = "big" if tiff[:2] == b"MM" else "little"
    first = int.from_bytes(tiff[4:8], order)
    link = first + 2 + 12 * int.from_bytes(tiff[first : first + 2], order)
    where = start - 6
    tiff[link : link + 4] = where.to_bytes(4, order)
    content = thumbnail.getvalue()
    entries = [(259, 3, 6), (513, 4, where + 2 + 3 * 12 + 4), (514, 4, len(content))]
    tiff += len(entries).to_bytes(2, order)
    for tag, kind, value in entries:
        tiff += tag.to_bytes(2, order) + kind.to_bytes(2, order) + (1).to_bytes(4, order)
        tiff += value.to_bytes(2, order) + b"\0\0" if kind == 3 else value.to_bytes(4, order)
    tiff += bytes(4) + content
    return b"Exif\0\0" + bytes(tiff), content


XMP = b"<x:xmpmeta><dc:title>a title</dc:title><xmp:Thumbnails><rdf:li>/9j/4AAQ</rdf:li></xmp:Thumbnails></x:xmpmeta>"


def saved(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF"])
def test_previews_are_left_out_however_they_are_stored(kind, tmp_path):
    preview = saved(kind)
    encoded = base64.b64encode(preview)
    lines = b"&#xA;".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    shifted = base64.b64encode(b"xy" + preview)
    scrambled = b"\x01" + preview[1:] if kind == "JPEG" else preview
    exif, text = Image.Exif(), PngInfo()
    exif[Base.ImageDescription], exif[Base.Software] = "a photo", encoded.decode()
    exif.get_ifd(IFD.Exif).update({Base.MakerNote: b"Maker" + scrambled, Base.UserComment: b"ASCII\0\0\0" + encoded})
    fields = b"".join(b"<a:b>%b</a:b><a:c d='data:x;base64,%b'/>" % (one, one) for one in (encoded, lines, shifted))
    text.add_itxt("XML:com.adobe.xmp", (b"<x:xmpmeta><dc:title>a title</dc:title>%b</x:xmpmeta>" % fields).decode())
    text.add_text("Title", "words")
    text.add_text("preview", encoded.decode())
    text.add_text("dump", preview.hex())
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png", exif=exif, pnginfo=text)
    photo = read_photo(tmp_path / "a.png")
    content = bytes(encode(photo.pixels, photo.metadata, tmp_path / "b.png"))
    for trace in (preview[8:40], encoded[8:40], shifted[12:40], preview.hex()[16:60].encode()):
        assert trace not in content
    for kept in (b"a photo", b"a title", b"words"):
        assert kept in content


def test_xmp_in_utf_16_is_left_out():
    image = Image.new("RGB", (4, 4))
    image.info["xmp"] = XMP.decode().encode("utf-16")
    with pytest.warns(RuntimeWarning, match="its XMP is left out, it cannot be read: it is not in UTF-8"):
        assert not read_metadata(image, "a.jpg").xmp


def resource(number, content, name=b""):
    """One of Photoshop's image resources."""
    head = b"8BIM" + number.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0" * ((len(name) + 1) % 2)
    return head + len(content).to_bytes(4, "big") + content + b"\0" * (len(content) % 2)


def dataset(record, number, content):
    """One dataset of IPTC."""
    size = len(content).to_bytes(2, "big") if len(content) < 2**15 else b"\x80\x04" + len(content).to_bytes(4, "big")
    return bytes([0x1C, record, number]) + size + content


PREVIEW = bytes(range(256)) * 200  # raw pixels, which no signature tells
CAPTION = dataset(1, 90, b"\x1b%G") + dataset(2, 120, "a caption, Žofie".encode())
IPTC = CAPTION + dataset(2, 202, PREVIEW) + dataset(7, 10, b"\1") + dataset(8, 10, PREVIEW)
RESOURCES = resource(0x0404, IPTC) + resource(0x07D0, b"a path", b"outline") + resource(0x040C, PREVIEW)
KEPT = resource(0x0404, CAPTION) + resource(0x07D0, b"a path", b"outline")
COMMENTS = (b"first comment", "second, Žofie".encode())


def segments(marker, *contents):
    """Segments of a JPEG file."""
    return b"".join(marker + (len(content) + 2).to_bytes(2, "big") + content for content in contents)


class TestCommentsAndCaptions:
    @pytest.fixture
    def path(self, picture, tmp_path):
        parts = [b"Photoshop 3.0\0" + RESOURCES[i : i + 60_000] for i in range(0, len(RESOURCES), 60_000)]
        extra = segments(b"\xff\xed", *parts) + segments(b"\xff\xfe", *COMMENTS)
        Image.fromarray(picture).save(tmp_path / "a.jpg", extra=extra)
        return tmp_path / "a.jpg"

    def test_of_jpeg_are_kept(self, inpainter, path, mask, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "JPEG compresses")
            assert inpaint_files(inpainter, path, mask, tmp_path / "b.jpg").written
        assert PREVIEW[100:400] not in (tmp_path / "b.jpg").read_bytes()
        with Image.open(tmp_path / "b.jpg") as filled:
            assert [content for marker, content in filled.applist if marker == "COM"] == list(COMMENTS)
            assert getiptcinfo(filled) == {(1, 90): b"\x1b%G", (2, 120): "a caption, Žofie".encode()}
            assert filled.info["photoshop"][0x07D0] == b"a path"

    def test_large_resources_take_several_segments(self, inpainter, picture, mask, tmp_path):
        large = resource(0x07D1, b"ab" * 50_000)
        Image.fromarray(picture).save(tmp_path / "a.tif", tiffinfo={34377: large})
        quiet_fill(inpainter, tmp_path / "a.tif", mask, tmp_path / "b.jpg")
        assert read_photo(tmp_path / "b.jpg").metadata.photoshop == large

    @pytest.mark.parametrize("described", [False, True])
    def test_go_from_jpeg_to_tiff_and_back(self, inpainter, picture, mask, tmp_path, described):
        exif, extra = Image.Exif(), segments(b"\xff\xed", b"Photoshop 3.0\0" + KEPT)
        if described:
            exif[Base.Copyright] = "somebody"
        Image.fromarray(picture).save(tmp_path / "c.jpg", exif=exif, extra=extra)
        assert not quiet_fill(inpainter, tmp_path / "c.jpg", mask, tmp_path / "b.tif").failed
        with Image.open(tmp_path / "b.tif") as filled:
            assert bytes(filled.tag_v2[34377]) == KEPT
        quiet_fill(inpainter, tmp_path / "b.tif", mask, tmp_path / "b.jpg")
        assert read_photo(tmp_path / "b.jpg").metadata.photoshop == KEPT

    def test_comments_become_text_of_png(self, inpainter, path, mask, tmp_path):
        with pytest.warns(RuntimeWarning, match=r"b\.png goes without IPTC and other Photoshop data$"):
            inpaint_files(inpainter, path, mask, tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as filled:
            assert filled.text["Comment"] == "second, Žofie"

    def test_comment_of_gif(self, inpainter, picture, mask, tmp_path):
        Image.fromarray(picture).save(tmp_path / "a.gif", comment=b"a comment")
        quiet_fill(inpainter, tmp_path / "a.gif", mask, tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as filled:
            assert filled.text == {"Comment": "a comment"}

    def test_comment_of_jpeg_2000(self, inpainter, picture, mask, tmp_path):
        Image.fromarray(picture).save(tmp_path / "a.jp2", comment=b"a comment")
        quiet_fill(inpainter, tmp_path / "a.jp2", mask, tmp_path / "b.jp2")
        with Image.open(tmp_path / "b.jp2") as filled:
            assert filled.info["comment"] == b"a comment"

    def test_what_is_never_kept_is_named(self, inpainter, picture, mask, tmp_path):
        extra = segments(b"\xff\xeb", b"JP\0\1") + segments(b"\xff\xe1", b"http://ns.adobe.com/xmp/extension/\0")
        Image.fromarray(picture).save(tmp_path / "a.jpg", extra=extra)
        with pytest.warns(RuntimeWarning, match=r"b\.jpg goes without APP11 segments, APP1 segments$"):
            inpaint_files(inpainter, tmp_path / "a.jpg", mask, tmp_path / "b.jpg")
        text = PngInfo()
        text.add(b"caBX", b"signed")
        text.add_text("Raw profile type iptc", "\niptc\n 4\n1c027800\n")
        Image.fromarray(picture).save(tmp_path / "a.png", pnginfo=text)
        with pytest.warns(RuntimeWarning, match=r"c\.png goes without caBX chunks, raw profile type iptc$"):
            inpaint_files(inpainter, tmp_path / "a.png", mask, tmp_path / "c.png")

    @pytest.mark.parametrize("cut", [1, 40])
    def test_damaged_ones_are_left_out_and_said(self, inpainter, picture, mask, tmp_path, cut):
        content = b"Photoshop 3.0\0" + resource(0x0404, CAPTION)[:-cut]
        Image.fromarray(picture).save(tmp_path / "a.jpg", extra=segments(b"\xff\xed", content))
        with pytest.warns(RuntimeWarning, match=r"its Photoshop data is left out, .* cut off or damaged"):
            inpaint_files(inpainter, tmp_path / "a.jpg", mask, tmp_path / "b.jpg")
        assert not read_photo(tmp_path / "b.jpg").metadata.photoshop


@pytest.mark.parametrize("stored", [
    b" tiff:Orientation='6' exif:PixelXDimension = \"37\">",
    b"><tiff:Orientation>6</tiff:Orientation><tiff:ImageWidth rdf:x=''>37</tiff:ImageWidth >",
])  # fmt: skip
def test_xmp_does_not_turn_an_upright_picture(stored):
    image = Image.new("RGB", (4, 4))
    image.info["xmp"] = b"<rdf:Description tiff:Make='x'" + stored + b"<dc:title>37</dc:title></rdf:Description>"
    wanted = b"<rdf:Description tiff:Make='x'><dc:title>37</dc:title></rdf:Description>"
    assert read_metadata(image, "a.jpg").xmp == wanted


class TestMetadata:
    @pytest.mark.parametrize("before", ["jpg", "png", "webp", "avif", "tif"])
    @pytest.mark.parametrize("after", ["jpg", "png", "webp", "avif", "tif"])
    def test_is_kept_without_pictures_of_the_old_pixels(self, inpainter, picture, mask, tmp_path, before, after):
        exif, thumbnail = rich_exif()
        path = tmp_path / f"turned.{before}"
        extra = {"xmp": XMP, "exif": exif}
        if before == "png":
            text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", XMP.decode())
            extra = {"pnginfo": text, "exif": exif}
        elif before == "tif":
            plain = Image.Exif()
            plain.load(exif)
            plain[700] = XMP
            extra = {"exif": plain}
        Image.fromarray(np.rot90(picture).copy()).save(path, icc_profile=profile("RGB"), dpi=(300, 300), **extra)
        output = tmp_path / f"filled.{after}"
        assert quiet_fill(inpainter, path, mask, output).written == [output]
        content = output.read_bytes()
        assert thumbnail[:60] not in content
        assert b"/9j/" not in content
        with Image.open(output) as filled:
            found = filled.getexif()
            inner = found.get_ifd(IFD.Exif)
            assert filled.size == (50, 37)
            assert found.get(Base.Orientation, 1) == 1
            assert found[Base.ImageDescription] == "a photo"
            assert found[Base.Copyright] == "somebody"
            assert inner[Base.DateTimeOriginal] == "2020:02:07 12:00:00"
            assert (inner[Base.ExifImageWidth], inner[Base.ExifImageHeight]) == (50, 37)
            assert Base.MakerNote not in inner
            assert found.get_ifd(IFD.GPSInfo)[1] == "N"
            assert not found.get_ifd(IFD.IFD1)
            assert filled.info["icc_profile"] == profile("RGB")
            packet = filled.info.get("xmp") or filled.info["XML:com.adobe.xmp"].encode()
            assert b"a title" in packet
            assert b"Thumbnails" not in packet
            if {before, after} <= {"jpg", "png", "tif"}:
                np.testing.assert_allclose([float(value) for value in filled.info["dpi"]], 300, rtol=1e-3)

    @pytest.mark.parametrize("deep", [False, True])
    def test_text_and_colour_chunks_of_png(self, inpainter, picture, hole, mask, tmp_path, deep):
        text = PngInfo()
        text.add(b"gAMA", (45455).to_bytes(4, "big"))
        text.add_text("Title", "words")
        text.add_itxt("Author", "Žofie")
        Image.fromarray(picture).save(tmp_path / "a.png", pnginfo=text, dpi=(72, 72))
        if deep:
            encoded = cv2.imencode(".png", picture.astype(np.uint16) * 257 + 1)[1].tobytes()
            content = (tmp_path / "a.png").read_bytes()
            (tmp_path / "a.png").write_bytes(encoded[:33] + content[33 : content.index(b"IDAT") - 4] + encoded[33:])
        summary = inpaint_files(inpainter, tmp_path / "a.png", mask, tmp_path / "b.png")
        assert not summary.failed
        with Image.open(tmp_path / "b.png") as filled:
            assert filled.text == {"Title": "words", "Author": "Žofie"}
            assert filled.info["gamma"] == 0.45455
            np.testing.assert_allclose(filled.info["dpi"], 72, rtol=1e-3)
        if deep:
            found = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(found[~hole], picture[~hole].astype(np.uint16) * 257 + 1)

    @pytest.mark.parametrize(("mode", "space", "kept"), [
        ("RGB", "RGB", True), ("P", "RGB", True), ("L", "GRAY", True), ("L", "RGB", False), ("RGB", "GRAY", False),
        ("CMYK", "CMYK", True), ("RGB", "none", False),
    ])  # fmt: skip
    def test_profiles_stay_where_they_fit(self, inpainter, picture, mask, tmp_path, mode, space, kept):
        Image.fromarray(picture).convert(mode).save(tmp_path / "a.tif", icc_profile=profile(space))
        quiet_fill(inpainter, tmp_path / "a.tif", mask, tmp_path / "b.tif")
        with Image.open(tmp_path / "b.tif") as filled:
            assert filled.info.get("icc_profile") == (profile(space) if kept else None)
        if not kept:
            with pytest.warns(RuntimeWarning, match=r"c\.tif goes without an ICC profile that is not one for"):
                inpaint_files(inpainter, tmp_path / "a.tif", mask, tmp_path / "c.tif")

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    def test_broken_exif_is_left_out_and_said(self, inpainter, picture, mask, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(picture).save(path, exif=b"Exif\0\0" + bytes(range(9, 90)))
        with pytest.warns(match=r"EXIF|Corrupt|metadata"):
            summary = inpaint_files(inpainter, path, mask, tmp_path / "b.png")
        assert summary.written
        assert not Image.open(tmp_path / "b.png").getexif()

    @pytest.mark.parametrize("turn", range(1, 9))
    def test_deep_pictures_are_turned_as_others(self, inpainter, picture, tmp_path, turn):
        exif = Image.Exif()
        exif[Base.Orientation] = turn
        Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
        encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)[1].tobytes()
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(encoded[:33] + content[33 : content.index(b"IDAT") - 4] + encoded[33:])
        hole = np.zeros(upright.shape[:2], np.uint8)
        hole[10:20, 10:20] = 255
        Image.fromarray(hole).save(tmp_path / "hole.png")
        quiet_fill(inpainter, tmp_path / "a.png", tmp_path / "hole.png", tmp_path / "b.png")
        found = cv2.cvtColor(cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(found[hole == 0], upright[hole == 0].astype(np.uint16) * 257)


class TestWhatIsSaid:
    @pytest.mark.parametrize("suffix", ["jpg", "avif"])
    def test_lossy_formats_once(self, inpainter, picture, mask, tmp_path, suffix):
        (tmp_path / "images").mkdir()
        for name in "abc":
            Image.fromarray(picture).save(tmp_path / "images" / f"{name}.{suffix}")
        with pytest.warns(RuntimeWarning) as said:
            summary = inpaint_files(inpainter, tmp_path / "images", mask, tmp_path / "filled", progress=False)
        assert len(summary.written) == 3
        assert [str(one.message).split()[1] for one in said] == ["compresses"]
        assert all(path.suffix == f".{suffix}" for path in summary.written)

    @pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
    def test_further_frames(self, inpainter, picture, mask, tmp_path, suffix):
        frames = [Image.fromarray(np.roll(picture, shift, 1)) for shift in range(3)]
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.warns(RuntimeWarning, match=rf"a\.{suffix} holds 3 frames: only the first"):
            inpaint_files(inpainter, tmp_path / f"a.{suffix}", mask, tmp_path / "b.png")

    @pytest.mark.parametrize("target", ["tif", "png"])
    def test_first_frame_stays_upright_when_frames_are_counted(self, inpainter, picture, hole, mask, tmp_path, target):
        exif = Image.Exif()
        exif[Base.Orientation] = 6
        frames = [Image.fromarray(np.rot90(np.roll(picture, shift, 1)).copy()) for shift in range(2)]
        frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:], exif=exif)
        assert not quiet_fill(inpainter, tmp_path / "a.tif", mask, tmp_path / f"b.{target}").failed
        with Image.open(tmp_path / f"b.{target}") as filled:
            np.testing.assert_array_equal(np.asarray(filled)[~hole], picture[~hole])

    def test_lab_becomes_rgb(self, inpainter, mask, tmp_path):
        Image.frombytes("LAB", (50, 37), bytes(range(256)) * 21 + bytes(174)).save(tmp_path / "a.tif")
        with pytest.warns(RuntimeWarning, match=r"a\.tif holds L\*a\*b\* colours: it is written as RGB"):
            inpaint_files(inpainter, tmp_path / "a.tif", mask, tmp_path / "b.tif")

    def test_transparent_value_of_deep_grey_is_named(self, inpainter, mask, tmp_path):
        source("I;16", tmp_path / "plain.png")
        Image.open(tmp_path / "plain.png").save(tmp_path / "a.png", transparency=7)
        with pytest.warns(RuntimeWarning, match=r"b\.png goes without its transparent grey value$"):
            inpaint_files(inpainter, tmp_path / "a.png", mask, tmp_path / "b.png")

    def test_depth_that_cannot_be_read(self, inpainter, mask, tmp_path):
        source("RGB;16", tmp_path / "a.jp2")
        with pytest.warns(RuntimeWarning, match=r"a\.jp2 holds 16 bits per channel: 8 of them are kept"):
            inpaint_files(inpainter, tmp_path / "a.jp2", mask, tmp_path / "b.png")


class TestFiles:
    def test_file(self, inpainter, photo, mask, picture, hole, tmp_path):
        output = tmp_path / "new" / "filled.png"
        summary = inpaint_files(inpainter, photo, mask, output)
        assert summary.written == [output]
        assert not summary.failed
        np.testing.assert_array_equal(np.asarray(Image.open(output)), inpainter(picture, hole))

    def test_inverted_mask(self, inpainter, photo, mask, picture, hole, tmp_path):
        inpaint_files(inpainter, photo, mask, tmp_path / "filled.png", FileOptions(invert_mask=True))
        found = np.asarray(Image.open(tmp_path / "filled.png"))
        np.testing.assert_array_equal(found[hole], picture[hole])

    def test_existing_files_are_left_alone(self, inpainter, photo, mask, tmp_path):
        output = tmp_path / "filled.png"
        output.write_bytes(b"mine")
        summary = inpaint_files(inpainter, photo, mask, output)
        assert "--overwrite" in summary.failed[0][1]
        assert output.read_bytes() == b"mine"
        assert inpaint_files(inpainter, photo, mask, output, FileOptions(overwrite=True)).written == [output]
        assert Image.open(output).size == (50, 37)

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
        assert summary.written == [output / "a.png", output / "deep" / "b.bmp"]
        assert [path.name for path, _ in summary.failed] == ["c.png", "d.jpg"]
        assert "no mask" in summary.failed[0][1]
        assert sorted(path.name for path in output.rglob("*.*")) == ["a.png", "b.bmp"]

    def test_one_mask_for_a_folder(self, inpainter, photo, mask, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        photo.rename(images / "photo.png")
        summary = inpaint_files(inpainter, images, mask, tmp_path / "filled", progress=False)
        assert summary.written == [tmp_path / "filled" / "photo.png"]

    def test_names_that_clash(self, inpainter, photo, mask, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        for suffix in ("png", "gif"):
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

    def test_masks_among_the_images(self, inpainter, photo, mask, tmp_path):
        summary = inpaint_files(inpainter, tmp_path, mask, tmp_path.parent / f"{tmp_path.name}-filled", progress=False)
        assert [path.name for path in summary.written] == ["photo.png"]

    def test_mask_from_alpha(self, inpainter, picture, hole, tmp_path):
        layered = Image.fromarray(picture)
        layered.putalpha(Image.fromarray(np.where(hole, 0, 200).astype(np.uint8)))
        layered.save(tmp_path / "a.png")
        inpaint_files(inpainter, tmp_path / "a.png", None, tmp_path / "b.png")
        found = np.asarray(Image.open(tmp_path / "b.png"))
        np.testing.assert_array_equal(found[..., :3], inpainter(picture, hole))
        np.testing.assert_array_equal(found[..., 3], np.where(hole, 255, 200))
        Image.fromarray(picture).save(tmp_path / "c.png")
        summary = inpaint_files(inpainter, tmp_path / "c.png", None, tmp_path / "d.png")
        assert "no alpha channel" in summary.failed[0][1]

    def test_dilated_mask(self, inpainter, photo, mask, picture, hole, tmp_path):
        inpaint_files(inpainter, photo, mask, tmp_path / "b.png", FileOptions(mask_dilate=3))
        grown = scipy.ndimage.binary_dilation(hole, iterations=3)
        found = np.asarray(Image.open(tmp_path / "b.png"))
        np.testing.assert_array_equal(found, inpainter(picture, grown))

    def test_existing_files_are_skipped_when_asked(self, inpainter, picture, mask, tmp_path):
        (tmp_path / "images").mkdir()
        for name in ("a", "b"):
            Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "filled").mkdir()
        (tmp_path / "filled" / "a.png").write_bytes(b"mine")
        summary = inpaint_files(
            inpainter, tmp_path / "images", mask, tmp_path / "filled", FileOptions(skip_existing=True), progress=False
        )
        assert summary.skipped == [tmp_path / "filled" / "a.png"]
        assert summary.written == [tmp_path / "filled" / "b.png"]
        assert (tmp_path / "filled" / "a.png").read_bytes() == b"mine"

    def test_folders_are_filled_in_batches(self, inpainter, picture, mask, tmp_path, monkeypatch):
        (tmp_path / "images").mkdir()
        for number in range(7):
            Image.fromarray(np.roll(picture, number, 1)).save(tmp_path / "images" / f"{number}.png")
        seen, predict = [], inpainter._predict
        monkeypatch.setattr(inpainter, "_predict", lambda image, hole: seen.append(len(image)) or predict(image, hole))
        options = FileOptions(batch_size=3)
        summary = inpaint_files(inpainter, tmp_path / "images", mask, tmp_path / "filled", options, progress=False)
        assert len(summary.written) == 7
        assert seen == [3, 3, 1]

    def test_one_picture_that_cannot_be_filled_does_not_harm_its_batch(self, inpainter, picture, mask, tmp_path):
        (tmp_path / "images").mkdir()
        for name in ("a", "c"):
            Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.full((37, 50), np.nan, np.float32)).save(tmp_path / "images" / "b.tif")
        summary = inpaint_files(inpainter, tmp_path / "images", mask, tmp_path / "filled", progress=False)
        assert [path.name for path in summary.written] == ["a.png", "c.png"]
        assert "NaN" in summary.failed[0][1]
        wanted = inpainter(picture, np.asarray(Image.open(mask)))
        for path in summary.written:
            np.testing.assert_array_equal(np.asarray(Image.open(path)), wanted)

    def test_png_for_everything(self, inpainter, picture, mask, tmp_path):
        (tmp_path / "images").mkdir()
        Image.fromarray(picture).save(tmp_path / "images" / "a.jpg")
        options = FileOptions(format="png")
        summary = inpaint_files(inpainter, tmp_path / "images", mask, tmp_path / "filled", options, progress=False)
        assert summary.written == [tmp_path / "filled" / "a.png"]

    def test_inputs_that_cannot_be_meant(self, inpainter, picture, photo, mask, tmp_path):
        for image, hole, output, message in (
            (photo, photo, tmp_path / "x.png", "the image and the mask are the same"),
            (tmp_path, tmp_path, tmp_path.parent / "x", "the image and the mask are the same"),
            (tmp_path, mask, tmp_path / "filled", "would be read again"),
            (photo, mask, mask, "would replace the mask"),
        ):
            with pytest.raises(ValueError, match=message):
                inpaint_files(inpainter, image, hole, output, FileOptions(overwrite=True))
        for wrong in ({"mask_dilate": -1}, {"batch_size": 0}):
            with pytest.raises(ValueError, match="expected mask_dilate >= 0 and batch_size >= 1"):
                FileOptions(**wrong)

    def test_a_full_disk_leaves_nothing_behind(self, inpainter, photo, mask, tmp_path, monkeypatch):
        def full(path, content):
            path.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files.Path, "write_bytes", full)
        before = sorted(tmp_path.iterdir())
        summary = inpaint_files(inpainter, photo, mask, tmp_path / "b.png")
        assert summary.failed == [(photo, f"{tmp_path / 'b.png'}: No space left on device")]
        assert sorted(tmp_path.iterdir()) == before
