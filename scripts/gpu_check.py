"""Check and measure the GPU kernels on a CUDA machine, in steps ordered by value; nothing is downloaded.

    scripts/gpu_check.sh [FOLDER] [--deadline SECONDS] [--steps a,b,c] [--list] [--dry-run]

All work goes to a scratch folder. After every step it is packed into FOLDER/results.tgz, FOLDER/summary.md is written
anew, and the step's table is printed; all tables are printed again last, within 10,000 characters. A kill at any moment
leaves what was finished. A step that fails or takes too long does not stop the others, but without the CUDA kernels of
Canny nothing runs (``--without-canny`` insists). ``python -m benchmarks.results --from-archive FOLDER/results.tgz``
turns the archive into tables and plots.

Kernels take their first configurations (FASTINPAINT_TUNE=0): to compile and time the others took a minute of the first
training step, once for every process that found no choice on disk. The step ``tune`` times them later by itself;
FASTINPAINT_TUNE=1 in the environment tunes in every step.

The machine needs torch, Triton, pytest, pytest-xdist, pytest-timeout, hypothesis, numpy, safetensors, tqdm and
lazy_loader; nvcc where fastinpaint/_C_cuda.abi3.so, which is carried beside _C.abi3.so, is not there or does not load.
FASTINPAINT_COMMIT names the commit where there is no git.
``--dry-run`` takes every step on a CPU that stands in for a GPU, with stand-ins for nvidia-smi, ncu and
compute-sanitizer.

Exit status: 0 when every step that began passed; 1 when one failed; 2 without a GPU or without the CUDA Canny.
"""

import argparse
import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results import COMPILED, Results, compact, load, table  # noqa: E402 - needs no torch
from scripts import stand_in_tools  # noqa: E402

NO_CANNY = 3  # of benchmarks.machine
LAST_CHARACTERS = 9800
LEAST_SECONDS = 5.0  # a step is not begun with less
OPERATORS = (
    "pooled_attention", "structure_loss", "canny", "instance_norm", "patch_attention", "canny_pyramid", "sobel_edges",
    "edge_priority",
)  # fmt: skip
COMPILABLE = ("train_step", "generator", "pooled_attention", "structure_loss", "instance_norm", "patch_attention")
ALONE = "beyond_2_31 or largest or no_memory_but"
COMPILE = "compiles or opcheck"
NCU_KERNELS = r"^_[a-z]|detect|join_tiles|resolve_edges|store_weights|blur_down|blur_across|spin_kernel"


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        name: Of its log.
        what: In words.
        seconds: Its limit.
        command: Made from the run; the first argument is a program.
        show: From the run to the lines worth printing.
        environment: Beside the run's own.
        beside: Commands that run at the same time, whose failures do not count.
    """

    name: str
    what: str
    seconds: int
    command: Callable[["Check"], list[str]]
    show: Callable[["Check"], str]
    environment: dict[str, str] = field(default_factory=dict)
    beside: Callable[["Check"], list[list[str]]] = lambda _: []


class Check:
    """One run: where it writes, how much time it has, what happened."""

    def __init__(self, folder: Path, deadline: float, dry: bool) -> None:
        self.begun = time.monotonic()
        self.folder, self.deadline, self.dry = folder, deadline, dry
        folder.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        self.python = sys.executable
        # Beside the scratch folder: what one run compiled serves the next on this machine.
        self.kernels = Path(os.environ.get("TRITON_CACHE_DIR") or Path(tempfile.gettempdir(), "gpu-check-triton"))
        self.done: list[tuple[Step, str]] = []  # and how it ended
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(self.kernels),
            "FASTINPAINT_TUNE": os.environ.get("FASTINPAINT_TUNE", "0"),
            "FASTINPAINT_COMMIT": os.environ.get("FASTINPAINT_COMMIT") or git_commit(),
        }
        if dry:
            self.environment |= {
                "TRITON_INTERPRET": "1",
                "OMP_NUM_THREADS": "1",
                "PATH": f"{stand_in_tools.make(self.scratch / 'bin')}{os.pathsep}{os.environ['PATH']}",
            }

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun

    def log(self, name: str) -> Path:
        """What a step prints goes here."""
        return self.scratch / f"{name}.txt"

    def text(self, name: str) -> str:
        """What a step printed."""
        return self.log(name).read_text(errors="replace") if self.log(name).is_file() else ""

    def tool(self, name: str) -> str:
        """Path of a CUDA tool."""
        known = [f"/usr/local/cuda/bin/{name}", *map(str, Path("/opt/nvidia/nsight-compute").glob(f"*/{name}"))]
        found = shutil.which(name, path=self.environment["PATH"])
        return found or next((path for path in known if Path(path).is_file()), name)

    def module(self, name: str, *options: str) -> list[str]:
        """A command of this repository."""
        return [self.python, "-m", name, *options, *(["--dry-run"] if self.dry else [])]

    def benchmark(self, *options: str, budget: float = 0.15) -> list[str]:
        """``python -m benchmarks`` on the GPU."""
        fixed = ["--device", "cuda", "--compact", "--out", str(self.scratch), "--ceilings", self.ceilings]
        return self.module("benchmarks", *options, *fixed, "--budget", str(0 if self.dry else budget))

    @property
    def ceilings(self) -> str:
        """The file that keeps the machine's ceilings."""
        return str(self.scratch / "ceilings.json")

    def execute(self, step: Step) -> int:
        """Run a step and its companions within its limit and the deadline; its exit status, 124 if it was stopped."""
        limit = min(step.seconds * (6 if self.dry else 1), self.deadline - self.elapsed)
        end = time.monotonic() + max(limit, 0.1)
        environment = {**self.environment, **step.environment}
        commands = {step.name: step.command(self)}
        commands |= {f"{step.name}_beside_{i}": command for i, command in enumerate(step.beside(self))}
        processes = {}
        for name, command in commands.items():
            with self.log(name).open("w") as log:
                try:
                    processes[name] = subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL, start_new_session=True,
                    )  # fmt: skip
                except OSError as error:
                    log.write(f"{error}\n")
        status = wait(processes.pop(step.name), end - time.monotonic()) if step.name in processes else 127
        if processes:
            self.pack()  # a kill while its companions still run leaves what it printed
        for process in processes.values():
            wait(process, end - time.monotonic())
        return status

    def take(self, step: Step) -> int:
        """Run a step, keep everything, print its table."""
        if self.deadline - self.elapsed < LEAST_SECONDS:
            self.finish(step, "not begun: the deadline")
            return 0
        print(f"\n=== {step.name}: {step.what} (from {self.elapsed:.0f} s)", flush=True)
        start = self.elapsed
        status = self.execute(step)
        if step.name.startswith("tests"):
            self.forget_tuning()
        ended = {0: "passed", 124: "STOPPED at its limit"}.get(status, f"FAILED with exit status {status}")
        self.finish(step, f"{ended} after {self.elapsed - start:.0f} s")
        print(shown(self, step), flush=True)
        if status not in (0, 124):
            print(f"--- the end of what {step.name} printed\n{self.text(step.name)[-1500:]}", flush=True)
        print(f"=== {step.name} {self.done[-1][1]}", flush=True)
        return status

    def forget_tuning(self) -> None:
        """Remove what was tuned while other tests had the GPU, too; what was compiled stays."""
        for path in self.kernels.rglob("*.autotune.json"):
            path.unlink(missing_ok=True)

    def finish(self, step: Step, how: str) -> None:
        """Note how a step ended; pack."""
        self.done.append((step, how))
        self.pack()

    def pack(self) -> None:
        """Write the summary, and everything into the archive."""
        summary = self.summary()
        (self.scratch / "summary.md").write_text(summary)
        part = self.folder / ".results.tgz.part"
        with tarfile.open(part, "w:gz") as tar:
            for path in sorted(self.scratch.iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    tar.add(path, arcname=path.name)
        part.replace(self.folder / "results.tgz")
        part = self.folder / ".summary.md.part"
        part.write_text(summary)
        part.replace(self.folder / "summary.md")

    def steps_lines(self) -> list[str]:
        """A line for each step."""
        return [f"- {step.name}: {how}" for step, how in self.done]

    def summary(self) -> str:
        """Markdown: how each step ended, every table, the other steps' findings."""
        kind = "Dry run: a CPU stands in, nothing is measured. " if self.dry else ""
        commit = self.environment["FASTINPAINT_COMMIT"] or "unknown"
        now = datetime.now(timezone.utc)
        lines = [f"# GPU check, {now:%Y-%m-%dT%H:%MZ}", "", f"{kind}Commit {commit}, {self.elapsed:.0f} s.", ""]
        lines += [*self.steps_lines(), ""]
        for step, _ in self.done:
            text = shown(self, step)
            if text and not step.name.startswith(("train", "generator", "operators", "compiled", "parts")):
                lines += [f"## {step.name}: {step.what}", "", "```text", text, "```", ""]
        for path in sorted(self.scratch.glob("*.json")):
            results = read_results(path)
            if results is not None:
                suffix = " (compiled peers)" if path.stem.endswith(COMPILED) else ""
                lines += [table(results).replace("\n", f"{suffix}\n", 1), ""]
        return "\n".join(lines)

    def last_words(self) -> str:
        """Everything again, short: what matters most first."""
        lines = [f"=== all again after {self.elapsed:.0f} s", *self.steps_lines()]
        text = "\n".join(lines)
        for step, _ in self.done:
            left = LAST_CHARACTERS - len(text)
            part = shown(self, step)
            if part and left > 200:
                text += f"\n--- {step.name}\n{part}"[: left - 1]
        return text[:LAST_CHARACTERS]


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """Its exit status; after ``seconds`` the process and its children are ended, which gives 124."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=max(seconds, 0.1))
    for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
    return 124


def git_commit() -> str:
    """``git describe``; empty without git."""
    command = ["git", "-c", f"safe.directory={ROOT}", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def shown(check: Check, step: Step) -> str:
    """A step's findings; never an exception: they are for show."""
    try:
        return step.show(check)
    except Exception as error:
        return f"(cannot be shown: {type(error).__name__}: {error})"


def read_results(path: Path) -> Results | None:
    """A benchmark's file; None if it is none, or half written."""
    try:
        return load(path)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def tables(*names: str, case: str = "", kernels: bool = False) -> Callable[[Check], str]:
    """Compact tables of benchmarks, with the profiler's kernels of the first row."""

    def show(check: Check) -> str:
        parts = []
        for name in names:
            path = check.scratch / f"{name}.json"
            results = read_results(path) if path.is_file() else None
            if results is None:
                continue
            results.rows = [row for row in results.rows if case in row.case]
            parts.append(compact(results))
            if kernels and results.rows:
                parts += [line[:120] for line in results.rows[0].kernels.splitlines()[:12]]
        return "\n".join(part for part in parts if part)

    return show


def last_lines(name: str, count: int = 12) -> Callable[[Check], str]:
    """The end of a log."""
    return lambda check: "\n".join(check.text(name).splitlines()[-count:])


def test_results(name: str) -> Callable[[Check], str]:
    """Counts, and what failed."""

    def show(check: Check) -> str:
        text = check.text(name)
        found: dict[str, set[str]] = {}
        outcomes = "PASSED|FAILED|ERROR|SKIPPED|XFAIL"
        # Under pytest-xdist the outcome comes first, and a group behind the name.
        parallel = re.findall(rf"^\[gw\d+\] \[ *\d+%\] ({outcomes}) (tests/.*?)(?:@.*)?\s*$", text, re.M)
        serial = re.findall(rf"^(tests/.*?) ({outcomes})\b", text, re.M)
        for outcome, test in [*parallel, *((outcome, test) for test, outcome in serial)]:
            found.setdefault(outcome, set()).add(test)
        counts = ", ".join(f"{len(tests)} {outcome.lower()}" for outcome, tests in sorted(found.items()))
        bad = [f"{outcome} {test}" for outcome in ("FAILED", "ERROR") for test in sorted(found.get(outcome, ()))]
        lines = [counts or "no test ran", *(re.findall(r"^(?:FAILED|ERROR) (tests/.*)$", text, re.M) or bad)]
        lines += re.findall(r"^worker '?gw\d+'? crashed.*$|^.*the CUDA context is spoilt.*$", text, re.M)
        lines += sorted(set(re.findall(r"^SKIPPED \[\d+\].*$", text, re.M)))[:4]
        return "\n".join(line[:300] for line in lines[:30])

    return show


def sanitizer_result(name: str) -> Callable[[Check], str]:
    """What ran, what was reported."""

    def show(check: Check) -> str:
        lines = check.text(name).splitlines()
        wanted = [line for line in lines if re.match(r"ran |.*(FAILED|not there|not begun|SUMMARY)", line)]
        reported = [line for line in lines if line.startswith("=========") and "SUMMARY" not in line]
        ran = ", ".join(line.removeprefix("ran ") for line in wanted if line.startswith("ran "))
        return "\n".join([f"ran {ran}", *(line for line in wanted if not line.startswith("ran ")), *reported[1:9]])

    return show


NCU_COLUMNS = {  # metric of a section to a short name
    "Duration": "us",
    "Compute (SM) Throughput": "SM%",
    "Memory Throughput": "mem%",
    "DRAM Throughput": "DRAM%",
    "L1/TEX Cache Throughput": "L1%",
    "L2 Cache Throughput": "L2%",
    "Achieved Occupancy": "occ%",
    "Theoretical Occupancy": "max%",
    "Registers Per Thread": "regs",
    "Issue Slots Busy": "issue%",
}


def ncu_table(check: Check) -> str:
    """A line for each kernel of each operator, from ncu's CSV."""
    names = [line.removeprefix("ran ") for line in check.text("ncu").splitlines() if line.startswith("ran ")]
    path = check.scratch / "ncu.csv"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return "\n".join(["no table of ncu's", *lines[-6:], *check.text("ncu").splitlines()[-6:]])
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(line for line in lines[first:] if line.startswith('"')):
        kernel = kernels.setdefault(row["ID"], {"name": row["Kernel Name"]})
        column, value = NCU_COLUMNS.get(row["Metric Name"]), row["Metric Value"]
        if column is None or (row["Metric Name"] == "Memory Throughput" and row["Metric Unit"] != "%"):
            continue
        if column == "us":
            scale = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3}
            value = f"{float(value.replace(',', '')) * scale.get(row['Metric Unit'], float('nan')):.4g}"
        kernel[column] = value
    shown_lines = ["kernel: " + " ".join(NCU_COLUMNS.values())]
    operator, seen = -1, set()
    for kernel in kernels.values():
        if "spin_kernel" in kernel["name"]:
            operator, seen = operator + 1, set()
            shown_lines.append(f"{names[operator] if operator < len(names) else 'operator ' + str(operator)}:")
            continue
        plain = kernel["name"].replace("(anonymous namespace)", "").replace("<unnamed>", "")
        short = re.split(r"[<(]", plain)[0].split("::")[-1].split(" ")[-1]
        if (short, kernel.get("regs")) in seen:  # patch attention launches some often
            continue
        seen.add((short, kernel.get("regs")))
        shown_lines.append(f"  {short}: " + " ".join(kernel.get(column, "-") for column in NCU_COLUMNS.values()))
    return "\n".join(shown_lines)


def pytest_command(check: Check, selection: str, *options: str) -> list[str]:
    """The GPU tests of ``selection``; only files that have some, for others may want packages that are not there."""
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    names = [str(path.relative_to(ROOT)) for path in files if path.name != "test_gpu_check.py"]
    command = [check.python, "-m", "pytest", "-m", "gpu", "-k", selection, "-v", "-rfEs", "--tb=short", "--durations=5"]
    command += ["-p", "no:cacheprovider", "--timeout", "600" if check.dry else "60", "--timeout-method", "thread"]
    return [*command, *options, *names]


def in_parallel(check: Check) -> list[str]:
    """Options for pytest-xdist."""
    return ["-p", "scripts.gpu_plugin", "-n", "2" if check.dry else "8", "--dist", "loadgroup"]


def ncu_command(check: Check) -> list[str]:
    """Ncu on every kernel once."""
    sections = [
        f
        for name in ("SpeedOfLight", "Occupancy", "LaunchStats", "ComputeWorkloadAnalysis")
        for f in ("--section", name)
    ]
    fixed = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "details"]
    chosen = ["--kernel-name", f"regex:{NCU_KERNELS}", "--launch-count", "90"]
    log = ["--log-file", str(check.scratch / "ncu.csv")]
    workload = check.module("benchmarks.workload", "--for", "ncu", "--seconds", "40")
    return [check.tool("ncu"), *fixed, *sections, *chosen, *log, *workload]


def sanitizer_command(tool: str) -> Callable[[Check], list[str]]:
    """compute-sanitizer on every kernel once, at small sizes."""

    def command(check: Check) -> list[str]:
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "10"]
        fewer = ["--only", "canny"] if check.dry and tool == "racecheck" else []
        workload = check.module("benchmarks.workload", "--for", "sanitizer", "--seconds", "60", *fewer)
        return [check.tool("compute-sanitizer"), *options, *workload]

    return command


def compile_commands(check: Check) -> list[list[str]]:
    """Run what later steps time once, so that their Triton kernels are compiled while tests do not fill the CPU."""
    names: tuple[tuple[str, ...], ...] = (("train_step",), ("generator",), ("pooled_attention",), OPERATORS[1:])
    if check.dry:
        names = (("edge_priority",),)
    return [check.benchmark(*some, "--compiled", "no", "--skip", "part", "--once") for some in names]


def compiled_command(check: Check) -> list[str]:
    """Ours and its compiled peers, the training step first."""
    if check.dry:
        return check.benchmark(COMPILABLE[0], "--compiled", "only", "--skip", "part")
    return check.benchmark(*COMPILABLE, "--compiled", "only", "--skip", "part,float32")


ON_STAND_IN = "import sys; from benchmarks import stand_in; stand_in.install(); from fastinpaint.cli import main"


def tune_command(check: Check) -> list[str]:
    """``fastinpaint tune`` of the original system's network, as the training step is measured."""
    options = ["tune", "--config", "original", "--batch-size", "16", "--precision", "bfloat16"]
    if check.dry:
        tiny = ["--base-channels", "2", "--discriminator-channels", "2", "--image-size", "16", "--batch-size", "1"]
        return [check.python, "-c", f"{ON_STAND_IN}; sys.exit(main())", *options, *tiny]
    return [check.python, "-m", "fastinpaint", *options]


def build_command(check: Check) -> list[str]:
    """Compile the extension with its CUDA kernels."""
    if check.dry:
        return [check.python, "-c", "print('nothing is built in a dry run')"]
    return [check.python, "setup.py", "build_ext", "--inplace"]


MACHINE = Step(
    "machine", "what it is, ceilings on random numbers, clocks under load", 60,
    lambda c: c.module("benchmarks.machine", "--device", "cuda", "--require-canny", "--ceilings", c.ceilings),
    last_lines("machine"),
)  # fmt: skip
BUILD = Step(
    "build", "both libraries of the extension, because no CUDA kernels came along that load", 150, build_command,
    last_lines("build", 3),
    {"MAX_JOBS": str(os.cpu_count() or 1), "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")},
)  # fmt: skip
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every allocation stands by itself: a step over its end is seen
STEPS = (
    Step(
        "tests", "parity, gradients, determinism, capture, Canny's patterns", 90,
        lambda c: pytest_command(
            c, f"not ({ALONE} or {COMPILE})" if not c.dry else "(patterns or parity) and not True", *in_parallel(c)
        ),
        test_results("tests"), {"OMP_NUM_THREADS": "2"}, compile_commands,
    ),
    Step(
        "train_step", "a whole training step, ours and eager", 75,
        lambda c: c.benchmark("train_step", "--compiled", "no", "--case", "whole", budget=0.5),
        tables("train_step", case="whole", kernels=True),
    ),
    Step(
        "generator", "the generator's forward pass", 50,
        lambda c: c.benchmark("generator", "--compiled", "no"), tables("generator"),
    ),
    Step(
        "operators", "the target rows", 150,
        lambda c: c.benchmark(*OPERATORS[: 4 if c.dry else None], "--compiled", "no"), tables(*OPERATORS),
    ),
    Step(
        "parts", "one training step by part", 45,
        lambda c: c.benchmark("train_step", "--compiled", "no", "--case", "part", "--name", "train_parts"),
        tables("train_parts"),
    ),
    Step(
        "launch_cost", "microseconds of the host between a call and its kernels", 30,
        lambda c: c.module("benchmarks.launch_cost", "--device", "cuda"), last_lines("launch_cost"),
    ),
    Step("ncu", "speed of light and occupancy of each kernel", 75, ncu_command, ncu_table),
    Step("memcheck", "compute-sanitizer", 90, sanitizer_command("memcheck"), sanitizer_result("memcheck"), UNCACHED),
    Step("racecheck", "compute-sanitizer", 90, sanitizer_command("racecheck"), sanitizer_result("racecheck")),
    Step(
        "tests_alone", "memory, and offsets beyond 2^31, one after the other", 60,
        lambda c: pytest_command(c, ALONE, *(["--collect-only"] if c.dry else [])), test_results("tests_alone"),
    ),
    Step(
        "tune", "every configuration of the tuned kernels, timed", 90, tune_command, last_lines("tune", 40),
        {"FASTINPAINT_TUNE": "1"},
    ),
    Step(
        "compiled", "torch.compile of the generator, the step and the operators", 120,
        compiled_command,
        tables(*(name + COMPILED for name in COMPILABLE)),
    ),
    Step(
        "tests_compile", "torch.compile and opcheck of the operators", 90,
        lambda c: pytest_command(c, COMPILE, *in_parallel(c), *(["--collect-only"] if c.dry else [])),
        test_results("tests_compile"),
    ),
)  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu-results"), help="for the results")
    parser.add_argument("--deadline", type=float, help="seconds for all steps (default: 400; a dry run has 3000)")
    parser.add_argument("--steps", default="", help="names, separated by commas, in the order wanted")
    parser.add_argument("--list", action="store_true", help="name the steps")
    parser.add_argument("--without-canny", action="store_true", help="go on although Canny has no CUDA kernels")
    parser.add_argument("--dry-run", action="store_true", help="every step on a CPU, with stand-ins")
    options = parser.parse_args()
    known = {step.name: step for step in STEPS}
    names = [name for name in options.steps.split(",") if name and name != MACHINE.name]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no step named {', '.join(unknown)}; there are {', '.join(known)}")
    options.steps = [known[name] for name in names] if options.steps else list(STEPS)
    options.deadline = options.deadline or (3000 if options.dry_run else 400)
    return options


def main() -> int:
    """Take the steps; the exit status."""
    options = parse()
    if options.list:
        for step in (MACHINE, *STEPS):
            print(f"{step.name:14} {step.seconds:4} s  {step.what}")
        return 0
    check = Check(options.folder, options.deadline, options.dry_run)
    print(f"scratch folder {check.scratch}", flush=True)
    status = check.take(MACHINE)
    if status == NO_CANNY:
        check.take(BUILD)
        status = check.take(MACHINE)
    if status == NO_CANNY and not options.without_canny:
        print("HARD FAILURE: the extension has no CUDA kernel of canny, carried or built; nothing else was run")
        print("(--without-canny runs the other steps all the same)", flush=True)
        return 2
    if status not in (0, 124, NO_CANNY):
        print("HARD FAILURE: no GPU that works; nothing else was run", flush=True)
        return 2
    failed = [step.name for step in options.steps if check.take(step) != 0]
    print(check.last_words(), flush=True)
    shutil.rmtree(check.scratch, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
