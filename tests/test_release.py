"""What a package index gets: the README without dead links, and the checks of `make dist`."""

import io
import runpy
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastinpaint

ROOT = Path(__file__).parent.parent
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
CHECK = runpy.run_path(str(ROOT / "scripts" / "check_dist.py"), run_name="check_dist")
README = "a [page](docs/a.md#b), ![picture](docs/a.png) and [site](https://example.org/)"


def test_links_point_into_the_repository():
    found = SETUP["index_readme"](README, "https://github.com/o/r")
    assert found == (
        "a [page](https://github.com/o/r/blob/HEAD/docs/a.md#b), "
        "![picture](https://github.com/o/r/raw/HEAD/docs/a.png) and [site](https://example.org/)"
    )


def test_without_a_repository_links_are_text():
    assert SETUP["index_readme"](README, "") == "a page,  and [site](https://example.org/)"
    text = SETUP["index_readme"]((ROOT / "README.md").read_text(encoding="utf-8"), "")
    assert "](docs/" not in text
    assert "docs/pictures/demo.png" not in text


def test_urls(monkeypatch):
    monkeypatch.delenv("FASTINPAINT_REPOSITORY", raising=False)
    assert set(SETUP["index_page"]()["project_urls"]) == {"Paper"}
    monkeypatch.setenv("FASTINPAINT_REPOSITORY", "https://github.com/o/r/")
    assert SETUP["index_page"]()["project_urls"]["Issues"] == "https://github.com/o/r/issues"


def test_version_stands_in_one_place():
    for name in ("pyproject.toml", "setup.py", "CITATION.cff"):
        assert fastinpaint.__version__ not in (ROOT / name).read_text(encoding="utf-8")


def test_build_paths_are_found(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("good.so", b"\0csrc/cpu/canny.cpp\0")
        archive.writestr("bad.so", f"\0{ROOT}/csrc/cpu/canny.cpp\0".encode())
    found = CHECK["build_paths"](wheel)
    assert found
    assert all(line.startswith("bad.so: ") for line in found)


def test_files_missing_from_the_source_distribution_are_found(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("fastinpaint-1/README.md"), io.BytesIO())
    missing = CHECK["missing_from_sdist"](tmp_path / "a.tar.gz")
    assert "tests/test_release.py" in missing
    assert "README.md" not in missing
