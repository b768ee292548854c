"""What a benchmark found: a JSON file, and the Markdown table and the plot that are made of it.

``python -m benchmarks.results FILE.json ...`` draws table and plot again, beside each file.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.timing import spread


@dataclass
class Row:
    """One case.

    Args:
        case: Its name.
        items: Images in a call; times are shown for each.
        series: Cases of one series differ in size alone: a curve. Empty: a case by itself.
        size: Side of the image in pixels.
        work: Fields of ``machine.Work``.
        floor: Seconds that a call takes at the machine's ceilings.
        seconds: Rival to seconds per call, a number for each sample.
        memory: Rival to MiB by which a call raises the peak.
        left_out: Rival to the reason why it did not run.
        kernels: The profiler's table of our CUDA kernels; empty on the CPU.
    """

    case: str
    items: int
    series: str
    size: int
    work: dict[str, Any]
    floor: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    kernels: str = ""

    def microseconds(self, rival: str) -> float:
        """Median for an item."""
        return statistics.median(self.seconds[rival]) / self.items * 1e6


@dataclass
class Results:
    """All cases of one benchmark, and what their numbers depend on; ``ours`` is what the others are compared with."""

    title: str
    ours: str
    notes: list[str]
    circumstances: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @property
    def rivals(self) -> list[str]:
        """Names, ours first."""
        return list(dict.fromkeys([self.ours, *(name for row in self.rows for name in row.seconds)]))

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.json``, of which ``draw`` makes the rest."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.json", lambda path: path.write_text(json.dumps(asdict(self), indent=1)))


def load(path: Path) -> Results:
    """Read what ``Results.save`` wrote."""
    content = json.loads(path.read_text())
    return Results(**{**content, "rows": [Row(**row) for row in content["rows"]]})


def draw(path: Path) -> None:
    """Make the table (.md) and the plot (.png, with matplotlib) of a JSON file, and list its kernels (.txt)."""
    results = load(path)
    kernels = "\n".join(f"{row.case}\n{row.kernels}\n" for row in results.rows if row.kernels)
    if kernels:
        _write(path.with_suffix(".txt"), lambda part: part.write_text(kernels))
    _write(path.with_suffix(".md"), lambda part: part.write_text(table(results)))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return
    _write(path.with_suffix(".png"), lambda part: plot(results, part))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part{path.suffix}")
    write(part)
    part.replace(path)


def table(results: Results) -> str:
    """Markdown: a line for each case, a column for each rival, the floor, then the notes and circumstances."""
    lines = [f"## {results.title}", ""]
    lines += ["Median in microseconds ± half the quartile distance, (x times ours), peak extra memory in MiB.", ""]
    lines += [f"| case | {' | '.join(results.rivals)} | floor |", "|---" * (len(results.rivals) + 2) + "|"]
    for row in results.rows:
        cells = [_cell(row, name, results.ours) for name in results.rivals]
        floor = row.floor / row.items * 1e6
        share = f" ({floor / row.microseconds(results.ours):.0%} reached)" if results.ours in row.seconds else ""
        lines.append(f"| {row.case} | {' | '.join(cells)} | {_number(floor)}{share} |")
    lines.append("")
    reasons: dict[str, list[str]] = {}
    for row in results.rows:
        for rival, reason in row.left_out.items():
            reasons.setdefault(f"{rival}: {reason}", []).append(row.case)
    lines += [f"- Not run, {reason} — {'; '.join(cases)}." for reason, cases in reasons.items()]
    lines += [f"- {note}" for note in results.notes]
    return "\n".join([*lines, *_circumstances(results.circumstances), ""])


def _cell(row: Row, name: str, ours: str) -> str:
    if name not in row.seconds:
        return "—"
    samples = row.seconds[name]
    text = f"{_number(row.microseconds(name))} {f'± {spread(samples):.0%}' if len(samples) > 1 else '(once)'}"
    if name != ours and ours in row.seconds:
        text += f" ({row.microseconds(name) / row.microseconds(ours):.2f}x)"
    return f"{text}, {row.memory[name]:.1f} MiB" if name in row.memory else text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _circumstances(facts: dict[str, Any]) -> list[str]:
    rates = facts["ceilings"]
    products = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in rates["flops_per_second"].items())
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [
        f"- Floor: the least bytes at the speed of a copy ({rates['bytes_per_second'] / 1e9:,.1f} GB/s) or the least "
        f"operations at that of matrix products ({products}), whichever takes longer; both measured in this process. "
        "What keeps the units busier than a matrix product does can pass it.",
        f"- Measured {facts['time']} at commit {facts['commit']} on {facts['gpu'] or facts['cpu']}, "
        f"{facts['threads']} threads, load {facts['load']}; Python {facts['python']}, {versions}.",
    ]


def plot(results: Results, path: Path) -> None:
    """Curves of time over size for every series, dots for the cases by themselves."""
    from matplotlib.figure import Figure

    series: dict[str, list[Row]] = {}
    for row in results.rows:
        series.setdefault(row.series, []).append(row)
    alone = series.pop("", [])
    panels = len(series) + bool(alone)
    figure = Figure(figsize=(6.5 * panels, 5), layout="constrained")
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    colours = {name: f"C{i}" for i, name in enumerate(results.rivals)}
    for name, rows in series.items():
        _curves(next(axes), name, sorted(rows, key=lambda row: row.size), colours)
    if alone:
        _dots(next(axes), alone, colours)
    figure.suptitle(results.title)
    figure.savefig(path, dpi=110)


def _curves(axes: Any, title: str, rows: list[Row], colours: dict[str, str]) -> None:
    for rival, colour in colours.items():
        points = [(row.size, row.microseconds(rival)) for row in rows if rival in row.seconds]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=rival)
    axes.plot([row.size for row in rows], [row.floor / row.items * 1e6 for row in rows], "k:", label="floor")
    axes.set(title=title, xlabel="side of the image, pixels", ylabel="microseconds for an image", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks([row.size for row in rows], [str(row.size) for row in rows])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _dots(axes: Any, rows: list[Row], colours: dict[str, str]) -> None:
    for rival, colour in colours.items():
        dots = [(row.microseconds(rival), place) for place, row in enumerate(rows) if rival in row.seconds]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=colour, label=rival)
    axes.plot([row.floor / row.items * 1e6 for row in rows], range(len(rows)), "k|", label="floor")
    axes.set_yticks(range(len(rows)), [row.case for row in rows], fontsize=8)
    axes.set(xlabel="microseconds for an image", xscale="log")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw(Path(name))
