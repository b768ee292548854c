"""Finding image files, reading them as RGB whatever they are, and cropping them to a square."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"),
)
LIST_SUFFIXES = (".txt", ".lst", ".flist")
CROPS = ("center", "random")
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_SMALLEST_CROP = 0.5
_PNG = b"\x89PNG\r\n\x1a\n"


def find_images(source: PathLike) -> list[Path]:
    """Return the image files that ``source`` stands for.

    Args:
        source: an image file; a folder, searched recursively by suffix in either case (links are followed, hidden
            names are not), sorted; or a ``.txt``, ``.lst`` or ``.flist`` file with one path per line in its own
            order, relative to the list's folder (empty lines are skipped).

    Raises:
        FileNotFoundError: there is nothing at ``source``.
        ValueError: the folder or list holds no image, or the file is neither an image nor a list by its suffix.
    """
    source = Path(source)
    if source.is_dir():
        found = [source / name for name in walk_images(source)]
        if not found:
            raise ValueError(f"no images in {source} or its folders: looked for *{', *'.join(IMAGE_SUFFIXES)}")
        return found
    if not source.exists():
        raise FileNotFoundError(f"no images at {source}: there is no such file or folder")
    _require_regular(source)
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return [source]
    if source.suffix.lower() in LIST_SUFFIXES:
        return _read_list(source)
    raise ValueError(
        f"expected a folder, an image ({', '.join(IMAGE_SUFFIXES)}) or a list ({', '.join(LIST_SUFFIXES)}), "
        f"got {source}"
    )


def walk_images(folder: Path, stamps: dict[str, int] | None = None) -> Iterator[str]:
    """Yield the visible image files below a folder, relative to it and sorted; see `find_images`.

    A folder that is reached twice through links counts once. ``stamps`` receives each folder that was searched, with
    its time of change in nanoseconds before it was.
    """
    seen: set[str] = set()

    def search(below: str) -> Iterator[str]:
        path = os.path.join(folder, below)
        real = os.path.realpath(path)
        if real in seen:
            return
        seen.add(real)
        names, folders = [], set()
        try:
            when = os.stat(path).st_mtime_ns
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.add(entry.name)
                    if entry.name in folders or entry.name.lower().endswith(IMAGE_SUFFIXES):
                        names.append(entry.name)
        except OSError:  # unreadable
            return
        if stamps is not None:
            stamps[os.path.abspath(path)] = when
        for name in sorted(names):
            if name in folders:
                yield from search(os.path.join(below, name))
            else:
                yield os.path.join(below, name)

    return search("")


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"the image list {path} is not UTF-8 text: {error}") from error
    found = [path.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"the image list {path} is empty: expected one path per line")
    return found


def read_image(
    path: PathLike | IO[bytes], least_side: int = 0, *, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Read any picture as 8-bit RGB, turned as its EXIF orientation says; see `to_rgb` for the conversion.

    Args:
        path: a file, by name or open.
        least_side: pixels that neither side need exceed: a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4
            and 1/8 that keeps both sides as long. 0 decodes every pixel.
        background: shows through where the picture is transparent.

    Raises:
        ValueError: the file is missing, truncated, corrupt or not an image; the message names it.
    """
    source = path if isinstance(path, str | os.PathLike) else path.read()
    with open_upright(source, least_side) as image:
        return to_rgb(image, background=background)


def open_upright(path: PathLike | bytes, least_side: int = 0) -> Image.Image:
    """Open a picture, decode its first frame in its own mode and turn it as its EXIF orientation says.

    ``path`` is a file, or the content of one; ``least_side`` as in `read_image`. The file stays open for whoever reads
    metadata of it: use the result as a context manager. EXIF data, or text of a PNG file, that cannot be read is left
    out with a RuntimeWarning.

    Raises:
        ValueError: the file is missing, no regular file, truncated, corrupt or not an image; the message names it.
    """
    name = name_of(path)
    try:
        if not isinstance(path, bytes):
            _require_regular(path)
        image = _decode(path, least_side)
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ValueError(f"{name} cannot be read as an image: {_reason(error, name)}") from error
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        warnings.warn(f"{name}: its EXIF data is left out, it cannot be read: {error}", RuntimeWarning, stacklevel=2)
        for key in ("exif", "Raw profile type exif"):
            image.info.pop(key, None)
        image._exif = None
    return image


def name_of(source: PathLike | bytes) -> str:
    """Return what messages call a file, or the content of one."""
    return "the picture" if isinstance(source, bytes) else os.fspath(source)


def open_binary(source: PathLike | bytes) -> IO[bytes]:
    """Open a file, or the content of one, for reading."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _decode(path: PathLike | bytes, least_side: int) -> Image.Image:
    try:
        return _loaded(Image.open(io.BytesIO(path) if isinstance(path, bytes) else path), least_side)
    except Exception as error:
        with open_binary(path) as file:
            damaged = file.read() if file.read(8) == _PNG else b""
        essential = essential_png(_PNG + damaged)
        if essential == _PNG + damaged or not damaged:
            raise
        try:
            image = _loaded(Image.open(io.BytesIO(essential)))
        except Exception:
            raise error from None
        warnings.warn(
            f"{name_of(path)}: its metadata is left out, it cannot be read: {error}", RuntimeWarning, stacklevel=4
        )
        return image


def _loaded(image: Image.Image, least_side: int = 0) -> Image.Image:
    try:
        if least_side:
            image.draft(None, (least_side, least_side))  # fewer coefficients of each 8 x 8 block of a JPEG
        image.load()
    except BaseException:
        image.close()
        raise
    return image


def essential_png(content: bytes) -> bytes:
    """Return the content of a PNG file without what is not needed to decode its pixels."""
    kept, position = [content[:8]], 8
    while position + 12 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[position:end])
        position = end
    return b"".join(kept)


def _require_regular(path: PathLike) -> None:
    """Refuse pipes and devices, which may never end, and folders."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        found = "a folder" if stat.S_ISDIR(kind) else "a pipe" if stat.S_ISFIFO(kind) else "a device or socket"
        raise ValueError(f"expected a regular file, but {os.fspath(path)} is {found}")


def _reason(error: Exception, path: PathLike) -> str:
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return error.strerror
    text = str(error).replace(f" {os.fspath(path)!r}", "")
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def refuse_output_inside(source: PathLike, output: PathLike) -> None:
    """Raise ValueError if ``output`` lies in the folder ``source``, whose next reading would take it for input."""
    if Path(source).is_dir() and Path(output).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"the output {output} lies in the folder {source}, which would be read again: choose another")


def to_rgb(image: Image.Image, *, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB.

    Transparency is composited over ``background``: the colour below transparent pixels is arbitrary, and nobody
    has seen it. 16-bit grey (also as 32-bit integers) is divided by 257; float grey is taken as [0, 1] when its
    maximum is at most 1, else as [0, 255]; both are clipped. Colour profiles are not applied.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_grey_to_u8(np.asarray(image), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("RGB")


def _grey_to_u8(grey: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    values = grey.astype(np.float64)
    if mode != "F":
        values /= 257.0
    elif np.nanmax(values, initial=0.0) <= 1.0:
        values *= 255.0
    return np.nan_to_num(values).clip(0, 255).round().astype(np.uint8)


def least_side_for(size: int, crop: str) -> int:
    """Shortest side in pixels of a picture that a JPEG may be shrunk to before `square_crop_resize`.

    Twice that of the square, so that its place is right to a quarter of a pixel and its filter still averages.
    """
    return 2 * size if crop == "center" else round(2 * size / _SMALLEST_CROP)


def square_crop_resize(
    image: Image.Image, size: int, *, crop: str = "center", rng: np.random.Generator | None = None
) -> Image.Image:
    """Cut a square out of an RGB picture and resize it to ``size`` x ``size`` (Pillow's bilinear filter).

    ``"center"`` takes the short side from the middle, as the original system does. ``"random"`` draws the side
    from half the short side to all of it, but not below ``size`` where the picture allows, and then the place.

    Raises:
        ValueError: unknown ``crop``, ``size`` below 1, or ``"random"`` without ``rng``.
    """
    if crop not in CROPS:
        raise ValueError(f"expected a crop of {' or '.join(CROPS)}, got {crop!r}")
    if size < 1:
        raise ValueError(f"expected a size of at least 1, got {size}")
    width, height = image.size
    short = min(width, height)
    if crop == "center":
        side, left, top = short, (width - short) // 2, (height - short) // 2
    else:
        if rng is None:
            raise ValueError("a random crop needs rng, a numpy.random.Generator")
        smallest = min(short, max(size, round(_SMALLEST_CROP * short), 1))
        side = int(rng.integers(smallest, short, endpoint=True))
        left = int(rng.integers(0, width - side, endpoint=True))
        top = int(rng.integers(0, height - side, endpoint=True))
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def to_signed_tensor(image: npt.NDArray[np.uint8] | Image.Image) -> torch.Tensor:
    """Return a (3, H, W) float32 tensor in [-1, 1], ``u8 / 127.5 - 1``, of (H, W, 3) uint8 values or an RGB picture.

    Raises:
        TypeError, ValueError: other types or shapes.
    """
    values = np.asarray(image)
    if values.dtype != np.uint8:
        raise TypeError(f"expected uint8 values, got {values.dtype}")
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"expected the shape (H, W, 3), got {values.shape}")
    planes = torch.from_numpy(values.transpose(2, 0, 1).copy())
    return planes.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8_image(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 values of a (3, H, W) tensor in [-1, 1], clipped; undoes `to_signed_tensor`."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected the shape (3, H, W), got {tuple(image.shape)}")
    values = image.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return values.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
