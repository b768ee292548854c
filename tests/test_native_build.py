"""The extension as built, and what setup.py does where it cannot be."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastinpaint.ops._backend import NATIVE_ERROR

ROOT = Path(__file__).parent.parent
needs_extension = pytest.mark.skipif(NATIVE_ERROR is not None, reason=str(NATIVE_ERROR))


def _library():
    import fastinpaint._C

    return Path(fastinpaint._C.__file__)


@needs_extension
def test_one_binary_for_every_python_and_torch():
    assert _library().name == "_C.abi3.so"
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    listing = subprocess.run(["nm", "-D", "--undefined-only", _library()], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    unstable = [name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", name)]
    assert not unstable, f"symbols outside torch's stable ABI: {unstable}"


@needs_extension
def test_nothing_but_the_module_entry_is_exported():
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    listing = subprocess.run(["nm", "-D", "--defined-only", _library()], capture_output=True, text=True, check=True)
    ours = [line.split()[-1] for line in listing.stdout.splitlines() if line.split()[1] in "TDB"]
    assert set(ours) - {"_edata", "__bss_start", "_end"} == {"PyInit__C"}


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


def test_a_compiler_with_options_is_taken_apart():
    """Torch takes CXX for a file's name."""
    code = (
        "import os, runpy; setup = runpy.run_path('setup.py');"
        "extension, = setup['extension_options']()['ext_modules'];"
        "print(os.environ['CXX'], *extension.extra_compile_args['cxx'][-2:])"
    )
    environment = {**os.environ, "CXX": "c++ -Wshadow '-DNAME=two words'", "FASTINPAINT_CUDA": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "c++ -Wshadow -DNAME=two words"


@needs_extension
def test_no_path_of_the_building_machine_and_no_debug_information():
    content = _library().read_bytes()
    assert str(ROOT).encode() not in content
    assert b".debug_info" not in content


def test_every_schema_has_a_kernel():
    declared = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "library.cpp").read_text())
    registered = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.c*"))
    assert declared
    for name in declared:
        assert f'm.impl("{name}"' in registered, f"{name} is declared in library.cpp but registered nowhere"
