"""Compile csrc/cuda for GPUs that are not there, with setup.py's flags, and read what each kernel needs.

``python -m tests.helpers.nvcc_aot`` records the installed nvcc's table in nvcc_resources.json, beside those of others.
"""

import json
import re
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("nvcc_resources.json")
CAPABILITIES = (80, 90)

# "kernel / sm" -> registers, bytes of spills and stack, bytes of shared memory that the kernel has by itself
Table = dict[str, list[int]]


def missing() -> str | None:
    """What keeps CUDA sources from being compiled here; None when nothing does."""
    if _setup()["cuda_home"]() is None:
        return "needs nvcc; it is not on the PATH"
    return None if shutil.which("c++filt") else "needs c++filt (binutils)"


def _setup() -> dict:
    return runpy.run_path(str(ROOT / "setup.py"))


def version() -> str:
    """nvcc's release, such as ``13.0``."""
    nvcc = _setup()["cuda_home"]() / "bin" / "nvcc"
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", told)[1]


def compile_all(capabilities: tuple[int, ...] = CAPABILITIES) -> Table:
    """Compile every source for every compute capability, all at a time."""
    table: Table = {}
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            for capability in capabilities:
                whole = capability == capabilities[0]  # with the host's half, once
                command = [*_command(source, capability, whole), "-o", f"{folder}/{source.stem}_{capability}.o"]
                process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
                running.append((capability, process))
        for capability, process in running:
            _, told = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(told)
            table |= {f"{kernel} / sm_{capability}": needs for kernel, needs in _resources(told).items()}
    return table


def _command(source: Path, capability: int, whole: bool) -> list[str]:
    setup = _setup()
    include = Path(torch.__file__).parent / "include"
    return [
        str(setup["cuda_home"]() / "bin" / "nvcc"),
        *(["-c", "-Xcompiler=-fPIC"] if whole else ["-cubin"]),  # the device's half takes half the time
        str(source),
        f"-DTORCH_TARGET_VERSION={setup['TORCH_TARGET_VERSION']}",
        "-DUSE_CUDA",
        *setup["NVCC_FLAGS"],
        f"-gencode=arch=compute_{capability},code=sm_{capability}",
        "-Xptxas=-v",
        f"-I{ROOT / 'csrc'}",
        f"-I{include}",
        f"-I{include}/torch/csrc/api/include",
    ]


def _resources(told: str) -> Table:
    """The assembler's notes as a table."""
    table: Table = {}
    for note in told.split("Compiling entry function ")[1:]:
        mangled = note.split("'")[1]
        name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
        kernel = re.sub(r"^void |fastinpaint::|c10::|\(.*$", "", name.strip())
        stack, stores, loads = (
            int(n) for n in re.search(r"(\d+) bytes stack.*?(\d+) bytes.*?(\d+) bytes", note).groups()
        )
        shared = re.search(r"(\d+) bytes smem", note)
        registers = int(re.search(r"Used (\d+) registers", note)[1])
        table[kernel] = [registers, stack + stores + loads, int(shared[1]) if shared else 0]
    return table


def main() -> None:
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    recorded[version()] = compile_all()
    lines = (
        f'"{release}": {{\n' + ",\n".join(f'  "{k}": {v}' for k, v in sorted(table.items())) + "\n}"
        for release, table in sorted(recorded.items())
    )
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
