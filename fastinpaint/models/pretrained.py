"""Models as a folder: ``model.safetensors`` beside ``config.json``; some ship with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fastinpaint.checkpoint.weights import load_safetensors, save_safetensors
from fastinpaint.files import PathLike, read_json, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SHIPPED = Path(__file__).parent.parent / "weights"

Model = TypeVar("Model", bound="Pretrained")


def shipped_models() -> list[str]:
    """Return the names of the models that ship with the package."""
    return sorted(weights.parent.name for weights in SHIPPED.glob(f"*/{WEIGHTS}"))


def find_model(path: PathLike) -> Path:
    """Return the folder of a model: ``path`` itself if it holds a model, else that of the shipped model of this name.

    Raises:
        FileNotFoundError: There is neither; the message lists the shipped models.
    """
    name = os.fspath(path)
    shipped = shipped_models()
    if name in shipped and not any((Path(name) / file).exists() for file in (WEIGHTS, CONFIG)):
        return SHIPPED / name
    if not Path(name).exists():
        raise FileNotFoundError(
            f"no model folder at {name}, and no shipped model of this name; shipped: {', '.join(shipped) or 'none'}"
        )
    return Path(name)


class Pretrained:
    """Saving and loading for modules whose ``config`` holds the arguments that build them."""

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that built this model."""
        raise NotImplementedError

    def save_pretrained(self, path: PathLike, dtype: torch.dtype | None = None) -> None:
        """Write weights and config into the folder ``path``, which is made if missing.

        Each file takes its place at once, the weights first, so an interrupted save leaves no half-written file.

        Args:
            path: The folder.
            dtype: What floating-point weights are stored as; None leaves them. `from_pretrained` makes float32 of
                them unless told otherwise.

        Raises:
            ValueError: A finite weight is beyond the range of ``dtype``.
        """
        module = cast(nn.Module, self)
        weights = {name: _stored(name, tensor, dtype) for name, tensor in module.state_dict().items()}
        save_safetensors(Path(path) / WEIGHTS, weights, {"format": "pt", "model": type(self).__name__})
        write_json(Path(path) / CONFIG, {"model": type(self).__name__, **self.config})

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: PathLike,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Model:
        """Load a model in evaluation mode.

        Args:
            path: A folder that ``save_pretrained`` wrote, or the name of a model that ships with the package
                (``"small"``). A folder of that name that holds a model comes first.
            device: Where to put it.
            dtype: What floating-point weights become, whatever they are stored as. The default is float32, so a
                model stored in half precision computes in float32. None keeps the stored type of each weight.

        Raises:
            FileNotFoundError: The folder or one of its two files is missing, or no shipped model has this name.
            ValueError: A file is damaged, belongs to another model, config and weights do not fit, or a weight is
                NaN, infinite, or an integer where a floating-point number is wanted.
        """
        folder = find_model(path)
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict) or config.get("model") != cls.__name__:
            found = config.get("model") if isinstance(config, dict) else config
            raise ValueError(f"{folder / CONFIG} must describe model {cls.__name__!r}, got {found!r}")
        arguments = {key: value for key, value in config.items() if key != "model"}
        try:
            model = cls(**arguments)
        except TypeError as error:
            raise ValueError(f"{folder / CONFIG} does not fit {cls.__name__}: {error}") from error
        module = cast(nn.Module, model)
        tensors = {
            name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            for name, tensor in load_safetensors(folder / WEIGHTS).items()
        }
        load_exactly(module, tensors, str(folder / WEIGHTS), keep_types=True)
        module.to(device).eval()
        return model


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    if tensor.isfinite().all() and not stored.isfinite().all():
        raise ValueError(f"{name} holds values up to {float(tensor.abs().max()):.4g}, beyond the range of {dtype}")
    return stored


def load_exactly(module: nn.Module, tensors: dict[str, torch.Tensor], source: str, *, keep_types: bool = False) -> None:
    """Copy a state dict into a module. ``keep_types`` gives the module's tensors the types of those that it gets.

    Raises:
        ValueError: A name, a shape or a kind of number differs, or a value is not finite; it names ``source``.
    """
    for name, wanted in module.state_dict(keep_vars=True).items():
        tensor = tensors.get(name, wanted)
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise ValueError(f"{source} does not fit {type(module).__name__}: {name} is {tensor.dtype}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source} is unusable: {name} holds NaN or infinite values")
        if keep_types:
            wanted.data = wanted.data.to(tensor.dtype)
    try:
        module.load_state_dict(tensors)  # a copy: tensors of a file may be unaligned, which changes the last bits
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {type(module).__name__}: {error}") from error
