"""Judge a model, baselines, or a folder of results, case by case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fastinpaint.evaluation import ranks
from fastinpaint.evaluation.baselines import BASELINES, LABELS, SLOW
from fastinpaint.evaluation.cases import (
    Case,
    CaseSpec,
    Picture,
    cases_with_masks,
    cases_with_results,
    drawn_cases,
    load_case,
    write_hole,
    write_hole_list,
)
from fastinpaint.evaluation.features import InceptionFeatures, LpipsDistance, missing_message
from fastinpaint.evaluation.fillers import BaselineFiller, BatchFiller, GivenResults, ModelFiller
from fastinpaint.evaluation.frechet import FEWEST, frechet_distance
from fastinpaint.evaluation.holes import HoleOptions, expand_kinds
from fastinpaint.evaluation.metrics import ORIGINAL, STANDARD, Definition, exact_convolutions, measure
from fastinpaint.inference.inpainter import Inpainter

Network = TypeVar("Network", bound=nn.Module)

OURS, GIVEN = "fastinpaint", "results"
HOLES_FOLDER = "holes"


@dataclass(frozen=True)
class EvaluationOptions:
    """What to judge, on what, and by what.

    Attributes:
        data: Photographs: a folder, a list, or a file. With ``results``: the truth.
        model: Folder of a model that fills the holes.
        results: Folder of filled pictures, instead of a model.
        masks: Mask files, or a folder ``holes`` of an earlier evaluation; None draws holes.
        holes: Kinds of drawn holes, see `holes.draw_hole`; ``bins`` stands for the six ratio bins.
        hole_options: Sizes of drawn holes.
        per_image: Drawn holes of each kind in each photograph.
        image_size: Pixels of the square that photographs are cropped and resized to; 0 keeps their size.
        limit: At most so many photographs, evenly spaced; None takes all.
        seed: Of drawn holes and of the bootstrap.
        baselines: Names out of ``baselines.BASELINES``.
        slow_limit: Cases that slow baselines (biharmonic) are given, of evenly spaced pictures with all their holes.
        as_original: The original system's metrics, and its input of whole pictures.
        metrics: Names of metrics; None: all.
        inception: Weight file for FID; None leaves FID out. See `features.FEATURE_FILES`.
        lpips: Weight file for LPIPS; None leaves LPIPS out.
        lpips_net: ``"alex"`` or ``"vgg"``: the network of that file.
        batch_size: Cases that a model fills at once.
        device: None takes CUDA if there is some.

    Raises:
        ValueError: Options that do not fit together or are out of range.
    """

    data: Path
    model: Path | None = None
    results: Path | None = None
    masks: Path | None = None
    holes: tuple[str, ...] = ("bins",)
    hole_options: HoleOptions = field(default_factory=HoleOptions)
    per_image: int = 1
    image_size: int = 256
    limit: int | None = None
    seed: int = 0
    baselines: tuple[str, ...] = ()
    slow_limit: int = 20
    as_original: bool = False
    metrics: tuple[str, ...] | None = None
    inception: Path | None = None
    lpips: Path | None = None
    lpips_net: str = "alex"
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.results is None):
            raise ValueError("give either a model to judge or a folder of results")
        if self.results is not None and self.baselines and self.masks is None:
            raise ValueError("baselines beside a folder of results need the masks of its holes")
        if self.image_size and self.image_size < 16:
            raise ValueError(f"image_size must be 0 or at least 16 pixels, got {self.image_size}")
        if self.as_original and self.model is not None and self.image_size % 16:
            raise ValueError(f"as the original, image_size must be divisible by 16, got {self.image_size}")
        for name in ("per_image", "batch_size", "slow_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise ValueError(f"a baseline must be one of {', '.join(BASELINES)}, got {unknown[0]!r}")
        missing = [name for name in self.metrics or () if name not in self.definition.metrics]
        if missing:
            raise ValueError(f"a metric must be one of {', '.join(self.definition.metrics)}, got {missing[0]!r}")
        expand_kinds(self.holes)

    @property
    def definition(self) -> Definition:
        """The metrics' definition."""
        return ORIGINAL if self.as_original else STANDARD

    def cases(self) -> list[CaseSpec]:
        """List the cases, in a fixed order."""
        if self.results is not None:
            return cases_with_results(self.data, self.results, self.masks, self.limit)
        if self.masks is not None:
            return cases_with_masks(self.data, self.masks, self.limit)
        return drawn_cases(self.data, expand_kinds(self.holes), self.per_image, self.limit)


@dataclass(frozen=True)
class Row:
    """Scores of one method on one case: ``NAME`` of the whole picture, ``NAME_hole`` inside the hole."""

    case: int
    method: str
    ratio: float | None
    scores: dict[str, float]


class Evaluation:
    """The run: fills and measures in batches; `fill` repeats single cases, for pictures.

    Several processes that torchrun started share the batches; the scores do not depend on their number, because a
    batch holds the same cases wherever it is filled.
    """

    def __init__(self, options: EvaluationOptions) -> None:
        self.options = options
        self.rank, self.world = ranks.start()
        self.device = ranks.device(options.device)
        self.specs = options.cases()
        self.fillers: dict[str, BatchFiller] = {}
        if options.model is not None:
            inpainter = Inpainter.from_pretrained(options.model, self.device)
            self.fillers[OURS] = ModelFiller(inpainter, options.as_original)
        else:
            self.fillers[GIVEN] = GivenResults()
        for name in dict.fromkeys(options.baselines):
            self.fillers[LABELS[name]] = BaselineFiller(BASELINES[name])
        self.notes: list[str] = []
        self._metrics = options.metrics or tuple(options.definition.metrics)
        if options.metrics is None and "ms_ssim" in self._metrics and not _has_torchmetrics():
            self._metrics = tuple(name for name in self._metrics if name != "ms_ssim")
            self.notes.append("MS-SSIM is left out: it needs torchmetrics (pip install 'fastinpaint[evaluate]').")
        self.frechet: dict[str, float] = {}
        self._inception = self._feature_network("FID", "inception", options.inception, InceptionFeatures.from_file)
        self._lpips = self._feature_network(
            "LPIPS", options.lpips_net, options.lpips, lambda path: LpipsDistance.from_file(path, options.lpips_net)
        )
        self._features: dict[tuple[str, str], torch.Tensor] = {}  # method ("" for the truth), case -> (1, 2048)
        self._slow_cases = _some_pictures(self.specs, options.slow_limit)
        self._slow = {LABELS[name] for name in SLOW}

    @property
    def judged(self) -> str:
        """The method that is judged, beside which the baselines stand."""
        return next(iter(self.fillers))

    def run(self, output: Path | None = None, observe: Callable[[Case, str, Picture], None] | None = None) -> list[Row]:
        """Fill and measure every case.

        Args:
            output: Where to write the holes, below ``holes``; None: nowhere.
            observe: Called with each case, method and result of this process.

        Returns:
            Rows of all processes, by case and method.
        """
        rows: list[Row] = []
        bar = tqdm(total=len(self.specs), unit="case", disable=self.rank > 0)
        for number, batch in enumerate(self._batches()):
            if number % self.world == self.rank:
                rows += self._judge(batch, output, observe)
            bar.update(len(batch))
        bar.close()
        order = {method: place for place, method in enumerate(self.fillers)}
        everyone = [row for part in ranks.gather(rows) for row in part]
        if self._inception is not None:
            self.frechet = self._frechet_distances()
        everyone.sort(key=lambda row: (row.case, order[row.method]))
        if output is not None and self.rank == 0 and self.options.results is None:
            ratios = {row.case: row.ratio for row in everyone}
            write_hole_list(
                output / HOLES_FOLDER, self.specs, [ratios[i] for i in range(len(self.specs))], self.options.seed
            )
        return everyone

    def _feature_network(
        self, metric: str, kind: str, path: Path | None, load: Callable[[Path], Network]
    ) -> Network | None:
        """Load a network; without its file, note what to get and go on."""
        if path is None or not path.exists():
            found = "" if path is None else f" (there is nothing at {path})"
            self.notes.append(f"{metric} is left out{found}: {missing_message(kind)}.")
            return None
        return load(path).to(self.device)

    def _frechet_distances(self) -> dict[str, float]:
        """FID of each method: its results beside the truth of every photograph, once each."""
        gathered = {key: value for part in ranks.gather(self._features) for key, value in part.items()}
        truth = torch.cat([value for (method, _), value in sorted(gathered.items(), key=_by_key) if not method])
        distances = {}
        for method in self.fillers:
            mine = [value for (name, _), value in sorted(gathered.items(), key=_by_key) if name == method]
            if min(len(mine), len(truth)) > 1:
                distances[method] = frechet_distance(torch.cat(mine), truth)
                fewest = min(len(mine), len(truth))
                if fewest < FEWEST:
                    self.notes.append(
                        f"FID of {method} is of {fewest} pictures: below {FEWEST:,} it is biased upwards, "
                        "so compare it at the same number only."
                    )
        return distances

    def fill(self, index: int, method: str) -> tuple[Case, Picture]:
        """Fill one case by one method again."""
        case = self._load(index)
        return case, self.fillers[method]([case])[0]

    def _batches(self) -> Iterator[range]:
        for start in range(0, len(self.specs), self.options.batch_size):
            yield range(start, min(start + self.options.batch_size, len(self.specs)))

    def _load(self, index: int) -> Case:
        return load_case(self.specs[index], self.options.image_size, self.options.seed, self.options.hole_options)

    def _judge(
        self, batch: range, output: Path | None, observe: Callable[[Case, str, Picture], None] | None
    ) -> list[Row]:
        cases = [self._load(index) for index in batch]
        if output is not None and self.options.results is None:
            for case in cases:
                write_hole(output / HOLES_FOLDER, case)
        rows: list[Row] = []
        for method, filler in self.fillers.items():
            chosen = [i for i, index in enumerate(batch) if method not in self._slow or index in self._slow_cases]
            for group in _by_size(chosen, cases):
                results = filler([cases[i] for i in group])
                scores = self._measure(results, [cases[i] for i in group])
                if self._inception is not None:
                    self._keep_features(method, results, [batch[i] for i in group], [cases[i] for i in group])
                for i, result, values in zip(group, results, scores, strict=True):
                    rows.append(Row(batch[i], method, cases[i].ratio, values))
                    if observe is not None:
                        observe(cases[i], method, result)
        return rows

    def _measure(self, results: Sequence[Picture], cases: Sequence[Case]) -> list[dict[str, float]]:
        holes = [case.hole for case in cases if case.hole is not None]
        hole = torch.from_numpy(np.stack(holes))[:, None].to(self.device) if len(holes) == len(cases) else None
        result, truth = (self._tensor(pictures) for pictures in (results, [case.truth for case in cases]))
        side = min(truth.shape[-2:])
        names = tuple(name for name in self._metrics if side >= self.options.definition.smallest.get(name, 1))
        scores = {
            name: values.tolist()
            for name, values in measure(result, truth, hole, self.options.definition, names).items()
        }
        if self._lpips is not None:
            with torch.no_grad(), exact_convolutions():
                pair = [image.float() / 127.5 - 1 for image in (result, truth)]
                scores["lpips"] = self._lpips.distance(*pair).tolist()
                if hole is not None:
                    inside = self._lpips(*pair).mul(hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
                    scores["lpips_hole"] = inside.tolist()
        return [{name: values[i] for name, values in scores.items()} for i in range(len(cases))]

    @torch.no_grad()
    def _keep_features(
        self, method: str, results: Sequence[Picture], places: Sequence[int], cases: Sequence[Case]
    ) -> None:
        if self._inception is None:
            return
        for place, result, case in zip(places, results, cases, strict=True):
            with exact_convolutions():
                self._features[method, f"{place:09d}"] = self._inception(self._tensor([result])).cpu()
                if ("", case.spec.name) not in self._features:
                    self._features["", case.spec.name] = self._inception(self._tensor([case.truth])).cpu()

    def _tensor(self, pictures: Sequence[Picture]) -> torch.Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.device)


def _some_pictures(specs: Sequence[CaseSpec], limit: int) -> set[int]:
    """Choose the cases of evenly spaced pictures, about ``limit`` of them, with every kind of hole of each."""
    names = list(dict.fromkeys(spec.name for spec in specs))
    count = min(len(names), max(limit * len(names) // len(specs), 1))
    chosen = {names[index * len(names) // count] for index in range(count)}
    return {index for index, spec in enumerate(specs) if spec.name in chosen}


def _has_torchmetrics() -> bool:
    try:
        import torchmetrics  # noqa: F401
    except ImportError:
        return False
    return True


def _by_size(chosen: Sequence[int], cases: Sequence[Case]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in chosen:
        groups.setdefault(cases[i].truth.shape, []).append(i)
    return list(groups.values())


def _by_key(item: tuple[tuple[str, str], torch.Tensor]) -> tuple[str, str]:
    return item[0]


def table_of(rows: Sequence[Row], specs: Sequence[CaseSpec]) -> list[dict[str, Any]]:
    """Return one flat mapping for each row, ready for CSV."""
    return [
        {
            "image": specs[row.case].name,
            "hole": specs[row.case].kind,
            "number": specs[row.case].number,
            "ratio": row.ratio,
            "method": row.method,
            **row.scores,
        }
        for row in rows
    ]
