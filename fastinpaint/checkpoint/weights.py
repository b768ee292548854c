"""Weights on disk as safetensors, written atomically, read with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastinpaint.files import PathLike, atomic_write, require_file


def save_safetensors(
    path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors (any device, any strides; tensors that share memory are stored twice).

    Raises:
        TypeError: a value is not a tensor, or a metadata key or value is not a string.
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"safetensors metadata must map str to str, got {key!r}: {value!r}")
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected a tensor for {name!r}, got {type(tensor).__name__}")
        whole = tensor.detach().cpu().contiguous()
        stored[name] = whole.clone() if whole.untyped_storage().data_ptr() in seen else whole
        seen.add(whole.untyped_storage().data_ptr())
    with atomic_write(path) as temporary:
        save_file(stored, temporary, metadata=dict(metadata) if metadata else None)


def load_safetensors(path: PathLike) -> dict[str, torch.Tensor]:
    """Read every tensor of a safetensors file onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt, or not safetensors.
    """
    with _open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def load_safetensors_header(path: PathLike) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a safetensors file's tensors, not the tensors; errors as in `load_safetensors`."""
    with _open_safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping


def load_safetensors_metadata(path: PathLike) -> dict[str, str]:
    """Read the metadata of a safetensors file without its tensors; errors as in `load_safetensors`."""
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _open_safetensors(path: PathLike) -> Iterator[Any]:
    require_file(path, "safetensors file")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # SafetensorError, and others for number types that this torch lacks
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
