"""Where a TensorFlow checkpoint lies, given one of its files, its prefix, its folder or a SavedModel."""

from __future__ import annotations

import re
from pathlib import Path

from fastinpaint.files import PathLike


def find_tf_checkpoint(path: PathLike) -> Path:
    """Return a checkpoint's prefix, given the prefix, its ``.index`` or a data file, or a folder.

    In a folder, the file ``checkpoint`` names the newest one; a SavedModel has its variables in ``variables``;
    otherwise there must be exactly one ``.index``. Raises FileNotFoundError or ValueError, saying what was looked for.
    """
    path = Path(path)
    if path.is_dir():
        return _find_in_folder(path)
    prefix = path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))
    if Path(f"{prefix}.index").is_file():
        return prefix
    if path.is_file() and path.name in ("checkpoint", "saved_model.pb"):
        return _find_in_folder(path.parent)
    if path.is_file() and prefix == path:
        raise ValueError(f"{path} is not part of a TensorFlow V2 checkpoint: there is no {path.name}.index beside it")
    raise FileNotFoundError(f"no TensorFlow checkpoint at {path}: looked for {prefix}.index")


def _find_in_folder(folder: Path) -> Path:
    state = folder / "checkpoint"
    if state.is_file():
        match = re.search(r'^model_checkpoint_path: *"(.+)"', state.read_text(errors="replace"), re.MULTILINE)
        if match is None:
            raise ValueError(f'{state} has no line model_checkpoint_path: "..."')
        named = folder / match[1]
        moved = folder / Path(match[1]).name  # it may be an absolute path of the machine that trained
        for prefix in (named, moved):
            if Path(f"{prefix}.index").is_file():
                return prefix
        raise FileNotFoundError(f"{state} names {match[1]}, but there is no {moved}.index")
    saved_model = folder / "variables" / "variables"
    if (folder / "saved_model.pb").is_file() and Path(f"{saved_model}.index").is_file():
        return saved_model
    found = sorted(folder.glob("*.index"))
    if not found:
        raise FileNotFoundError(
            f"no TensorFlow checkpoint in {folder}: looked for checkpoint, *.index and a SavedModel's variables"
        )
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ValueError(f"{folder} holds several checkpoints and no file checkpoint: choose one of {names}")
    return found[0].with_suffix("")
