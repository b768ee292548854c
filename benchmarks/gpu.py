"""The GPU kernels against eager PyTorch, torch.compile and torch's fused attention.

``python -m benchmarks.gpu --out DIR`` writes a table, samples and a plot for each operator. Every result is compared
with the eager one before it is timed. "triton, graph" replays a CUDA graph of the same launches, which leaves out what
the host takes to launch them.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_patch_attention import fused_attention
from benchmarks.harness import Report, time_in_turns
from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.ops.pooled_attention import pooled_attention
from fastinpaint.ops.structure_loss import pyramid_structure_loss

Run = Callable[[], tuple[Tensor, ...]]
POOLED = ((1024, 256, 16), (4096, 1024, 8), (16384, 4096, 4))  # queries, keys, width at 256 x 256
PATCHES = ((256, 32), (128, 64), (64, 128))  # channels, side in pixels
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2}  # relative L2; a sign near 0 may flip in the structure loss


def with_gradients(value_of: Callable[[], Tensor], leaves: Sequence[Tensor], backward: bool) -> Run:
    """The value, and with ``backward`` the gradients of its sum."""

    def run() -> tuple[Tensor, ...]:
        if not backward:
            with torch.no_grad():
                return (value_of(),)
        value = value_of()
        return (value.detach(), *torch.autograd.grad(value, leaves, torch.ones_like(value)))

    return run


def graphed(run: Run) -> Run:
    """Replay a CUDA graph of a run."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return result

    return replay


def structure_loss(batch: int, dtype: torch.dtype, backward: bool) -> dict[str, Run]:
    """Three scales from 256 x 256, edges given."""
    image = torch.rand(batch, 3, 256, 256, device="cuda") * 2 - 1
    sides = (256, 128, 64)
    predictions = [torch.randn(batch, 6, s, s, device="cuda").to(dtype).requires_grad_() for s in sides]
    edges = [torch.rand(batch, 1, s, s, device="cuda") < 0.1 for s in sides]

    def loss(backend: str) -> Callable[[], Tensor]:
        return lambda: pyramid_structure_loss(image, predictions, edges=edges, backend=backend)

    values = {"triton": loss("triton"), "eager": loss("reference"), "torch.compile": torch.compile(loss("reference"))}
    return {name: with_gradients(value, predictions, backward) for name, value in values.items()}


def pooled(batch: int, dtype: torch.dtype, backward: bool, problem: tuple[int, int, int]) -> dict[str, Run]:
    """One scale of the generator's attention."""
    queries, keys, width = problem
    leaves = [torch.randn(batch, n, width, device="cuda").to(dtype).requires_grad_() for n in (queries, keys, keys)]

    def fused() -> Tensor:
        query, key, value = (x[:, None] for x in leaves)
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]

    def eager() -> Tensor:
        return pooled_attention(*leaves, backend="reference")

    values = {
        "triton": lambda: pooled_attention(*leaves, backend="triton"),
        "scaled_dot_product_attention": fused,
        "eager": eager,
        "torch.compile": torch.compile(eager),
    }
    return {name: with_gradients(value, leaves, backward) for name, value in values.items()}


def patches(batch: int, dtype: torch.dtype, backward: bool, problem: tuple[int, int]) -> dict[str, Run]:
    """One scale of the generator's patch attention, k = 3, stride 2."""
    channels, side = problem
    features = (torch.randn(batch, channels, side, side, device="cuda") / 8).to(dtype).requires_grad_()
    values = {
        "triton": lambda: patch_attention(features, backend="triton"),
        "scaled_dot_product_attention": lambda: fused_attention(features),
        "eager": lambda: patch_attention(features, backend="reference"),
    }
    return {name: with_gradients(value, [features], backward) for name, value in values.items()}


@dataclass(frozen=True)
class Case:
    """One row of a table; ``make`` prepares its rivals."""

    file: str
    name: str
    dtype: torch.dtype
    make: Callable[[], dict[str, Run]]
    per: int = 1


TITLES = {
    "structure_loss": "Pyramid structure loss on the GPU: per call",
    "pooled_attention": "Pooled attention on the GPU, batch 16: per call",
    "patch_attention": "Patch attention on the GPU, k = 3, stride 2, batch 4: per image",
}


def cases() -> Iterator[Case]:
    """All rows, table by table."""
    for batch, dtype in ((16, torch.float32), (64, torch.float32), (16, torch.bfloat16)):
        name = f"{batch} x 256², {dtype_name(dtype)}, forward + backward"
        yield Case("structure_loss", name, dtype, partial(structure_loss, batch, dtype, True))
    for problem in POOLED:
        for dtype, backward in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)):
            name = f"{problem}, {dtype_name(dtype)}, {passes(backward)}"
            yield Case("pooled_attention", name, dtype, partial(pooled, 16, dtype, backward, problem))
    for channels, side in PATCHES:
        for backward in (False, True):
            name = f"{side}² x {channels}, bfloat16, {passes(backward)}"
            make = partial(patches, 4, torch.bfloat16, backward, (channels, side))
            yield Case("patch_attention", name, torch.bfloat16, make, per=4)


def passes(backward: bool) -> str:
    """What is timed, in words."""
    return "forward + backward" if backward else "forward"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def check(runs: dict[str, Run], case: str, tolerance: float) -> None:
    """Stop unless ours agrees with eager: an operator that fails has no speed."""
    for found, wanted in zip(runs["triton"](), runs["eager"](), strict=True):
        error = ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()
        if not error < tolerance:
            raise SystemExit(f"{case}: triton differs from eager by {error:.1e}")


def plot(report: Report, path: Path) -> None:
    """Bars of times the fastest rival takes; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(10, 1 + 0.9 * len(report.rows)), layout="constrained")
    axes = figure.add_subplot()
    rivals = list(dict.fromkeys(name for row in report.rows.values() for name in row))
    for offset, rival in enumerate(rivals):
        rows = [(i, row[rival].median * 1e6 / report.per[case]) for i, (case, row) in enumerate(report.rows.items())]
        height = 0.8 / len(rivals)
        axes.barh([i + offset * height for i, _ in rows], [value for _, value in rows], height, label=rival)
    axes.set_yticks([i + 0.4 for i in range(len(report.rows))], list(report.rows))
    axes.invert_yaxis()
    axes.set(title=report.title, xlabel="microseconds, median", xscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Check and time every case; write tables, samples, plots and the profiler's numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA device; torch sees none")
    out.mkdir(parents=True, exist_ok=True)
    reports: dict[str, Report] = {}
    profiles = []
    for case in cases():
        torch.manual_seed(0)
        runs = case.make()
        check(runs, case.name, TOLERANCE[case.dtype])
        profiles.append(f"{TITLES[case.file]}\n{case.name}\n{profile(runs['triton'])}\n")
        runs["triton, graph"] = graphed(runs["triton"])
        report = reports.setdefault(case.file, Report(TITLES[case.file], ours="triton"))
        report.rows[case.name] = time_in_turns(runs, rounds=15, budget=0.3, synchronize=torch.cuda.synchronize)
        report.per[case.name] = case.per
        report.save(out, case.file)
        medians = (f"{name} {times.median * 1e6:.1f} µs" for name, times in report.rows[case.name].items())
        print(case.name, *medians, flush=True)
        torch.compiler.reset()
    (out / "kernels.txt").write_text("\n".join(profiles))
    for file, report in reports.items():
        print(report.markdown())
        plot(report, out / f"{file}.png")


def profile(run: Run) -> str:
    """The profiler's table of kernels, ten runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(10):
            run()
        torch.cuda.synchronize()
    return str(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=12))


if __name__ == "__main__":
    main()
