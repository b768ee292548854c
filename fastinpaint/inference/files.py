"""Fill picture files: one, or a folder of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from fastinpaint.data.images import find_images
from fastinpaint.files import atomic_write
from fastinpaint.inference.inpainter import Inpainter

_JPEG = {"quality": 95, "subsampling": 0}
_QUALITY: dict[str, dict[str, Any]] = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jpe": _JPEG,
    ".jfif": _JPEG,
    ".webp": {"lossless": True},
}
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, EOFError, Image.DecompressionBombError)  # Pillow raises all


@dataclass
class Summary:
    """What became of each file: those written, and those that failed with the reason."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    image: Path
    mask: Path | None
    output: Path


def inpaint_files(
    inpainter: Inpainter,
    image: Path,
    mask: Path,
    output: Path,
    *,
    invert_mask: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Fill one file, or every image below a folder.

    EXIF orientation is applied, so a mask is drawn on the picture as viewers show it; the rest of EXIF, the ICC
    profile and alpha are kept. Pixels outside the hole are kept exactly, unless ``output`` is a JPEG file, which
    compresses them anew. A folder's results are PNG files under the same relative paths.

    Args:
        inpainter: Fills one picture.
        image: A file or a folder.
        mask: A file (used for every image), or with a folder of images a folder that holds for each image a mask of
            the same relative path, whatever the suffix. White, above 127, is hole.
        output: A file for a file (its suffix picks the format), a folder for a folder.
        invert_mask: Black is hole instead.
        overwrite: Replace files that exist; otherwise they fail with that reason and stay as they are.
        progress: Show a progress bar for folders.

    Returns:
        The files written, and each that failed with the reason: unreadable, no mask, another size, already there.

    Raises:
        FileNotFoundError: ``image`` or ``mask`` does not exist.
        ValueError: No image below the folder, two images or masks of one name, or a folder for a file.
    """
    for path in (image, mask):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder at {path}")
    jobs = _folder_jobs(image, mask, output) if image.is_dir() else [_file_job(image, mask, output)]
    summary = Summary()
    for job in tqdm(jobs, unit="image", disable=not (progress and image.is_dir())):
        reason = _attempt(inpainter, job, invert_mask, overwrite)
        if reason is None:
            summary.written.append(job.output)
        else:
            summary.failed.append((job.image, reason))
    return summary


def _file_job(image: Path, mask: Path, output: Path) -> _Job:
    if mask.is_dir():
        raise ValueError(f"one image wants one mask file, but {mask} is a folder")
    if output.is_dir():
        raise ValueError(f"one image wants an output file, but {output} is a folder")
    if output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"the output's suffix picks its format, but {output.name!r} has none that Pillow writes")
    return _Job(image, mask, output)


def _folder_jobs(folder: Path, mask: Path, output: Path) -> list[_Job]:
    if output.is_file():
        raise ValueError(f"a folder of images wants an output folder, but {output} is a file")
    images = _by_name(folder)
    masks = _by_name(mask) if mask.is_dir() else None
    return [
        _Job(path, mask if masks is None else masks.get(name), output / name.with_name(name.name + ".png"))
        for name, path in images.items()
    ]


def _by_name(folder: Path) -> dict[Path, Path]:
    """Map relative paths without suffix to the images below a folder."""
    found: dict[Path, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("")
        if name in found:
            raise ValueError(f"{found[name]} and {path} differ only in their suffix: rename one")
        found[name] = path
    return found


def _attempt(inpainter: Inpainter, job: _Job, invert_mask: bool, overwrite: bool) -> str | None:
    """Fill one file; return why it failed, None if it did not."""
    try:
        _fill_file(inpainter, job, invert_mask, overwrite)
    except UNREADABLE as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _fill_file(inpainter: Inpainter, job: _Job, invert_mask: bool, overwrite: bool) -> None:
    if job.output.exists() and not overwrite:
        raise FileExistsError(f"{job.output} exists already; --overwrite replaces it")
    if job.mask is None:
        raise FileNotFoundError("the mask folder has no mask of this name")
    picture = read_picture(job.image)
    filled = inpainter(picture, read_hole(job.mask, invert_mask))
    with atomic_write(job.output) as temporary:
        write_like(picture, filled, temporary, job.output.suffix)


def read_picture(source: Path | IO[bytes]) -> Image.Image:
    """Read a picture as viewers show it: EXIF orientation applied."""
    with Image.open(source) as picture:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return picture


def read_hole(source: Path | IO[bytes], invert_mask: bool = False) -> npt.NDArray[np.bool_]:
    """Read a mask file as (H, W), True in the hole: above 127, or below 128 if inverted."""
    return (np.asarray(read_picture(source).convert("L")) > 127) != invert_mask


def write_like(
    picture: Image.Image, filled: Image.Image, target: Path | IO[bytes], suffix: str, **options: Any
) -> None:
    """Write ``filled`` in the format of ``suffix`` (".png", ...), with the EXIF and ICC profile of ``picture``.

    ``options`` are further ones of Pillow's encoder.
    """
    kept: dict[str, Any] = {key: picture.info[key] for key in ("exif", "icc_profile") if picture.info.get(key)}
    file_format = Image.registered_extensions()[suffix.lower()]
    filled.save(target, format=file_format, **kept, **_QUALITY.get(suffix.lower(), {}), **options)
