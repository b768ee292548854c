"""``python -m tests.fuzz``: run the numbered cases of every target for some minutes.

Each target's cases run in processes of their own, so that a crash or a hang ends a process and not the run. Case
``n`` of a target is the same everywhere; ``--target NAME --case N`` repeats one here.
"""

from __future__ import annotations

import argparse
import faulthandler
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.cases import TARGETS, run_case

LONGEST = 60  # seconds that one case may take
MEMORY = 8 << 30  # bytes of address space that a process may use
TURN = 20  # seconds after which another target has its turn


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--case", type=int, help="run this case of one target, in this process")
    parser.add_argument("--first", type=int, default=0, help="number of each target's first case (default: 0)")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)  # of a worker
    options = parser.parse_args()
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            run_case(options.target[0], options.case, Path(folder))
        return 0
    if options.seconds is not None:
        work(options.target[0], options.first, options.seconds)
        return 0
    return fuzz(options.target, options.first, options.minutes * 60, options.jobs)


def fuzz(targets: list[str], first: int, seconds: float, jobs: int) -> int:
    """Let the targets take turns; print each failure with what repeats it. Returns how many there were."""
    end, lock = time.monotonic() + seconds, threading.Lock()
    waiting, numbers, failures = list(targets), dict.fromkeys(targets, first), 0

    def turns() -> None:
        nonlocal failures
        while (left := end - time.monotonic()) > 0:
            with lock:
                if not waiting:
                    return
                target = waiting.pop(0)
            command = [sys.executable, "-m", "tests.fuzz", "--target", target, "--first", str(numbers[target])]
            done = subprocess.run(
                [*command, "--seconds", str(min(TURN, left))], capture_output=True, text=True, errors="replace",
                check=False,
            )  # fmt: skip
            last = int(done.stdout.split()[-1]) if done.stdout.split() else numbers[target]
            with lock:
                numbers[target] = last + 1
                waiting.append(target)
                if done.returncode:
                    failures += 1
                    print(f"FAILED --target {target} --case {last} (exit code {done.returncode})")
                    print(done.stderr[-3000:], flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for job in [pool.submit(turns) for _ in range(jobs)]:
            job.result()
    for target, number in numbers.items():
        print(f"{target}: {number - first} cases")
    passed = sum(numbers.values()) - first * len(numbers) - failures
    print(f"{passed} passed, {failures} failed")
    return min(failures, 1)


def work(target: str, first: int, seconds: float) -> None:
    """Run cases from ``first`` on, printing each number before its case."""
    import torch

    torch.set_num_threads(1)
    faulthandler.enable()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except ImportError:  # Windows
        pass
    end, number = time.monotonic() + seconds, first
    while number == first or time.monotonic() < end:
        print(number, flush=True)
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        with tempfile.TemporaryDirectory() as folder:
            run_case(target, number, Path(folder))
        faulthandler.cancel_dump_traceback_later()
        number += 1


if __name__ == "__main__":
    sys.exit(main())
