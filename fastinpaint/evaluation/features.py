"""Networks whose features judge pictures: Inception for FID, AlexNet or VGG-16 for LPIPS. They load weight files.

Nothing is downloaded: `FEATURE_FILES` says which file is wanted, where it is published and how its SHA-256 begins.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinpaint.checkpoint.weights import load_safetensors
from fastinpaint.files import PathLike, require_file
from fastinpaint.models.pretrained import load_exactly


@dataclass(frozen=True)
class FeatureFile:
    """A published weight file."""

    name: str
    source: str
    sha256_start: str


FEATURE_FILES = {
    "inception": FeatureFile(
        "weights-inception-2015-12-05-6726825d.pth", "github.com/toshas/torch-fidelity, release v0.2.0", "6726825d"
    ),
    "alex": FeatureFile("alexnet-owt-7be5be79.pth", "download.pytorch.org/models", "7be5be79"),
    "vgg": FeatureFile("vgg16-397923af.pth", "download.pytorch.org/models", "397923af"),
}


def missing_message(kind: str) -> str:
    """Say which weight file a metric wants and where it is published."""
    wanted = FEATURE_FILES[kind]
    return f"get {wanted.name} from {wanted.source} and name it"


def read_weights(path: PathLike, kind: str) -> dict[str, Tensor]:
    """Read a state dict from ``.pth``, ``.pt`` or ``.safetensors``; pickles with ``weights_only=True``.

    A file that keeps the published name must have the published hash.

    Raises:
        FileNotFoundError: There is no such file; the message says what to get.
        ValueError: Another hash than the published one, or no state dict.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no weight file at {path}: {missing_message(kind)}")
    file, published = require_file(path, "weight file"), FEATURE_FILES[kind]
    if file.name == published.name:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if not found.startswith(published.sha256_start):
            raise ValueError(
                f"{file} is damaged: its SHA-256 must begin with {published.sha256_start}, got {found[:8]}"
            )
    if file.suffix == ".safetensors":
        return load_safetensors(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises many types, depending on where it is damaged
        raise ValueError(f"{file} is not a file of plain tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file} must hold a state dict, got {type(tensors).__name__}")
    return tensors


class _Convolution(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU."""

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, outgoing, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outgoing, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, h, w)."""
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, each a chain of convolutions; the last one starts or consists of a pooling.

    Args:
        branches: Chains of names of convolutions; a nested tuple forks into names that are concatenated.
        convolutions: Name to (in, out, size, stride, padding).
        pool: ``"average"`` (3 x 3, its padding not counted), ``"max"`` (3 x 3, stride 1) or ``"shrink"`` (stride 2).
    """

    def __init__(
        self, branches: Sequence[Sequence[str | tuple[str, ...]]], convolutions: dict[str, tuple[Any, ...]], pool: str
    ) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for name, arguments in convolutions.items():
            self.add_module(name, _Convolution(*arguments))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, sum of branches, h, w)."""
        outputs = []
        for branch in self.branches:
            y: Tensor = x
            for step in branch:
                if step == "pool":
                    y = self._pooled(y)
                elif isinstance(step, tuple):
                    y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
                else:
                    y = self.get_submodule(step)(y)
            outputs.append(y)
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else F.max_pool2d(x, 3, 2)


def _mixed_a(channels: int, pooled: int) -> _Mixed:
    return _Mixed(
        [
            ["branch1x1"],
            ["branch5x5_1", "branch5x5_2"],
            ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
            ["pool", "branch_pool"],
        ],
        {
            "branch1x1": (channels, 64, 1),
            "branch5x5_1": (channels, 48, 1),
            "branch5x5_2": (48, 64, 5, 1, 2),
            "branch3x3dbl_1": (channels, 64, 1),
            "branch3x3dbl_2": (64, 96, 3, 1, 1),
            "branch3x3dbl_3": (96, 96, 3, 1, 1),
            "branch_pool": (channels, pooled, 1),
        },
        "average",
    )


def _mixed_b() -> _Mixed:
    return _Mixed(
        [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool"]],
        {
            "branch3x3": (288, 384, 3, 2),
            "branch3x3dbl_1": (288, 64, 1),
            "branch3x3dbl_2": (64, 96, 3, 1, 1),
            "branch3x3dbl_3": (96, 96, 3, 2),
        },
        "shrink",
    )


def _mixed_c(width: int) -> _Mixed:
    wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    chain = [f"branch7x7dbl_{number}" for number in range(1, 6)]
    return _Mixed(
        [["branch1x1"], ["branch7x7_1", "branch7x7_2", "branch7x7_3"], chain, ["pool", "branch_pool"]],
        {
            "branch1x1": (768, 192, 1),
            "branch7x7_1": (768, width, 1),
            "branch7x7_2": (width, width, *wide),
            "branch7x7_3": (width, 192, *tall),
            "branch7x7dbl_1": (768, width, 1),
            "branch7x7dbl_2": (width, width, *tall),
            "branch7x7dbl_3": (width, width, *wide),
            "branch7x7dbl_4": (width, width, *tall),
            "branch7x7dbl_5": (width, 192, *wide),
            "branch_pool": (768, 192, 1),
        },
        "average",
    )


def _mixed_d() -> _Mixed:
    return _Mixed(
        [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{number}" for number in range(1, 5)], ["pool"]],
        {
            "branch3x3_1": (768, 192, 1),
            "branch3x3_2": (192, 320, 3, 2),
            "branch7x7x3_1": (768, 192, 1),
            "branch7x7x3_2": (192, 192, (1, 7), 1, (0, 3)),
            "branch7x7x3_3": (192, 192, (7, 1), 1, (3, 0)),
            "branch7x7x3_4": (192, 192, 3, 2),
        },
        "shrink",
    )


def _mixed_e(channels: int, pool: str) -> _Mixed:
    wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    return _Mixed(
        [
            ["branch1x1"],
            ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
            ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
            ["pool", "branch_pool"],
        ],
        {
            "branch1x1": (channels, 320, 1),
            "branch3x3_1": (channels, 384, 1),
            "branch3x3_2a": (384, 384, *wide),
            "branch3x3_2b": (384, 384, *tall),
            "branch3x3dbl_1": (channels, 448, 1),
            "branch3x3dbl_2": (448, 384, 3, 1, 1),
            "branch3x3dbl_3a": (384, 384, *wide),
            "branch3x3dbl_3b": (384, 384, *tall),
            "branch_pool": (channels, 192, 1),
        },
        pool,
    )


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of the Inception v3 that FID is defined by (Heusel et al. 2017).

    (B, 3, H, W) in [0, 255] -> (B, 2048). Pictures are resized to 299 x 299 as TensorFlow 1 does (bilinear, source
    position i * H / 299). The state dict has torch-fidelity's keys; the classifier of a full file is passed over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _mixed_a(192, 32), _mixed_a(256, 64), _mixed_a(288, 64)
        self.Mixed_6a = _mixed_b()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_mixed_c, (128, 160, 160, 192))
        self.Mixed_7a = _mixed_d()
        self.Mixed_7b, self.Mixed_7c = _mixed_e(1280, "average"), _mixed_e(2048, "max")

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 255] -> (B, 2048)."""
        x = (tensorflow_resize(image.float(), 299) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, module in self.named_children():
            x = module(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))

    @classmethod
    def from_file(cls, path: PathLike) -> InceptionFeatures:
        """Load weights; errors as in `read_weights`."""
        model = cls()
        _load(model, read_weights(path, "inception"), path)
        return model


def tensorflow_resize(image: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size): bilinear, the value at i from position i * H / size."""
    for axis in (2, 3):
        length = image.shape[axis]
        position = torch.arange(size, dtype=torch.float32, device=image.device) * (length / size)
        low = position.floor().long()
        shape = [-1 if a == axis else 1 for a in range(4)]
        share = (position - low).reshape(shape)
        before, after = (image.index_select(axis, i) for i in (low, (low + 1).clamp_max(length - 1)))
        image = before + (after - before) * share
    return image


_ALEX = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
_VGG = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class LpipsDistance(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1).

    Args:
        net: ``"alex"`` or ``"vgg"``; the state dict of ``features`` has torchvision's keys.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        if net == "alex":
            for number, arguments in enumerate(_ALEX):
                if number in (1, 2):
                    layers.append(nn.MaxPool2d(3, 2))
                layers += [nn.Conv2d(*arguments), nn.ReLU()]
                self.taps.append(len(layers) - 1)
            widths = [arguments[1] for arguments in _ALEX]
        elif net == "vgg":
            channels = 3
            for count, width in _VGG:
                layers += [nn.MaxPool2d(2)] if layers else []
                for _ in range(count):
                    layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                    channels = width
                self.taps.append(len(layers) - 1)
            widths = [width for _, width in _VGG]
        else:
            raise ValueError(f"net must be alex or vgg, got {net!r}")
        self.net = net
        self.features = nn.Sequential(*layers)
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in widths])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [-1, 1] -> (B, 1, H, W), the distance at each pixel; its mean is the usual one."""
        total = torch.zeros_like(a[:, :1])
        for x, y, weight in zip(self._unit(a), self._unit(b), self.weights, strict=True):
            difference = ((x - y).square() * weight).sum(1, keepdim=True)
            total = total + F.interpolate(difference, a.shape[-2:], mode="bilinear", align_corners=False)
        return total

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [-1, 1] -> (B,): the mean over positions of each layer, summed over layers."""
        total = a.new_zeros(len(a))
        for x, y, weight in zip(self._unit(a), self._unit(b), self.weights, strict=True):
            total = total + ((x - y).square() * weight).sum(1).mean((1, 2))
        return total

    def _unit(self, image: Tensor) -> list[Tensor]:
        """Features of unit length at each position."""
        x, maps = (image - self.shift) / self.scale, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return maps

    @classmethod
    def from_file(cls, path: PathLike, net: str = "alex", linear: PathLike | None = None) -> LpipsDistance:
        """Load the network's weights and those of its layers.

        Args:
            path: torchvision's AlexNet or VGG-16.
            net: Which of them.
            linear: LPIPS' own file (``lin0.model.1.weight``, ...); None takes the one that torchmetrics ships.

        Raises:
            ImportError: Neither ``linear`` nor torchmetrics is there.
            FileNotFoundError, ValueError: As in `read_weights`.
        """
        model = cls(net)
        tensors = {k: v for k, v in read_weights(path, net).items() if k.startswith("features.")}
        own = torch.load(linear or _shipped(net), map_location="cpu", weights_only=True)
        tensors |= {f"weights.{i}": own[f"lin{i}.model.1.weight"] for i in range(len(model.weights))}
        _load(model, tensors, path)
        return model


def _shipped(net: str) -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise ImportError("LPIPS takes its layer weights from torchmetrics: pip install 'fastinpaint[evaluate]'")
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"


def _load(model: nn.Module, tensors: dict[str, Tensor], path: PathLike) -> None:
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{path} does not hold {type(model).__name__}: missing {', '.join(missing[:3])}")
    load_exactly(model, {name: tensors.get(name, value) for name, value in wanted.items()}, str(path))
    model.eval().requires_grad_(False)
