"""What a benchmark found: a JSON file, and the Markdown table and the plot that are made of it.

``python -m benchmarks.results FILE.json ...`` draws table and plot again, beside each file.
``python -m benchmarks.results --from-archive results.tgz`` makes ``benchmarks/results/<gpu>/`` of what
``scripts/gpu_check.sh`` brought back and prints rows for the README. Nothing here needs torch.
"""

import argparse
import json
import re
import statistics
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GRAPH = ", graph"  # ends the name of a competitor whose CUDA graph was replayed
COMPILED = "_compiled"  # ends the name of a file that holds the compiled peers alone


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 for a single sample."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle


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
        seconds: Competitor to seconds per call, a number for each sample.
        memory: Competitor to MiB by which a call raises the peak.
        left_out: Competitor to the reason why it did not run.
        kernels: The profiler's table of our CUDA kernels; empty on the CPU.
        failed: Why our result was not timed: it was wrong, or it raised. Empty where it was right.
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
    failed: str = ""

    def microseconds(self, competitor: str) -> float:
        """Median for an item."""
        return statistics.median(self.seconds[competitor]) / self.items * 1e6


@dataclass
class Results:
    """All cases of one benchmark, and what their numbers depend on; ``ours`` is what the others are compared with.

    With ``rate`` the compact table shows items per second, too.
    """

    title: str
    ours: str
    notes: list[str]
    circumstances: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    rate: bool = False

    @property
    def competitors(self) -> list[str]:
        """Names, ours first."""
        return list(dict.fromkeys([self.ours, *(name for row in self.rows for name in row.seconds)]))

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.json``, of which ``draw`` makes the rest."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.json", lambda path: path.write_text(json.dumps(asdict(self), indent=1)))


def load(path: Path) -> Results:
    """Read what ``Results.save`` wrote."""
    return _results(json.loads(path.read_text()))


def _results(fields: dict[str, Any]) -> Results:
    return Results(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})


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
    """Markdown: a line for each case, a column for each competitor, the floor, then the notes and circumstances."""
    lines = [f"## {results.title}", ""]
    lines += ["Median in microseconds ± half the quartile distance, (x times ours), peak extra memory in MiB.", ""]
    lines += [f"| case | {' | '.join(results.competitors)} | floor |", "|---" * (len(results.competitors) + 2) + "|"]
    for row in results.rows:
        cells = [_cell(row, name, results.ours) for name in results.competitors]
        floor = row.floor / row.items * 1e6
        best = fastest(row, results.ours)
        share = f" ({floor / row.microseconds(best):.0%} reached)" if best else ""
        lines.append(f"| {row.case} | {' | '.join(cells)} | {_number(floor)}{share} |")
    lines.append("")
    lines += [f"- **Failed**: {row.case}: {row.failed}" for row in results.rows if row.failed]
    reasons: dict[str, list[str]] = {}
    for row in results.rows:
        for competitor, reason in row.left_out.items():
            reasons.setdefault(f"{competitor}: {reason}", []).append(row.case)
    lines += [f"- Not run, {reason} — {'; '.join(cases)}." for reason, cases in reasons.items()]
    lines += [f"- {note}" for note in results.notes]
    return "\n".join([*lines, *_circumstances(results.circumstances), ""])


def fastest(row: Row, competitor: str) -> str:
    """The competitor's faster way, a plain call or its graph; empty where neither was timed."""
    timed = [name for name in (competitor, competitor + GRAPH) if name in row.seconds]
    return min(timed, key=row.microseconds) if timed else ""


def compact(results: Results) -> str:
    """A line for each case, for a terminal: microseconds of a whole call / of its graph's replay, (x times ours)."""
    names = [name for name in results.competitors if not name.endswith(GRAPH)]
    lines = [f"## {results.title.split(':')[0]}"]
    for row in results.rows:
        best = fastest(row, results.ours)
        cells = []
        for name in names:
            timed = fastest(row, name)
            if not timed:
                continue
            both = [_number(row.items * row.microseconds(n)) for n in (name, name + GRAPH) if n in row.seconds]
            text = f"{name} {'/'.join(both) if name in row.seconds else f'-/{both[0]}'}"
            if name == results.ours and row.floor < 1e-9:
                text += f" ±{spread(row.seconds[timed]):.0%}"
            elif name == results.ours:
                text += f" ±{spread(row.seconds[timed]):.0%}, floor {_number(row.floor * 1e6)}"
                text += f" ({row.floor / row.items * 1e6 / row.microseconds(timed):.0%})" if row.floor else ""
            elif best:
                text += f" ({row.microseconds(timed) / row.microseconds(best):.3g}x)"
            if results.rate:
                text += f" {1e6 / row.microseconds(timed):,.0f}/s"
                text += f" +{row.memory[name]:,.0f} MiB" if row.memory.get(name) else ""
            cells.append(text)
        if best and row.left_out.get(results.ours + GRAPH):
            cells.append(f"no graph of ours: {row.left_out[results.ours + GRAPH][:120]}")
        lost = [name for name in row.left_out if not _of(name, results.ours) and not name.endswith(GRAPH)]
        cells += [f"without {', '.join(f'{name} ({row.left_out[name][:40]})' for name in lost)}"] if lost else []
        if row.failed:
            cells.insert(0, f"FAILED {row.failed}")
        elif not best:
            cells.insert(0, f"{results.ours} not run: {row.left_out.get(results.ours, 'unknown')[:200]}")
        lines.append(f"{row.case}: {' | '.join(cells)}")
    return "\n".join(lines)


def _of(name: str, competitor: str) -> bool:
    return name in (competitor, competitor + GRAPH)


def _cell(row: Row, name: str, ours: str) -> str:
    if name == ours and row.failed:
        return "failed"
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
    source = "both measured on random numbers, float64 counted from clock and multiprocessors" if facts["gpu"] else ""
    return [
        f"- Floor: the least bytes at the speed of a copy ({rates['bytes_per_second'] / 1e9:,.1f} GB/s) or the least "
        f"operations at that of matrix products ({products}), whichever takes longer; "
        f"{source or 'both measured in this process'}. "
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
    colours = {name: f"C{i}" for i, name in enumerate(results.competitors)}
    for name, rows in series.items():
        _curves(next(axes), name, sorted(rows, key=lambda row: row.size), colours)
    if alone:
        _dots(next(axes), alone, colours)
    figure.suptitle(results.title)
    figure.savefig(path, dpi=110)


def _curves(axes: Any, title: str, rows: list[Row], colours: dict[str, str]) -> None:
    for competitor, colour in colours.items():
        points = [(row.size, row.microseconds(competitor)) for row in rows if competitor in row.seconds]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=competitor)
    axes.plot([row.size for row in rows], [row.floor / row.items * 1e6 for row in rows], "k:", label="floor")
    axes.set(title=title, xlabel="side of the image, pixels", ylabel="microseconds for an image", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks([row.size for row in rows], [str(row.size) for row in rows])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _dots(axes: Any, rows: list[Row], colours: dict[str, str]) -> None:
    for competitor, colour in colours.items():
        dots = [(row.microseconds(competitor), place) for place, row in enumerate(rows) if competitor in row.seconds]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=colour, label=competitor)
    axes.plot([row.floor / row.items * 1e6 for row in rows], range(len(rows)), "k|", label="floor")
    axes.set_yticks(range(len(rows)), [row.case for row in rows], fontsize=8)
    axes.set(xlabel="microseconds for an image", xscale="log")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main() -> None:
    """Draw again, or unpack what a GPU measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json")
    parser.add_argument("--from-archive", type=Path, metavar="results.tgz", help="what scripts/gpu_check.sh packed")
    parser.add_argument("--out", type=Path, help="folder for it (default: benchmarks/results/<gpu>)")
    options = parser.parse_args()
    for file in options.files:
        draw(file)
    if options.from_archive is not None:
        folder, names = unpack(options.from_archive, options.out)
        print(f"{folder}: {', '.join(names)}\n")
        print("\n".join(readme_rows(folder, names)))


def unpack(archive: Path, out: Path | None = None) -> tuple[Path, list[str]]:
    """Take the benchmarks out of an archive, join those that compiled peers to the others, draw them.

    Args:
        archive: ``results.tgz`` of ``scripts/gpu_check.sh``.
        out: Folder for ``NAME.json``, ``.md`` and ``.png``; None: ``benchmarks/results/`` and the GPU's name.

    Returns:
        The folder and the names.

    Raises:
        ValueError: There is no benchmark in it.
    """
    found: dict[str, Results] = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            if content is None or not member.name.endswith(".json"):
                continue
            fields = json.loads(content.read())
            if isinstance(fields, dict) and fields.get("rows") and "circumstances" in fields:
                found[Path(member.name).stem] = _results(fields)
    if not found:
        raise ValueError(f"{archive} holds no benchmark's JSON")
    for name in [name for name in found if name.endswith(COMPILED)]:
        compiled = found.pop(name)
        plain = found.setdefault(name.removesuffix(COMPILED), compiled)
        if plain is not compiled:
            _join(plain, compiled)
    machine = next(iter(found.values())).circumstances
    folder = out or Path(__file__).parent / "results" / slug(machine["gpu"] or machine["cpu"])
    for name, results in found.items():
        results.save(folder, name)
        draw(folder / f"{name}.json")
    return folder, sorted(found)


def slug(device: str) -> str:
    """A folder's name: ``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _join(plain: Results, compiled: Results) -> None:
    """Add the compiled peers' times to the rows of the same case."""
    rows = {row.case: row for row in plain.rows}
    for row in compiled.rows:
        if row.case not in rows:
            plain.rows.append(row)
            continue
        known = rows[row.case]
        for name, seconds in row.seconds.items():
            known.seconds.setdefault(name, seconds)
        for name, value in row.memory.items():
            known.memory.setdefault(name, value)
        for name, reason in row.left_out.items():
            if name not in known.seconds:
                known.left_out.setdefault(name, reason)
    plain.notes.append("torch.compile and FlexAttention were timed in a later process on the same machine.")


def readme_rows(folder: Path, names: list[str]) -> list[str]:
    """Markdown rows: operator, case, ours, the others with how many times ours they take; faster of call and graph."""
    lines = []
    for name in names:
        results = load(folder / f"{name}.json")
        competitors = [
            competitor
            for competitor in results.competitors
            if not competitor.endswith(GRAPH) and competitor != results.ours
        ]
        for row in results.rows:
            best = fastest(row, results.ours)
            if not best:
                lines.append(f"| {results.title.split(':')[0]} | {row.case} | not measured | {row.failed} |")
                continue
            cells = [
                f"{competitor} {_duration(row, timed)} ({row.microseconds(timed) / row.microseconds(best):.3g}x)"
                for competitor in competitors
                if (timed := fastest(row, competitor))
            ]
            ours = f"{_duration(row, best)}{' (graph)' if best.endswith(GRAPH) else ''}"
            lines.append(f"| {results.title.split(':')[0]} | {row.case} | {ours} | {', '.join(cells)} |")
    return lines


def _duration(row: Row, name: str) -> str:
    """Of a whole call."""
    microseconds = row.microseconds(name) * row.items
    return f"{microseconds / 1000:,.3g} ms" if microseconds >= 1000 else f"{microseconds:.3g} us"


if __name__ == "__main__":
    main()
