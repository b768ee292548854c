"""The extension that was compiled for a sanitizer, in place of the ordinary one."""

import os
from importlib import import_module
from pathlib import Path

import fastinpaint

ROOT = Path(__file__).parents[2]


def load() -> Path:
    """Load the one that FASTINPAINT_SANITIZE names, and return its path; an ImportError when another one came."""
    wanted = ROOT / "build" / "sanitize" / os.environ["FASTINPAINT_SANITIZE"] / "fastinpaint"
    fastinpaint.__path__.insert(0, str(wanted))
    from fastinpaint.ops import _backend

    if _backend.NATIVE_ERROR is not None:
        raise ImportError(_backend.NATIVE_ERROR)
    library = Path(import_module("fastinpaint._C").__file__)
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in maps if "/fastinpaint/_C." in line}
    if library.parent != wanted or mapped != {str(library)}:
        raise ImportError(f"wanted the extension in {wanted}, got {library}; mapped: {sorted(mapped)}")
    return library


if __name__ == "__main__":
    load()
    print(import_module("fastinpaint.ops._backend").cpu_isa())
