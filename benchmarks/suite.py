"""What a benchmark is, and how it is run: every result is checked, then the rivals take turns.

A module ``bench_<name>`` holds one ``BENCHMARK``; ``python -m benchmarks`` and ``pytest benchmarks`` find it by name.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.machine import Work, ceilings, circumstances
from benchmarks.results import Results, Row
from benchmarks.timing import extra_memory, time_in_turns

Run = Callable[[], Any]  # one call; returns a tensor or a sequence of them
Rivals = Mapping[str, Run | str]  # name to its call, or to the reason why it has none


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        name: Words for it.
        options: Arguments of the benchmark's ``rivals``.
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
    """Rivals at the same work.

    Args:
        title: What is timed, in words.
        cases: Device (``"cpu"`` or ``"cuda"``) to rows.
        rivals: Called with the device and a case's options.
        ours: Device to the rival that is ours.
        truth: Rivals that the others are compared with before they are timed: the first of them that runs.
        tolerance: Called as ``rivals``; largest relative L2 distance from the truth. 0: equal.
        differs: Rivals that compute something else, and what: they are timed without being compared.
        notes: Sentences below the table.
    """

    title: str
    cases: Callable[[str], list[Case]]
    rivals: Callable[..., Rivals]
    truth: tuple[str, ...]
    tolerance: Callable[..., float]
    ours: Mapping[str, str] = field(default_factory=lambda: {"cpu": "native", "cuda": "triton"})
    differs: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class WrongResult(Exception):
    """A rival's result is not the truth's: an operator that fails has no speed."""


def find_benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    names = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    return {name: import_module(f"benchmarks.bench_{name}").BENCHMARK for name in names}


def prepare(benchmark: Benchmark, case: Case, device: str) -> tuple[dict[str, Run], dict[str, str]]:
    """The calls of a case, each of them run and checked once, and the reasons of those left out.

    Raises:
        WrongResult: Our result differs from the truth's.
        Exception: Whatever ours raises; a peer that raises, or that differs, is left out.
    """
    torch.manual_seed(0)
    rivals = benchmark.rivals(device, **case.options)
    calls = {name: rival for name, rival in rivals.items() if not isinstance(rival, str)}
    left_out = {name: rival for name, rival in rivals.items() if isinstance(rival, str)}
    truth = next((name for name in benchmark.truth if name in calls), None)
    if truth is None:
        return {}, left_out | dict.fromkeys(calls, f"nothing to compare it with: no {' and no '.join(benchmark.truth)}")
    with exact_convolutions():
        wanted = _tensors(calls[truth]())
        for name in [name for name in calls if name != truth]:
            tolerance = None if name in benchmark.differs else benchmark.tolerance(device, **case.options)
            error = _error_of(calls[name], wanted, tolerance, f"{case.name}: {name}")
            if error is None:
                continue
            if name == benchmark.ours[device]:
                raise error
            left_out[name] = _first_line(error)
            del calls[name]
    return calls, left_out


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without TensorFloat-32, which cuDNN uses by default: it would hide the errors of others behind the truth's."""
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
    budget: float = 2.0,
    keep: Callable[[Results], object] = lambda _: None,
) -> Results:
    """Check and time the cases whose name contains ``wanted``.

    Args:
        benchmark: What to run.
        device: ``"cpu"`` or ``"cuda"``.
        wanted: Part of a case's name; empty: all of them.
        budget: Seconds for each rival and case.
        keep: Called after every case with what there is.
    """
    cases = [case for case in benchmark.cases(device) if wanted in case.name]
    notes = [*benchmark.notes, *(f"{name} is not compared: {what}." for name, what in benchmark.differs.items())]
    results = Results(benchmark.title, benchmark.ours[device], notes, circumstances(device))
    for case in tqdm(cases, desc=benchmark.title.split(",")[0], unit="case", leave=False):
        calls, left_out = prepare(benchmark, case, device)
        memory = {name: extra_memory(call, device) for name, call in calls.items()}
        if device == "cuda" and results.ours in calls:
            _add_graph(calls, left_out, results.ours)
        seconds = time_in_turns(calls, device, budget=budget)
        kernels = profile(calls[results.ours]) if device == "cuda" and results.ours in calls else ""
        floor = ceilings(device).floor(case.work)
        facts = (case.name, case.items, case.series, case.size, asdict(case.work), floor)
        results.rows.append(Row(*facts, seconds, memory, left_out, kernels))
        keep(results)
        torch.compiler.reset()
    return results


def _add_graph(calls: dict[str, Run], left_out: dict[str, str], ours: str) -> None:
    try:
        calls[f"{ours}, graph"] = graphed(calls[ours])
    except Exception as error:
        left_out[f"{ours}, graph"] = _first_line(error)


def graphed(call: Run) -> Run:
    """Replay a CUDA graph of a call: the same launches without what the host takes to launch them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def profile(call: Run) -> str:
    """The profiler's table of CUDA kernels over ten calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(10):
            call()
        torch.cuda.synchronize()
    return str(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=12))


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
    for ours, truth in zip(found, wanted, strict=True) if tolerance is not None else ():
        exact = truth.to(ours.device, torch.float64)
        distance = ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()
        if not distance <= tolerance:
            return WrongResult(f"{name} is off by {distance:.1e}, relative; {tolerance:.1e} is allowed")
    return None


def _first_line(error: Exception) -> str:
    lines: Iterator[str] = (line for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {next(lines, '')}".rstrip(":. ")
