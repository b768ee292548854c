"""Training state on disk: everything that an exact resume needs, as plain containers and tensors.

Loading never runs code from the file (``weights_only=True``), so saving refuses what could not be loaded.
"""

from __future__ import annotations

import io
import logging
import random
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinpaint.files import PathLike, atomic_write, require_file

logger = logging.getLogger(__name__)

_FORMAT = "fastinpaint training state 1"
_PLAIN = (bool, int, float, str, type(None))
_FILE_NAME = re.compile(r"step-(\d+)\.pt")


def save_training_state(path: PathLike, state: Mapping[str, Any]) -> None:
    """Write ``state`` atomically: nested dicts, lists and tuples of tensors, numbers, strings and None.

    Raises:
        TypeError: something else is in it; the message says where.
        OSError: it cannot be written, because the disk is full for example; what was at ``path`` is left as it was.
    """
    _check_plain(state, "state")
    content = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError without the reason
    torch.save({"format": _FORMAT, "state": dict(state)}, content)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def load_training_state(path: PathLike, *, map_location: torch.device | str | None = "cpu") -> dict[str, Any]:
    """Read what `save_training_state` wrote; its checksums are verified.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt, or not a training state.
    """
    file = require_file(path, "training state")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} in it is wrong")
        content = torch.load(file, map_location=map_location, weights_only=True)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged archive raises many types, depending on where it is damaged
        raise ValueError(f"{path} is not a complete training state: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a training state of this program ({_FORMAT!r})")
    state: dict[str, Any] = content["state"]
    return state


class NewestState(NamedTuple):
    """The newest whole training state of a folder, its file, and the newer files that are damaged."""

    path: Path
    state: dict[str, Any]
    damaged: list[Path]


def load_newest_training_state(folder: PathLike) -> NewestState:
    """Read the newest training state of a folder that is whole; each damaged one before it is logged by name.

    Raises:
        FileNotFoundError: There is none.
        ValueError: All of them are damaged.
    """
    files = training_states(folder)
    if not files:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    damaged: list[Path] = []
    for path in reversed(files):
        state = _whole(path)
        if state is not None:
            return NewestState(path, state, damaged)
        damaged.append(path)
    raise ValueError(f"no checkpoint in {folder} is whole: {', '.join(path.name for path in damaged)}")


def _whole(path: Path) -> dict[str, Any] | None:
    try:
        return load_training_state(path)
    except ValueError as error:
        logger.warning("%s; the checkpoint before it is used", error)
        return None


def training_state_path(folder: PathLike, step: int) -> Path:
    """Return the file name for a step, e.g. ``folder/step-00012000.pt``; names sort by step."""
    if step < 0:
        raise ValueError(f"expected a step of at least 0, got {step}")
    return Path(folder) / f"step-{step:08d}.pt"


def training_states(folder: PathLike) -> list[Path]:
    """Return the training states in a folder, oldest step first; none when there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.is_file())
    found = [(int(match[1]), path) for path in files if (match := _FILE_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def prune_training_states(folder: PathLike, keep: int) -> list[Path]:
    """Remove all but the ``keep`` newest training states of a folder; returns what was removed."""
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 training state, got {keep}")
    removed = training_states(folder)[:-keep]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def random_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch (CPU, every CUDA device)."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is meant
    words32 = numpy_state["state"]["key"].astype(np.int64)
    return {
        "python": [version, list(words), gauss],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": torch.from_numpy(words32)}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators from `random_state`; generators of CUDA devices that are not here are skipped."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    inner = state["numpy"]["state"]
    words32 = inner["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": words32}})  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, generator in list(enumerate(state["cuda"]))[:devices]:
        torch.cuda.set_rng_state(generator.cpu(), device)


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError for what ``torch.load(weights_only=True)`` would refuse, and say where it is."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            _check_plain(item, f"{where}[{position}]")
    else:
        raise TypeError(
            f"a training state holds dicts, lists, tuples, tensors, numbers, strings and None; "
            f"{where} is {type(value).__module__}.{type(value).__qualname__}"
        )
