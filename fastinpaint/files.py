"""Writing files so that a reader never sees half of one, and reading them with errors that name the file."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{12}-.+")


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block succeeds, it takes the place of ``path`` at once.

    Missing parent folders are created. The temporary name ends as ``path`` does, so writers that look at the
    suffix work. When the block raises, the temporary file is removed and ``path`` is left as it was. The file's
    permissions follow the umask, whatever those that the writer gave it.

    Raises:
        IsADirectoryError: ``path`` is a folder.
        FileNotFoundError: the block wrote nothing.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write a file at {target}: it is a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{secrets.token_hex(6)}-{target.name}")
    permissions = _permissions_of_new_file(temporary)
    try:
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(f"nothing was written for {target}")
        _fsync(temporary, os.O_RDWR)
        os.chmod(temporary, permissions)  # safetensors makes files that nobody else can read
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # not every system can flush a folder, which makes the rename itself durable
        _fsync(target.parent, os.O_RDONLY)


def remove_temporaries(*folders: PathLike) -> list[Path]:
    """Remove what killed processes left of `atomic_write` in these folders, where nobody may be writing now."""
    found = [
        path for folder in folders if os.path.isdir(folder)
        for path in Path(folder).iterdir() if _TEMPORARY.fullmatch(path.name)
    ]  # fmt: skip
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _permissions_of_new_file(path: Path) -> int:
    """Make and remove a file to learn them: reading the umask would change it for other threads."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        path.unlink()


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON. Raises TypeError or ValueError for what JSON cannot hold."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: PathLike) -> Any:
    """Read JSON. Raises FileNotFoundError when missing, ValueError with file and position when malformed."""
    try:
        return json.loads(require_file(path, "JSON file").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are of the former
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def require_file(path: PathLike, what: str) -> Path:
    """Return ``path`` as a Path. Raises FileNotFoundError or ValueError, saying ``what`` was wanted."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"expected a {what}, but {path} is a folder")
    if not path.is_file():
        raise FileNotFoundError(f"expected a {what} at {path}, but there is no such file")
    return path
