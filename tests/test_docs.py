"""README and docs: Python blocks run and print what comments say, commands parse, tables and links are current."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastinpaint as fi
from benchmarks import pages
from fastinpaint import cli
from fastinpaint.models.pretrained import SHIPPED
from fastinpaint.serve.settings import Settings
from tests.helpers.runs import make_photographs

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "operators").glob("*.md"))
DOCS = sorted((ROOT / "docs").rglob("*.md"))
OPERATORS = sorted(path.stem for path in (ROOT / "fastinpaint" / "ops").glob("[a-z]*.py"))
COMMAND_PAGES = {
    "demo": "demo", "train": "training", "inpaint": "inpaint", "serve": "painter", "evaluate": "evaluation",
    "export": "export", "convert": "original-checkpoints", "masks": "masks", "tune": "training",
    "info": "info",
}  # fmt: skip


def blocks(path, kinds="python"):
    return re.findall(rf"^```(?:{kinds})\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(path):
    """Every whole ``fastinpaint`` command in a page's shell blocks as a list of arguments."""
    for block in blocks(path, "|sh"):
        for line in block.replace("\\\n", " ").splitlines():
            text = re.sub(r"\s+#.*", "", line)
            found = re.search(r"(?:^|python -m |-m )fastinpaint +(\w.*)", text)
            if found and not {"...", "--help"} & set(text.split()):
                yield shlex.split(found[1])


COMMANDS = [(page, words) for page in (ROOT / "README.md", *DOCS) for words in commands(page)]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A current folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    make_photographs(tmp_path / "photos", count=2)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((48, 60), np.uint8)
    mask[10:20, 12:24] = 255
    for path in ("mask.png", "logo.png", "masks/0.png", "masks/1.png"):
        Image.fromarray(mask).save(path)
    Image.open("photos/0.png").save("photo.jpg")
    shutil.copytree(SHIPPED / "small", tmp_path / "runs" / "mine" / "model")
    shutil.copytree(SHIPPED / "small", tmp_path / "runs" / "train" / "model")
    return tmp_path


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


def test_readme_example(desk):
    (block,) = blocks(ROOT / "README.md")
    names = {
        "images": torch.rand(2, 3, 32, 32),
        "mask": torch.zeros(1, 1, 32, 32),
        "predictions": [torch.randn(2, 6, side, side) for side in (32, 16)],
        "query": torch.randn(1, 64, 4),
        "key": torch.randn(1, 16, 4),
        "value": torch.randn(1, 16, 4),
    }
    exec(compile(block, "README.md", "exec"), names)
    assert names["result"].size == (60, 48)
    assert names["edges"].shape == (2, 1, 32, 32)
    assert names["loss"].shape == ()


def test_blocks_of_the_other_pages_are_known():
    """A page with a Python block needs a test of its own below."""
    found = {page.stem for page in DOCS if page not in PAGES and blocks(page)}
    assert found == {"index", "inpaint", "hub", "painter"}


def test_getting_started():
    names = {}
    (block,) = blocks(ROOT / "docs" / "index.md")
    exec(compile(block, "index.md", "exec"), names)
    assert names["edges"].shape == (1, 1, 256, 256)


def test_filling_in_python(desk):
    (block,) = blocks(ROOT / "docs" / "inpaint.md")
    names = {"image": Image.open("photo.jpg"), "mask": Image.open("mask.png")}
    exec(compile(block, "inpaint.md", "exec"), names)
    assert names["result"].size == (60, 48)


def test_hub_in_python(desk, monkeypatch):
    downloads, uploads = [], []

    def download(name, *_, **options):
        downloads.append((name, options["revision"], options["cache_dir"], options["local_files_only"]))
        return SHIPPED / "small"

    monkeypatch.setattr("fastinpaint.models.pretrained.hub.download", download)
    monkeypatch.setattr(
        fi.InpaintGenerator, "push_to_hub", lambda self, name, **options: uploads.append((name, options))
    )
    names = {}
    (block,) = blocks(ROOT / "docs" / "hub.md")
    exec(compile(block, "hub.md", "exec"), names)
    assert downloads == [("user/repository", "v1.0", "models", False), ("user/repository", None, None, True)]
    assert uploads == [("user/repository", {"license_id": "apache-2.0", "private": True})]
    assert isinstance(names["fill"], fi.Inpainter)


def test_painter_in_python(desk):
    pytest.importorskip("fastapi")
    from tests.helpers.painter_server import running

    (block,) = blocks(ROOT / "docs" / "painter.md")
    assert "http://127.0.0.1:7860" in block
    generator = fi.InpaintGenerator.from_pretrained(SHIPPED / "small", dtype=torch.float32)
    with running(generator, Settings()) as (_, address):
        exec(compile(block.replace("http://127.0.0.1:7860", address), "painter.md", "exec"), {})
    with Image.open("filled.jpg") as filled:
        assert filled.size == (60, 48)


@pytest.mark.parametrize("command", COMMAND_PAGES)
def test_every_command_has_a_page_with_a_picture(command):
    assert list(COMMAND_PAGES) == list(cli.COMMANDS)
    page = ROOT / "docs" / f"{COMMAND_PAGES[command]}.md"
    assert command in {words[0] for words in commands(page)}
    without_picture = {"convert", "export", "info"}  # files of weights and graphs; info shows its output
    assert command in without_picture or re.search(r"!\[[^]]*\]\([\w./-]+\.png\)", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value.stem if isinstance(value, Path) else None)
def test_commands_parse(page, words):
    cli._parser(words[0]).parse_args(words)


@pytest.mark.parametrize(
    "words", [w for page, w in COMMANDS if w[0] in {"masks", "info"} or page.stem == "inpaint"], ids=" ".join
)
def test_quick_commands_run(desk, words, capsys):
    device = ["--device", "cpu"] if words[0] == "inpaint" else []
    assert cli.main([*words, *device]) == 0


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert pages.written(text) == text, "run python -m benchmarks.pages"
    if "<!-- benchmarks:" in text:
        assert "None.\n<!-- end -->" not in text


def test_performance_page_shows_losing_rows():
    table = pages.block("amd-epyc-zen2-2-cores", "slower")
    assert "(1024, 1024, 64)" in table
    assert "(16384, 4096, 4)" not in table


def test_pictures_are_drawn_by_the_command_and_shown():
    script = runpy.run_path(str(ROOT / "scripts" / "draw_pictures.py"))
    files = {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    assert {name.split(".")[0].split("-")[0] for name in files} == set(script["DRAWINGS"])
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS)
    assert {name for name in files if f"pictures/{name}" not in text} == set()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_links_out_of_the_docs_lead_into_the_site():
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "scripts" / "site_hooks.py"))

    class Site:
        def get_file_from_path(self, path):
            return path if path.startswith("benchmarks/") else None

    class Page:
        class file:
            src_uri = "operators/canny.md"

    text = "![plot](../../benchmarks/results/amd-epyc-zen2-2-cores/canny.png) [log](../../benchmarks/LOG.md#x) "
    text += "[script](../../examples/fine_tune.py) [page](sobel_edges.md) [far](https://example.org/a.md)"
    found = hooks["on_page_markdown"](text, Page, None, Site())
    wanted = "![plot](../benchmarks/results/amd-epyc-zen2-2-cores/canny.png) [log](../benchmarks/LOG.md#x) "
    assert found == wanted + "script [page](sobel_edges.md) [far](https://example.org/a.md)"
