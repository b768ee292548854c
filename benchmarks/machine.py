"""What a number depends on: the machine, its versions and load, and the most that it gives.

``python -m benchmarks.machine`` prints it; ``--require-canny`` first makes sure of the CUDA Canny.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks import stand_in

# Operations of an exponential without a unit for it: seven multiply-adds (range, polynomial of degree 5, scaling).
EXPONENTIAL_FLOPS = 14
CEILINGS = "FASTINPAINT_CEILINGS"  # names a file that keeps a GPU's ceilings from one process to the next
COMMIT = "FASTINPAINT_COMMIT"  # the commit, where there is no git to ask
NO_CANNY = 3  # exit status: the extension has no CUDA kernel of Canny
PACKAGES = ("torch", "triton", "numpy", "scikit-image", "opencv-python-headless", "kornia")


@dataclass(frozen=True)
class Work:
    """The least that any implementation of one call must do.

    Args:
        bytes: Inputs read once and outputs written once.
        flops: A multiply-add counts as two, and so does an operation that may not be fused into one.
        exponentials: Of a softmax.
        dtype: What the arithmetic is in.
    """

    bytes: float
    flops: float = 0.0
    exponentials: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Ceilings:
    """What the device gives at most, measured by copying and by matrix products of random numbers.

    On a GPU float64 is that of its vector units, half of float32's, counted from clock and multiprocessors: a float64
    matrix product runs on tensor cores, which a stencil cannot use.

    Args:
        bytes_per_second: Of a copy in memory, reads and writes counted.
        flops_per_second: Of matrix products, by dtype.
        exponentials_per_second: Of the unit that makes them; 0 where there is none.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float] = field(default_factory=dict)
    exponentials_per_second: float = 0.0

    def floor(self, work: Work) -> float:
        """Seconds that the work takes when memory and arithmetic run at their ceilings, one hidden behind the other."""
        rate, exponentials = self.flops_per_second[work.dtype], self.exponentials_per_second
        if exponentials:
            return max(work.bytes / self.bytes_per_second, work.flops / rate, work.exponentials / exponentials)
        return max(work.bytes / self.bytes_per_second, (work.flops + EXPONENTIAL_FLOPS * work.exponentials) / rate)


@cache
def ceilings(device: str) -> Ceilings:
    """Measure the ceilings of ``"cpu"`` or ``"cuda"``; takes a second."""
    if device == "cuda":
        file = os.environ.get(CEILINGS)
        if file and Path(file).is_file():
            return Ceilings(**json.loads(Path(file).read_text()))
        found = _gpu_ceilings()
        if file:
            Path(file).write_text(json.dumps(asdict(found)))
        return found

    def least(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(12):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    source = torch.ones(2**24)  # far beyond the caches
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size() / least(lambda: target.copy_(source))
    rates = {}
    side = 1024
    for dtype in (torch.float32, torch.float64):
        matrix = torch.ones(side, side, dtype=dtype)
        product = torch.empty_like(matrix)
        seconds = least(lambda matrix=matrix, product=product: torch.mm(matrix, matrix, out=product))  # type: ignore[misc]
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / seconds
    return Ceilings(copied, rates)


def _gpu_ceilings(elements: int = 2**28, side: int = 8192) -> Ceilings:
    """Copy ``elements`` float32, multiply matrices of ``side``; the median of ten."""

    def median(run: Callable[[], object]) -> float:
        run()
        run()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
        for event in events[:-1]:
            event.record()
            run()
        events[-1].record()
        torch.cuda.synchronize()
        return float(statistics.median(start.elapsed_time(end) for start, end in pairwise(events))) / 1e3

    if stand_in.installed():
        elements, side = 2**16, 64
    source = torch.rand(elements, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size() / median(lambda: target.copy_(source))
    rates = {}
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        left, right = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
        product = torch.empty_like(left)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        rates[name] = 2 * side**3 / median(lambda a=left, b=right, c=product: torch.mm(a, b, out=c))  # type: ignore[misc]
    torch.backends.cuda.matmul.allow_tf32 = allowed
    cycles = torch.cuda.get_device_properties("cuda").multi_processor_count * _clock()
    # 64 multiply-adds for each multiprocessor and clock: Hopper, A100
    rates["float64"] = 2 * 64 * cycles or rates["float32"] / 2
    return Ceilings(copied, rates, 16 * cycles)


def _nvidia_smi(field: str) -> str:
    """A field of the first GPU, without its unit; empty where nvidia-smi does not say."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return lines[0].strip() if lines else ""


def _clock() -> float:
    """Highest clock of the GPU's multiprocessors in Hz; 0 where nvidia-smi does not say."""
    try:
        return float(_nvidia_smi("clocks.max.sm")) * 1e6
    except ValueError:
        return 0.0


def clocks_under_load() -> str:
    """What nvidia-smi says of clocks, power and temperature while the GPU multiplies matrices."""
    side = 64 if stand_in.installed() else 8192
    matrix = torch.randn(side, side, device="cuda").bfloat16()
    product = torch.empty_like(matrix)
    for _ in range(1000):  # more than a second
        torch.mm(matrix, matrix, out=product)
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    found = _nvidia_smi(fields)
    torch.cuda.synchronize()
    return f"{fields}: {found}"


def circumstances(device: str) -> dict[str, object]:
    """Commit, device, versions, threads, load, ceilings."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": f"{_cpu()} ({os.cpu_count()} cores)",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "driver": _nvidia_smi("driver_version") if device == "cuda" else "",
        "cuda": torch.version.cuda if device == "cuda" else "",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "ceilings": asdict(ceilings(device)),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return run.stdout.strip()


def _cpu() -> str:
    """Name, generation (x86's family and model) and widest vectors: a name alone may be that of several generations."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    facts = {key.strip(): value.strip() for key, found, value in (line.partition(":") for line in lines) if found}
    name = facts.get("model name") or platform.processor() or platform.machine()
    generation = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
    widest = next((isa for isa in ("avx512f", "avx2") if isa in facts.get("flags", "").split()), "")
    return f"{name}{generation}{', ' if widest else ''}{widest.removesuffix('f').upper()}"


def main() -> None:
    """Print circumstances and ceilings."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--require-canny", action="store_true", help=f"exit with {NO_CANNY} without the CUDA Canny")
    parser.add_argument("--ceilings", type=Path, help="file that keeps this machine's ceilings from run to run")
    parser.add_argument("--dry-run", action="store_true", help="a CPU stands in for a GPU")
    options = parser.parse_args()
    if options.ceilings is not None:
        os.environ[CEILINGS] = str(options.ceilings)
    if options.dry_run:
        stand_in.install()
        options.device = "cuda"
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device")
    if options.require_canny:
        from fastinpaint.ops._backend import native_reason

        for op in ("canny", "canny_pyramid"):
            gap = native_reason(op, torch.zeros(1, device=options.device))
            if gap is not None:
                print(f"no CUDA kernel of {op}: {gap}", flush=True)
                raise SystemExit(NO_CANNY)
    facts = circumstances(options.device)
    rates = ceilings(options.device)
    print(f"commit {facts['commit'] or 'unknown'}, {facts['gpu'] or facts['cpu']}, driver {facts['driver']}")
    print(f"CPU {facts['cpu']}; Python {facts['python']}, CUDA {facts['cuda']}, {facts['versions']}")
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties("cuda")
        memory = properties.total_memory / 2**30
        cache = properties.L2_cache_size / 2**20
        print(f"{properties.multi_processor_count} multiprocessors, L2 {cache:.0f} MiB, {memory:.0f} GiB")
        print(clocks_under_load())
    products = ", ".join(f"{dtype} {rate / 1e12:.4g}" for dtype, rate in rates.flops_per_second.items())
    exponentials = f"exp {rates.exponentials_per_second / 1e12:.3g} T/s"
    print(f"copy {rates.bytes_per_second / 1e12:.3f} TB/s; TFLOP/s: {products}; {exponentials}")


if __name__ == "__main__":
    main()
