"""The HTTP API does what its OpenAPI schema says, whatever is sent."""

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra serve")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.settings import Settings
from tests.helpers.painter_server import running

OPERATIONS = [
    ("POST", "/api/v1/inpaint"),
    ("POST", "/api/v1/structure"),
    ("POST", "/api/v1/convert"),
    ("GET", "/api/v1/progress/{name}"),
    ("GET", "/api/v1/health"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def schema():
    torch.manual_seed(0)
    with running(InpaintGenerator(2, head_norm=False), Settings(body_timeout=600)) as (_, address):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_operation_is_tested(schema):
    found = [result.ok() for result in schema.get_all_operations()]
    assert sorted((operation.method.upper(), operation.path) for operation in found) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers(schema, method, path):
    @given(schema[path][method].as_strategy())
    @settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True, deadline=None, database=None)
    def check(case):
        # Data that fits the schema may still be no picture: a generator of bytes writes no PNG files.
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        assert answer.status_code < 500

    check()
