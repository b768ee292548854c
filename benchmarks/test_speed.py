"""The same cases and competitors in pytest-benchmark: ``pytest benchmarks --benchmark-enable -k "canny and 256"``."""

from collections.abc import Iterator
from functools import lru_cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.suite import Benchmark, Case, Run, WrongResult, find_benchmarks, prepare

DEVICE = "cpu"


@lru_cache(maxsize=1)  # competitors of a case follow each other
def prepared(name: str, index: int) -> tuple[dict[str, Run], dict[str, str]]:
    benchmark = find_benchmarks()[name]
    found = prepare(benchmark, benchmark.cases(DEVICE)[index], DEVICE)
    if found.failed:
        raise WrongResult(found.failed)
    return found.calls, found.left_out


def rival_names(benchmark: Benchmark, cases: list[Case]) -> list[str]:
    smallest = min(cases, key=lambda case: case.work.bytes)
    return list(benchmark.competitors(DEVICE, **smallest.options))


def parameters() -> Iterator[object]:
    for name, benchmark in find_benchmarks().items():
        cases = benchmark.cases(DEVICE)
        for index, case in enumerate(cases):
            for competitor in rival_names(benchmark, cases):
                yield pytest.param(name, index, competitor, id=f"{name}: {case.name}: {competitor}")


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("name", "index", "competitor"), parameters())
def test_speed(name: str, index: int, competitor: str, benchmark: BenchmarkFixture) -> None:
    calls, left_out = prepared(name, index)
    if competitor not in calls:
        pytest.skip(left_out[competitor])
    case = find_benchmarks()[name].cases(DEVICE)[index]
    benchmark.group = f"{name}: {case.name}"
    benchmark.extra_info.update(bytes=case.work.bytes, flops=case.work.flops, items=case.items)
    benchmark(calls[competitor])
