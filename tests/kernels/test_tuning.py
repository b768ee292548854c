"""``fastinpaint tune`` reaches every tuned kernel, in both number types."""

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.ops import _backend, _tuning
from fastinpaint.training import tune
from fastinpaint.training.config import TrainConfig


@pytest.mark.filterwarnings("ignore:fastinpaint.canny:RuntimeWarning")  # no Triton kernel
def test_training_and_filling_reach_every_tuned_kernel(monkeypatch):
    """Kernels that do nothing are launched: what the launchers see is what counts."""
    predict = Inpainter._predict
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *args, grid, warmup, **options: None)
    monkeypatch.setattr(Inpainter, "_predict", lambda *inputs: predict(*inputs).nan_to_num())
    monkeypatch.setattr(_backend, "_triton_gap", lambda *_: None)
    monkeypatch.setenv("FASTINPAINT_BACKEND", "triton")
    config = TrainConfig(
        base_channels=8, discriminator_channels=2, image_size=16, batch_size=2, precision="bf16", cuda_graph="off"
    )
    tune.warm_up(config, torch.device("cpu"))
    found = {(choice.kernel, choice.problem.split(", ")[0]) for choice in _tuning.choices()}
    assert {kernel for kernel, _ in found} == {"_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel"}
    assert {family for kernel, family in found if kernel == "_forward_kernel"} == {"width 4", "exact"}
