"""Models as a folder or a Hub repository: ``model.safetensors``, ``config.json`` and a model card."""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fastinpaint.checkpoint import hub
from fastinpaint.checkpoint.weights import load_safetensors, load_safetensors_header, save_safetensors
from fastinpaint.files import PathLike, atomic_write, read_json, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHIPPED = Path(__file__).parent.parent / "weights"

Model = TypeVar("Model", bound="Pretrained")


class Precision(Enum):
    """What weights become where the caller does not say."""

    FLOAT32 = "float32; a warning says so where they are stored as another type"


def shipped_models() -> list[str]:
    """Return the names of the models that ship with the package."""
    return sorted(weights.parent.name for weights in SHIPPED.glob(f"*/{WEIGHTS}"))


def find_model(
    path: PathLike,
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Return the folder of a model: ``path`` itself, a shipped model of that name, or a download from the Hub.

    A folder at ``path`` comes first; a shipped model comes before a folder that holds none. The other arguments are
    those of `hub.download`.

    Raises:
        FileNotFoundError: There is none of them; the message lists the shipped models.
        ImportError: ``path`` has the form ``user/repository``, and huggingface_hub is not installed.
    """
    name = os.fspath(path)
    shipped = shipped_models()
    if name in shipped and not any((Path(name) / file).exists() for file in (WEIGHTS, CONFIG)):
        return SHIPPED / name
    if Path(name).exists():
        return Path(name)
    nothing = f"no model folder at {name}, and no shipped model of this name; shipped: {', '.join(shipped) or 'none'}"
    if not hub.is_repo_id(name):
        raise FileNotFoundError(nothing)
    try:
        return hub.download(
            name, (CONFIG, WEIGHTS), revision=revision, cache_dir=cache_dir, local_files_only=local_files_only,
            token=token,
        )  # fmt: skip
    except (FileNotFoundError, ImportError) as error:
        raise type(error)(f"{nothing}; {error}") from error


class Pretrained:
    """Saving and loading for modules whose ``config`` holds the arguments that build them.

    The folder has the layout of huggingface_hub's ``PyTorchModelHubMixin``.
    """

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that built this model."""
        raise NotImplementedError

    def save_pretrained(
        self, path: PathLike, dtype: torch.dtype | None = None, *, license_id: str | None = None
    ) -> None:
        """Write weights, config and model card into the folder ``path``, which is made if missing.

        Each file takes its place at once, the weights first, so an interrupted save leaves no half-written file. A
        ``README.md`` that is there already is kept.

        Args:
            path: The folder.
            dtype: What floating-point weights are stored as; None leaves them. `from_pretrained` makes float32 of
                them unless told otherwise.
            license_id: Licence of the weights for the model card, as the Hub names it (``"apache-2.0"``, ...).

        Raises:
            ValueError: A finite weight is beyond the range of ``dtype``.
        """
        module = cast(nn.Module, self)
        weights = {name: _stored(name, tensor, dtype) for name, tensor in module.state_dict().items()}
        save_safetensors(Path(path) / WEIGHTS, weights, {"format": "pt", "model": type(self).__name__})
        write_json(Path(path) / CONFIG, {"model": type(self).__name__, **self.config})
        if not (Path(path) / CARD).exists():
            with atomic_write(Path(path) / CARD) as temporary:
                temporary.write_text(_card(type(self).__name__, self.config, license_id), encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: torch.dtype | None = None,
        license_id: str | None = None,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload the model to the Hugging Face Hub in one commit; returns the commit's address.

        ``dtype`` and ``license_id`` are those of `save_pretrained`, the others those of `hub.upload`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype, license_id=license_id)
            return hub.upload(
                repo_id, folder, commit_message=commit_message, private=private, token=token, branch=branch,
                create_pr=create_pr,
            )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: PathLike,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Precision | None = Precision.FLOAT32,
        *,
        revision: str | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Model:
        """Load a model in evaluation mode.

        Args:
            path: A folder that ``save_pretrained`` wrote, the name of a model that ships with the package
                (``"small"``), or a model on the Hugging Face Hub (``"user/repository"``, extra ``hub``). A folder of
                that name comes first.
            device: Where to put it.
            dtype: What floating-point weights become, whatever they are stored as; None keeps the stored type of
                each. Left out, they become float32, with a warning if they are stored as another type.
            revision: On the Hub: branch, tag or commit.
            cache_dir: For the Hub: the cache to use; None is huggingface_hub's own.
            local_files_only: For the Hub: use the cache alone, no network.
            token: For the Hub: access token of a private repository.

        Raises:
            FileNotFoundError: The folder or one of its two files is missing, no shipped model has this name, and the
                Hub has none or cannot be reached.
            ImportError: A model on the Hub is wanted, and huggingface_hub is not installed.
            ValueError: A file is damaged, belongs to another model, config and weights do not fit, or a weight is
                NaN, infinite, or an integer where a floating-point number is wanted.
        """
        folder = find_model(
            path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        arguments = _arguments(cls, folder / CONFIG)
        _require_fit(cls, arguments, folder)
        module = cast(nn.Module, cls(**arguments))
        wanted = torch.float32 if isinstance(dtype, Precision) else dtype
        stored = load_safetensors(folder / WEIGHTS)
        others = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} - {torch.float32}
        if others and isinstance(dtype, Precision) and folder.parent != SHIPPED:
            warnings.warn(
                f"{folder / WEIGHTS} stores {', '.join(sorted(map(str, others)))}; the model computes in float32. "
                "dtype=None keeps the stored type, dtype=torch.float32 leaves this warning out",
                stacklevel=2,
            )
        tensors = {
            name: tensor.to(wanted) if wanted is not None and tensor.is_floating_point() else tensor
            for name, tensor in stored.items()
        }
        load_exactly(module, tensors, str(folder / WEIGHTS), keep_types=True)
        return cast(Model, module.to(device).eval())


def _arguments(cls: type[Pretrained], path: Path) -> dict[str, Any]:
    """Read the arguments of ``cls``, each of the type of its default. Raises ValueError naming ``path``."""
    config = read_json(path)
    if not isinstance(config, dict) or config.get("model") != cls.__name__:
        found = config.get("model") if isinstance(config, dict) else config
        raise ValueError(f"{path} must describe model {cls.__name__!r}, got {_short(found)}")
    known = inspect.signature(cls).parameters
    arguments = {key: value for key, value in config.items() if key != "model"}
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"{path} does not fit {cls.__name__}: it has no option {_short(name)}")
        kind = type(known[name].default)
        if type(value) is not kind:
            raise ValueError(f"{path} does not fit {cls.__name__}: {name} must be {kind.__name__}, got {_short(value)}")
    return arguments


def _require_fit(cls: type[Pretrained], arguments: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError if config and header of the weights do not fit; allocates no weight, however large its size."""
    header = load_safetensors_header(folder / WEIGHTS)
    try:
        with torch.device("meta"):
            module = cast(nn.Module, cls(**arguments))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # a size beyond 64 bits is one of the latter
        raise ValueError(f"{folder / CONFIG} does not fit {cls.__name__}: {_short(error)}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    source = f"{folder / WEIGHTS} does not fit {cls.__name__} as {folder / CONFIG} describes it"
    missing, unknown = sorted(wanted.keys() - header), sorted(header.keys() - wanted)
    if missing or unknown:
        raise ValueError(f"{source}: missing {missing[:3] or 'nothing'}, unknown {unknown[:3] or 'nothing'}")
    for name, shape in wanted.items():
        if header[name] != shape:
            raise ValueError(f"{source}: {name} must be {shape}, got {header[name]}")


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    if tensor.isfinite().all() and not stored.isfinite().all():
        raise ValueError(f"{name} holds values up to {float(tensor.abs().max()):.4g}, beyond the range of {dtype}")
    return stored


def _card(model: str, config: Mapping[str, Any], license_id: str | None) -> str:
    """Return a model card in the Hub's format: YAML metadata, then Markdown."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in config.items())
    metadata = [
        "library_name: fastinpaint",
        *([f"license: {license_id}"] if license_id else []),
        "pipeline_tag: image-to-image",
        "tags:",
        *(f"- {tag}" for tag in ("image-inpainting", "model_hub_mixin", "pytorch_model_hub_mixin")),
    ]
    text = f"`{model}({arguments})` of the Python package fastinpaint. `fastinpaint.{model}.from_pretrained` loads it."
    return "\n".join(["---", *metadata, "---", "", text, ""])


def load_exactly(module: nn.Module, tensors: dict[str, torch.Tensor], source: str, *, keep_types: bool = False) -> None:
    """Copy a state dict into a module. ``keep_types`` gives the module's tensors the types of those that it gets.

    Raises:
        ValueError: A name, a shape or a kind of number differs, or a value is not finite; it names ``source``.
    """
    for name, wanted in module.state_dict(keep_vars=True).items():
        tensor = tensors.get(name, wanted)
        if tensor.dtype not in (_FLOATS if wanted.is_floating_point() else (wanted.dtype,)):
            raise ValueError(f"{source} does not fit {type(module).__name__}: {name} is {tensor.dtype}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source} is unusable: {name} holds NaN or infinite values")
        if keep_types:
            wanted.data = wanted.data.to(tensor.dtype)
    try:
        module.load_state_dict(tensors)  # a copy: tensors of a file may be unaligned, which changes the last bits
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {type(module).__name__}: {error}") from error
