"""The HTTP API does what its OpenAPI schema says, whatever is sent."""

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra serve")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.settings import Settings
from tests.helpers.painter_server import running

# Data that fits the schema may still be no picture: a generator of bytes does not write PNG files.
EXCLUDED = [positive_data_acceptance]


@pytest.fixture(scope="module")
def api_schema():
    torch.manual_seed(0)
    with running(InpaintGenerator(2, head_norm=False), Settings(body_timeout=600)) as (_, address):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True, deadline=None)
def test_api(case):
    answer = case.call_and_validate(excluded_checks=EXCLUDED)
    assert answer.status_code < 500
