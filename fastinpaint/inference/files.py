"""Fill picture files: one, or a folder of them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from fastinpaint.data.images import find_images, refuse_output_inside
from fastinpaint.data.masks import check_mask, dilate, read_mask
from fastinpaint.errors import one_line
from fastinpaint.files import atomic_write
from fastinpaint.inference.formats import FORMATS, encode, format_of
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.inference.photo import Photo, read_photo

T = TypeVar("T")
Hole = npt.NDArray[np.bool_]  # (H, W), True in the hole
_GROUP_PIXELS = 2**24  # of pictures that are in memory together


@dataclass
class Summary:
    """What became of each file: written, skipped because it was there, or failed, with the reason and the exception."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


@dataclass(frozen=True)
class FileOptions:
    """How files are filled.

    Attributes:
        invert_mask: Black is hole, or for holes from alpha what is opaque.
        mask_dilate: Pixels by which holes grow on every side.
        overwrite: Replace files that exist; otherwise they fail with that reason and stay as they are.
        skip_existing: Leave out pictures whose output exists.
        format: Of a folder's results: ``"same"`` as each picture has, or PNG where that cannot hold it (GIF, MPO);
            ``"png"``.
        batch_size: Regions that are filled in one pass, and pictures that are read ahead.

    Raises:
        ValueError: A negative ``mask_dilate``, or a ``batch_size`` below 1.
    """

    invert_mask: bool = False
    mask_dilate: int = 0
    overwrite: bool = False
    skip_existing: bool = False
    format: Literal["same", "png"] = "same"
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.mask_dilate < 0 or self.batch_size < 1:
            raise ValueError(
                f"expected mask_dilate >= 0 and batch_size >= 1, got {self.mask_dilate} and {self.batch_size}"
            )


@dataclass(frozen=True)
class _Job:
    image: Path
    mask: Path | None  # None: the picture's alpha channel
    output: Path


@dataclass
class _Loaded:
    job: _Job
    photo: Photo
    hole: Hole


def inpaint_files(
    inpainter: Inpainter,
    image: Path,
    mask: Path | None,
    output: Path,
    options: FileOptions | None = None,
    *,
    progress: bool = True,
) -> Summary:
    """Fill one file, or every image below a folder.

    EXIF orientation is applied, so a mask is drawn on the picture as viewers show it. The rest of EXIF without
    thumbnail and previews, XMP, resolution, text, the ICC profile where it fits and alpha are kept as far as the format
    holds them. Pixels outside the hole are kept exactly, at their depth; JPEG and AVIF files compress them anew, which
    is warned about once. A picture that a format cannot hold unchanged fails. Each file fails alone.

    Args:
        inpainter: Fills pictures.
        image: A file or a folder.
        mask: A file (used for every image), or with a folder of images a folder that holds for each image a mask of
            the same relative path, whatever the suffix: white, above 127, is hole. None takes what the image's alpha
            channel leaves transparent, and makes it opaque.
        output: A file for a file (its suffix picks the format), a folder for a folder.
        options: How.
        progress: Show a progress bar for folders.

    Returns:
        The files written or skipped, and each that failed with the reason: unreadable, no mask, another size, ...

    Raises:
        FileNotFoundError: ``image`` or ``mask`` does not exist.
        ValueError: No image below the folder, two images of one output, a folder for a file, an image that is its own
            mask, or an output folder inside the folder of images or masks.
    """
    options = options or FileOptions()
    for path in (image, mask):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder at {path}")
    if mask is not None and os.path.samefile(image, mask):
        raise ValueError(f"the image and the mask are the same: {image}")
    jobs = _folder_jobs(image, mask, output, options) if image.is_dir() else [_file_job(image, mask, output)]
    summary = Summary()
    if options.skip_existing:
        summary.skipped = [job.output for job in jobs if job.output.exists()]
        jobs = [job for job in jobs if not job.output.exists()]
    with tqdm(total=len(jobs), unit="image", disable=not (progress and image.is_dir())) as bar:
        _Run(inpainter, options, summary, bar).all(jobs)
    _say_what_is_lossy(summary.written)
    return summary


class _Run:
    """The filling of a list of files: the next ones are read and the last ones written while some are filled."""

    def __init__(self, inpainter: Inpainter, options: FileOptions, summary: Summary, bar: Any) -> None:
        self.inpainter, self.options, self.summary, self.bar = inpainter, options, summary, bar

    def all(self, jobs: Sequence[_Job]) -> None:
        """Fill them; nothing is raised for a file's fault."""
        groups = list(_groups(jobs, self.options.batch_size))
        with ThreadPoolExecutor(max_workers=2) as pool:
            reading = [pool.submit(_load, job, self.options) for job in groups[0]] if groups else []
            writing: list[tuple[_Job, Future[Path]]] = []
            for group, following in zip(groups, [*groups[1:], []], strict=False):  # none at all if there are no files
                found = [self._result(job, future) for job, future in zip(group, reading, strict=True)]
                loaded = [one for one in found if one is not None]
                reading = [pool.submit(_load, job, self.options) for job in following]
                self._finish(writing)
                writing = [(one.job, pool.submit(_store, one)) for one in self._fill(loaded)]
            self._finish(writing)

    def _result(self, job: _Job, future: Future[T]) -> T | None:
        try:
            return future.result()
        except Exception as error:
            self._failed(job, error)
            return None

    def _fill(self, loaded: list[_Loaded]) -> list[_Loaded]:
        """Fill pictures in one go, or, if that fails, one by one to find out whose fault it is."""
        try:
            self._fill_together(loaded)
            return loaded
        except Exception as error:
            if len(loaded) == 1:
                self._failed(loaded[0].job, error)
                return []
        return [one for each in loaded for one in self._fill([each])]

    def _fill_together(self, loaded: list[_Loaded]) -> None:
        filled = self.inpainter.fill_many(
            [one.photo.pixels for one in loaded], [one.hole for one in loaded], self.options.batch_size, in_place=True
        )
        for one, pixels in zip(loaded, filled, strict=True):
            one.photo.pixels = pixels

    def _finish(self, writing: list[tuple[_Job, Future[Path]]]) -> None:
        for job, future in writing:
            if path := self._result(job, future):
                self.summary.written.append(path)
                self.bar.update()

    def _failed(self, job: _Job, error: Exception) -> None:
        self.summary.failed.append((job.image, one_line(error)))
        self.summary.errors.append(error)
        self.bar.update()


def _load(job: _Job, options: FileOptions) -> _Loaded:
    """Read a picture and its mask."""
    if job.output.exists() and not options.overwrite:
        raise FileExistsError(f"{job.output} exists already; --overwrite replaces it")
    photo = read_photo(job.image)
    if job.mask is not None and job.mask.is_dir():
        raise FileNotFoundError(f"the mask folder {job.mask} has no mask of this name")
    if job.mask is None:
        hole = _hole_of_alpha(photo, job.image, options.invert_mask)
    else:
        hole = read_mask(job.mask, options.invert_mask).view(bool)
    if hole.shape != photo.size:
        wanted, found = ("x".join(map(str, size[::-1])) for size in (photo.size, hole.shape))
        raise ValueError(f"the mask {job.mask} must have the image's width and height {wanted}, got {found}")
    if options.mask_dilate:
        grown = dilate(hole.view(np.uint8), options.mask_dilate)
        check_mask(grown, job.mask or job.image, f"--mask-dilate {options.mask_dilate} grew it")
        hole = grown.view(bool)
    if job.mask is None:
        _make_opaque(photo, hole)
    return _Loaded(job, photo, hole)


def _hole_of_alpha(photo: Photo, path: Path, invert: bool) -> Hole:
    """Return what the alpha channel leaves transparent."""
    if isinstance(photo.pixels, Image.Image):
        if not photo.pixels.has_transparency_data:
            raise ValueError(f"{path} has no alpha channel to take a mask from")
        if photo.pixels.mode not in ("LA", "RGBA"):
            photo.pixels = photo.pixels.convert("RGBA")
        alpha, opaque = np.asarray(photo.pixels.getchannel("A")), 255
    else:
        if photo.pixels.shape[2] != 4:
            raise ValueError(f"{path} has no alpha channel to take a mask from")
        alpha, opaque = photo.pixels[..., 3], 65535
    hole: Hole = (alpha <= opaque // 2) != invert
    check_mask(hole.view(np.uint8), path, f"alpha is {alpha.min()} to {alpha.max()}, up to {opaque // 2} is hole")
    return hole


def _make_opaque(photo: Photo, hole: Hole) -> None:
    if isinstance(photo.pixels, Image.Image):
        alpha = np.array(photo.pixels.getchannel("A"))
        alpha[hole] = 255
        photo.pixels.putalpha(Image.fromarray(alpha))
    else:
        photo.pixels[hole, 3] = 65535


def _store(loaded: _Loaded) -> Path:
    """Encode in memory, so that a full disk or a faulty encoder leaves nothing behind, and write."""
    output = loaded.job.output
    content = encode(loaded.photo.pixels, loaded.photo.metadata, output)
    try:
        with atomic_write(output) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(output)) from error  # it names no file, or the temporary one
    return output


def _say_what_is_lossy(written: Sequence[Path]) -> None:
    for name in sorted({format_of(path).name for path in written if not format_of(path).lossless}):
        warnings.warn(
            f"{name} compresses the whole picture anew, so pixels outside the hole change slightly; PNG keeps them",
            RuntimeWarning,
            stacklevel=3,
        )


def _groups(jobs: Sequence[_Job], count: int) -> Iterator[list[_Job]]:
    """Cut a list of files into groups whose pictures are in memory together."""
    group: list[_Job] = []
    pixels = 0
    for job in jobs:
        size = _pixels(job.image) if len(jobs) > 1 else 0
        if group and (len(group) == count or pixels + size > _GROUP_PIXELS):
            yield group
            group, pixels = [], 0
        group.append(job)
        pixels += size
    if group:
        yield group


def _pixels(path: Path) -> int:
    try:
        if not path.is_file():
            return 0
        with Image.open(path) as image:
            return math.prod(image.size)
    except Exception:  # reading it will say why
        return 0


def _file_job(image: Path, mask: Path | None, output: Path) -> _Job:
    if mask is not None and mask.is_dir():
        raise ValueError(f"one image wants one mask file, but {mask} is a folder")
    if output.is_dir():
        raise ValueError(f"one image wants an output file, but {output} is a folder")
    format_of(output)
    if mask is not None and output.exists() and os.path.samefile(mask, output):
        raise ValueError(f"the output would replace the mask {mask}")
    return _Job(image, mask, output)


def _folder_jobs(folder: Path, mask: Path | None, output: Path, options: FileOptions) -> list[_Job]:
    if output.exists() and not output.is_dir():
        raise ValueError(f"a folder of images wants an output folder, but {output} is a file")
    for source in (folder, mask):
        if source is not None:
            refuse_output_inside(source, output)
    masks = _masks_by_name(mask) if mask is not None and mask.is_dir() else None
    own = {path.resolve() for path in ([] if mask is None else masks.values() if masks is not None else [mask])}
    jobs: dict[Path, _Job] = {}
    for path in find_images(folder):
        if path.resolve() in own:
            continue  # the masks lie among the images
        name = path.relative_to(folder)
        same = options.format == "same" and name.suffix.lower() in FORMATS
        target = output / (name if same else name.with_suffix(".png"))
        if target in jobs:
            raise ValueError(f"{jobs[target].image} and {path} differ only in their suffix: rename one")
        found = mask if masks is None else masks.get(name.with_suffix(""), mask)
        jobs[target] = _Job(path, found, target)
    if not jobs:
        raise ValueError(f"no images in {folder} beside the masks")
    return list(jobs.values())


def _masks_by_name(folder: Path) -> dict[Path, Path]:
    """Map relative paths without suffix to the masks below a folder."""
    found: dict[Path, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("")
        if name in found:
            raise ValueError(f"{found[name]} and {path} differ only in their suffix: rename one")
        found[name] = path
    return found
