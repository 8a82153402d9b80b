"""The endpoint as the released `openai` client sees it."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip("openai", reason="openai is not installed (pip install 'dualpath-rollout[serve-test]')")

import json

import openai

from tests.integrations.serve.conftest import ANSWER, CALCULATOR, QUESTION, Served

pytestmark = pytest.mark.ray


def client_of(served: Served, base_url: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=base_url or served.endpoint.base_url, api_key="none", max_retries=0, timeout=60
    )


def test_a_chat_is_answered(served: Served) -> None:
    answer = client_of(served).chat.completions.create(
        model="taught", messages=[{"role": "user", "content": "Say something."}], max_tokens=8, temperature=0
    )
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


def test_an_agent_with_a_tool_is_recorded_token_by_token(served: Served) -> None:
    base_url = served.endpoint.open_session(
        "tool-agent", task_id="six-by-seven", group_id="g", sample_index=3
    )
    client = client_of(served, base_url)
    messages: list = [{"role": "user", "content": QUESTION}]
    first = client.chat.completions.create(
        model="taught",
        messages=messages,
        tools=[CALCULATOR],
        temperature=0,
        max_tokens=96,
        extra_body={"return_token_ids": True},
    )
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls", message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 6, "b": 7}
    messages += [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "42"},
    ]
    second = client.chat.completions.create(
        model="taught",
        messages=messages,
        tools=[CALCULATOR],
        temperature=0,
        max_tokens=96,
    )
    assert second.choices[0].message.content == ANSWER
    trajectory = served.endpoint.end_session("tool-agent", reward=1.0)
    assert (trajectory.task_id, trajectory.group_id, trajectory.sample_index) == ("six-by-seven", "g", 3)
    (segment,) = trajectory.segments
    segment.check()
