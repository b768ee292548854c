"""Type checkers know the public names: they accept right calls in a user's file and find the wrong ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USER = """\
import numpy
import torch
from torch import Tensor

import fastinpaint as fi

image = torch.rand(1, 3, 32, 32)
edges: Tensor = fi.canny(image, sigma=2.0, backend="reference")
loss: Tensor = fi.pyramid_structure_loss(image, [torch.rand(1, 6, 16, 16)])
attended: Tensor = fi.pooled_attention(image[0], image[0], image[0])
model = fi.InpaintGenerator(base_channels=8)
filled = fi.Inpainter(model)(numpy.zeros((8, 8, 3), numpy.uint8), numpy.zeros((8, 8), bool))
with fi.use_backend("reference"):
    gradients: Tensor = fi.sobel_edges(image)

fi.canny("photo.png")  # wrong
fi.canny(image, sigmas=2.0)  # wrong
fi.pooled_attention(image)  # wrong
fi.cany(image)  # wrong
count: int = fi.edge_priority(edges)  # wrong
fi.InpaintGenerator(base_channels="many")  # wrong
"""
WRONG = [number for number, line in enumerate(USER.splitlines(), 1) if line.endswith("# wrong")]


def _program(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    return found or pytest.skip(f"needs {name}")


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(USER)
    return path


def test_mypy_knows_the_public_names(user_file):
    command = [_program("mypy"), "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary", str(user_file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in run.stdout.splitlines() if ": error:" in line]
    assert [int(line.removeprefix(str(user_file)).split(":")[1]) for line in lines] == WRONG, run.stdout + run.stderr


def test_pyright_knows_the_public_names(user_file):
    paths = [str(ROOT), str(ROOT / "kernels")]
    (user_file.parent / "pyrightconfig.json").write_text(json.dumps({"include": ["user.py"], "extraPaths": paths}))
    command = [_program("pyright"), "--outputjson", "--pythonpath", sys.executable, "--project", str(user_file.parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    found = json.loads(run.stdout)["generalDiagnostics"]
    assert [entry["range"]["start"]["line"] + 1 for entry in found if entry["severity"] == "error"] == WRONG, found


def test_both_packages_are_marked_as_typed():
    for package in ("fastinpaint", "kernels/fastinpaint_kernels"):
        assert (ROOT / package / "py.typed").is_file()
