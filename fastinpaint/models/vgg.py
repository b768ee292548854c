"""VGG-19 features for the perceptual loss (Simonyan and Zisserman, configuration E)."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastinpaint.checkpoint.weights import load_safetensors
from fastinpaint.files import PathLike, require_file
from fastinpaint.models.conv_relu import conv_relu
from fastinpaint.models.pretrained import load_exactly
from fastinpaint.ops.conv2d import conv2d

# Up to conv5_1, the deepest layer that the loss reads: (convolutions, width) of each block.
BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (1, 512))


def _layout() -> dict[str, tuple[int, int, int]]:
    """Layer name -> (index among convolutions, activations and poolings, channels in, channels out)."""
    layers, index, channels = {}, 0, 3
    for block, (count, width) in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            layers[f"conv{block}_{number}"] = (index, channels, width)
            index, channels = index + 2, width
        index += 1
    return layers


CONVOLUTIONS = _layout()
# MD5 of imagenet-vgg-verydeep-19.mat as MatConvNet published it: since version 1.0-beta17, and before.
PUBLISHED = ("106118b7cf60435e6d8e04f6a6dc3657", "8ee3263992981a1d26e73b3ca028a123")
TAPS = tuple(index + 1 for name, (index, _, _) in CONVOLUTIONS.items() if name.endswith("_1"))  # the relus


class VGG19Features(nn.Module):
    """relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of VGG-19 with max pooling.

    (B, 3, H, W), H and W at least 16, -> maps of 64, 128, 256, 512, 512 channels at H, H / 2, H / 4, H / 8, H / 16
    (rounded down). The RGB image in [-1, 1] goes in as it is: like the original system, no mean is subtracted. The
    weights are frozen; the gradient reaches the image only. State dict keys are those of torchvision's vgg19.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for name, (_, incoming, outgoing) in CONVOLUTIONS.items():
            if name.endswith("_1") and layers:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(incoming, outgoing, 3, padding=1), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in [-1, 1] -> five feature maps, shallow to deep."""
        maps = []
        x = image
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):  # and its ReLU
                activated = conv_relu(x, layer)
                x = conv2d(x, layer.weight, layer.bias, padding=1, relu=True) if activated is None else activated
            elif isinstance(layer, nn.MaxPool2d):
                x = layer(x)
            if index in TAPS:
                maps.append(x)
        return tuple(maps)

    @classmethod
    def from_file(cls, path: PathLike, *, verify: bool = True) -> "VGG19Features":
        """Load weights; deeper layers that a full file also holds are passed over.

        Args:
            path: ``.mat``, MatConvNet's imagenet-vgg-verydeep-19; ``.pth``/``.pt`` or ``.safetensors``, a state dict
                with torchvision's keys (``features.0.weight``, ...). Pickles are read with ``weights_only=True``.
                Weights must suit the input, which is RGB: MatConvNet's expect [0, 255] minus a mean and
                torchvision's [0, 1] normalised, yet the original system feeds [-1, 1] to the former.
            verify: Read a ``.mat`` only if its checksum is that of the published file. SciPy's reader can crash the
                process on damaged files, so switch this off for files that you made yourself.

        Raises:
            FileNotFoundError: There is no such file.
            ImportError: A ``.mat``, and SciPy is not installed.
            ValueError: A damaged file, another suffix, or not the weights of VGG-19.
        """
        path = require_file(path, "VGG-19 weight file")
        readers = {".mat": _read_matconvnet, ".pth": _read_pickle, ".pt": _read_pickle}
        readers[".safetensors"] = load_safetensors
        suffix = path.suffix.lower()
        if suffix not in readers:
            raise ValueError(f"VGG-19 weights must be one of {', '.join(readers)}, got {path}")
        if suffix == ".mat" and verify:
            _require_published(path)
        tensors = readers[suffix](path)
        wanted = {f"features.{index}.{kind}" for index, _, _ in CONVOLUTIONS.values() for kind in ("weight", "bias")}
        missing = wanted - tensors.keys()
        if missing:
            raise ValueError(f"{path} does not hold VGG-19: missing {', '.join(sorted(missing)[:4])}")
        model = cls()
        load_exactly(model, {name: tensors[name] for name in wanted}, str(path))
        return model.eval()


def _require_published(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() not in PUBLISHED:
        raise ValueError(
            f"{path} is not the published imagenet-vgg-verydeep-19.mat: its MD5 is {digest.hexdigest()}, wanted "
            f"{' or '.join(PUBLISHED)}. Download it again; a file of your own can be read with verify=False, or "
            "stored as .safetensors"
        )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises many types, depending on where it is damaged
        raise ValueError(f"{path} is not a file of plain tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} must hold a state dict, got {type(tensors).__name__}")
    return tensors


def _read_matconvnet(path: Path) -> dict[str, Tensor]:
    """Read ``layers`` by layer name; kernels are stored (width, height, in, out), biases (1, out)."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading a .mat file needs SciPy: pip install scipy") from error
    tensors = {}
    try:
        for layer in loadmat(path, simplify_cells=True)["layers"]:
            if layer.get("name") in CONVOLUTIONS:
                kernel, bias = _weights(layer)
                target = f"features.{CONVOLUTIONS[layer['name']][0]}"
                tensors[f"{target}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 1, 0).copy())
                tensors[f"{target}.bias"] = torch.from_numpy(bias.reshape(-1))
    except Exception as error:  # of loadmat, or of what it finds in a file that is no network
        raise ValueError(f"{path} is not a MatConvNet network: {error!r}") from error
    return tensors


def _weights(layer: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a layer: one cell in newer files, two fields in the oldest."""
    kernel, bias = layer["weights"] if "weights" in layer else (layer["filters"], layer["biases"])
    return np.array(kernel, np.float32), np.array(bias, np.float32)
