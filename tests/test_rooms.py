"""The same stem in every room: listing the tree for an operator shows its whole house."""

import ast
from pathlib import Path

import pytest

import fastinpaint

ROOT = Path(__file__).parent.parent
OPS = sorted(p.stem for p in (ROOT / "fastinpaint" / "ops").glob("*.py") if not p.stem.startswith("_"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_operators_are_there():
    wanted = {
        "canny",
        "sobel_edges",
        "edge_priority",
        "structure_loss",
        "pooled_attention",
        "patch_attention",
    }
    assert wanted <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_operator_has_reference_and_test(op):
    assert (ROOT / "fastinpaint" / "reference" / f"{op}.py").is_file()
    assert (ROOT / "tests" / f"test_{op}.py").is_file()


@pytest.mark.parametrize("folder", ["csrc", "csrc/cpu", "csrc/cuda", "kernels/fastinpaint_kernels"])
def test_every_kernel_belongs_to_an_operator(folder):
    library = {"library", "__init__"}
    for path in (ROOT / folder).glob("*"):
        if path.suffix in {".cpp", ".cu", ".py"} and not path.stem.startswith("_"):
            assert path.stem in {*OPS, *library}, f"{path.relative_to(ROOT)} carries no operator's name"


def test_reference_imports_torch_and_itself_only():
    for path in (ROOT / "fastinpaint" / "reference").glob("*.py"):
        for name in _imports(path):
            allowed = name.split(".")[0] in {"torch", "numpy", "collections", "functools", "math", "typing"}
            assert allowed or name.startswith("fastinpaint.reference"), f"{path.name} imports {name}"


def test_kernels_know_nothing_of_ours():
    for path in (ROOT / "kernels").rglob("*.py"):
        for name in _imports(path):
            assert name.split(".")[0] != "fastinpaint", f"{path.name} imports {name}"


def test_only_ops_reach_the_kernels():
    for path in (ROOT / "fastinpaint").rglob("*.py"):
        if path.parent.name == "ops":
            continue
        text = path.read_text()
        assert "torch.ops.fastinpaint" not in text, f"{path.relative_to(ROOT)} calls the extension directly"
        assert "fastinpaint_kernels" not in {name.split(".")[0] for name in _imports(path)}


def test_every_public_name_can_be_had_and_says_what_it_is():
    for name in fastinpaint.__all__:
        value = getattr(fastinpaint, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"fastinpaint.{name} has no docstring"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        getattr(fastinpaint, "nothing")  # noqa: B009


def test_architecture_names_every_file():
    tree, folder = {}, ""
    for line in (ROOT / "docs" / "architecture.md").read_text().split("```text")[1].split("```")[0].splitlines():
        if line.startswith("  "):
            tree[f"{folder}{line.split()[0]}"] = line
        elif line:
            folder = line.split()[0]
    rooms = ("fastinpaint", "csrc", "kernels", "benchmarks", "scripts", "examples")
    kinds = {".py", ".cpp", ".h", ".inc", ".cu", ".cuh", ".sh", ".md"}
    files = {str(p.relative_to(ROOT)): p for room in rooms for p in (ROOT / room).rglob("*") if p.suffix in kinds}
    named = {name for name, path in files.items() if path.name != "__init__.py" and "results" not in path.parts}
    assert named <= set(tree), f"the tree in docs/architecture.md lacks {sorted(named - set(tree))}"
    assert set(tree) <= set(files), (
        f"the tree in docs/architecture.md names what is not there: {sorted(set(tree) - set(files))}"
    )
