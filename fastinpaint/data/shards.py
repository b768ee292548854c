"""Images in tar files of the WebDataset layout, read in any order.

WebDataset itself reads shards as streams, shuffles within a buffer and divides shards among processes. Here the places
of all images are indexed once and images are read by number, so that order, resuming and division among processes are
those of a folder of images. Local files only.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from fastinpaint.data.images import IMAGE_SUFFIXES, read_image
from fastinpaint.data.index import cached_index, write_index
from fastinpaint.extras import extra
from fastinpaint.files import PathLike

SHARD_SUFFIX = ".tar"


def find_shards(source: PathLike) -> list[Path]:
    """Return the shards that ``source`` stands for; none where it stands for something else.

    Args:
        source: a shard; a folder with shards in it, taken in the order of their names; or names with a range in
            braces, ``train-{000000..000099}.tar``, which the package webdataset expands.

    Raises:
        FileNotFoundError: a shard that is not there.
        ImportError: braces without the package webdataset.
    """
    source = Path(source)
    if source.is_dir():
        return sorted(path for path in source.glob(f"*{SHARD_SUFFIX}") if not path.name.startswith("."))
    if source.suffix.lower() != SHARD_SUFFIX:
        return []
    shards = [source]
    if "{" in str(source) and not source.exists():
        with extra("webdataset", "a data option with braces"):
            from webdataset.shardlists import expand_urls
        shards = [Path(name) for name in expand_urls(os.fspath(source))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"no shard at {missing[0]}; {len(missing)} of {len(shards)} are missing")
    return shards


def image_places(source: PathLike, shards: Sequence[Path]) -> Sequence[Path]:
    """Return where each image lies, ``SHARD:FIRST_BYTE:BYTES:NAME``, from an index that is kept as for a folder.

    An image is a file whose name after the first dot is that of an image format: ``0001.jpg``, not ``0001.mask.png``.

    Raises:
        ValueError: a damaged shard, or shards without images.
    """
    places = cached_index(Path(source))
    if places is None:
        stamps = {str(shard.absolute()): shard.stat().st_mtime_ns for shard in shards}
        places = write_index(Path(source), Path(), _places(shards), stamps)
    if not places:
        raise ValueError(f"no images in the {len(shards)} shards of {source}: looked for *{', *'.join(IMAGE_SUFFIXES)}")
    return places


def read_place(place: Path, least_side: int = 0) -> Image.Image:
    """Read an image as `read_image` does, with ``least_side``, from where `image_places` says that it lies.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    shard, first, count, name = os.fspath(place).rsplit(":", 3)
    try:
        with open(shard, "rb") as file:
            file.seek(int(first))
            content = file.read(int(count))
    except OSError as error:
        raise ValueError(f"{name} in {shard} cannot be read: {error}") from error
    try:
        return read_image(BytesIO(content), least_side)
    except ValueError as error:
        raise ValueError(f"{name} in {shard} cannot be read as an image: {error.__cause__}") from error


def _places(shards: Sequence[Path]) -> Iterator[str]:
    for shard in shards:
        yield from _places_in(shard)


def _places_in(shard: Path) -> Iterator[str]:
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined] # tarfile would keep them all
                name = os.path.basename(member.name)
                image = f".{name.partition('.')[2].lower()}" in IMAGE_SUFFIXES and ":" not in name
                if image and member.isfile():
                    yield f"{shard.absolute()}:{member.offset_data}:{member.size}:{name}"
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is not a whole tar file: {error}") from error
