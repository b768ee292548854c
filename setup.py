"""Build ``fastinpaint/_C.abi3.so`` and, with CUDA, ``fastinpaint/_C_cuda.abi3.so``; pyproject.toml says the rest.

`_C` holds the schemas and the CPU kernels and loads into every torch from 2.10 on. `_C_cuda` holds the CUDA kernels and
is loaded where torch is a CUDA build, so that a wheel with both serves a CPU build of torch too. A library that was not
built leaves its reason in ``fastinpaint/_not_built.json``, for ``fastinpaint info`` and for warnings.

Environment:
    FASTINPAINT_NO_EXT=1   install without either.
    FASTINPAINT_CUDA=1     build `_C_cuda` even where torch is not a CUDA build; =0 leaves it out.
    TORCH_CUDA_ARCH_LIST   compute capabilities to compile for; those of the GPUs there are, or 8.0;9.0+PTX.
    FASTINPAINT_SANITIZE   address (undefined behaviour too) or thread: compile the CPU kernels with that sanitizer of
                           GCC, into build/sanitize/address or thread, never in place. `make sanitize` needs both.
    CXX, MAX_JOBS          the compiler, with options if need be ("g++ -Wshadow"), and how many of it run at a time.
    FASTINPAINT_REPOSITORY address of the repository on GitHub, for the links of a release on a package index.
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
TORCH = importlib.util.find_spec("torch")
# No path of this machine in a library: where the sources lie, and torch's headers. The last one that fits is taken.
UNNAMED = [ROOT, *(Path(folder).parent for folder in (TORCH and TORCH.submodule_search_locations) or [])]
PREFIX_MAPS = [f"-ffile-prefix-map={folder}=." for folder in UNNAMED]
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest torch that the binary loads into
CXX_FLAGS = [
    "-O3",
    "-fvisibility=hidden",
    "-g0",  # the distribution's Python may ask for -g: debug information is ten times the library
    *PREFIX_MAPS,
    "-ffp-contract=off",  # a fused multiply-add rounds differently: every instruction set must give the same bits
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # torch's headers
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # GCC 12 on its own AVX-512 intrinsics
    "-Wno-unknown-warning-option",  # clang has no such option
]
# csrc/module.h has the exp of the oldest glibc on x86-64; today's would bind a wheel to glibc 2.29.
OLD_GLIBC = ["-Wl,--wrap=exp"] if platform.libc_ver()[0] == "glibc" and platform.machine() == "x86_64" else []
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Python has none
SANITIZERS = {"address": "-fsanitize=address,undefined,float-cast-overflow", "thread": "-fsanitize=thread"}
SANITIZE_FLAGS = [  # after CXX_FLAGS
    "-fno-sanitize-recover=all",  # a report ends the process
    "-fno-wrapv",  # most builds of Python ask for -fwrapv, under which no signed overflow is an error
    "-O1",  # quick to compile
    "-g1",  # reports name lines
    "-fno-omit-frame-pointer",
    "-D_GLIBCXX_ASSERTIONS",  # std::vector checks its indices
    "-DFASTINPAINT_SANITIZE",  # csrc/cpu/scratch.h
]
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fmad=false",
    f"-Xcompiler={','.join(['-fvisibility=hidden', '-ffp-contract=off', '-g0', *PREFIX_MAPS])}",
]


def index_readme(text: str, repository: str) -> str:
    """README.md for a package index, where no relative link leads anywhere.

    Links and pictures point into ``repository``. Without one, links are reduced to their text, pictures are left out.
    """
    if not repository:
        text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
        return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    text = re.sub(r"(!\[[^]]*\])\((?!https?:)", rf"\1({repository}/raw/HEAD/", text)
    return re.sub(r"\]\((?!https?:)", f"]({repository}/blob/HEAD/", text)


def index_page() -> dict[str, Any]:
    """Arguments of ``setup`` for a package index: the README and the project's links."""
    repository = os.environ.get("FASTINPAINT_REPOSITORY", "").rstrip("/")
    parts = {
        "Repository": "",
        "Changelog": "/blob/HEAD/CHANGELOG.md",
        "Documentation": "/blob/HEAD/docs/index.md",
        "Issues": "/issues",
    }
    return {
        "long_description": index_readme((ROOT / "README.md").read_text(encoding="utf-8"), repository),
        "long_description_content_type": "text/markdown",
        "project_urls": {
            "Paper": "https://arxiv.org/abs/2002.04170",
            **({name: repository + part for name, part in parts.items()} if repository else {}),
        },
    }


def split_compiler() -> tuple[str, list[str]]:
    """The compiler that CXX names, and its options."""
    name, *options = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return name, options


def missing_for_extension() -> str | None:
    """Say what keeps the extension from being compiled here; None when nothing does."""
    if os.environ.get("FASTINPAINT_NO_EXT") == "1":
        return "FASTINPAINT_NO_EXT=1"
    if os.name == "nt":
        return "the sources use GCC's vector extensions, which MSVC lacks"
    compiler = split_compiler()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler: {compiler!r} is not on the PATH (set CXX)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python.h is missing (Debian and Ubuntu: install python3-dev)"
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch cannot be imported at build time: {error}"
    return None


def cuda_home() -> Path | None:
    """The CUDA toolkit's folder."""
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent.parent if nvcc else None
    folders = [Path(folder) for folder in (os.environ.get("CUDA_HOME"), CUDA_HOME, beside, "/usr/local/cuda") if folder]
    return next((f for f in folders if all((f / part).is_file() for part in ("bin/nvcc", "include/cuda.h"))), None)


def missing_for_cuda() -> str | None:
    """Say what keeps the CUDA sources from being compiled here; None when nothing does."""
    import torch

    wanted, home = os.environ.get("FASTINPAINT_CUDA"), cuda_home()
    if wanted == "0" or os.environ.get("FASTINPAINT_SANITIZE"):
        return "FASTINPAINT_CUDA=0, or a sanitizer of the CPU kernels"
    if home is None:
        return "nvcc is not on the PATH (set CUDA_HOME)"
    if wanted == "1":
        return None
    if torch.version.cuda is None:
        return "torch is not a CUDA build"
    release = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)", release)
    if found is None or found[1] != torch.version.cuda.split(".")[0]:
        return f"torch is built for CUDA {torch.version.cuda}, nvcc is {found[1] if found else 'unknown'}"
    return None


def cuda_options() -> dict[str, list[str]]:
    """What `_C_cuda` takes beside its sources: headers, and the static runtime, so that no path is fixed."""
    import torch
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = str(cuda_home())  # torch itself looks for it only where it is a CUDA build
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    folders = [folder for folder in (cuda_home() / "lib64", cuda_home() / "lib") if folder.is_dir()]
    static = any((folder / "libcudart_static.a").is_file() for folder in folders)
    return {
        "include_dirs": [str(cuda_home() / "include")],
        "library_dirs": list(map(str, folders)),
        "libraries": [
            *(["cudart_static", "rt", "dl", "pthread"] if static else ["cudart"]),
            *(["c10_cuda", "torch_cuda"] if torch.version.cuda else []),
        ],
    }


def extension(name: str, sources: list[Path], macros: list[str], **options: list[str]) -> Any:
    """One library of this package."""
    from torch.utils.cpp_extension import CppExtension

    macros = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *macros]
    return CppExtension(
        f"fastinpaint.{name}",
        sorted(map(str, sources)),
        include_dirs=[str(ROOT / "csrc"), *options.pop("include_dirs", [])],
        depends=sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in {".h", ".inc", ".cuh"}),
        extra_compile_args={
            "cxx": [*macros, *CXX_FLAGS, *split_compiler()[1]],
            "nvcc": [*macros, *NVCC_FLAGS],
        },
        extra_link_args=list(OLD_GLIBC),
        py_limited_api=STABLE_ABI,
        **options,
    )


def extension_options(not_built: dict[str, str]) -> dict[str, Any]:
    """Arguments of ``setup`` for the libraries; what is not built goes with its reason into ``not_built``."""
    from torch.utils.cpp_extension import BuildExtension

    cuda = Path("csrc", "cuda")
    extensions = [extension("_C", [*Path("csrc").glob("*.cpp"), *Path("csrc", "cpu").rglob("*.cpp")], [])]
    gap = missing_for_cuda()
    if gap is None:
        extensions.append(
            extension("_C_cuda", [*cuda.glob("*.cpp"), *cuda.glob("*.cu")], ["-DUSE_CUDA"], **cuda_options())
        )
    else:
        not_built["_C_cuda"] = gap
        print(f"fastinpaint: compiling for the CPU alone ({gap}).")
    compiler, more = split_compiler()
    if more:  # torch takes CXX for a file's name
        os.environ["CXX"] = compiler
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
    }


def write_reasons(not_built: dict[str, str]) -> type[build_py]:
    """A ``build_py`` that also writes ``fastinpaint/_not_built.json``."""

    class BuildPy(build_py):
        def run(self) -> None:
            super().run()
            folder = Path("." if self.editable_mode else self.build_lib, "fastinpaint")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_not_built.json").write_text(json.dumps(not_built))

    return BuildPy


def sanitize(options: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same for a `_C` that reports its errors as it runs, with tests/sanitize/*.cpp in it."""
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


def main() -> None:
    not_built = {}
    reason = missing_for_extension()
    if reason is None:
        options = extension_options(not_built)
    else:
        options = {}
        not_built |= {"_C": reason, "_C_cuda": reason}
        print(f"fastinpaint: installing without its compiled extension ({reason}); the reference backend serves.")
    kind = os.environ.get("FASTINPAINT_SANITIZE")
    if options and kind:
        options = sanitize(options, kind)
    setup(
        **{**index_page(), **options, "cmdclass": {**options.get("cmdclass", {}), "build_py": write_reasons(not_built)}}
    )


if __name__ == "__main__":
    main()
