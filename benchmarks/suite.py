"""What a benchmark is, and how it is run: every result is checked, then the competitors are timed.

On the CPU they take turns. On a GPU each is called, and then replayed as a CUDA graph where it can be captured, over
several sets of inputs so that the L2 cache does not flatter.

A module ``bench_<name>`` holds one ``BENCHMARK``; ``python -m benchmarks`` and ``pytest benchmarks`` find it by name.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import stand_in
from benchmarks.machine import Work, ceilings, circumstances
from benchmarks.results import GRAPH, Results, Row
from benchmarks.timing import extra_memory, graphed, profile, time_in_turns, time_on_gpu
from fastinpaint.inference.graphs import forget_capture

BEYOND_CACHES = 1e8  # bytes of inputs and outputs that no GPU's L2 holds
GRAPH_SECONDS = 5e-3  # of work in a graph; more sets of inputs than that need not be captured
Compiled = Literal["no", "yes", "only"]
Run = Callable[[], Any]  # one call; returns a tensor or a sequence of them
Competitors = Mapping[str, Run | str]  # name to its call, or to the reason why it has none


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        name: Words for it.
        options: Arguments of the benchmark's ``competitors``.
        work: The least that a call must do.
        items: Images in a call.
        series: Cases of one series differ in size alone.
        size: Side of the image in pixels.
    """

    name: str
    options: Mapping[str, Any]
    work: Work
    items: int = 1
    series: str = ""
    size: int = 0


@dataclass(frozen=True)
class Benchmark:
    """Competitors at the same work.

    Args:
        title: What is timed, in words.
        cases: Device (``"cpu"``, ``"cuda"``, or ``"dry"``: as on CUDA but tiny) to rows.
        competitors: Called with the device and a case's options, once for each set of inputs.
        ours: Device to the competitor that is ours.
        reference: Competitors that the others are compared with before they are timed: the first of them that runs.
        tolerance: Called as ``competitors``; largest relative L2 distance from the reference. 0: equal. None: any.
        differs: Competitors that compute something else, and what: they are timed without being compared.
        notes: Sentences below the table.
        compiled: Competitors that wait for a compiler; ``--compiled`` leaves them out or for last.
        sets: The most sets of inputs on a GPU.
        graph: Whether calls are captured in CUDA graphs: those that change weights are not.
        host: Competitors that work on the CPU even where a GPU is timed.
        rate: Whether items per second are of interest.
    """

    title: str
    cases: Callable[[str], list[Case]]
    competitors: Callable[..., Competitors]
    reference: tuple[str, ...]
    tolerance: Callable[..., float | None]
    ours: Mapping[str, str] = field(default_factory=lambda: {"cpu": "native", "cuda": "triton"})
    differs: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ("torch.compile", "FlexAttention")
    sets: int = 16
    graph: bool = True
    host: tuple[str, ...] = ()
    rate: bool = False


@dataclass
class Prepared:
    """A case's calls that gave the right result, why others are left out, and what is wrong with ours, if anything."""

    calls: dict[str, Run]
    left_out: dict[str, str]
    failed: str = ""


class WrongResult(Exception):
    """A competitor's result is not the reference's: an operator that fails has no speed."""


def find_benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    names = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    return {name: import_module(f"benchmarks.bench_{name}").BENCHMARK for name in names}


def prepare(benchmark: Benchmark, case: Case, device: str, compiled: Compiled = "yes") -> Prepared:
    """Run and check every competitor of a case once.

    Args:
        benchmark: What is timed.
        case: One of its rows.
        device: ``"cpu"`` or ``"cuda"``.
        compiled: Whether competitors that wait for a compiler are wanted; ``"only"`` beside ours and the reference.
    """
    torch.manual_seed(0)
    ours = benchmark.ours[device]
    competitors = benchmark.competitors(device, **case.options)
    calls = {name: competitor for name, competitor in competitors.items() if not isinstance(competitor, str)}
    left_out = {name: competitor for name, competitor in competitors.items() if isinstance(competitor, str)}
    if ours in left_out and compiled == "only":
        return Prepared({}, left_out)
    with exact_convolutions():
        reference, wanted = _reference(benchmark, calls, left_out)
    if reference is None:
        missing = f"nothing to compare it with: no {' and no '.join(benchmark.reference)}"
        raised = "" if isinstance(competitors.get(ours), str) else left_out.get(ours, "")
        return Prepared({}, left_out | dict.fromkeys(calls, missing), raised)
    wanted_names = [name for name in calls if _is_wanted(benchmark, name, device, compiled)]
    left_out = {name: reason for name, reason in left_out.items() if _is_wanted(benchmark, name, device, compiled)}
    prepared = Prepared({name: calls[name] for name in wanted_names}, left_out)
    with exact_convolutions():
        for name in [name for name in wanted_names if name != reference]:
            tolerance = None if name in benchmark.differs else benchmark.tolerance(device, **case.options)
            error = _error_of(calls[name], wanted, tolerance, f"{case.name}: {name}")
            if error is None:
                continue
            if name == ours:
                prepared.failed = _first_line(error)
            else:
                prepared.left_out[name] = _first_line(error)
            del prepared.calls[name]
    return prepared


def _reference(
    benchmark: Benchmark, calls: dict[str, Run], left_out: dict[str, str]
) -> tuple[str | None, list[Tensor]]:
    """The first reference that runs, and its result; those that raise move to ``left_out``."""
    for name in benchmark.reference:
        if name not in calls:
            continue
        try:
            return name, _tensors(calls[name]())
        except Exception as error:  # out of memory, say
            left_out[name] = _first_line(error)
            del calls[name]
    return None, []


def _is_wanted(benchmark: Benchmark, name: str, device: str, compiled: Compiled) -> bool:
    slow = name in benchmark.compiled
    return {"no": not slow, "yes": True, "only": slow or name == benchmark.ours[device]}[compiled]


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without TensorFloat-32, which cuDNN uses by default: it would hide the others' errors behind its own."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def run(
    benchmark: Benchmark,
    device: str = "cpu",
    wanted: str = "",
    *,
    skipped: str = "",
    budget: float = 2.0,
    compiled: Compiled = "yes",
    dry: bool = False,
    keep: Callable[[Results], object] = lambda _: None,
) -> Results:
    """Check and time the cases whose name contains one of the parts in ``wanted``.

    A case in which ours is wrong or raises becomes a failed row, and the next case follows.

    Args:
        benchmark: What to run.
        device: ``"cpu"`` or ``"cuda"``.
        wanted: Parts of the names of cases, separated by commas; empty: all of them.
        skipped: Parts of the names of cases to leave out, separated by commas.
        budget: Seconds for each competitor and case, and again for its graph.
        compiled: As for ``prepare``.
        dry: Take the tiny cases.
        keep: Called after every case with what there is.
    """
    cases = _cases(benchmark, "dry" if dry else device, wanted, skipped)
    notes = [*benchmark.notes, *(f"{name} is not compared: {what}." for name, what in benchmark.differs.items())]
    if device == "cuda":
        notes.append("Times are CUDA events around calls that follow each other, inputs rotated among sets.")
    results = Results(benchmark.title, benchmark.ours[device], notes, circumstances(device), rate=benchmark.rate)
    for case in tqdm(cases, desc=benchmark.title.split(",")[0], unit="case", leave=False):
        results.rows.append(_row(benchmark, case, device, budget, compiled))
        keep(results)
        torch.compiler.reset()
        if device == "cuda":
            release_memory()
    return results


def run_once(benchmark: Benchmark, device: str, skipped: str = "", *, dry: bool = False) -> None:
    """Run ours of every case once, whatever comes of it: its kernels are compiled and cached on disk."""
    for case in _cases(benchmark, "dry" if dry else device, "", skipped):
        try:
            call = benchmark.competitors(device, **case.options)[benchmark.ours[device]]
            if not isinstance(call, str):
                call()
        except Exception as error:
            print(f"{case.name}: {_first_line(error)}", flush=True)
        if device == "cuda":
            release_memory()


def _cases(benchmark: Benchmark, device: str, wanted: str, skipped: str) -> list[Case]:
    def has_one_of(name: str, parts: str) -> bool:
        return any(part in name for part in parts.split(",") if part)

    cases = benchmark.cases(device)
    return [c for c in cases if (not wanted or has_one_of(c.name, wanted)) and not has_one_of(c.name, skipped)]


def _row(benchmark: Benchmark, case: Case, device: str, budget: float, compiled: Compiled) -> Row:
    """Check and time one case."""
    ours = benchmark.ours[device]
    row = Row(case.name, case.items, case.series, case.size, asdict(case.work), ceilings(device).floor(case.work))
    try:
        prepared = prepare(benchmark, case, device, compiled)
    except Exception as error:  # the inputs or the reference
        row.failed = _first_line(error)
        return row
    row.failed, row.left_out = prepared.failed, prepared.left_out
    if device == "cpu":
        row.memory = {name: extra_memory(call) for name, call in prepared.calls.items()}
        row.seconds = time_in_turns(prepared.calls, budget=budget)
        return row
    others = [] if compiled == "only" else _other_sets(benchmark, case, device)
    for name in sorted(prepared.calls, key=lambda name: name != ours):
        call = prepared.calls.pop(name)  # freed when its turn is over
        calls = [call, *(run for competitors in others if not isinstance(run := competitors[name], str))]
        graph = benchmark.graph and name not in benchmark.host
        try:
            _time_rival(row, name, calls, budget, graph=graph, kernels=name == ours)
        except Exception as error:  # out of memory, say
            row.left_out[name] = _first_line(error)
            if name == ours and not row.failed:
                row.failed = row.left_out[name]
    return row


def _other_sets(benchmark: Benchmark, case: Case, device: str) -> list[Competitors]:
    """The same competitors on other inputs, so many that all of them together do not fit the L2 cache."""
    sets = min(1 if stand_in.installed() else benchmark.sets, math.ceil(BEYOND_CACHES / case.work.bytes))
    competitors = []
    for number in range(1, sets):
        torch.manual_seed(number)
        competitors.append(benchmark.competitors(device, **case.options))
    return competitors


def _time_rival(row: Row, name: str, calls: list[Run], budget: float, *, graph: bool, kernels: bool) -> None:
    """Memory, time of a call, time in a CUDA graph, and the profiler's kernels of one competitor on a GPU."""
    for call in calls[1:]:
        call()
    row.memory[name] = extra_memory(calls[0], "cuda")
    row.seconds[name] = time_on_gpu(calls, budget=budget)
    if kernels:
        try:
            row.kernels = profile(calls[:3])
        except Exception as error:
            row.kernels = _first_line(error)
    if not graph:
        return
    drawn = torch.cuda.get_rng_state()
    together = calls[: max(1, math.ceil(GRAPH_SECONDS / row.seconds[name][-1]))]
    try:
        seconds = time_on_gpu([graphed(together)], budget=budget)
        row.seconds[name + GRAPH] = [s / len(together) for s in seconds]
    except Exception as error:
        row.left_out[name + GRAPH] = _first_line(error)
        forget_capture(torch.device("cuda", torch.cuda.current_device()), drawn)
    release_memory()


def release_memory() -> None:
    """Give the device what dead graphs and calls, in reference cycles too, still hold."""
    gc.collect()
    torch.cuda.empty_cache()


def gap_of(call: Run) -> str | None:
    """Why a call cannot be served by the backend that it names; None where it can."""
    try:
        call()
    except (ValueError, ImportError) as error:
        return _first_line(error)
    return None


def differentiated(value_of: Callable[[], Tensor], leaves: list[Tensor], backward: bool) -> Run:
    """A call for the value, and with ``backward`` for the gradients of a weighted sum of it too."""
    weights: list[Tensor] = []

    def value_alone() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (value_of(),)

    def both() -> tuple[Tensor, ...]:
        value = value_of()
        if not weights:
            generator = torch.Generator(value.device).manual_seed(1)
            weights.append(torch.randn(value.shape, generator=generator, device=value.device).to(value))
        return (value.detach(), *torch.autograd.grad(value, leaves, weights[0]))

    return both if backward else value_alone


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _error_of(call: Run, wanted: list[Tensor], tolerance: float | None, name: str) -> Exception | None:
    """What a call raises, or a WrongResult; None where it agrees, or where it need not (no tolerance)."""
    try:
        found = _tensors(call())
    except Exception as error:
        return error
    for ours, reference in zip(found, wanted, strict=True) if tolerance is not None else ():
        exact = reference.to(ours.device, torch.float64)
        distance = ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()
        if not distance <= tolerance:
            return WrongResult(f"{name} is off by {distance:.1e}, relative; {tolerance:.1e} is allowed")
    return None


def _first_line(error: Exception) -> str:
    lines: Iterator[str] = (line for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {next(lines, '')}".rstrip(":. ")
