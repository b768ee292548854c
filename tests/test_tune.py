"""``fastinpaint tune``: what it runs and says. That it reaches Triton's kernels is in tests/kernels/test_tuning.py."""

import importlib.util
import os
from collections import Counter

import pytest
import torch

from fastinpaint import cli
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.losses.objective import LossWeights
from fastinpaint.ops import _tuning
from fastinpaint.training import tune as tuning
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.train_step import TrainStep

CONFIG = TrainConfig(
    base_channels=2, discriminator_channels=2, image_size=32, first_size=16, batch_size=2, accumulate=2
)


@pytest.fixture
def ran(monkeypatch):
    """Shapes of the updates and of the filled batches, with their precision."""
    counted = Counter()
    update, predict = TrainStep.update, Inpainter._predict

    def counted_update(self, image, mask):
        counted[("update", *image.shape)] += 1
        return update(self, image, mask)

    def counted_predict(self, image, hole):
        counted[("fill", *image.shape, str(self.precision))] += 1
        return predict(self, image, hole)

    monkeypatch.setattr(TrainStep, "update", counted_update)
    monkeypatch.setattr(Inpainter, "_predict", counted_predict)
    return counted


def test_every_size_of_a_run_is_updated_and_filled(ran):
    tuning.warm_up(CONFIG, torch.device("cpu"))
    fills = {("fill", n, 3, 32, 32, dtype): 1 for n in (1, 2) for dtype in ("torch.bfloat16", "torch.float32")}
    assert ran == {("update", 2, 3, 16, 16): 1, ("update", 2, 3, 32, 32): 1} | fills


def test_a_gpu_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune", "--config", "small"]) == 1
    error = capsys.readouterr().err
    assert "there is nothing to tune: torch sees no GPU" in error
    assert "run this on the machine that will train" in error
    assert len(error.splitlines()) == 1


def test_a_gpu_without_triton_kernels_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "tuning_gap", lambda device: "it needs a GPU of compute capability 8.0 or above")
    with pytest.raises(RuntimeError, match=r"nothing to tune: it needs a GPU of compute capability 8\.0"):
        tuning.tune(CONFIG)


def test_options_are_checked():
    with pytest.raises(ValueError, match="image_size"):
        tuning.tune(TrainConfig(image_size=20))


def test_the_command_tunes_what_the_options_say(monkeypatch, capsys):
    pytest.importorskip("triton")
    warmed = []
    monkeypatch.setenv("FASTINPAINT_TUNE", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "tuning_gap", lambda device: None)
    monkeypatch.setattr(
        tuning, "warm_up", lambda config, device: warmed.append((config, device, os.environ.get("FASTINPAINT_TUNE")))
    )
    assert cli.main(["tune", "--config", "original", "--batch-size", "3", "--losses.content", "0.5"]) == 0
    ((config, device, switch),) = warmed
    assert (config.batch_size, config.image_size, config.cuda_graph, config.vgg) == (3, 256, "off", None)
    assert config.losses.content == 0
    assert config.losses.adversarial == LossWeights().adversarial
    assert device.type == "cuda"
    assert switch is None
    assert os.environ["FASTINPAINT_TUNE"] == "0"
    assert f"kept in {_tuning.cache_folder()}" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton; it is not installed")
def test_the_table_has_a_line_for_each_problem():
    from fastinpaint_kernels._launch import Choice

    lines = tuning.table(
        [
            Choice("_forward_kernel", "width 4, size 57, bfloat16", "BLOCK_N: 64", 2.925e-4, 3.1e-4),
            Choice("_key_gradient_kernel", "exact, size 57, float32", "BLOCK_N: 32", None, None),
        ]
    ).splitlines()
    assert lines == [
        "kernel                problem                     configuration  us     first",
        "_forward_kernel       width 4, size 57, bfloat16  BLOCK_N: 64    292.5  310",
        "_key_gradient_kernel  exact, size 57, float32     BLOCK_N: 32    -      -",
    ]
    assert "all are compiled" in tuning.table([])
