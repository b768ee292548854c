"""Runs the CUDA kernels on the CPU, thread by thread; see cuda_on_cpu.h."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastinpaint.reference.canny import gaussian_weights

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SOURCES = ("cuda_on_cpu.cpp", "canny_on_cpu.cpp")
FLAGS = ("-std=c++17", "-O2", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_Sides = ctypes.c_int64 * 4


class CannyCall(ctypes.Structure):
    """The struct of the same name in canny_on_cpu.cpp."""

    _fields_ = (
        ("image", ctypes.c_void_p),
        ("shape", _Sides),
        ("strides", _Sides),
        ("dtype", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_strides", ctypes.c_int64 * 3),
        ("weights", ctypes.c_void_p),
        ("weight_count", ctypes.c_int64),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("map_count", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
        ("maps", ctypes.c_void_p),
        ("seed", ctypes.c_int64),
        ("resident", ctypes.c_int64),
        ("launches", ctypes.c_int64),
    )


def compiler() -> str | None:
    """The C++ compiler's name; None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++").split()[0])


def build(out: Path, *flags: str, kernels: Path = ROOT / "csrc" / "cuda") -> subprocess.CompletedProcess[str]:
    """Compile the kernels of the folder ``kernels`` with what stands in for CUDA to ``out``."""
    includes = [kernels, ROOT / "csrc", HERE, Path(torch.__file__).parent / "include"]
    command = [compiler(), *FLAGS, *flags, *(f"-I{folder}" for folder in includes)]
    command += [*(str(HERE / source) for source in SOURCES), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def describe(
    image: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    weights: Sequence[float],
    low: float,
    high: float,
    mask: Tensor | None,
) -> CannyCall:
    """A call without its maps, and without the place of its weights."""
    call = CannyCall(weight_count=len(weights), low=low, high=high, resident=1, map_count=len(sizes))
    call.image, call.dtype = image.data_ptr(), DTYPES.index(image.dtype)
    call.shape, call.strides = _Sides(*image.shape), _Sides(*image.stride())
    if mask is not None:
        call.mask = mask.data_ptr()
        call.mask_strides = (ctypes.c_int64 * 3)(mask.stride(0) if len(mask) > 1 else 0, *mask.stride()[2:])
    return call


def canny_weights(sigma: float, sizes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """The weights that reach across maps of these sizes."""
    return gaussian_weights(sigma, max(map(max, sizes), default=1))


class CannyOnCpu:
    """The launches of ``csrc/cuda/canny.cu`` in a shared library made by ``build``."""

    def __init__(self, library: Path) -> None:
        self._run = ctypes.CDLL(str(library)).canny_on_cpu
        self._run.restype = ctypes.c_char_p
        self.launches = 0  # of the last call

    def pyramid(
        self,
        image: Tensor,
        sizes: Sequence[tuple[int, int]],
        *,
        sigma: float = 1.5,
        low_threshold: float = 0.1,
        high_threshold: float = 0.2,
        mask: Tensor | None = None,
        seed: int = 0,
        resident: int = 2,
    ) -> list[Tensor]:
        """Edge maps of the given sizes; with a seed, threads give way at random."""
        weights = canny_weights(sigma, sizes)
        call = describe(image, sizes, weights=weights, low=low_threshold, high=high_threshold, mask=mask)
        call.weights = ctypes.cast((ctypes.c_double * len(weights))(*weights), ctypes.c_void_p)
        # Misaligned on purpose now and then, and never zero before.
        maps = [torch.full((len(image), 1, *size), 77, dtype=torch.uint8) for size in sizes]
        flat = [side for size in sizes for side in size]
        call.sizes = ctypes.cast((ctypes.c_int64 * len(flat))(*flat), ctypes.c_void_p)
        call.maps = ctypes.cast((ctypes.c_void_p * len(maps))(*(m.data_ptr() for m in maps)), ctypes.c_void_p)
        call.seed, call.resident = seed, resident
        error = self._run(ctypes.byref(call))
        if error:
            raise RuntimeError(error.decode())
        self.launches = call.launches
        assert all(int(m.max()) <= 1 for m in maps if m.numel()), "a pixel is neither 0 nor 1"
        return [m.view(torch.bool) for m in maps]

    def canny(self, image: Tensor, **options) -> Tensor:
        """As ``fastinpaint.canny``."""
        return self.pyramid(image, [tuple(image.shape[2:])], **options)[0]
