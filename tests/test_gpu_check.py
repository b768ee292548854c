"""The GPU check without a GPU: every step in a dry run, and what is left when something goes wrong."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from scripts import gpu_check

ROOT = Path(__file__).resolve().parent.parent
NAMES = [step.name for step in gpu_check.STEPS]


def _run(folder, *options, script=None, **environment):
    program = ["-c", script] if script else ["scripts/gpu_check.py"]
    command = [sys.executable, "-u", *program, str(folder), "--dry-run", *options]
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder.parent), **environment}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finished(process):
    output = process.communicate()[0]
    return process.returncode, output


def _archived(folder):
    with tarfile.open(folder / "results.tgz") as tar:
        return {member.name: tar.extractfile(member).read().decode(errors="replace") for member in tar}


def _with_steps(tmp_path, **commands):
    """A script that runs the check with steps of a shell line each, after a machine that is always there."""
    path = tmp_path / "steps.py"
    path.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts import gpu_check
def step(name, line):
    return gpu_check.Step(name, "in words", 3, lambda check: ["sh", "-c", line], gpu_check.last_lines(name))
gpu_check.MACHINE = step("machine", "echo a machine")
gpu_check.STEPS = tuple(step(*pair) for pair in {list(commands.items())!r})
sys.exit(gpu_check.main())
"""
    )
    return path.read_text()


def test_steps_are_ordered_by_value():
    assert NAMES[:4] == ["tests", "train_step", "generator", "operators"]
    assert NAMES.index("parts") < NAMES.index("ncu") < NAMES.index("memcheck") < NAMES.index("compiled")
    listed = subprocess.run(
        ["scripts/gpu_check.sh", "--list"], cwd=ROOT, env={**os.environ, "PYTHON": sys.executable},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [line.split()[0] for line in listed.splitlines()] == ["machine", *NAMES]


# Under a minute each, with the look at the machine that every run begins with.
GROUPS = (
    ("tests",),
    ("train_step", "generator", "parts"),
    ("operators", "launch_cost"),
    ("tests_alone", "tests_compile", "tune"),
    ("ncu", "memcheck", "racecheck"),
    ("compiled",),
)
PRINTED = {
    "ncu": "detect: 12.5 55.0 45.0",
    "memcheck": "ran canny, canny_pyramid",
    "tune": "kept in",
    "launch_cost": "structure_loss",
}
WRITTEN = {
    "train_step": ("train_step",),
    "generator": ("generator",),
    "operators": gpu_check.OPERATORS[:4],
    "parts": ("train_parts",),
    "compiled": ("train_step_compiled",),
}


def test_dry_runs_take_every_step():
    assert sorted(name for names in GROUPS for name in names) == sorted(NAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_every_step_of_a_dry_run_passes(names, tmp_path):
    pytest.importorskip("triton")
    if {"tests", "tests_compile"} & set(names):
        pytest.importorskip("xdist")
    folder = tmp_path / "out"
    status, output = _finished(_run(folder, "--steps", ",".join(names)))
    assert status == 0, output[-6000:]
    for name in ("machine", *names):
        assert f"=== {name} passed" in output
    files = list(folder.iterdir())
    assert len(files) <= 8
    assert all(path.is_file() for path in files)
    again = output.split("=== all again")[1]
    assert len(again) <= 10_000
    archive = _archived(folder)
    assert "passed after" in archive["summary.md"]
    for name in names:
        assert PRINTED.get(name, "") in again
        for result in WRITTEN.get(name, ()):
            assert '"failed": ""' in archive[f"{result}.json"]
            assert f'"{json.loads(archive[f"{result}.json"])["ours"]}": [' in archive[f"{result}.json"]


def test_a_kill_leaves_what_was_finished(tmp_path):
    script = _with_steps(tmp_path, first="echo the first fact", second="echo on; sleep 60", third="echo never")
    out = tmp_path / "out"
    process = _run(out, script=script)
    deadline = time.monotonic() + 600
    while not (out / "summary.md").is_file() or "- first: passed" not in (out / "summary.md").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    archive = _archived(out)
    assert archive["first.txt"] == "the first fact\n"
    assert "the first fact" in (out / "summary.md").read_text()
    assert "third.txt" not in archive


def test_a_step_that_fails_or_hangs_does_not_stop_the_others(tmp_path):
    lines = {"broken": "echo what went wrong; exit 5", "endless": "echo begun; sleep 600", "last": "echo the last fact"}
    script = _with_steps(tmp_path, **lines).replace('"in words", 3,', '"in words", 1,')
    status, output = _finished(_run(tmp_path / "out", "--deadline", "300", script=script))
    assert status == 1
    assert "=== broken FAILED with exit status 5" in output
    assert "=== endless STOPPED at its limit" in output
    assert "=== last passed" in output
    last = output.split("=== all again")[1]
    assert "what went wrong" in last
    assert "the last fact" in last
    assert "begun" in _archived(tmp_path / "out")["endless.txt"]


def test_no_step_begins_after_the_deadline(tmp_path):
    script = _with_steps(tmp_path, slow="sleep 600", late="echo never").replace('"in words", 3,', '"in words", 600,')
    status, output = _finished(_run(tmp_path / "out", "--deadline", "15", script=script))
    assert status == 1
    assert "=== slow STOPPED at its limit" in output
    assert "- late: not begun: the deadline" in output
    assert "late.txt" not in _archived(tmp_path / "out")


def test_without_the_cuda_canny_nothing_runs(tmp_path):
    missing = {"FASTINPAINT_STAND_IN_WITHOUT_CANNY": "1"}
    pytest.importorskip("triton")
    status, output = _finished(_run(tmp_path / "out", "--steps", "generator", **missing))
    assert status == 2
    assert "HARD FAILURE: the extension has no CUDA kernel of canny" in output
    assert "no CUDA kernel of canny: the extension has no canny for cuda tensors" in output
    assert "=== build" in output
    assert "=== generator" not in output
    assert "- machine: FAILED with exit status 3" in (tmp_path / "out" / "summary.md").read_text()


def test_an_unknown_step_is_refused():
    done = subprocess.run(
        [sys.executable, "scripts/gpu_check.py", "--steps", "tests,nonsense"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no step named nonsense; there are tests, train_step" in done.stderr


@pytest.mark.parametrize(("given", "wanted"), [(None, "0"), ("1", "1")])
def test_kernels_are_not_tuned_unless_asked_for(given, wanted, tmp_path, monkeypatch):
    monkeypatch.delenv("FASTINPAINT_TUNE", raising=False)
    if given:
        monkeypatch.setenv("FASTINPAINT_TUNE", given)
    check = gpu_check.Check(tmp_path / "out", 10, dry=True)
    show = "import os; print('tuning is', os.environ['FASTINPAINT_TUNE'])"
    plain, tune = (
        gpu_check.Step(name, "", 60, lambda c: [c.python, "-c", show], gpu_check.last_lines(name), environment)
        for name, environment in (("plain", {}), ("own", _step("tune").environment))
    )
    assert check.take(plain) == check.take(tune) == 0
    assert check.text("plain") == f"tuning is {wanted}\n"
    assert check.text("own") == "tuning is 1\n"


def _step(name):
    return next(step for step in gpu_check.STEPS if step.name == name)


def test_what_a_step_printed_is_packed_before_its_companions_end(tmp_path):
    check = gpu_check.Check(tmp_path / "out", 600, dry=False)
    seen = tmp_path / "seen"
    wait = f"while ! tar -xOf {tmp_path}/out/results.tgz first.txt > {seen}; do sleep 0.05; done"
    step = gpu_check.Step(
        "first", "", 60, lambda _: ["echo", "a fact"], gpu_check.last_lines("first"),
        beside=lambda _: [["sh", "-c", wait]],
    )  # fmt: skip
    assert check.take(step) == 0
    assert seen.read_text() == "a fact\n"


def test_the_operator_of_most_launches_is_profiled_last():
    """ncu stops after a number of launches."""
    pytest.importorskip("triton")
    from benchmarks import workload

    assert list(workload.operators("cpu", large=False))[-1] == "patch_attention"


def _check(tmp_path, name, text):
    check = gpu_check.Check(tmp_path / "out", 10, dry=False)
    check.log(name).write_text(text)
    return check


def test_outcomes_of_tests_are_counted_under_xdist_and_without(tmp_path):
    text = (
        "[gw0] [  5%] PASSED tests/kernels/test_gpu.py::test_a[x y-1]@test_gpu::x y \n"
        "[gw0] [  5%] PASSED tests/kernels/test_gpu.py::test_a[x y-2]@test_gpu::x y \n"
        "[gw1] [ 10%] FAILED tests/kernels/test_gpu.py::test_b@test_gpu::test_b \n"
        "tests/test_canny_gpu.py::test_c PASSED [ 10%]\n"
        "[gw2] [ 10%] SKIPPED tests/test_canny_gpu.py::test_d \n"
        "FAILED tests/kernels/test_gpu.py::test_b - AssertionError: 1 != 2\n"
    )
    shown = gpu_check.test_results("tests")(_check(tmp_path, "tests", text)).splitlines()
    assert shown[0] == "1 failed, 3 passed, 1 skipped"
    assert shown[1] == "tests/kernels/test_gpu.py::test_b - AssertionError: 1 != 2"


def test_kernels_of_ncu_are_told_apart_by_operator(tmp_path):
    check = _check(tmp_path, "ncu", "ran canny\nran structure_loss\n")
    header = '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    rows = [
        (0, "spin_kernel(long)", "Duration", "us", "1"),
        (1, "void ns::detect<float, 1>(ns::Job)", "Duration", "ns", "9,500"),
        (1, "void ns::detect<float, 1>(ns::Job)", "Memory Throughput", "%", "40"),
        (1, "void ns::detect<float, 1>(ns::Job)", "Memory Throughput", "Gbyte/second", "999"),
        (2, "spin_kernel(long)", "Duration", "us", "1"),
        (3, "_forward_kernel", "Duration", "ms", "0.02"),
        (3, "_forward_kernel", "Registers Per Thread", "register/thread", "134"),
    ]
    lines = [
        header,
        *(f'"{i}","{kernel}","S","{metric}","{unit}","{value}"' for i, kernel, metric, unit, value in rows),
    ]
    (check.scratch / "ncu.csv").write_text("\n".join(["==PROF== Connected", *lines]))
    assert gpu_check.ncu_table(check).splitlines()[1:] == [
        "canny:",
        "  detect: 9.5 - 40 - - - - - - -",
        "structure_loss:",
        "  _forward_kernel: 20 - - - - - - - 134 -",
    ]
