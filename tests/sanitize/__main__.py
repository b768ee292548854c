"""Compile the kernels for each sanitizer, see that it reports the planted errors, run the tests under it."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.sanitize.planted import ERRORS

ROOT = Path(__file__).parents[2]
RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
OPTIONS = {
    "address": {
        # A report ends in a signal, at which Python names the test. No leaks: Python and torch keep memory for good.
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
    },
    "thread": {
        # Torch, its OpenMP and Python are not compiled for it: it would take their locks for missing.
        "TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:ignore_noninstrumented_modules=1",
        "OMP_NUM_THREADS": "4",  # torch's default, here more than a small machine has processors
    },
}
ISAS = ("avx512", "avx2", "baseline")
OPERATORS = sorted(path.stem for path in (ROOT / "fastinpaint" / "ops").glob("[!_]*.py"))
TESTS = [f"tests/test_{stem}.py" for stem in (*OPERATORS, "native_build", "native_threads")]


def compiler_file(name):
    """Path of a file that comes with the compiler; None where it has none."""
    command = [*os.environ.get("CXX", "c++").split(), f"-print-file-name={name}"]
    if shutil.which(command[0]) is None:
        return None
    path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    return path if path.is_absolute() and path.is_file() else None


def missing(kind):
    """What keeps a sanitizer from running here; None when nothing does."""
    if sys.platform != "linux":
        return "needs Linux"
    lacking = [name for name in (*RUNTIMES[kind], "libstdc++.so") if compiler_file(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)} of g++; {os.environ.get('CXX', 'c++')} has none"
    return None


def sanitized(kind, *command, isa=None):
    """A command that runs Python on the sanitizer's extension."""
    # The runtime has to be there before all else. libstdc++ with it: else it finds no exceptions to intercept.
    preloaded = f"LD_PRELOAD={compiler_file(RUNTIMES[kind][0])}:{compiler_file('libstdc++.so')}"
    settings = {"FASTINPAINT_SANITIZE": kind, **OPTIONS[kind], **({"FASTINPAINT_ISA": isa} if isa else {})}
    assignments = [f"{name}={value}" for name, value in settings.items()]
    # Without randomised addresses: the runtimes want fixed places in memory, which may be taken otherwise.
    fixed = ["setarch", platform.machine(), "-R"]
    if shutil.which("setarch") is None or subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode:
        fixed = []
    return [*fixed, "env", preloaded, *assignments, sys.executable, *command]


def run(command, quiet=False):
    """Run a command in the root; return its exit status and what it prints, which is shown as it comes unless quiet."""
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                print(line, end="", flush=True)
    return process.returncode, "".join(lines)


def build(kind):
    command = ["env", f"FASTINPAINT_SANITIZE={kind}", sys.executable, "setup.py", "-q", "build_ext"]
    status, text = run(command, quiet=True)
    if status == 0:
        return True, "compiled"
    print(text)
    return False, "does not compile"


def plant(kind):
    """Every planted error must end the process with a report that names it."""
    commands = [sanitized(kind, "-m", "tests.sanitize.planted", name) for name in ERRORS[kind]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(partial(run, quiet=True), commands))
    unseen = []
    for (name, report), (status, text) in zip(ERRORS[kind].items(), results, strict=True):
        if status == 0 or report not in text:
            print(text)
            unseen.append(name)
    return (
        not unseen,
        f"not reported: {', '.join(unseen)}" if unseen else f"{len(commands)} of {len(commands)} reported",
    )


def test(kind, isa):
    # What a sanitizer prints goes past Python's stderr; --capture=sys lets it through.
    options = ("-p", "tests.sanitize.plugin", "--capture=sys", "-p", "no:cacheprovider", "--timeout=900")
    status, text = run(sanitized(kind, "-m", "pytest", *options, *TESTS, isa=isa))
    passed = re.findall(r"\d+ passed.*(?= in )", text)
    if status == 0 and passed:
        return True, f"no report; {passed[-1]}"
    return False, "a report ended it" if status == -signal.SIGABRT else f"exit status {status}"


def check(kind):
    """Yield (step, whether it went well, what came out, seconds)."""

    def step(name, function, *arguments):
        print(f"\n== {kind}: {name}", flush=True)
        start = time.monotonic()
        good, outcome = function(*arguments)
        return name, good, outcome, time.monotonic() - start

    yield step("build", build, kind)
    yield step("planted errors", plant, kind)
    best = run(sanitized(kind, "-m", "tests.sanitize.extension"), quiet=True)[1].strip()
    isas = ISAS[ISAS.index(best) :] if best in ISAS else ISAS[-1:]
    # Which thread touches what does not depend on the width of the vectors.
    for isa in isas if kind == "address" else isas[:1]:
        yield step(f"tests, {isa}", test, kind, isa)


def main():
    rows, failed = [], False
    for kind in RUNTIMES:
        gap = missing(kind)
        if gap is not None:
            rows.append(f"{kind:8} SKIPPED: {gap}")
            continue
        for name, good, outcome, seconds in check(kind):
            rows.append(f"{kind:8} {name:16} {'ok    ' if good else 'FAILED'} {seconds:4.0f} s  {outcome}")
            failed |= not good
            if not good:
                break
    print("\n" + "\n".join(rows))
    sys.exit(failed)


if __name__ == "__main__":
    main()
