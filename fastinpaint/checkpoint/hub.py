"""Model repositories of the Hugging Face Hub. huggingface_hub is imported on use: it is the extra ``hub``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fastinpaint.extras import extra
from fastinpaint.files import PathLike

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")


def is_repo_id(name: str) -> bool:
    """Whether ``name`` has the form ``user/repository`` that the Hub gives to models."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def download(
    repo_id: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Download files of one revision of a model repository, as far as the cache lacks them.

    Args:
        repo_id: ``user/repository``.
        files: Names of the files, all of which are wanted.
        revision: Branch, tag or commit; None: the main branch.
        cache_dir: Cache to use; None: huggingface_hub's own.
        local_files_only: Take the files from the cache, without any network access.
        token: Access token; True requires the one that ``hf auth login`` stored, False sends none.

    Returns:
        The folder of that revision in the cache.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: No such repository, revision or file, or it is not in the cache and cannot be fetched.
    """
    hub = _huggingface_hub()
    where = f"{repo_id} on the Hugging Face Hub" + (f", revision {revision}" if revision else "")
    try:
        folder = hub.snapshot_download(
            repo_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token,
            allow_patterns=list(files),
        )  # fmt: skip
    except Exception as error:  # of the Hub, of the HTTP library beneath, or of the system
        raise FileNotFoundError(f"no model at {where}: {_first_line(error)}") from error
    missing = [name for name in files if not (Path(folder) / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{where} has no {missing[0]}: looked in {folder}")
    return Path(folder)


def upload(
    repo_id: str,
    folder: PathLike,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Upload a folder in one commit; makes the repository if it is not there. Returns the commit's address.

    Args:
        repo_id: ``user/repository``.
        folder: What to upload.
        commit_message: Its first line.
        private: Of a new repository; None: public, unless the organisation's default is private.
        token: Access token; None: the one that ``hf auth login`` stored.
        branch: Branch to commit to; None: the main branch.
        create_pr: Open a pull request instead.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    api = _huggingface_hub().HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(
        api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), commit_message=commit_message, revision=branch,
            create_pr=create_pr,
        )
    )  # fmt: skip


def _huggingface_hub() -> ModuleType:
    with extra("hub", "the Hugging Face Hub"):
        import huggingface_hub
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
