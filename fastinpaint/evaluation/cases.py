"""What is judged: photographs with holes, drawn or from files, or results beside their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastinpaint.data.images import find_images, read_image, square_crop_resize
from fastinpaint.data.masks import read_mask, resize_mask
from fastinpaint.evaluation.holes import Hole, HoleOptions, draw_hole
from fastinpaint.files import atomic_write, read_json, write_json

Picture = npt.NDArray[np.uint8]
HOLE_LIST = "holes.json"
FROM_FILE = "file"


@dataclass(frozen=True)
class CaseSpec:
    """One case before anything is read.

    Attributes:
        name: Relative path of the photograph without suffix, with forward slashes.
        image: The photograph.
        kind: Kind of hole; ``"file"`` for one from a mask file, empty without a hole.
        number: Of the hole, where a photograph has several of its kind.
        mask: The mask file, None for a drawn hole.
        result: The filled picture, None where a model is to fill it.
    """

    name: str
    image: Path
    kind: str
    number: int = 0
    mask: Path | None = None
    result: Path | None = None


@dataclass(frozen=True)
class Case:
    """A photograph (H, W, 3) uint8, its hole (H, W) bool if it has one, and its result (H, W, 3) if one was given."""

    spec: CaseSpec
    truth: Picture
    hole: Hole | None
    result: Picture | None = None

    @property
    def ratio(self) -> float | None:
        """Share of the picture that the hole covers."""
        return None if self.hole is None else float(self.hole.mean())


def spread(items: Sequence[CaseSpec], limit: int | None) -> list[CaseSpec]:
    """Return at most ``limit`` items, evenly spaced, in their order; None: all."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def drawn_cases(data: Path, kinds: Sequence[str], per_image: int = 1, limit: int | None = None) -> list[CaseSpec]:
    """List every photograph (at most ``limit`` of them, evenly spaced) with ``per_image`` drawn holes of each kind."""
    photographs = spread([CaseSpec(name, path, "") for name, path in _by_name(data).items()], limit)
    return [
        CaseSpec(photo.name, photo.image, kind, number)
        for photo in photographs
        for kind in kinds
        for number in range(per_image)
    ]


def cases_with_masks(data: Path, masks: Path, limit: int | None = None) -> list[CaseSpec]:
    """List photographs with holes from files.

    Args:
        data: Photographs.
        masks: A mask file for all of them; a folder that holds for each a mask of the same relative path, whatever
            the suffix; or a folder ``holes`` that an evaluation wrote, whose list is repeated exactly.
        limit: At most so many photographs, evenly spaced.

    Raises:
        FileNotFoundError: Nothing at ``masks``, or a photograph without a mask.
        ValueError: A damaged list.
    """
    photographs = _by_name(data)
    if (masks / HOLE_LIST).is_file():
        chosen = {spec.name for spec in spread([CaseSpec(n, p, "") for n, p in photographs.items()], limit)}
        return [spec for spec in _listed(photographs, masks) if limit is None or spec.name in chosen]
    pairs = _pair(photographs, masks, "mask")
    return spread([CaseSpec(n, path, FROM_FILE, mask=pairs[n]) for n, path in photographs.items()], limit)


def cases_with_results(truth: Path, results: Path, masks: Path | None, limit: int | None = None) -> list[CaseSpec]:
    """List pairs of the same relative path in two folders, with masks (as in `cases_with_masks`) if given.

    Raises:
        FileNotFoundError: A picture without its result or its mask.
    """
    photographs = _by_name(truth)
    filled = _pair(photographs, results, "result")
    holes = None if masks is None else _pair(photographs, masks, "mask")
    return spread(
        [
            CaseSpec(n, path, FROM_FILE if holes else "", mask=holes[n] if holes else None, result=filled[n])
            for n, path in photographs.items()
        ],
        limit,
    )


def load_case(spec: CaseSpec, size: int, seed: int, options: HoleOptions) -> Case:
    """Read the files of a case and draw its hole.

    Args:
        spec: What to read.
        size: Side in pixels of the square from the middle that photographs are cropped and resized to; 0 keeps them
            as they are. Results beside a truth are never resized.
        seed: Of drawn holes.
        options: Sizes of drawn holes.

    Raises:
        ValueError: An unreadable file, a result of another size than its truth, or a hole that is empty or everything.
    """
    picture = read_image(spec.image)
    if spec.result is not None:
        truth, result = np.array(picture), np.array(read_image(spec.result))
        if truth.shape != result.shape:
            wanted, found = "x".join(map(str, truth.shape[:2])), "x".join(map(str, result.shape[:2]))
            raise ValueError(f"{spec.result} must have the size {wanted} of {spec.image}, got {found}")
        hole = None if spec.mask is None else _read_hole(spec.mask, *truth.shape[:2])
        return Case(spec, truth, hole, result)
    truth = np.array(square_crop_resize(picture, size) if size else picture)
    if spec.mask is not None:
        return Case(spec, truth, _read_hole(spec.mask, *truth.shape[:2]))
    height, width = truth.shape[:2]
    hole = draw_hole(spec.kind, height, width, seed=seed, name=spec.name, number=spec.number, options=options)
    return Case(spec, truth, hole)


def write_hole(folder: Path, case: Case) -> None:
    """Write the hole as a 1-bit PNG (white = hole), as the list of `write_hole_list` names it."""
    if case.hole is not None:
        with atomic_write(folder / _mask_name(case.spec)) as temporary:
            Image.fromarray(case.hole).save(temporary, format="PNG")


def write_hole_list(folder: Path, specs: Sequence[CaseSpec], ratios: Sequence[float | None], seed: int) -> None:
    """Write the list that `cases_with_masks` reads again."""
    holes = [
        {"image": spec.name, "kind": spec.kind, "number": spec.number, "ratio": ratio, "mask": _mask_name(spec)}
        for spec, ratio in zip(specs, ratios, strict=True)
    ]
    write_json(folder / HOLE_LIST, {"seed": seed, "holes": holes})


def _mask_name(spec: CaseSpec) -> str:
    number = f"-{spec.number}" if spec.number else ""
    return f"{spec.kind}/{spec.name}{number}.png"


def _listed(photographs: dict[str, Path], folder: Path) -> list[CaseSpec]:
    found = read_json(folder / HOLE_LIST)
    try:
        return [
            CaseSpec(
                str(hole["image"]), photographs[hole["image"]], str(hole["kind"]), int(hole["number"]),
                mask=folder / str(hole["mask"]),
            )
            for hole in found["holes"]
        ]  # fmt: skip
    except KeyError as error:
        raise ValueError(f"{folder / HOLE_LIST} names {error}, which is not among the photographs") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / HOLE_LIST} is not a list of holes: {error!r}") from error


def _by_name(source: Path) -> dict[str, Path]:
    """Map relative paths without suffix to images."""
    root = source if source.is_dir() else source.parent
    found: dict[str, Path] = {}
    for path in find_images(source):
        relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {path} differ only in their suffix: rename one")
        found[name] = path
    return found


def _pair(photographs: dict[str, Path], source: Path, what: str) -> dict[str, Path]:
    if not source.is_dir():
        files = find_images(source)
        if len(files) == 1:
            return dict.fromkeys(photographs, files[0])
    others = _by_name(source)
    missing = [name for name in photographs if name not in others]
    if missing:
        raise FileNotFoundError(
            f"{source} has no {what} for {len(missing)} of {len(photographs)} pictures, the first is {missing[0]}"
        )
    return {name: others[name] for name in photographs}


def _read_hole(path: Path, height: int, width: int) -> Hole:
    mask = resize_mask(read_mask(path), height, width)
    if not 0 < int(mask.sum()) < mask.size:
        raise ValueError(f"{path} must mark a part of the picture as hole (white), it marks {mask.mean():.0%}")
    return mask.astype(bool)
