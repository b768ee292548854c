import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.io import savemat

from fastinpaint.models.vgg import CONVOLUTIONS, VGG19Features

DEEPER = {"conv5_2": (512, 512), "fc8": (8, 10)}


def matconvnet_layers(weights):
    """One struct per layer, as MatConvNet writes them: convolutions, their relus, and what comes after."""
    layers = []
    for name, (kernel, bias) in weights.items():
        cell = np.empty((1, 2), dtype=object)
        cell[0, 0], cell[0, 1] = kernel, bias
        layers.append({"type": "conv", "name": name, "weights": cell, "pad": np.ones((1, 4)), "stride": [[1, 1]]})
        layers.append({"type": "relu", "name": name.replace("conv", "relu")})
    cells = np.empty((1, len(layers)), dtype=object)
    cells[0, :] = layers
    return cells


def random_weights(extra=()):
    generator = np.random.default_rng(0)
    shapes = {name: (incoming, outgoing) for name, (_, incoming, outgoing) in CONVOLUTIONS.items()}
    shapes |= {name: (4, 6) for name in extra}
    return {
        name: (generator.random((3, 3, *pair), np.float32), generator.random((1, pair[1]), np.float32))
        for name, pair in shapes.items()
    }


def state_dict_of(weights):
    tensors = {}
    for name, (kernel, bias) in weights.items():
        index = CONVOLUTIONS[name][0]
        tensors[f"features.{index}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 1, 0).copy())
        tensors[f"features.{index}.bias"] = torch.from_numpy(bias[0])
    return tensors


@pytest.fixture(scope="module")
def weights():
    return random_weights()


def test_indices_are_torchvisions():
    indices = [index for index, _, _ in CONVOLUTIONS.values()]
    assert indices == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28]
    assert VGG19Features().features[28].weight.shape == (512, 512, 3, 3)


def test_maps_are_the_first_relu_of_each_block():
    features, image = VGG19Features(), torch.randn(2, 3, 35, 48)
    maps = features(image)
    shapes = [(64, 35, 48), (128, 17, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]
    assert [tuple(m.shape[1:]) for m in maps] == shapes
    for index, found in zip((1, 6, 11, 20, 29), maps, strict=True):
        assert torch.allclose(found, features.features[: index + 1](image), atol=1e-6)
        assert found.min() >= 0


def test_weights_are_frozen_and_the_image_is_not():
    features, image = VGG19Features(), torch.randn(1, 3, 16, 16, requires_grad=True)
    sum(m.sum() for m in features(image)).backward()
    assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in features.parameters())


@pytest.mark.parametrize("oldest", [False, True])
def test_matconvnet_file(tmp_path, weights, oldest):
    layers = matconvnet_layers({**weights, **{name: random_weights([name])[name] for name in DEEPER}})
    if oldest:
        for layer in layers[0]:
            if "weights" in layer:
                layer["filters"], layer["biases"] = layer.pop("weights")[0]
    path = tmp_path / "imagenet-vgg-verydeep-19.mat"
    savemat(path, {"layers": layers, "normalization": {"averageImage": np.ones((2, 2, 3))}})
    with pytest.raises(ValueError, match=r"verydeep-19\.mat is not the published .*verify=False"):
        VGG19Features.from_file(path)
    loaded = VGG19Features.from_file(path, verify=False).state_dict()
    for name, tensor in state_dict_of(weights).items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_style_file(tmp_path, weights, suffix):
    tensors = state_dict_of(weights)
    path = tmp_path / f"vgg19{suffix}"
    full = {**tensors, "features.30.weight": torch.zeros(2), "classifier.0.weight": torch.zeros(2)}
    (torch.save if suffix == ".pth" else save_file)(full, path)
    loaded = VGG19Features.from_file(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


class Payload:
    pass


def _write(path, kind, weights):
    tensors = state_dict_of(weights)
    if kind == "text":
        path.write_text("no weights here, only words that are longer than any header" * 10)
    elif kind == "object":
        torch.save(Payload(), path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "missing":
        tensors.pop("features.10.bias")
        torch.save(tensors, path)
    elif kind == "shape":
        torch.save({**tensors, "features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    elif kind == "no layers":
        savemat(path, {"x": np.ones(3)})
    elif kind == "flat kernel":
        savemat(path, {"layers": matconvnet_layers({"conv1_1": (np.ones(3), np.ones(3))})})
    elif kind == "other layers":
        savemat(path, {"layers": np.ones(3)})


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("vgg.pth", "text", "vgg.pth is not a file of plain tensors"),
        ("vgg.pth", "object", "vgg.pth is not a file of plain tensors"),
        ("vgg.pth", "list", "must hold a state dict, got list"),
        ("vgg.pth", "missing", "missing features.10.bias"),
        ("vgg.pth", "shape", "features.0.weight"),
        ("vgg.mat", "text", "vgg.mat is not a MatConvNet network"),
        ("vgg.mat", "no layers", "vgg.mat is not a MatConvNet network"),
        ("vgg.mat", "flat kernel", "vgg.mat is not a MatConvNet network"),
        ("vgg.mat", "other layers", "vgg.mat is not a MatConvNet network"),
        ("vgg.safetensors", "text", "vgg.safetensors is not a complete safetensors file"),
        ("vgg.onnx", "text", "must be one of .mat, .pth, .pt, .safetensors"),
    ],
)
def test_foreign_files_are_refused(tmp_path, weights, name, kind, message):
    _write(tmp_path / name, kind, weights)
    with pytest.raises(ValueError, match=message):
        VGG19Features.from_file(tmp_path / name, verify=False)


def test_a_damaged_mat_file_is_not_parsed(tmp_path, weights, monkeypatch):
    """loadmat can crash the process, so nothing of a file is parsed before its checksum is right."""
    path = tmp_path / "vgg.mat"
    savemat(path, {"layers": matconvnet_layers(weights)})
    monkeypatch.setattr("fastinpaint.models.vgg.PUBLISHED", (hashlib.md5(path.read_bytes()).hexdigest(),))
    VGG19Features.from_file(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("the file was parsed"))
    with pytest.raises(ValueError, match=r"vgg\.mat is not the published imagenet-vgg-verydeep-19\.mat: its MD5 is"):
        VGG19Features.from_file(path)


def test_damaged_pickles_are_value_errors(tmp_path):
    """Bytes of a small file flipped and cut, by a fixed seed."""
    path, rng = tmp_path / "vgg.pth", np.random.default_rng(0)
    torch.save({"features.0.weight": torch.zeros(2, 3)}, path)
    whole = path.read_bytes()
    for _ in range(150):
        content = bytearray(whole)
        for position in rng.integers(0, len(content), rng.integers(1, 5)):
            content[position] = rng.integers(0, 256)
        path.write_bytes(content[: rng.integers(0, len(content))] if rng.random() < 0.3 else content)
        with pytest.raises(ValueError, match=r"vgg\.pth"):
            VGG19Features.from_file(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="VGG-19 weight file"):
        VGG19Features.from_file(tmp_path / "vgg.mat")
