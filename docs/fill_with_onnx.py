"""Fill the hole of a photograph without torch: ``python fill_with_onnx.py picture.onnx photo.jpg mask.png filled.png``.

Needs onnxruntime, numpy and Pillow. ``picture.onnx`` is what ``fastinpaint export`` writes; white is hole in the mask.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image


def fill(session: onnxruntime.InferenceSession, photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, (H, W) bool -> (H, W, 3) uint8, equal to ``photo`` outside the hole."""
    height, width = hole.shape
    border = (
        (0, max(-height % 16, 32 - height)),
        (0, max(-width % 16, 32 - width)),
    )  # to a multiple of 16, at least 32
    image = np.pad(photo, (*border, (0, 0)), mode="reflect").transpose(2, 0, 1)[None].astype(np.float32) / 255
    mask = np.pad(hole, border, mode="reflect")[None, None].astype(np.float32)
    (filled,) = session.run(None, {"image": image, "mask": mask})  # (1, 3, H', W') in [0, 1]
    pixels = (filled[0, :, :height, :width].transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    return np.where(hole[..., None], pixels, photo)


if __name__ == "__main__":
    model, photo_path, mask_path, output = sys.argv[1:]
    runtime = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    picture = np.asarray(Image.open(photo_path).convert("RGB"))
    white = np.asarray(Image.open(mask_path).convert("L")) > 127
    Image.fromarray(fill(runtime, picture, white)).save(output)
