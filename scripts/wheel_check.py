"""Build one wheel, then try it beside several releases of torch: every operator on both CPU backends, and its tests.

    python scripts/wheel_check.py [VERSION ...]      default: the oldest that pyproject.toml admits, and the newest
    python scripts/wheel_check.py --here             no build: try the package that this interpreter has installed

Each release gets a virtual environment of its own, which is removed afterwards; one may be a download of gigabytes.
The wheel is built without isolation, by the torch of the running interpreter. Exit status: 0 when all passed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEST_PACKAGES = ("pytest", "hypothesis", "scipy", "scikit-image", "opencv-python-headless")
SMOKE = """
import torch, fastinpaint as fi
from fastinpaint.ops import _backend

assert _backend.NATIVE_ERROR is None, _backend.NATIVE_ERROR
torch.manual_seed(0)
leaves = image, maps, points, wide = [
    torch.rand(size, requires_grad=True) for size in ((1, 3, 32, 32), (1, 6, 16, 16), (1, 20, 4), (32, 32, 6, 6))
]
calls = {
    "canny": lambda b: fi.canny(image.detach(), backend=b),
    "canny_pyramid": lambda b: fi.canny_pyramid(image.detach(), scales=(1, 2), backend=b),
    "sobel_edges": lambda b: fi.sobel_edges(image, backend=b),
    "edge_priority": lambda b: fi.edge_priority(image[:, :1].detach(), backend=b),
    "pyramid_structure_loss": lambda b: fi.pyramid_structure_loss(image.detach(), [maps], backend=b),
    "pooled_attention": lambda b: fi.pooled_attention(points, points, points, backend=b),
    "patch_attention": lambda b: fi.patch_attention(image, backend=b),
    "conv2d": lambda b: fi.conv2d(wide, wide[:, :, :3, :3], padding=1, relu=True, backend=b),
    "instance_norm": lambda b: fi.instance_norm(image, None, None, relu=True, padding=1, backend=b),
}
for name, call in calls.items():
    found = []
    for backend in ("native", "reference"):
        value = call(backend)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if values[0].requires_grad:
            total = sum(v.square().sum() for v in values)
            values += [g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None]
        found.append([v.detach() for v in values])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4, msg=lambda text: f"{name}: {text}")
compiled = torch.compile(fi.sobel_edges, backend="aot_eager", fullgraph=True)(image.detach())
torch.testing.assert_close(compiled, fi.sobel_edges(image.detach()))
with torch.no_grad():
    network = fi.InpaintGenerator(base_channels=8)
    output = network(fi.assemble_input(image.detach(), torch.zeros(1, 1, 32, 32)))
assert output.images[0].shape == (1, 3, 32, 32)
print(f"torch {torch.__version__}: {len(calls)} operators, a compiled one, a generator")
"""


def versions() -> list[str]:
    """The oldest release that pyproject.toml admits, and the newest that the index has."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "torch"], capture_output=True, text=True, check=True
    ).stdout
    released = re.search(r"Available versions: (.*)", listing)[1].split(", ")
    floor = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    oldest = [version for version in released if version == floor or version.startswith(f"{floor}.")]
    return list(dict.fromkeys([oldest[-1], released[0]]))


def check(wheel: Path, version: str, folder: Path) -> bool:
    """Install the wheel beside one release of torch, run the smoke and the tests; tell whether they passed."""
    python = str(folder / "bin" / "python")
    operators = sorted(path.stem for path in (ROOT / "fastinpaint" / "ops").glob("[a-z]*.py"))
    tests = [f"tests/test_{name}.py" for name in operators]
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "--quiet", f"torch=={version}", str(wheel), *TEST_PACKAGES],
        [python, "-c", SMOKE],
        [python, "-m", "pytest", "-q", "-W", "ignore::pytest.PytestUnknownMarkWarning", *tests],
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["FASTINPAINT_REQUIRE_NATIVE"] = "1"
    try:
        return all(subprocess.run(c, cwd=folder.parent, env=environment, check=False).returncode == 0 for c in commands)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(wanted: list[str]) -> int:
    """Build and check; the exit status."""
    if wanted == ["--here"]:
        command = [sys.executable, "-c", SMOKE]
        return subprocess.run(command, cwd=tempfile.gettempdir(), check=False).returncode
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        print(wheel.name, flush=True)
        # Away from the sources and their configuration, so that the tests import what the wheel installed.
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        shutil.copytree(ROOT / "tests", Path(folder, "tests"), ignore=shutil.ignore_patterns("__pycache__"))
        outcomes = {version: check(wheel, version, Path(folder, version)) for version in wanted or versions()}
    failed = [version for version, passed in outcomes.items() if not passed]
    print(f"FAILED beside torch {', '.join(failed)}" if failed else f"passed beside torch {', '.join(outcomes)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
