"""Models in folders and models that ship: types, metadata, damaged weights, names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastinpaint.checkpoint.weights import load_safetensors, load_safetensors_metadata, save_safetensors
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models import pretrained
from fastinpaint.models.generator import InpaintGenerator

ROOT = Path(__file__).parent.parent
CARD = pretrained.SHIPPED / "small"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A tiny model in place of the shipped one, and an empty working folder."""
    torch.manual_seed(0)
    InpaintGenerator(2, head_norm=False).save_pretrained(tmp_path / "weights" / "small", torch.float16)
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "weights")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "weights" / "small"


def test_half_precision_becomes_float32_unless_told_otherwise(tmp_path):
    generator = InpaintGenerator(2)
    generator.save_pretrained(tmp_path, torch.float16)
    stored = load_safetensors(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for dtype, wanted in ((torch.float32, torch.float32), (None, torch.float16), (torch.float64, torch.float64)):
        loaded = InpaintGenerator.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, stored[name].to(wanted))
    assert {parameter.dtype for parameter in InpaintGenerator.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_metadata_names_the_framework(tmp_path):
    InpaintGenerator(2).save_pretrained(tmp_path)
    assert load_safetensors_metadata(tmp_path / "model.safetensors") == {"format": "pt", "model": "InpaintGenerator"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weight: weight.fill_(float("nan")), "NaN or infinite"),
        (lambda weight: weight.index_fill_(0, torch.tensor([0]), float("inf")), "NaN or infinite"),
        (lambda weight: weight.to(torch.int32), "torch.int32"),
    ],
)
def test_unusable_weights_are_refused_by_name(tmp_path, spoil, message):
    InpaintGenerator(2).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_safetensors(path)
    name = "stage_half.image_head.conv.weight"
    name = name if name in tensors else sorted(tensors)[0]
    save_safetensors(path, {**tensors, name: spoil(tensors[name])})
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{re.escape(name)}.*{message}"):
        InpaintGenerator.from_pretrained(tmp_path)


def test_weights_beyond_the_stored_type_are_refused(tmp_path):
    generator = InpaintGenerator(2)
    next(generator.parameters()).data.fill_(1e6)
    with pytest.raises(ValueError, match=r"1e\+06, beyond the range of torch\.float16"):
        generator.save_pretrained(tmp_path, torch.float16)
    assert not os.listdir(tmp_path)
    generator.save_pretrained(tmp_path, torch.bfloat16)


def test_a_name_is_a_shipped_model(shipped):
    found = InpaintGenerator.from_pretrained("small")
    assert torch.equal(next(found.parameters()), next(InpaintGenerator.from_pretrained(shipped).parameters()))
    assert Inpainter.from_pretrained("small", "cpu").generator.config["base_channels"] == 2


def test_a_folder_of_the_name_comes_first_if_it_holds_a_model(shipped):
    Path("small").mkdir()
    Path("small", "photo.png").touch()
    assert InpaintGenerator.from_pretrained("small").config["base_channels"] == 2
    InpaintGenerator(3).save_pretrained("small")
    assert InpaintGenerator.from_pretrained("small").config["base_channels"] == 3
    Path("small", "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"small.config\.json"):
        InpaintGenerator.from_pretrained("small")


def test_an_unknown_name_says_which_are_shipped(shipped):
    with pytest.raises(FileNotFoundError, match=r"no model folder at large.*shipped: small$"):
        InpaintGenerator.from_pretrained("large")
    (shipped / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model folder at small.*shipped: none$"):
        InpaintGenerator.from_pretrained("small")


def test_weights_and_their_papers_are_packaged():
    (pattern,) = re.findall(r'^fastinpaint = \[.*"(weights/.*?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    packaged = {path.name for path in (ROOT / "fastinpaint").glob(pattern)}
    assert {"README.md", "ATTRIBUTION.md"} <= packaged
    assert "graft fastinpaint/weights" in (ROOT / "MANIFEST.in").read_text().splitlines()


def test_every_photograph_has_a_licence():
    lines = (CARD / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| ") and " --- " not in line]
    photographs = [row for row in rows if row[0].strip() != "file"]
    assert len(photographs) == 283
    for row in photographs:
        assert row[1].strip(), row
        assert re.search("CC|Apache|Unsplash|Pexels|public domain", row[2]), row


@pytest.mark.skipif("small" not in pretrained.shipped_models(), reason="the weights of small are not in this checkout")
class TestSmall:
    def test_card_is_complete(self):
        text = (CARD / "README.md").read_text(encoding="utf-8")
        assert not re.findall(r"\b(?:COMMIT|GPU, MINUTES|UPDATES|SCORED|[A-Z]+_[A-Z_]*(?:PSNR|SSIM))\b", text)

    def test_size_and_config(self):
        assert (CARD / "model.safetensors").stat().st_size < 8 * 2**20
        generator = InpaintGenerator.from_pretrained("small")
        assert generator.config == {"base_channels": 32, "attention": "pooled", "head_norm": False}

    def test_fills_a_photograph(self):
        """The hole of a smooth picture comes out nearer to it than the mean of what is known."""
        skimage = pytest.importorskip("skimage.data")
        photo = np.asarray(Image.fromarray(skimage.chelsea()).resize((192, 128)))
        hole = np.zeros(photo.shape[:2], bool)
        hole[50:80, 60:100] = True
        spoiled = photo.copy()
        spoiled[hole] = 255 - spoiled[hole]
        filled = Inpainter.from_pretrained("small", "cpu")(spoiled, hole)
        np.testing.assert_array_equal(filled[~hole], photo[~hole])
        error = np.abs(filled[hole].astype(float) - photo[hole]).mean()
        assert error < 0.8 * np.abs(photo[~hole].mean(0) - photo[hole]).mean()
