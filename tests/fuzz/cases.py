"""Cases by number: each target makes its case from a generator of random numbers and checks what comes of it.

A target returns where the input was taken or refused as documented, and lets any other error through.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastinpaint as fi
from fastinpaint.checkpoint.tensorflow import read_tf_checkpoint
from fastinpaint.checkpoint.training_state import load_training_state, save_training_state
from fastinpaint.cli import main
from fastinpaint.data.images import read_image
from fastinpaint.data.masks import read_mask
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.vgg import VGG19Features
from tests.helpers.tf_checkpoint_writer import table, write_checkpoint

REFUSED = (ValueError, FileNotFoundError)
Rng = np.random.Generator
Target = Callable[[Rng, Path], None]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
YAML_WORDS = ("&a", "*a", "<<:", "[", "]", "{", "}", "- ", ": ", "!!python/object:os.system", "null", "\t", "\0")


def run_case(name: str, number: int, folder: Path) -> None:
    """Run case ``number`` of a target in a folder of its own; the same arguments give the same case."""
    rng = np.random.default_rng((zlib.crc32(name.encode()), number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[name](rng, folder)


def mutated(content: bytes, rng: Rng) -> bytes:
    """Return ``content`` with some bytes replaced, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, len(data) + 1))
        size = int(rng.choice([1, 1, 4, 64]))
        kind = rng.integers(0, 6)
        if kind < 3:
            data[at : at + size] = rng.integers(0, 256, len(data[at : at + size]), np.uint8).tobytes()
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


@cache
def model_files() -> dict[str, bytes]:
    """The files of a small model folder."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        InpaintGenerator(1).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def model_folder(rng: Rng, folder: Path) -> None:
    """A model folder with one damaged file."""
    files = model_files()
    damaged = "config.json" if rng.random() < 0.3 else "model.safetensors"
    head = files[damaged][:30_000]  # all of the config, the header of the weights
    for name, content in files.items():
        whole = mutated(head, rng) + content[len(head) :] if name == damaged else content
        (folder / name).write_bytes(whole)
    with contextlib.suppress(*REFUSED):
        model = InpaintGenerator.from_pretrained(folder, dtype=None)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def tf_checkpoint(rng: Rng, folder: Path) -> None:
    """A TensorFlow checkpoint with damaged files, or with damaged entries under right checksums."""
    variables = {f"net/w{i}": np.full((2, i + 1), i, np.float32) for i in range(4)}
    entries = write_checkpoint(folder / "m", variables)
    index, data = folder / "m.index", folder / "m.data-00000-of-00001"
    if rng.random() < 0.5:
        keys = list(entries)
        key = keys[rng.integers(0, len(keys))]
        index.write_bytes(table({**entries, key: mutated(entries[key], rng)}))
    else:
        path = index if rng.random() < 0.5 else data
        path.write_bytes(mutated(path.read_bytes(), rng))
    with contextlib.suppress(*REFUSED):
        for name, array in read_tf_checkpoint(folder).items():
            if array.shape == variables.get(name, np.empty(0)).shape and array.dtype == np.float32:
                np.testing.assert_array_equal(array, variables[name], err_msg="a damaged value passed")


def training_state(rng: Rng, folder: Path) -> None:
    """A damaged training state."""
    path = folder / "step-00000001.pt"
    save_training_state(path, {"step": 1, "generator": {"w": torch.ones(3)}, "name": "x"})
    path.write_bytes(mutated(path.read_bytes(), rng))
    with contextlib.suppress(*REFUSED):
        load_training_state(path)


def vgg_weights(rng: Rng, folder: Path) -> None:
    """A damaged state dict in place of VGG-19's weights."""
    path = folder / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    path.write_bytes(mutated(path.read_bytes(), rng))
    with contextlib.suppress(*REFUSED):
        VGG19Features.from_file(path)


def train_options(rng: Rng, folder: Path) -> None:
    """A YAML file of training options with damaged text, through the command line."""
    path = folder / "run.yaml"
    text = "data: photos\noutput: run\nbatch_size: 2\nimage_size: 64\nbeta1: 0.5\nvgg: null\nmasks: {max_vertices: 4}\n"
    content = mutated(text.encode(), rng)
    for _ in range(rng.integers(0, 3)):
        at = int(rng.integers(0, len(content) + 1))
        content = content[:at] + YAML_WORDS[rng.integers(0, len(YAML_WORDS))].encode() + content[at:]
    path.write_bytes(content)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code: Any = main(["train", "--config", str(path), "--print-config"])
        except SystemExit as end:
            code = end.code
    assert code in (0, 1, 2), code


def _picture(rng: Rng, path: Path) -> None:
    pixels = rng.integers(0, 256, (int(rng.integers(1, 20)), int(rng.integers(1, 20)), 3), np.uint8)
    kind = FORMATS[rng.integers(0, len(FORMATS))]
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB" if rng.random() < 0.7 else "L").save(buffer, kind)
    path.write_bytes(mutated(buffer.getvalue(), rng))


def picture(rng: Rng, folder: Path) -> None:
    """A damaged picture of some format."""
    _picture(rng, folder / "photo.png")
    with contextlib.suppress(*REFUSED):
        image = read_image(folder / "photo.png")
        assert image.mode == "RGB"


def mask(rng: Rng, folder: Path) -> None:
    """A damaged mask of some format."""
    _picture(rng, folder / "mask.png")
    with contextlib.suppress(*REFUSED):
        values = read_mask(folder / "mask.png")
        assert values.dtype == np.uint8
        assert values.max(initial=0) <= 1


ODD = (0, 1, 2, 3, 5, -1, 7, 2.5, 1e6, float("nan"), float("inf"), "3", None, True, 2**40)


def operator(rng: Rng, folder: Path) -> None:
    """An operator with odd shapes, types and options; where it is taken, the reference says the same."""
    odd_types = (torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool, torch.complex64)

    def tensor(*shape: int) -> torch.Tensor:
        shape = tuple(int(rng.integers(0, 4)) if rng.random() < 0.05 else size for size in shape)
        shape = shape[1:] if rng.random() < 0.03 else shape
        values = torch.from_numpy(rng.random(shape, np.float32))
        return values.to(odd_types[rng.integers(0, len(odd_types))]) if rng.random() < 0.3 else values

    def option(usual: Any) -> Any:
        return ODD[rng.integers(0, len(ODD))] if rng.random() < 0.15 else usual

    batch, channels, height, width = (int(size) for size in rng.integers(1, 9, 4))
    calls: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
        "canny": lambda: (
            (tensor(batch, (1, 3)[channels % 2], 3 * height, 3 * width),),
            {"sigma": option(1.0), "low_threshold": option(0.05), "high_threshold": option(0.1)},
        ),
        "sobel_edges": lambda: ((tensor(batch, channels, height, width),), {}),
        "edge_priority": lambda: (
            (tensor(batch, 1, height, width),),
            {"kernel_size": option(5), "sigma": option(1.0), "iterations": option(2)},
        ),
        "pooled_attention": lambda: ((tensor(batch, 9, 4), tensor(batch, height, 4), tensor(batch, height, width)), {}),
        "patch_attention": lambda: (
            (tensor(batch, channels, 2 * height, 2 * width),),
            {"kernel_size": option(3), "stride": option(2), "softmax_scale": option(10.0)},
        ),
        "instance_norm": lambda: (
            (tensor(batch, channels, height, width), tensor(channels), tensor(channels), option(1e-6)),
            {"padding": option(0), "relu": bool(rng.random() < 0.5)},
        ),
        "conv2d": lambda: (
            (tensor(batch, 16, height, width), tensor(128, 16, 3, 3), tensor(128)),
            {"padding": option(1), "dilation": option(1), "stride": option(1), "relu": bool(rng.random() < 0.5)},
        ),
        "pyramid_structure_loss": lambda: (
            (tensor(batch, 3, 2 * height, 2 * width), [tensor(batch, 6, height, width)]),
            {"sigma": option(1.5)},
        ),
    }
    name = list(calls)[rng.integers(0, len(calls))]
    arguments, options = calls[name]()
    function = getattr(fi, name)
    with contextlib.suppress(ValueError, TypeError):
        found = function(*arguments, **options)
        wanted = function(*arguments, **options, backend="reference")
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        half = found.dtype in (torch.float16, torch.bfloat16)
        torch.testing.assert_close(
            found, wanted, rtol=1e-2 if half else 1e-3, atol=1e-2 if half else 1e-4, equal_nan=True
        )


TARGETS: dict[str, Target] = {
    "model_folder": model_folder,
    "tf_checkpoint": tf_checkpoint,
    "training_state": training_state,
    "vgg_weights": vgg_weights,
    "train_options": train_options,
    "picture": picture,
    "mask": mask,
    "operator": operator,
}
