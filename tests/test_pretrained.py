"""Models in folders and models that ship: types, metadata, damaged weights, names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
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
    assert "graft fastinpaint" in (ROOT / "MANIFEST.in").read_text().splitlines()


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
        assert generator.config == {
            "base_channels": 16, "attention": "pooled", "head_norm": False, "poisson_blend": True
        }  # fmt: skip

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


class TestHostileFolders:
    """Every refusal is a ValueError that names the file, before memory is taken."""

    @pytest.fixture
    def folder(self, tmp_path):
        InpaintGenerator(2).save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("width", [10**5, 10**9, 2**62, 10**40])
    def test_a_huge_width_allocates_nothing(self, folder, width):
        (folder / "config.json").write_text(json.dumps({"model": "InpaintGenerator", "base_channels": width}))
        resource = pytest.importorskip("resource")  # not on Windows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match=r"(config\.json|model\.safetensors) does not fit InpaintGenerator"):
            InpaintGenerator.from_pretrained(folder)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("base_channels", "2"), ("base_channels", 2.0), ("base_channels", True), ("base_channels", None),
            ("base_channels", [2]), ("attention", 3), ("attention", ["pooled"]), ("head_norm", "no"), ("head_norm", 1),
        ],
    )  # fmt: skip
    def test_options_of_wrong_types(self, folder, option, value):
        (folder / "config.json").write_text(json.dumps({"model": "InpaintGenerator", option: value}))
        with pytest.raises(ValueError, match=rf"config\.json does not fit InpaintGenerator: {option} must be .*, got"):
            InpaintGenerator.from_pretrained(folder)

    @pytest.mark.parametrize(
        "text", ["[" * 10**5, '{"model": ' * 10**5, "1" * 10**4, "null", "[]", '{"model": ["InpaintGenerator"]}', "\0"]
    )
    def test_texts_that_are_no_config(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json") as caught:
            InpaintGenerator.from_pretrained(folder)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool])
    def test_number_types_that_are_no_weights(self, folder, dtype):
        tensors = load_safetensors(folder / "model.safetensors")
        name = sorted(tensors)[0]
        save_safetensors(folder / "model.safetensors", {**tensors, name: tensors[name].to(dtype)})
        with pytest.raises(ValueError, match=rf"model\.safetensors.*{re.escape(name)} is {dtype}"):
            InpaintGenerator.from_pretrained(folder, dtype=None)

    def test_missing_and_unknown_weights_are_named(self, folder):
        tensors = load_safetensors(folder / "model.safetensors")
        tensors["other"] = tensors.pop("encoder.0.convolution.bias")
        save_safetensors(folder / "model.safetensors", tensors)
        with pytest.raises(ValueError, match=r"missing \['encoder.0.convolution.bias'\], unknown \['other'\]"):
            InpaintGenerator.from_pretrained(folder)


@pytest.mark.parametrize("stored", [torch.float64, torch.float8_e4m3fn])
def test_other_types_are_said_too(tmp_path, stored):
    InpaintGenerator(2).save_pretrained(tmp_path)
    tensors = load_safetensors(tmp_path / "model.safetensors")
    tensors["encoder.0.convolution.weight"] = tensors["encoder.0.convolution.weight"].to(stored)
    save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.warns(UserWarning, match=rf"model\.safetensors stores {stored}; the model computes in float32"):
        InpaintGenerator.from_pretrained(tmp_path)


def test_half_precision_is_said_unless_the_type_is_chosen(tmp_path, shipped):
    InpaintGenerator(2).save_pretrained(tmp_path / "half", torch.bfloat16)
    with pytest.warns(UserWarning, match=r"model\.safetensors stores torch\.bfloat16; the model computes in float32"):
        InpaintGenerator.from_pretrained(tmp_path / "half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InpaintGenerator.from_pretrained(tmp_path / "half", dtype=torch.float32)
        InpaintGenerator.from_pretrained(tmp_path / "half", dtype=None)
        InpaintGenerator.from_pretrained("small")
        Inpainter.from_pretrained(tmp_path / "half", "cpu")


def test_card_is_the_hubs_and_an_own_one_is_kept(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    model = InpaintGenerator(2)
    model.save_pretrained(tmp_path, license_id="cc-by-nc-4.0")
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "fastinpaint"
    assert card.data.license == "cc-by-nc-4.0"
    assert "base_channels=2" in card.text
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


class TestHub:
    """A cache in huggingface_hub's layout, and no network: any connection fails."""

    REPOSITORY = "someone/holes-2"

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        pytest.importorskip("huggingface_hub")
        monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
        root = tmp_path / "cache" / "models--someone--holes-2"
        (root / "refs").mkdir(parents=True)
        for ref, commit, width in (("main", "a" * 40, 2), ("v2", "b" * 40, 3)):
            (root / "refs" / ref).write_text(commit)
            torch.manual_seed(width)
            InpaintGenerator(width).save_pretrained(root / "snapshots" / commit)
            blobs = root / "blobs"
            blobs.mkdir(exist_ok=True)
            for file in list((root / "snapshots" / commit).iterdir()):
                blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
                file.rename(blob)
                file.symlink_to(Path("..") / ".." / "blobs" / blob.name)
        return tmp_path / "cache"

    def test_main_branch_tag_and_commit(self, cache):
        for revision, width in ((None, 2), ("main", 2), ("v2", 3), ("b" * 40, 3)):
            model = InpaintGenerator.from_pretrained(
                self.REPOSITORY, revision=revision, cache_dir=cache, local_files_only=True
            )
            torch.manual_seed(width)
            wanted = InpaintGenerator(width).state_dict()
            assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())

    def test_what_is_not_cached_is_named(self, cache):
        options = {"cache_dir": cache, "local_files_only": True}
        with pytest.raises(FileNotFoundError, match=r"no model folder at someone/other.*on the Hugging Face Hub"):
            InpaintGenerator.from_pretrained("someone/other", **options)
        with pytest.raises(FileNotFoundError, match="holes-2 on the Hugging Face Hub, revision v9"):
            InpaintGenerator.from_pretrained(self.REPOSITORY, revision="v9", **options)
        (cache / "models--someone--holes-2" / "snapshots" / ("a" * 40) / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
            InpaintGenerator.from_pretrained(self.REPOSITORY, **options)

    def test_a_folder_of_that_name_comes_first(self, cache, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        InpaintGenerator(4).save_pretrained(self.REPOSITORY)
        model = InpaintGenerator.from_pretrained(self.REPOSITORY, cache_dir=cache, local_files_only=True)
        assert model.config["base_channels"] == 4

    def test_without_huggingface_hub(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ImportError, match=r"no model folder at someone/other.*pip install 'fastinpaint\[hub\]'"):
            InpaintGenerator.from_pretrained("someone/other")

    def test_the_mixin_reads_the_folder(self, tmp_path):
        """huggingface_hub's own mixin and ours read each other's folders."""
        hub = pytest.importorskip("huggingface_hub")

        class Mixed(torch.nn.Module, hub.PyTorchModelHubMixin):
            def __init__(self, base_channels: int, attention: str = "pooled", head_norm: bool = True):
                super().__init__()
                self.network = InpaintGenerator(base_channels, attention, head_norm)
                self.load_state_dict, self.state_dict = self.network.load_state_dict, self.network.state_dict
                self.named_parameters = self.network.named_parameters

        torch.manual_seed(0)
        wanted = InpaintGenerator(2, head_norm=False)
        wanted.save_pretrained(tmp_path)
        read = Mixed.from_pretrained(tmp_path).network
        assert read.config == wanted.config
        assert torch.equal(next(read.parameters()), next(wanted.parameters()))

    def test_push(self, tmp_path, monkeypatch):
        hub = pytest.importorskip("huggingface_hub")
        calls = {}

        def create_repo(api, repo_id, **options):
            calls["create"] = (api.token, repo_id, options)
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(api, *, repo_id, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "uploaded")
            calls["upload"] = (repo_id, options)
            return "the commit"

        monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
        monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
        model = InpaintGenerator(2)
        commit = model.push_to_hub(self.REPOSITORY, dtype=torch.float16, private=True, token="t", branch="v3")
        assert commit == "the commit"
        assert calls["create"] == ("t", self.REPOSITORY, {"private": True, "exist_ok": True})
        assert calls["upload"][0] == self.REPOSITORY
        assert calls["upload"][1]["revision"] == "v3"
        assert {path.name for path in (tmp_path / "uploaded").iterdir()} == {
            "config.json", "model.safetensors", "README.md",
        }  # fmt: skip
        InpaintGenerator.from_pretrained(tmp_path / "uploaded", dtype=None)


def test_fastinpaint_loads_without_huggingface_hub():
    extras = {"huggingface_hub", "google_crc32c"}
    code = f"import sys, fastinpaint.models.generator; assert not {extras} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
