"""The scripts of examples/, at tiny size."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.runs import make_photographs

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def load(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def run(monkeypatch, capsys, name, *arguments):
    """Run a script as a user does; return what it printed."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example_is_short_and_linked(path):
    assert len(path.read_text().splitlines()) <= 60
    assert f"examples/{path.name}" in (FOLDER.parent / "docs" / "examples.md").read_text()


def test_structure_loss_trains(monkeypatch, capsys):
    batch = torch.rand(2, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3) * 2 - 1
    losses = load("structure_loss")["train"]([batch], steps=40, width=8)
    assert losses[-1] < 0.8 * losses[0]
    assert run(monkeypatch, capsys, "structure_loss", "--steps", 2).startswith("loss ")


def test_canny_pipeline(tmp_path, monkeypatch, capsys):
    from skimage.feature import canny

    folder = make_photographs(tmp_path / "photographs", count=3)
    batches = list(load("canny_pipeline")["batches"](folder, size=32, batch_size=2, workers=0))
    assert [len(images) for images, _ in batches] == [2, 1]
    assert [level.shape[-1] for level in batches[0][1]] == [32, 16, 8]
    gray = (batches[0][0][0] * torch.tensor([0.2125, 0.7154, 0.0721]).view(3, 1, 1)).sum(0).numpy()
    found = batches[0][1][0][0, 0].numpy()
    assert found.any()
    assert (found != canny(gray, sigma=1.5, low_threshold=0.1, high_threshold=0.2)).mean() < 0.01
    assert "3 pictures" in run(monkeypatch, capsys, "canny_pipeline", folder)


def test_attention_layer_begins_as_the_identity_and_learns(monkeypatch, capsys):
    names = load("attention_layer")
    layer, x = names["PooledSelfAttention"](16), torch.randn(2, 16, 6, 8)
    assert torch.equal(layer(x), x)
    layer.scale.data.fill_(1.0)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    assert names["classifier"](5, channels=8)(torch.rand(2, 3, 9, 12)).shape == (2, 5)
    assert "of the training pictures" in run(monkeypatch, capsys, "attention_layer", "--steps", 2)


def test_fine_tune(tmp_path):
    folder = make_photographs(tmp_path / "photographs", count=3)
    fill = load("fine_tune")["fine_tune"](
        folder, tmp_path / "run", 10, steps=2, image_size=32, batch_size=2, workers=0, cache=False, device="cpu"
    )  # fmt: skip
    mask = Image.new("L", (60, 48))
    mask.paste(255, (10, 10, 30, 30))
    photograph = Image.open(folder / "0.png")
    assert fill(photograph, mask).size == photograph.size
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
