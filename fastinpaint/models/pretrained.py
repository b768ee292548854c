"""Models as a folder: ``model.safetensors`` beside ``config.json``."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fastinpaint.checkpoint.files import PathLike, load_safetensors, read_json, save_safetensors, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

Model = TypeVar("Model", bound="Pretrained")


class Pretrained:
    """Saving and loading for modules whose ``config`` holds the arguments that build them."""

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that built this model."""
        raise NotImplementedError

    def save_pretrained(self, path: PathLike, dtype: torch.dtype | None = None) -> None:
        """Write weights and config into the folder ``path``, which is made if missing.

        ``dtype`` is what floating-point weights are stored as, None leaves them; ``from_pretrained`` makes float32 of
        them again.

        Each file takes its place at once, the weights first, so an interrupted save leaves no half-written file.
        """
        module = cast(nn.Module, self)
        weights = {
            name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            for name, tensor in module.state_dict().items()
        }
        save_safetensors(Path(path) / WEIGHTS, weights, {"model": type(self).__name__})
        write_json(Path(path) / CONFIG, {"model": type(self).__name__, **self.config})

    @classmethod
    def from_pretrained(cls: type[Model], path: PathLike, device: torch.device | str = "cpu") -> Model:
        """Load a model from a folder that ``save_pretrained`` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: The folder lacks one of the two files.
            ValueError: A file is damaged, belongs to another model, or config and weights do not fit.
        """
        folder = Path(path)
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
        load_exactly(module, load_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))
        module.to(device).eval()
        return model


def load_exactly(module: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict; every name and shape must match. Raises ValueError naming ``source`` and what differs."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {type(module).__name__}: {error}") from error
