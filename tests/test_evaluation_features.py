"""Feature networks and the Frechet distance beside torchmetrics and pytorch-fid's formula. No weights are at hand."""

import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from fastinpaint.cli import main
from fastinpaint.evaluation.features import (
    FEATURE_FILES,
    InceptionFeatures,
    LpipsDistance,
    read_weights,
    tensorflow_resize,
)
from fastinpaint.evaluation.frechet import frechet_distance
from tests.helpers.photographs import crops


def pytorch_fid(a, b):
    """Its formula: squared distance of means and a matrix square root."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b)
    trace = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.trace(np.real(root))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + trace


def truth_and_results(size):
    """20 photographs (20, 3, size, size) in [0, 255], and the same with noise that grows from one to the next."""
    truth = torch.from_numpy(np.stack(crops(20, size))).permute(0, 3, 1, 2).float()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    return truth, (truth + noise * torch.arange(2.0, 42.0, 2.0)[:, None, None, None]).clamp(0, 255).round()


class TestFrechet:
    def test_formula_on_photographs(self):
        a, b = (F.adaptive_avg_pool2d(x.square(), 2).flatten(1).double() / 255 for x in truth_and_results(64))
        assert frechet_distance(a, b) == pytest.approx(pytorch_fid(a.numpy(), b.numpy()), rel=1e-5)

    @pytest.mark.parametrize(("rows", "others"), [(200, 150), (50, 300), (300, 20)])
    def test_formula(self, rows, others):
        rng = np.random.default_rng(0)
        a = rng.normal(size=(rows, 24)) @ rng.normal(size=(24, 24))
        b = rng.normal(size=(others, 24)) @ rng.normal(size=(24, 24)) + 0.3
        found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
        assert found == pytest.approx(pytorch_fid(a, b), rel=1e-5)

    def test_torchmetrics(self):
        from torchmetrics.image.fid import _compute_fid

        a, b = torch.randn(80, 16, dtype=torch.float64), 2 * torch.randn(90, 16, dtype=torch.float64) + 1
        wanted = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
        assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-5)

    def test_equal_sets_are_at_distance_0(self):
        a = torch.randn(30, 64)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)

    def test_one_picture_has_no_distance(self):
        with pytest.raises(ValueError, match="at least 2"):
            frechet_distance(torch.rand(1, 4), torch.rand(5, 4))


def alexnet_features():
    """torchvision's ``alexnet().features``."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16_features():
    """torchvision's ``vgg16().features``."""
    layers, channels = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("net", "build"), [("alex", alexnet_features), ("vgg", vgg16_features)])
def test_lpips_is_that_of_torchmetrics(net, build, tmp_path, monkeypatch):
    from torchmetrics.functional.image import lpips

    features = build()
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: features)
    oracle = lpips._LPIPS(net=net)
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path / "weights.pth")
    model = LpipsDistance.from_file(tmp_path / "weights.pth", net)
    a, b = (x / 127.5 - 1 for x in truth_and_results(64))
    with torch.no_grad():
        torch.testing.assert_close(model.distance(a, b), oracle(a, b).flatten(), rtol=1e-5, atol=1e-9)
        oracle.spatial = True
        torch.testing.assert_close(model(a, b), oracle(a, b), rtol=1e-5, atol=1e-7)


def test_resize_is_tensorflows():
    image = torch.rand(1, 2, 5, 7)
    found = tensorflow_resize(image, 12)
    for y in range(12):
        for x in range(12):
            top, left = y * 5 / 12, x * 7 / 12
            i, j = int(top), int(left)
            down, right = min(i + 1, 4), min(j + 1, 6)
            u, v = top - i, left - j
            upper = image[0, :, i, j] * (1 - v) + image[0, :, i, right] * v
            lower = image[0, :, down, j] * (1 - v) + image[0, :, down, right] * v
            torch.testing.assert_close(found[0, :, y, x], upper * (1 - u) + lower * u, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, F.interpolate(image, (12, 12), mode="bilinear"))


class TestInception:
    def test_layout(self):
        state = InceptionFeatures().state_dict()
        convolutions = [name for name in state if name.endswith("conv.weight")]
        assert len(convolutions) == 94
        assert sum(state[name].numel() for name in convolutions) == 21_751_136
        assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
        assert state["Mixed_6a.branch3x3.conv.weight"].shape == (384, 288, 3, 3)

    def test_features_are_those_of_torch_fidelity(self, tmp_path):
        """With drawn weights and statistics, on 20 photographs."""
        pytest.importorskip("torch_fidelity", exc_type=ImportError)  # it imports torchvision
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        torch.manual_seed(0)
        state = {
            name: value.uniform_(0.5, 1.5) if name.endswith(("running_var", "bn.weight")) else value
            for name, value in InceptionFeatures().state_dict().items()
        }
        classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        torch.save(state | classifier, tmp_path / "weights.pth")
        oracle = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
        )
        truth, _ = truth_and_results(64)
        with torch.no_grad():
            found, (wanted,) = InceptionFeatures.from_file(tmp_path / "weights.pth")(truth), oracle(truth.byte())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))

    def test_files_are_read_and_judge(self, tmp_path, capsys):
        """A file of random weights goes all the way; the classifier of a full file is passed over."""
        import PIL.Image

        model = InceptionFeatures()
        torch.save(model.state_dict() | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "weights.pth")
        for folder, seed in (("truth", 0), ("results", 1)):
            (tmp_path / folder).mkdir()
            for index in range(2):
                pixels = np.random.default_rng((seed, index)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
        arguments = ["evaluate", "--truth", tmp_path / "truth", "--results", tmp_path / "results", "--metrics", "psnr"]
        arguments += ["--output", tmp_path / "out", "--inception", tmp_path / "weights.pth", "--device", "cpu"]
        assert main([str(argument) for argument in arguments]) == 0
        printed = capsys.readouterr().out
        assert "FID (lower)" in printed
        assert "FID of results is of 2 pictures: below 2,048" in printed
        assert "LPIPS is left out: get alexnet-owt-7be5be79.pth from download.pytorch.org/models" in printed


class TestFiles:
    def test_published_names_must_have_the_published_hash(self, tmp_path):
        path = tmp_path / FEATURE_FILES["alex"].name
        torch.save({"features.0.weight": torch.zeros(1)}, path)
        with pytest.raises(ValueError, match="must begin with 7be5be79"):
            read_weights(path, "alex")

    def test_missing_and_damaged_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"get vgg16-397923af.pth from download.pytorch.org/models"):
            read_weights(tmp_path / "absent.pth", "vgg")
        (tmp_path / "damaged.pth").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="not a file of plain tensors"):
            read_weights(tmp_path / "damaged.pth", "vgg")

    def test_another_network_is_named(self, tmp_path):
        torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="does not hold LpipsDistance: missing"):
            LpipsDistance.from_file(tmp_path / "weights.pth")

    def test_torchvision_is_not_imported(self):
        assert not isinstance(sys.modules.get("torchvision"), types.ModuleType)
