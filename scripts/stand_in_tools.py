"""Stand-ins for nvidia-smi, ncu and compute-sanitizer in a dry run.

They take the options that the real programs are given by ``scripts/gpu_check.py``, refuse others, and run the command.
"""

import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NCU_FLAGS = {"--csv"}
NCU_OPTIONS = {
    "--clock-control",
    "--kernel-name",
    "--launch-count",
    "--log-file",
    "--page",
    "--profile-from-start",
    "--section",
}
SANITIZER_OPTIONS = {"--tool", "--error-exitcode", "--print-limit"}
NCU_COLUMNS = (
    "ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
    "Device", "CC", "Section Name", "Metric Name", "Metric Unit", "Metric Value",
)  # fmt: skip
NCU_ROWS = (
    ("0", "spin_kernel(long)", "Duration", "us", "1.00"),
    ("1", "void (anonymous namespace)::detect<float>(int)", "Duration", "us", "12.50"),
    ("1", "void (anonymous namespace)::detect<float>(int)", "Compute (SM) Throughput", "%", "55.0"),
    ("1", "void (anonymous namespace)::detect<float>(int)", "Memory Throughput", "%", "45.0"),
    ("1", "void (anonymous namespace)::detect<float>(int)", "Memory Throughput", "Tbyte/s", "1.5"),
)


def make(folder: Path) -> Path:
    """Write the three programs into a new folder."""
    folder.mkdir()
    for name, function in (("nvidia-smi", "nvidia_smi"), ("ncu", "ncu"), ("compute-sanitizer", "sanitizer")):
        path = folder / name
        code = f"sys.path.insert(0, {str(ROOT)!r})\nfrom scripts.stand_in_tools import {function}\n{function}()\n"
        path.write_text(f"#!{sys.executable}\nimport sys\n{code}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def nvidia_smi() -> None:
    """Answer 1980 to whatever is asked."""
    fields = next(a for a in sys.argv if a.startswith("--query-gpu=")).split("=")[1].split(",")
    print(", ".join("1980" for _ in fields))


def ncu() -> None:
    """Run the command, then write a table of two kernels to the log file."""
    options, command = _split(sys.argv[1:], NCU_OPTIONS, NCU_FLAGS)
    status = subprocess.call(command)
    lines = [_quoted(NCU_COLUMNS)]
    for number, kernel, metric, unit, value in NCU_ROWS:
        facts = ("1", "python3", "127.0.0.1", kernel, "1", "7", "(128, 1, 1)", "(132, 1, 1)", "0", "9.0")
        lines.append(_quoted((number, *facts, "GPU Speed Of Light Throughput", metric, unit, value)))
    Path(options["--log-file"]).write_text("\n".join(["==PROF== Connected", *lines, ""]))
    sys.exit(status)


def sanitizer() -> None:
    """Run the command and report no error."""
    _, command = _split(sys.argv[1:], SANITIZER_OPTIONS, set())
    status = subprocess.call(command)
    print("========= ERROR SUMMARY: 0 errors", flush=True)
    sys.exit(status)


def _split(arguments: list[str], options: set[str], flags: set[str]) -> tuple[dict[str, str], list[str]]:
    """Options with their values, and the command behind them."""
    found = {}
    while arguments and arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name in options:
            found[name] = arguments.pop(0)
        elif name not in flags:
            sys.exit(f"unknown option {name}")
    return found, arguments


def _quoted(cells: tuple[str, ...]) -> str:
    return ",".join(f'"{cell}"' for cell in cells)
