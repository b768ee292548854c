"""Every kernel compiles for GPUs that are not there, within their limits and as recorded."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.kernels.conftest import ROOT

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton; it is not installed", allow_module_level=True)

from tests.kernels.ahead import RECORDED, SHARED_LIMITS


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the installed Triton makes of the kernels; a process for each GPU, for they replace Triton's driver."""
    folder = tmp_path_factory.mktemp("ahead")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(["kernels", *filter(None, [environment.get("PYTHONPATH")])])
    running = {}
    for capability in SHARED_LIMITS:
        out = folder / f"{capability}.json"
        command = [sys.executable, "-m", "tests.kernels.ahead", str(out), str(capability)]
        running[out] = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    table = {}
    for out, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        ((version, part),) = json.loads(out.read_text()).items()
        table |= part
    return version, table


def test_no_kernel_spills_and_all_fit(compiled):
    _, table = compiled
    for name, (registers, stack, shared) in table.items():
        capability = int(name.rsplit("sm_", 1)[1])
        limit = SHARED_LIMITS[capability]
        # To run one more block, ptxas keeps a few numbers on the stack outside of all loops, on GPUs that we do not
        # tune for, or in kernels without a loop.
        spared = name.startswith("pooled_attention") and (capability != 90 or "_prepare_" in name)
        allowed = 24 if spared else 0
        assert stack <= allowed, f"{name} spills: {stack} bytes of stack"
        assert registers <= 255
        assert shared <= limit, f"{name} wants {shared} bytes of shared memory, a block has {limit}"


def test_equals_the_recorded_table(compiled):
    version, table = compiled
    recorded = json.loads(RECORDED.read_text())
    if version not in recorded:
        pytest.skip(f"resources were recorded with Triton {', '.join(recorded)}, not {version}")
    update = "after a change that is meant: python -m tests.kernels.ahead tests/kernels/resources.json"
    assert table == recorded[version], update
