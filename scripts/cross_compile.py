"""Compile the CPU sources for another processor, with the flags of setup.py and torch's headers.

    python scripts/cross_compile.py aarch64-linux-gnu-g++       (Debian and Ubuntu: apt install g++-aarch64-linux-gnu)

The objects, in build/cross/COMPILER, are not linked: that needs torch's libraries of the other processor. Warnings are
errors. Exit status: 0 when every source compiled.
"""

import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parent.parent


def main(compiler: str) -> int:
    """Compile every source; the exit status."""
    if shutil.which(compiler) is None:
        print(f"{compiler} is not on the PATH")
        return 1
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    output = ROOT / "build" / "cross" / compiler
    output.mkdir(parents=True, exist_ok=True)
    headers = [f"-isystem{folder}" for folder in (*include_paths(), sysconfig.get_paths()["include"])]
    macros = [f"-DTORCH_TARGET_VERSION={setup['TORCH_TARGET_VERSION']}", "-DPy_LIMITED_API=0x030a0000"]
    flags = ["-std=c++20", "-fPIC", "-Werror", *setup["CXX_FLAGS"], *macros, f"-I{ROOT / 'csrc'}", *headers]
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").rglob("*.cpp")]
    failed = []
    for source in sorted(sources):
        command = [compiler, *flags, "-c", str(source), "-o", str(output / f"{source.stem}.o")]
        if subprocess.run(command, check=False).returncode:
            failed.append(source.name)
    print(f"torch {torch.__version__}: {len(sources) - len(failed)} of {len(sources)} sources compiled by {compiler}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
