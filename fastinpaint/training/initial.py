"""Weights to start a run from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fastinpaint.checkpoint.training_state import load_newest_training_state, load_training_state, training_states
from fastinpaint.checkpoint.weights import load_safetensors
from fastinpaint.files import PathLike, read_json
from fastinpaint.models.pretrained import CONFIG, WEIGHTS

NETWORKS = ("generator", "discriminator", "average")
COMPACT = "weights.safetensors"


def initial_weights(source: PathLike) -> dict[str, dict[str, Tensor]]:
    """Read weights by network: ``generator`` and, where there are some, ``discriminator`` and ``average``.

    Args:
        source: The folder of a run (its newest whole checkpoint), of an export (``weights.safetensors``, and its
            ``model.safetensors`` as the average) or of a model (``model.safetensors``), or one of those files.

    Raises:
        FileNotFoundError: There is nothing of the kind.
        ValueError: A damaged file, or one without a generator.
    """
    path = Path(source)
    if path.is_dir():
        if (path / COMPACT).is_file() and (path / WEIGHTS).is_file():
            return {**initial_weights(path / COMPACT), "average": load_safetensors(path / WEIGHTS)}
        for folder in (path / "checkpoints", path):
            if training_states(folder):
                newest = load_newest_training_state(folder)
                return _of_state(newest.state, newest.path)
        candidates = [path / COMPACT, path / "model" / WEIGHTS, path / WEIGHTS]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no checkpoint, {COMPACT} or {WEIGHTS} in {path}")
        path = found
    if path.suffix == ".pt":
        return _of_state(load_training_state(path), path)
    weights: dict[str, dict[str, Tensor]] = {}
    tensors = load_safetensors(path)
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        if name in NETWORKS:
            weights.setdefault(name, {})[rest] = tensor
    return _with_generator(weights or {"generator": tensors}, path)


def blended(source: PathLike) -> bool | None:
    """Whether the generator at ``source`` was trained with ``poisson_blend``; None where no config says so."""
    for folder in (Path(source), Path(source) / "model"):
        if (folder / CONFIG).is_file():
            return bool(read_json(folder / CONFIG).get("poisson_blend", False))
    return None


def _of_state(state: dict[str, Any], path: Path) -> dict[str, dict[str, Tensor]]:
    weights = {name: dict(state[name]) for name in NETWORKS if name in state}
    weights.get("average", {}).pop("updates", None)
    return _with_generator(weights, path)


def _with_generator(weights: dict[str, dict[str, Tensor]], path: Path) -> dict[str, dict[str, Tensor]]:
    if "generator" not in weights:
        raise ValueError(f"{path} holds no generator")
    return weights
