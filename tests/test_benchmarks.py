"""The benchmark suite itself: it must not time a wrong result, and must print the rows that it loses."""

import json
import tarfile
import time
from dataclasses import replace

import pytest
import torch

import benchmarks.__main__ as main
from benchmarks import results
from benchmarks.machine import EXPONENTIAL_FLOPS, Ceilings, Work
from benchmarks.results import GRAPH, spread
from benchmarks.suite import Benchmark, Case, find_benchmarks, prepare, run
from benchmarks.timing import extra_memory, time_in_turns, time_on_gpu


def _benchmark(**competitors):
    """A benchmark of calls that must return ones; the first is ours, the second the reference."""
    names = list(competitors)
    return Benchmark(
        title="Ones: per image",
        cases=lambda device: [
            Case(f"2 x {side}²", {"side": side}, Work(bytes=8 * side**2), items=2, series="batch 2", size=side)
            for side in (8, 16)
        ],
        competitors=lambda device, side: {
            name: competitor if isinstance(competitor, str) else lambda competitor=competitor: competitor(side)
            for name, competitor in competitors.items()
        },
        ours={"cpu": names[0]},
        reference=(names[1],),
        tolerance=lambda device, side: 1e-6,
        differs={"other": "it returns twos"},
        notes=("A note.",),
    )


def _ones(side):
    return torch.ones(side, side)


def _slow_ones(side):
    time.sleep(2e-3)
    return torch.ones(side, side)


def _no_ones(side):
    raise RuntimeError("no ones today\nat all")


def test_a_wrong_result_is_never_timed():
    wrong = _benchmark(ours=lambda side: _ones(side) * (1.001 if side == 8 else 1), reference=_ones)
    first, second = run(wrong, budget=0.01).rows
    assert first.failed == "WrongResult: 2 x 8²: ours is off by 1.0e-03, relative; 1.0e-06 is allowed"
    assert list(first.seconds) == ["reference"]
    assert not second.failed
    assert set(second.seconds) == {"ours", "reference"}
    nan = _benchmark(ours=lambda side: _ones(side) * float("nan"), reference=_ones)
    assert all(row.failed for row in run(nan, budget=0.01).rows)


def test_our_own_error_is_a_failure_and_a_peers_is_a_reason():
    (row, _) = run(_benchmark(ours=_no_ones, reference=_ones), budget=0.01).rows
    assert row.failed == "RuntimeError: no ones today"
    benchmark = _benchmark(
        ours=_ones, reference=_ones, peer=_no_ones, large="takes 9 GiB", wrong=lambda side: -_ones(side)
    )
    prepared = prepare(benchmark, benchmark.cases("cpu")[0], "cpu")
    assert list(prepared.calls) == ["ours", "reference"]
    assert not prepared.failed
    assert prepared.left_out == {
        "peer": "RuntimeError: no ones today",
        "large": "takes 9 GiB",
        "wrong": "WrongResult: 2 x 8²: wrong is off by 2.0e+00, relative; 1.0e-06 is allowed",
    }


def test_without_a_truth_nothing_is_timed():
    (row, _) = run(_benchmark(ours=_ones, reference="not installed"), budget=0.01).rows
    assert row.seconds == {}
    assert row.left_out == {"reference": "not installed", "ours": "nothing to compare it with: no reference"}


def test_a_benchmark_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    known = {
        "wrong": _benchmark(ours=lambda side: -_ones(side), reference=_ones),
        "right": _benchmark(ours=_ones, reference=_ones),
    }
    monkeypatch.setattr(main, "find_benchmarks", lambda: known)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--budget", "0.01", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="failed: wrong"):
        main.main()
    names = {f"{name}.{kind}" for name in ("right", "wrong") for kind in ("json", "md", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names
    output = capsys.readouterr().out
    assert "| 2 x 16² |" in output
    assert "- **Failed**: 2 x 8²: WrongResult: 2 x 8²: ours is off by 2.0e+00" in output


def test_compiled_peers_wait_for_a_pass_of_their_own():
    benchmark = _benchmark(ours=_ones, reference=_ones, **{"torch.compile": _ones, "FlexAttention": "too wide"})
    case = benchmark.cases("cpu")[0]
    no, only = (prepare(benchmark, case, "cpu", which) for which in ("no", "only"))
    assert set(no.calls) == {"ours", "reference"}
    assert not no.left_out
    assert set(only.calls) == {"ours", "torch.compile"}
    assert only.left_out == {"FlexAttention": "too wide"}


def test_a_truth_that_raises_makes_room_for_the_next():
    benchmark = replace(_benchmark(ours=_ones, reference=_no_ones), reference=("reference", "ours"))
    prepared = prepare(benchmark, benchmark.cases("cpu")[0], "cpu")
    assert list(prepared.calls) == ["ours"]
    assert prepared.left_out == {"reference": "RuntimeError: no ones today"}
    assert not prepared.failed


class _Event:
    """A CUDA event on a clock that only calls move."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.milliseconds = _Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.milliseconds - self.milliseconds


@pytest.fixture
def gpu_clock(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(_Event, "now", 0.0)


def test_gpu_times_are_those_of_events_and_inputs_rotate(gpu_clock):
    order = []

    def call(number):
        order.append(number)
        _Event.now += 2.0  # milliseconds

    samples = time_on_gpu([lambda number=number: call(number) for number in range(3)], rounds=5, budget=1.0)
    assert samples == [pytest.approx(2e-3)] * 5
    assert order[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert abs(order.count(0) - order.count(2)) <= 1


def test_a_very_slow_call_is_sampled_once_on_a_gpu(gpu_clock):
    def call():
        _Event.now += 500.0

    assert time_on_gpu([call], budget=0.1) == [0.5]


def test_the_compact_table_has_call_and_graph_and_reasons():
    row = results.Row("a case", 2, "", 8, {}, floor=5e-6)
    row.seconds = {"ours": [40e-6], "ours" + GRAPH: [10e-6], "peer": [50e-6], "peer" + GRAPH: [30e-6]}
    row.left_out = {"other": "it will not"}
    lost = results.Row("lost", 2, "", 8, {}, floor=5e-6, failed="WrongResult: off")
    found = results.Results("Ones: per image", "ours", [], {}, [row, lost], rate=True)
    assert results.compact(found).splitlines() == [
        "## Ones",
        "a case: ours 40/10 ±0%, floor 5 (50%) 200,000/s | peer 50/30 (3x) 66,667/s | without other (it will not)",
        "lost: FAILED WrongResult: off",
    ]


def test_an_archive_becomes_results_with_compiled_peers_joined(tmp_path):
    benchmark = _benchmark(ours=_slow_ones, reference=_ones, **{"torch.compile": _ones})
    for name, compiled in (("ones", "no"), ("ones_compiled", "only")):
        run(benchmark, budget=0.01, compiled=compiled).save(tmp_path / "in", name)
    (tmp_path / "in" / "ceilings.json").write_text('{"bytes_per_second": 1}')
    with tarfile.open(tmp_path / "results.tgz", "w:gz") as tar:
        for path in (tmp_path / "in").iterdir():
            tar.add(path, arcname=path.name)
    folder, names = results.unpack(tmp_path / "results.tgz", tmp_path / "out")
    assert names == ["ones"]
    assert {path.name for path in folder.iterdir()} == {"ones.json", "ones.md", "ones.png"}
    joined = results.load(folder / "ones.json")
    assert set(joined.rows[0].seconds) == {"ours", "reference", "torch.compile"}
    (first, second) = results.readme_rows(folder, names)
    assert first.startswith("| Ones | 2 x 8² | ")
    assert "torch.compile" in second
    assert results.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    empty = tmp_path / "empty.tgz"
    tarfile.open(empty, "w:gz").close()
    with pytest.raises(ValueError, match="holds no benchmark"):
        results.unpack(empty)


def test_everything_is_kept_and_drawn_and_a_lost_row_is_printed(tmp_path):
    kept = []
    benchmark = _benchmark(ours=_slow_ones, reference=_ones, other=lambda side: 2 * _ones(side), absent="not installed")
    found = run(benchmark, budget=0.02, keep=lambda now: kept.append(len(now.rows)))
    assert kept == [1, 2]
    found.save(tmp_path, "ones")
    results.draw(tmp_path / "ones.json")
    assert {path.name for path in tmp_path.iterdir()} == {"ones.json", "ones.md", "ones.png"}
    assert results.load(tmp_path / "ones.json") == found
    assert (tmp_path / "ones.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "ones.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| 2 x 16²"))
    ratio = found.rows[1].microseconds("reference") / found.rows[1].microseconds("ours")
    assert ratio < 0.5
    assert f"({ratio:.2f}x)" in row
    for part in (
        "Not run, absent: not installed — 2 x 8²; 2 x 16².",
        "other is not compared: it returns twos.",
        "A note.",
    ):
        assert part in text
    facts = json.loads((tmp_path / "ones.json").read_text())["circumstances"]
    assert {"commit", "cpu", "threads", "load", "versions", "ceilings"} <= set(facts)
    # A wheel's file name may lack the +cu130 that torch itself names.
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_only_the_named_cases_run():
    for options in ({"wanted": "16"}, {"wanted": "no such case,16"}, {"skipped": "32,x 8"}):
        rows = run(_benchmark(ours=_ones, reference=_ones), budget=0.01, **options).rows
        assert [row.case for row in rows] == ["2 x 16²"]


def test_floor_is_the_slower_of_memory_and_arithmetic():
    ceilings = Ceilings(100.0, {"float32": 1000.0, "float64": 500.0})
    assert ceilings.floor(Work(bytes=200, flops=1000)) == 2.0
    assert ceilings.floor(Work(bytes=200, flops=4000)) == 4.0
    assert ceilings.floor(Work(bytes=200, flops=4000, dtype="float64")) == 8.0
    assert ceilings.floor(Work(bytes=0, flops=1000, exponentials=1000)) == 1.0 + EXPONENTIAL_FLOPS
    with_unit = Ceilings(100.0, {"float32": 1000.0}, exponentials_per_second=10.0)
    assert with_unit.floor(Work(bytes=0, flops=1000, exponentials=1000)) == 100.0


def test_rivals_take_turns_and_a_very_slow_one_goes_once():
    order = []
    competitors = {
        "a": lambda: (order.append("a"), time.sleep(5e-3)),
        "b": lambda: (order.append("b"), time.sleep(5e-3)),
        "slow": lambda: (order.append("slow"), time.sleep(0.5)),
    }
    samples = time_in_turns(competitors, rounds=3, budget=0.1)
    assert order == [*"aabb", "slow", *"ababab"]
    assert len(samples["slow"]) == 1
    assert all(5e-3 <= second < 1 for second in samples["a"])


def test_spread_is_half_the_quartile_distance():
    assert spread([1.0]) == 0.0
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(0.5)


def test_extra_memory_sees_what_a_call_takes_and_gives_back():
    assert 63 < extra_memory(lambda: torch.ones(16, 2**20)) < 80
    assert extra_memory(lambda: None) < 4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:.*torch.jit.script_method")
@pytest.mark.parametrize("name", sorted(find_benchmarks()))
def test_the_smallest_case_of_every_benchmark_agrees(name):
    benchmark = find_benchmarks()[name]
    smallest = min(benchmark.cases("cpu"), key=lambda case: case.work.bytes)
    with torch.compiler.set_stance("force_eager"):
        prepared = prepare(benchmark, smallest, "cpu")
    assert not prepared.failed
    if name == "instance_norm" and benchmark.ours["cpu"] in prepared.left_out:
        pytest.skip(prepared.left_out[benchmark.ours["cpu"]])
    assert benchmark.ours["cpu"] in prepared.calls, prepared.left_out
    assert any(reference in prepared.calls for reference in benchmark.reference)
    names = [case.name for case in benchmark.cases("cpu")]
    assert len(set(names)) == len(names)
    for case in [*benchmark.cases("cpu"), *benchmark.cases("cuda"), *benchmark.cases("dry")]:
        assert case.work.bytes > 0
        assert case.size > 0
