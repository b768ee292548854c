"""Hooks of mkdocs.yml: the documentation site has no repository beside it, so what its pages link to comes along.

Pages link to benchmark results as files of the repository (``../benchmarks/results/...``), which works wherever the
repository is browsed. For the site these files are added, and the links are rewritten. A link to a file that is not
part of the site becomes its text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the benchmark results and their log."""
    results = sorted((ROOT / "benchmarks" / "results").rglob("*.*"))
    for path in [ROOT / "benchmarks" / "LOG.md", *(path for path in results if path.suffix in {".md", ".png"})]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links that leave docs/."""
    source = page.file.src_uri
    folder = posixpath.dirname(source if source.startswith("benchmarks/") else f"docs/{source}")

    def link(match: re.Match[str]) -> str:
        picture, text, address, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(folder, address))
        if target.startswith("docs/") or not (ROOT / target).exists():
            return match[0]  # mkdocs itself checks it
        if files.get_file_from_path(target) is None:
            return str(text)
        return f"{picture}[{text}]({posixpath.relpath(target, posixpath.dirname(source) or '.')}{anchor or ''})"

    return LINK.sub(link, markdown)
