"""The Python blocks of README and docs run as they stand, and print what their comments say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "operators").glob("*.md"))
OPERATORS = sorted(path.stem for path in (ROOT / "fastinpaint" / "ops").glob("[a-z]*.py"))


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_every_operator_has_a_page():
    assert [page.stem for page in PAGES] == OPERATORS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example(page, capsys):
    found = blocks(page)
    assert found
    for block in found:
        exec(compile(block, str(page), "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert len(printed) == len(promised)
        for line, comment in zip(printed, promised, strict=True):
            if comment.startswith("torch.Size"):
                assert comment.startswith(line)


def test_readme_example(tmp_path, monkeypatch):
    (block,) = blocks(ROOT / "README.md")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save("photo.jpg")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:20, 12:24] = 255
    Image.fromarray(mask).save("mask.png")
    names = {
        "images": torch.rand(2, 3, 32, 32),
        "mask": torch.zeros(1, 1, 32, 32),
        "predictions": [torch.randn(2, 6, side, side) for side in (32, 16)],
        "query": torch.randn(1, 64, 4),
        "key": torch.randn(1, 16, 4),
        "value": torch.randn(1, 16, 4),
    }
    exec(compile(block, "README.md", "exec"), names)
    assert names["result"].size == (48, 40)
    assert names["edges"].shape == (2, 1, 32, 32)
    assert names["loss"].shape == ()
