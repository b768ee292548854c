"""What this installation can do: versions, devices, and which backend serves each operator."""

from __future__ import annotations

import contextlib
import platform
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = {  # by name; the first that is installed counts
    "torch": ("torch",),
    "triton": ("triton",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "pillow": ("pillow",),
    "safetensors": ("safetensors",),
    "scikit-image": ("scikit-image",),
}


def collect() -> dict[str, Any]:
    """Return plain nested values, ready for JSON. Whatever is absent is described, never raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "versions": _versions(),
            "devices": _guarded(_devices),
            "extension": _guarded(_extension),
            "operators": _guarded(_operators),
        }


def describe(facts: dict[str, Any]) -> str:
    """Return ``collect``'s facts as lines for people."""
    lines = []
    for title, values in facts.items():
        lines.append(title)
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            lines.extend(_lines(name, value))
    return "\n".join(lines)


def _lines(name: str, value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"  {name:<26}{value}"]
    chosen = next((backend for backend, reason in value.items() if reason is None), "none")
    passed_over = [f"  {'':<26}not {backend}: {reason}" for backend, reason in value.items() if reason]
    return [f"  {name:<26}{chosen}", *passed_over]


def _guarded(section: Callable[[], Any]) -> Any:
    """Run one section; a broken installation is what people call ``info`` for."""
    try:
        return section()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _versions() -> dict[str, str]:
    return {
        "fastinpaint": import_module("fastinpaint").__version__,
        "python": platform.python_version(),
        **{name: _version(packages) for name, packages in PACKAGES.items()},
        "system": f"{platform.system()} {platform.machine()}",
    }


def _version(packages: tuple[str, ...]) -> str:
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return "not installed"


def _devices() -> dict[str, str]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    found = {"cpu": f"{capability}, {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        return found | {"cuda": f"none ({built})"}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, sm_{facts.major}{facts.minor}"
    return found


def _extension() -> dict[str, str]:
    import torch

    from fastinpaint.ops._backend import CUDA_ERROR, NATIVE_ERROR, cpu_isa

    abi = {"compiler ABI": f"C++11 {'yes' if torch.compiled_with_cxx11_abi() else 'no'} (torch), stable ABI (ours)"}
    if NATIVE_ERROR is not None:
        return {"status": NATIVE_ERROR} | abi
    return {"status": "loaded", "CPU kernels": str(cpu_isa()), "CUDA kernels": CUDA_ERROR or "loaded"} | abi


def _operators() -> dict[str, Any]:
    """Try each operator on small tensors with each backend: None where it serves, else the reason."""
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        f"{name} ({device})": {backend: _reason(call, backend) for backend in ("triton", "native", "reference")}
        for device in devices
        for name, call in _calls(torch.device(device)).items()
    }


def _calls(device: torch.device) -> dict[str, Callable[[str], object]]:
    import torch

    from fastinpaint.ops.canny import canny
    from fastinpaint.ops.conv2d import conv2d
    from fastinpaint.ops.edge_priority import edge_priority
    from fastinpaint.ops.instance_norm import instance_norm
    from fastinpaint.ops.patch_attention import patch_attention
    from fastinpaint.ops.pooled_attention import pooled_attention
    from fastinpaint.ops.sobel_edges import sobel_edges
    from fastinpaint.ops.structure_loss import pyramid_structure_loss

    image = torch.rand(1, 3, 16, 16, device=device)
    features = torch.rand(16, 16, 4, 4, device=device)
    points, maps = torch.rand(1, 8, 4, device=device), torch.rand(1, 6, 16, 16, device=device)
    return {
        "canny": lambda backend: canny(image, backend=backend),
        "sobel_edges": lambda backend: sobel_edges(image, backend=backend),
        "edge_priority": lambda backend: edge_priority(image[:, :1], backend=backend),
        "structure_loss": lambda backend: pyramid_structure_loss(image, [maps], backend=backend),
        "pooled_attention": lambda backend: pooled_attention(points, points, points, backend=backend),
        "patch_attention": lambda backend: patch_attention(image, backend=backend),
        "instance_norm": lambda backend: instance_norm(image, None, None, backend=backend),
        "conv2d": lambda backend: conv2d(features, features[:, :, :3, :3], backend=backend),
    }


def _reason(call: Callable[[str], object], backend: str) -> str | None:
    from fastinpaint.ops._backend import BackendUnavailable

    try:
        call(backend)
    except BackendUnavailable as error:
        return error.reasons[backend]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
