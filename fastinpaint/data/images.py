"""Finding image files, reading them as RGB whatever they are, and cropping them to a square."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".avif"),
)
LIST_SUFFIXES = (".txt", ".lst", ".flist")
CROPS = ("center", "random")
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_SMALLEST_CROP = 0.5


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
    if not source.is_file():
        raise FileNotFoundError(f"no images at {source}: there is no such file or folder")
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


def read_image(path: PathLike | IO[bytes], *, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Read any picture as 8-bit RGB, turned as its EXIF orientation says; see `to_rgb` for the conversion.

    Raises:
        ValueError: the file is missing, truncated, corrupt or not an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image), background=background)
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ValueError(f"{path} cannot be read as an image: {type(error).__name__}: {error}") from error


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
