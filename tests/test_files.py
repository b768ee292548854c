"""Atomic writes, safetensors and JSON: round trips, and errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastinpaint.checkpoint.weights import load_safetensors, load_safetensors_metadata, save_safetensors
from fastinpaint.files import atomic_write, read_json, write_json


def test_atomic_write_replaces_and_creates_parents(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    for text in ("first", "second"):
        with atomic_write(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["a.txt"]


def test_atomic_write_leaves_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_atomic_write_refuses_folders_and_empty_blocks(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_write(tmp_path / "a"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_safetensors(tmp_path / "model.safetensors", {"a": torch.ones(3)})
        write_json(tmp_path / "config.json", {})
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_safetensors_round_trip(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    tensors = {
        "strided": weight.t(),
        "tied": weight,
        "also tied": weight,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "grad": weight.clone().requires_grad_(),
    }
    path = tmp_path / "model.safetensors"
    save_safetensors(path, tensors, {"note": "hello"})
    loaded = load_safetensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0)
    assert load_safetensors_metadata(path) == {"note": "hello"}


def test_safetensors_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(path, {"a": torch.arange(100.0)})
    content = path.read_bytes()
    for length in (0, 4, 8, 20, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is not a complete"):
            load_safetensors(path)
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_safetensors(path)
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        load_safetensors(tmp_path / "nothing-here")
    with pytest.raises(ValueError, match="folder"):
        load_safetensors(tmp_path)


def test_safetensors_rejects_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'a', got list"):
        save_safetensors(tmp_path / "x", {"a": [1, 2]})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="str to str"):
        save_safetensors(tmp_path / "x", {}, {"step": 3})  # type: ignore[dict-item]
    assert not os.listdir(tmp_path)


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"base_channels": 16, "name": "bäse"})
    assert read_json(path) == {"base_channels": 16, "name": "bäse"}
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert read_json(path)["base_channels"] == 16
    path.write_text('{"base_channels": ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON.*line 1"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_json(path)
