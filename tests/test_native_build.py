"""The extension as built, and what setup.py does where it cannot be."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fastinpaint.ops._backend import CUDA_ERROR, NATIVE_ERROR

ROOT = Path(__file__).parent.parent
needs_extension = pytest.mark.skipif(NATIVE_ERROR is not None, reason=str(NATIVE_ERROR))


def _symbols(library, which):
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    listing = subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True)
    return [tuple(line.split()[-2:]) for line in listing.stdout.splitlines()]


@pytest.fixture(params=["_C", "_C_cuda"])
def library(request):
    """Path of a compiled library."""
    if (NATIVE_ERROR if request.param == "_C" else CUDA_ERROR) is not None:
        pytest.skip(str(CUDA_ERROR))
    return Path(import_module(f"fastinpaint.{request.param}").__file__)


def test_one_binary_for_every_python_and_torch(library):
    assert library.name.endswith(".abi3.so")
    symbols = [name for _, name in _symbols(library, "--undefined-only")]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    unstable = [name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", name)]
    assert not unstable, f"symbols outside torch's stable ABI: {unstable}"


def test_no_symbol_of_the_cpu_library_is_newer_than_manylinux_2_28(library):
    if library.name.startswith("_C_cuda"):
        pytest.skip("the static CUDA runtime takes the glibc of the building machine")
    newest = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}
    versioned = [name.split("@") for _, name in _symbols(library, "--undefined-only") if "@" in name]
    assert versioned
    for name, version in versioned:
        family, numbers = version.split("_", 1)
        assert tuple(map(int, numbers.split("."))) <= newest[family], f"{name} is of {version}"


def test_nothing_but_the_module_entry_is_exported(library):
    ours = {name for kind, name in _symbols(library, "--defined-only") if kind in "TDB"}
    assert ours - {"_edata", "__bss_start", "_end"} == {f"PyInit_{library.name.split('.')[0]}"}


@needs_extension
def test_instruction_set_is_named():
    assert torch.ops.fastinpaint.cpu_isa() in {"baseline", "avx2", "avx512"}


@needs_extension
@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(8, 8), ([1.0], 0.1, 0.2, None), r"image must be \(B, 1 or 3, H, W\), got shape \(8, 8\)"),
        (torch.zeros(1, 2, 8, 8), ([1.0], 0.1, 0.2, None), r"1 or 3 channels, got shape \(1, 2, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8).half(), ([1.0], 0.1, 0.2, None), "image must be Float or Double, got Half"),
        (torch.zeros(1, 1, 8, 8), ([], 0.1, 0.2, None), "weights must hold .* got none"),
        (torch.zeros(1, 1, 8, 8), ([1.0], 0.1, 0.2, torch.zeros(1, 1, 8, 8)), "mask must be Bool, got Float"),
        (
            torch.zeros(1, 1, 8, 8),
            ([1.0], 0.1, 0.2, torch.zeros(1, 1, 8, 9, dtype=torch.bool)),
            r"mask must have size 8 on axis 3 .* got shape \(1, 1, 8, 9\)",
        ),
    ],
)
def test_operators_check_their_arguments(image, options, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastinpaint.canny(image, *options)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FASTINPAINT_NO_EXT": "1"}, "FASTINPAINT_NO_EXT=1"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler: 'no-such-compiler'"),
    ],
)
def test_setup_goes_on_without_the_extension_and_says_why(environment, reason):
    run = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"without its compiled extension ({reason}" in run.stdout
    assert run.stdout.splitlines()[-1] == "fastinpaint"


@pytest.fixture
def setup_py(monkeypatch):
    """Runs setup.py without building; returns its names."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FASTINPAINT_CUDA", "0")
    return lambda: runpy.run_path("setup.py")


def test_the_reason_for_a_missing_extension_outlives_the_build(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        tmp_path,
        "build_py",
        "--build-lib",
        tmp_path,
    ]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    reason = "the extension fastinpaint._C was not built: no C++ compiler: 'no-such-compiler' is not on the PATH"
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)];"  # finds _C elsewhere
        "import fastinpaint as fi, torch; from fastinpaint.info import collect;"
        "print(collect()['extension']['status']); fi.canny(torch.zeros(1, 1, 8, 8))"
    )
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT / "kernels")])
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout.startswith(reason)
    assert f"fastinpaint.canny runs on its reference backend (native: {reason}" in run.stderr


def test_a_compiler_with_options_is_taken_apart(setup_py, monkeypatch):
    """Torch takes CXX for a file's name."""
    monkeypatch.setenv("CXX", "c++ -Wshadow '-DNAME=two words'")
    (library,) = setup_py()["extension_options"]({})["ext_modules"]
    assert os.environ["CXX"] == "c++"
    assert library.extra_compile_args["cxx"][-2:] == ["-Wshadow", "-DNAME=two words"]


@pytest.mark.parametrize("free_threaded", [False, True])
def test_free_threaded_python_gets_a_library_of_its_own(setup_py, monkeypatch, free_threaded):
    """It has no stable ABI."""
    get = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: int(free_threaded) if name == "Py_GIL_DISABLED" else get(name)
    )
    options = setup_py()["extension_options"]({})
    assert options["ext_modules"][0].py_limited_api is not free_threaded
    assert ("bdist_wheel" in options["options"]) is not free_threaded


def test_cuda_kernels_have_a_library_of_their_own(setup_py):
    """So that the CPU's kernels load where torch has no CUDA."""
    build = setup_py()["extension_options"]
    build.__globals__.update(missing_for_cuda=lambda: None, cuda_options=dict)
    cpu, cuda = build({})["ext_modules"]
    assert (cpu.name, cuda.name) == ("fastinpaint._C", "fastinpaint._C_cuda")
    found = [path for kind in ("*.cpp", "*.cu") for path in Path("csrc").rglob(kind)]
    assert set(cuda.sources) == {str(path) for path in found if path.parent.name == "cuda"}
    assert set(cpu.sources) == set(map(str, found)) - set(cuda.sources)
    assert "-DUSE_CUDA" in cuda.extra_compile_args["cxx"]
    assert "-DUSE_CUDA" not in cpu.extra_compile_args["cxx"]


def test_no_path_of_the_building_machine_and_no_debug_information(library):
    content = library.read_bytes()
    assert str(ROOT).encode() not in content
    assert b".debug_info" not in content


def test_every_schema_has_a_kernel():
    declared = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "library.cpp").read_text())
    registered = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.c*"))
    assert declared
    for name in declared:
        assert f'm.impl("{name}"' in registered, f"{name} is declared in library.cpp but registered nowhere"
