"""The endpoint keeps its own OpenAPI schema, whatever is sent: schemathesis asks."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed (pip install 'dualpath-rollout[serve-test]')"
)

import schemathesis
from hypothesis import HealthCheck, Phase, settings

from tests.integrations.serve.conftest import Served

pytestmark = pytest.mark.ray


@pytest.fixture
def schema_of_endpoint(served: Served) -> object:
    return schemathesis.openapi.from_url(f"{served.endpoint.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("schema_of_endpoint")


@schema.parametrize()
@settings(max_examples=12, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
def test_every_answer_is_one_of_those_promised(case: schemathesis.Case) -> None:
    body = case.body
    if isinstance(body, dict):  # so that requests get as far as the model, and no further than they must
        body.update(model="taught")
        body.update({name: 4 for name in ("max_tokens", "max_completion_tokens") if name in body})
    case.call_and_validate()
