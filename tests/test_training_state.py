"""Training state: an exact resume, refusals when saving, damage named when loading."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastinpaint.checkpoint.training_state import (
    load_training_state,
    prune_training_states,
    random_state,
    restore_random_state,
    save_training_state,
    training_state_path,
    training_states,
)


def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.0, 0.9))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        scale = random.random() + np.random.rand()  # noqa: NPY002 - the global generator is under test
        loss = (model(torch.randn(4, 8)) * scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_resume_is_exact(tmp_path: Path) -> None:
    model, optimizer = make()
    train(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state(), "step": 3}
    save_training_state(tmp_path / "s.pt", state)
    expected = train(model, optimizer, 5)

    model, optimizer = make()
    loaded = load_training_state(tmp_path / "s.pt")
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    restore_random_state(loaded["random"])
    assert loaded["step"] == 3
    assert train(model, optimizer, 5) == expected


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Path("x"), r"state\['config'\]\['a'\]\[1\] is pathlib"),
        (np.float64(1.0), r"state\['config'\]\['a'\]\[1\] is numpy"),
        (np.ones(3), "numpy.ndarray"),
        (torch.nn.Linear(1, 1), "Linear"),
        ({("a", 1j): 1}, "a key of .* is builtins.complex"),
    ],
)
def test_what_could_not_be_loaded_is_refused(tmp_path: Path, value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        save_training_state(tmp_path / "s.pt", {"config": {"a": [0, value]}})
    assert not os.listdir(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    save_training_state(path, {"model": {"w": torch.zeros(1000)}, "step": 1})
    content = path.read_bytes()
    for length in [*range(0, len(content), len(content) // 20), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"s\.pt is not a complete training state"):
            load_training_state(path)
    flipped = bytearray(content)
    flipped[content.index(bytes(3000)) + 1500] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"checksum of .* is wrong"):
        load_training_state(path)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    torch.save({"w": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"s\.pt is not a training state of this program"):
        load_training_state(path)
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match=r"s\.pt is not a complete training state"):
        load_training_state(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_training_state(tmp_path / "nothing.pt")


def test_prune_keeps_the_newest_steps(tmp_path: Path) -> None:
    for step in (5, 10, 200_000_000, 40):
        save_training_state(training_state_path(tmp_path, step), {"step": step})
    (tmp_path / "step-x.pt").write_bytes(b"somebody's file")
    (tmp_path / "step-00000000.pt").mkdir()
    removed = prune_training_states(tmp_path, 2)
    assert [path.name for path in removed] == ["step-00000005.pt", "step-00000010.pt"]
    left = training_states(tmp_path)
    assert [load_training_state(path)["step"] for path in left] == [40, 200_000_000]
    assert (tmp_path / "step-x.pt").exists()
    assert (tmp_path / "step-00000000.pt").is_dir()
    assert training_states(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="at least 1"):
        prune_training_states(tmp_path, 0)
