"""Tables of the documentation, made of ``benchmarks/results``: ``python -m benchmarks.pages`` writes them into docs/.

A block begins with ``<!-- benchmarks: MACHINE NAME ... -->``, a folder of results and benchmarks in it, and ends with
``<!-- end -->``. It shows the cases that `PICKED` names. ``<!-- benchmarks: MACHINE slower -->`` shows every case in
which another implementation is faster. Nothing here needs torch.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import GRAPH, Results, Row, fastest, load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- benchmarks: (\S+) ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICKED = {  # benchmark: parts of the names of cases; without an entry every case is shown
    "canny": ("16 x 256²", "2048²"),
    "structure_loss": ("8 x 64²", "8 x 256²", "8 x 1024²"),
    "pooled_attention": ("(1024, 256, 4)", "(16384, 4096, 4)", "(1024, 1024, 64)"),
    "patch_attention": ("32² x 256", "128² x 64"),
    "generator": ("256²",),
}
PARTS = ("its attentions", "bare convolutions")  # of a network: no implementations of the whole
NAMES = {"conv2d": "convolution", "patch_attention": "patch attention, k = 3, stride 2", "train_step": "training step"}


def others(row: Row, ours: str) -> list[str]:
    """The competitors of a case, each by the faster of its ways, fastest first."""
    names = dict.fromkeys(name.removesuffix(GRAPH) for name in row.seconds)
    timed = [fastest(row, name) for name in names if name != ours and not name.startswith(PARTS)]
    return sorted(timed, key=row.microseconds)


def duration(microseconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3), ("us", 1.0)):
        if microseconds >= size or unit == "us":
            return f"{microseconds / size:.3g} {unit}"
    raise AssertionError


def ratio(value: float) -> str:
    """Two digits, and no power of ten."""
    return f"{value:.2f}x" if value < 2 else f"{value:.1f}x" if value < 10 else f"{value:,.0f}x"


def cell(results: Results, row: Row, name: str, base: str) -> str:
    """Time and extra memory of an implementation: for an image on a CPU, for a whole call on a GPU."""
    time = row.microseconds(name)
    text = duration(time * row.items if results.circumstances["gpu"] else time)
    if name != base:
        text += f" ({ratio(time / row.microseconds(base))})"
    plain = name.removesuffix(GRAPH)
    memory = row.memory.get(name, row.memory.get(plain))
    text += f", {memory:,.0f} MiB" if memory is not None and memory >= 0.5 else ""
    if results.rate and name == base:
        rate = 1e6 / time
        text += f", {rate:,.0f} images/s" if rate >= 10 else f", {rate:.2g} images/s"
    return text


def lines(name: str, results: Results, slower: bool) -> Iterator[str]:
    """Lines of the table: the picked cases, or those in which another implementation is faster."""
    for row in results.rows:
        base = fastest(row, results.ours)
        if row.failed or not base:
            continue
        beside = others(row, results.ours)
        if slower:
            beside = [other for other in beside if row.microseconds(other) < row.microseconds(base)]
        if not beside if slower else not any(part in row.case for part in PICKED.get(name, ("",))):
            continue
        cells = [f"{other.removesuffix(GRAPH)} {cell(results, row, other, base)}" for other in beside]
        title = NAMES.get(name, name.replace("_", " "))
        yield f"| {title} | {row.case} | {cell(results, row, base, base)} | {'; '.join(cells) or '-'} |"


def block(machine: str, names: str) -> str:
    """The text between the two marks."""
    paths = sorted((RESULTS / machine).glob("*.json"))
    wanted = [path for path in paths if names == "slower" or path.stem in names.split()]
    found = [line for path in wanted for line in lines(path.stem, load(path), names == "slower")]
    if not found:
        return "None.\n"
    unit = "a whole call" if load(wanted[0]).circumstances["gpu"] else "an image"
    return "\n".join(
        [f"| operator | case | ours, {unit} | beside (their time / ours) |", "|---|---|---|---|", *found, ""]
    )


def written(text: str) -> str:
    """The text of a page with its blocks made anew."""
    return BLOCK.sub(lambda match: match[1] + block(match[2], match[3]) + match[4], text)


def main() -> None:
    """Rewrite the pages."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if written(text) != text:
            page.write_text(written(text), encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
