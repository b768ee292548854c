"""Build ``fastinpaint/_C.abi3.so``; everything else about the package is in pyproject.toml.

Environment:
    FASTINPAINT_NO_EXT=1   install without the extension.
    FASTINPAINT_CUDA=1     compile csrc/cuda even where torch is not a CUDA build; =0 leaves it out.
    CXX, MAX_JOBS          the compiler, and how many of it run at a time.
"""

import os
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest torch that the binary loads into
CXX_FLAGS = [
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # a fused multiply-add rounds differently: every instruction set must give the same bits
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # torch's headers
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # GCC 12 on its own AVX-512 intrinsics
]
NVCC_FLAGS = ["-O3", "-fmad=false", "-Xcompiler=-fvisibility=hidden"]


def missing_for_extension() -> str | None:
    """Say what keeps the extension from being compiled here; None when nothing does."""
    if os.environ.get("FASTINPAINT_NO_EXT") == "1":
        return "FASTINPAINT_NO_EXT=1"
    if os.name == "nt":
        return "the sources use GCC's vector extensions, which MSVC lacks"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler: {compiler!r} is not on the PATH (set CXX)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python.h is missing (Debian and Ubuntu: install python3-dev)"
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch cannot be imported at build time: {error}"
    return None


def cuda_sources() -> list[str]:
    """The .cu files to compile: those there are, where nvcc and a CUDA build of torch are, or on demand."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    wanted = os.environ.get("FASTINPAINT_CUDA", "1" if CUDA_HOME and torch.version.cuda else "0") == "1"
    return sorted(map(str, Path("csrc/cuda").glob("*.cu"))) if wanted else []


def extension_options() -> dict[str, object]:
    """Arguments of ``setup`` for the extension."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    cuda = cuda_sources()
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *(["-DUSE_CUDA"] if cuda else [])]
    extension = (CUDAExtension if cuda else CppExtension)(
        "fastinpaint._C",
        [*sorted(map(str, Path("csrc").glob("*.cpp"))), *cuda],
        depends=sorted(map(str, [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.inc")])),
        extra_compile_args={"cxx": [*defines, *CXX_FLAGS], "nvcc": [*defines, *NVCC_FLAGS]},
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


reason = missing_for_extension()
if reason is not None:
    print(f"fastinpaint: installing without its compiled extension ({reason}); the reference backend serves.")
setup(**({} if reason else extension_options()))
