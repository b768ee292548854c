"""Timing of rivals in one process, and the table and the file that a benchmark makes of it.

A benchmark module ``bench_<op>`` has ``report() -> Report``; ``python -m benchmarks`` finds it by its name.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

SAMPLE_SECONDS = (
    4e-3  # a sample repeats a call until it lasts this long, so that the clock and a page fault do not count
)


@dataclass(frozen=True)
class Times:
    """Seconds per call, one number for each sample."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The number to compare."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """What it takes when nothing disturbs."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def time_in_turns(
    rivals: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    budget: float = 1.0,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Times]:
    """Time the rivals in turns: whatever slows the machine down for a while slows all of them.

    Args:
        rivals: Name to call.
        rounds: Samples of each; a rival that has used up its budget sits out, after three samples at least.
        budget: Seconds for each rival.
        synchronize: Called before the clock is read, such as ``torch.cuda.synchronize``.
    """
    wait = synchronize or (lambda: None)

    def sample(call: Callable[[], object], repeats: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, call in rivals.items():
        sample(call, 1)  # warms up
        repeats[name] = max(1, round(SAMPLE_SECONDS / sample(call, 1)))
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            if len(samples[name]) < 3 or sum(samples[name]) * repeats[name] < budget:
                samples[name].append(sample(call, repeats[name]))
    return {name: Times(tuple(seconds)) for name, seconds in samples.items()}


def extra_memory(run: Callable[[], object]) -> float:
    """MiB by which a call raises the peak of resident memory (Linux with glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    run()
    return _peak_mib() - before


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@dataclass
class Report:
    """Results of one benchmark.

    Args:
        title: What was timed, in words.
        ours: The rival that the others are compared with.
        rows: Case to rival to times.
        notes: Sentences below the table: what was checked, what a rival does differently.
        per: Case to the number of items in a call, such as images; times are printed for each.
    """

    title: str
    ours: str
    rows: dict[str, dict[str, Times]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    per: dict[str, int] = field(default_factory=dict)

    def markdown(self) -> str:
        """A table: microseconds per item, spread, and how many times ours the rival takes."""
        rivals = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [f"## {self.title}", "", "Median in microseconds, ± half the quartile distance, (x times ours).", ""]
        lines += ["| case | " + " | ".join(rivals) + " |", "|---" * (len(rivals) + 1) + "|"]
        for case, row in self.rows.items():
            cells = [self._cell(case, row, name) for name in rivals]
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
        facts = circumstances()
        about = ", ".join(
            f"{name} {facts[name]}" for name in ("commit", "cpu", "gpu", "threads", "load") if facts[name]
        )
        return "\n".join([*lines, "", *self.notes, "", f"Measured at {about}; torch {facts['torch']}.", ""])

    def _cell(self, case: str, row: dict[str, Times], name: str) -> str:
        if name not in row:
            return "—"
        times, ours = row[name], row[self.ours]
        text = f"{times.median / self.per.get(case, 1) * 1e6:,.1f} ± {100 * times.spread:.0f} %"
        return text if name == self.ours else f"{text} ({times.median / ours.median:.2f}x)"

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.md`` and ``name.json`` (every sample, and the circumstances)."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = {case: {rival: times.seconds for rival, times in row.items()} for case, row in self.rows.items()}
        content = {"title": self.title, "ours": self.ours, "seconds": rows, "items": self.per, "notes": self.notes}
        for suffix, text in (
            ("json", json.dumps({**content, "circumstances": circumstances()}, indent=1)),
            ("md", self.markdown()),
        ):
            fresh = folder / f".{name}.{suffix}.part"
            fresh.write_text(text)
            fresh.replace(folder / f"{name}.{suffix}")


def run_as_program(
    report: Callable[[list[str] | None], Report], cases: Collection[str], description: str | None
) -> None:
    """Print the report of the cases that the command line names, of all if it names none."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(cases)}", metavar="case")
    names = parser.parse_args().cases
    unknown = [name for name in names if name not in cases]
    if unknown:
        parser.error(f"no case named {', '.join(unknown)}; there are {', '.join(cases)}")
    print(report(names).markdown())


def circumstances() -> dict[str, str]:
    """What a number depends on: commit, device, versions, threads, load."""
    versions = {
        name: _version(name)
        for name in ("torch", "numpy", "triton", "scikit-image", "kornia", "opencv-python-headless")
    }
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": f"{_cpu()} ({os.cpu_count()} cores)",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "",
        "python": platform.python_version(),
        **versions,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return run.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
