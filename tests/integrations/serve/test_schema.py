"""The endpoint keeps its own OpenAPI schema, whatever is sent: schemathesis asks."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed (pip install 'dualpath-rollout[serve-test]')"
)

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.integrations.serve.conftest import Served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
NUM_OPERATIONS = 12
DEADLINE_S = 60.0


def test_every_answer_is_one_of_those_promised(served: Served) -> None:
    # Without schemathesis' own pytest plugin, which pytest 9.2 is too new for.
    schema = schemathesis.openapi.from_url(f"{served.endpoint.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == NUM_OPERATIONS
    for operation in operations:
        keep_the_promise(operation)


def keep_the_promise(operation: schemathesis.APIOperation) -> None:
    @settings(
        max_examples=12, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
    )
    @given(case=operation.as_strategy())
    def answers(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            # Requests reach the model, and ask no more of it than they must.
            case.body.update(model="taught", max_tokens=4)
            case.body.pop("max_completion_tokens", None)
        # No schema tells which models there are, how long a context is, or what a template can tell.
        case.call_and_validate(timeout=DEADLINE_S, excluded_checks=[positive_data_acceptance])

    answers()
