"""Build ``fastinpaint/_C.abi3.so``; everything else about the package is in pyproject.toml.

Environment:
    FASTINPAINT_NO_EXT=1   install without the extension.
    FASTINPAINT_CUDA=1     compile csrc/cuda even where torch is not a CUDA build; =0 leaves it out.
    FASTINPAINT_SANITIZE   address (undefined behaviour too) or thread: compile the CPU kernels with that sanitizer of
                           GCC, into build/sanitize/address or thread, never in place. `make sanitize` needs both.
    CXX, MAX_JOBS          the compiler, and how many of it run at a time.
"""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

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
SANITIZERS = {"address": "-fsanitize=address,undefined,float-cast-overflow", "thread": "-fsanitize=thread"}
SANITIZE_FLAGS = [  # after CXX_FLAGS
    "-fno-sanitize-recover=all",  # a report ends the process
    "-fno-wrapv",  # most builds of Python ask for -fwrapv, under which no signed overflow is an error
    "-O1",  # quick to compile
    "-g1",  # reports name lines
    "-fno-omit-frame-pointer",
    "-D_GLIBCXX_ASSERTIONS",  # std::vector checks its indices
    "-DFASTINPAINT_SANITIZE",  # csrc/kept_memory.h
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

    if os.environ.get("FASTINPAINT_SANITIZE"):
        return []
    wanted = os.environ.get("FASTINPAINT_CUDA", "1" if CUDA_HOME and torch.version.cuda else "0") == "1"
    return sorted(map(str, Path("csrc/cuda").glob("*.cu"))) if wanted else []


def extension_options() -> dict[str, Any]:
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


def sanitize(options: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same for an extension that reports its errors as it runs, with tests/sanitize/*.cpp in it."""
    if kind not in SANITIZERS:
        raise SystemExit(f"FASTINPAINT_SANITIZE must be one of {', '.join(SANITIZERS)}, got {kind!r}")
    (extension,) = options["ext_modules"]
    extension.sources += sorted(map(str, Path("tests/sanitize").glob("*.cpp")))
    extension.extra_compile_args["cxx"] += [SANITIZERS[kind], *SANITIZE_FLAGS]
    extension.extra_link_args.append(SANITIZERS[kind])

    class BuildBeside(options["cmdclass"]["build_ext"]):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.inplace = False  # the ordinary extension stays
            self.force = True  # ninja knows what other flags make anew

    folder = f"build/sanitize/{kind}"
    return {
        **options,
        "cmdclass": {"build_ext": BuildBeside},
        "options": {"build_ext": {"build_lib": folder, "build_temp": f"{folder}/objects"}},
    }


reason = missing_for_extension()
if reason is not None:
    print(f"fastinpaint: installing without its compiled extension ({reason}); the reference backend serves.")
options = {} if reason else extension_options()
kind = os.environ.get("FASTINPAINT_SANITIZE")
setup(**(sanitize(options, kind) if options and kind else options))
