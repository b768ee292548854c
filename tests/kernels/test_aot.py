"""Every kernel compiles for GPUs that are not there, within their limits and as recorded."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.kernels.conftest import ROOT

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton; it is not installed", allow_module_level=True)

from tests.helpers.triton_aot import CASES, RECORDED, SHARED_LIMITS

TRITON = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
# Triton 3.9 keeps addresses on the stack around the loop, where 5 of 639 instructions touch it; 3.6 spills nothing.
# The same for one pointer of the pass that prepares wide float32 keys, once a call.
SPILLS = {
    "/ _flash_kernel /": 88 if TRITON >= (3, 7) else 0,
    "float32 width 64 / _prepare_keys_kernel /": 8 if TRITON >= (3, 7) else 0,
}


# All take minutes, so each operator's first two cases on H100 alone, unless `make aot` asks for all.
ALL = os.environ.get("FASTINPAINT_AOT") == "all"
CAPABILITIES = list(SHARED_LIMITS) if ALL else [90]
GROUPS = [
    ("pooled_attention",), ("instance_norm",), ("patch_attention", "sobel_edges", "edge_priority", "structure_loss"),
]  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[(capability, group) for capability in CAPABILITIES for group in GROUPS],
    ids=lambda param: f"sm_{param[0]}-{param[1][0]}",
)
def compiled(request, tmp_path_factory):
    """What the installed Triton makes of some operators' kernels; in a process, for it replaces Triton's driver."""
    capability, operators = request.param
    out = tmp_path_factory.mktemp("ahead") / "resources.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(["kernels", *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tests.helpers.triton_aot", str(out), str(capability), *operators]
    command += [] if ALL else ["--first", "2"]
    done = subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((version, table),) = json.loads(out.read_text()).items()
    return version, table, f"sm_{capability}", operators


def test_every_operator_is_compiled():
    assert sorted(operator for group in GROUPS for operator in group) == sorted(CASES)


def test_no_kernel_spills_and_all_fit(compiled):
    _, table, *_ = compiled
    for name, (registers, stack, shared) in table.items():
        capability = int(name.rsplit("sm_", 1)[1])
        limit = SHARED_LIMITS[capability]
        allowed = next((size for part, size in SPILLS.items() if part in name), 0)
        if capability != 90 and name.startswith("pooled_attention"):
            allowed = 24  # pointers, to run one more block; on sm_80 width 8 reads one of them in its loop
        assert stack <= allowed, f"{name} spills: {stack} bytes of stack, {allowed} are allowed"
        assert registers <= 255
        assert shared <= limit, f"{name} wants {shared} bytes of shared memory, a block has {limit}"


def test_equals_the_recorded_table(compiled):
    version, table, architecture, operators = compiled
    recorded = json.loads(RECORDED.read_text())
    if version not in recorded:
        pytest.skip(f"resources were recorded with Triton {', '.join(recorded)}, not {version}")
    cases = {tuple(name.split(" / ")[:2]) for name in table}
    assert {operator for operator, _ in cases} == set(operators)
    wanted = {
        name: resources
        for name, resources in recorded[version].items()
        if tuple(name.split(" / ")[:2]) in cases and name.endswith(f" / {architecture}")
    }
    update = "after a change that is meant: python -m tests.helpers.triton_aot tests/helpers/triton_resources.json"
    assert table == wanted, update


def test_new_sizes_need_no_new_compilation():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(["kernels", *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tests.helpers.compilations"]
    counted = json.loads(subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True).stdout)
    assert len(counted["batches"]) == 5
    assert set(counted["batches"].values()) == {1}
    # The structure loss has one kernel for sides that divide evenly and one for the others.
    assert counted["sides"].pop("structure_loss_forward_kernel") == 2
    assert set(counted["sides"].values()) == {1}


CHOOSE = """
import json
import torch
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction
from fastinpaint_kernels import _launch, pooled_attention
from tests.helpers.triton_aot import _StandIn

measured = []


def bench(self, *args, config, **options):
    measured.append(str(config))
    return [config.kwargs["BLOCK_M"] + config.kwargs["POLY"]] * 3


driver.set_active(_StandIn(CAPABILITY))
JITFunction.run = lambda self, *args, grid, warmup, **options: None
Autotuner._bench = bench
rows = [torch.empty(1, n, 4, dtype=torch.bfloat16) for n in (64, 16, 16)]
pooled_attention.pooled_attention_forward(*rows)
print(json.dumps([measured, _launch.choices()]))
"""


def test_choices_are_kept_on_disk(tmp_path):
    """A later process finds what was chosen for the same compute capability, and measures nothing."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FASTINPAINT_TUNE")
    }
    environment["PYTHONPATH"] = os.pathsep.join(["kernels", ".", *filter(None, [environment.get("PYTHONPATH")])])
    environment["TRITON_CACHE_DIR"] = str(tmp_path)

    def chosen(capability):
        command = [sys.executable, "-c", CHOOSE.replace("CAPABILITY", str(capability))]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    measured, choices = chosen(90)
    assert len(measured) == 4
    ((kernel, problem, configuration, seconds, first),) = choices
    assert (kernel, problem.split(", ")[0]) == ("_forward_kernel", "width 4")
    assert configuration.startswith("BLOCK_N: 64, BLOCK_M: 64, POLY: 2")
    assert (seconds, first) == (66e-3, 131e-3)
    assert chosen(90) == [[], choices]
    assert len(chosen(80)[0]) == 4
