"""What is refused, what is cut short, and what becomes of a request whose client goes away."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip("openai", reason="openai is not installed (pip install 'dualpath-rollout[serve-test]')")

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from rollout.compose import load_config
from rollout.serve.config import ServeConfig
from rollout.types import Outcome, StopReason
from tests.integrations.serve.conftest import SERVE, Served
from tests.integrations.serve.known import MULTIPLY
from tests.integrations.serve.test_openai import COUNT, chat, client_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
DEADLINE_S = 60.0


def eventually(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


@contextmanager
def another(served: Served, **changes: Any) -> Iterator[Any]:
    """A second endpoint of the same backend, with other limits."""
    config: ServeConfig = load_config(SERVE).serve
    with served.backend.serve(replace(config, **changes)) as endpoint:
        yield endpoint


def ask(served: Served, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    body = {"model": "taught", "messages": COUNT, **body}
    return httpx.post(served.endpoint.url + path, json=body, timeout=DEADLINE_S)


def metrics(served: Served) -> dict[str, float]:
    text = httpx.get(f"{served.endpoint.url}/metrics", timeout=DEADLINE_S).text
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


TOOL = MULTIPLY["function"]
LONG = {"model": "taught", "messages": COUNT, "max_tokens": 1400, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "gpt-9"}, 404, ["'gpt-9'", "'taught'"]),
        ({"messages": []}, 400, ["messages"]),
        ({"messages": [{"role": "user", "content": "x" * 1600}]}, 400, ["1536", "shorten"]),
        ({"max_tokens": 1530}, 400, ["1536", "1530", "at most"]),
        ({"max_tokens": 0}, 400, ["max_tokens"]),
        ({"temperature": -1}, 400, ["temperature"]),
        ({"temperature": 1e-300}, 400, ["temperature must be 0 or >= 0.001", "1e-300"]),
        ({"n": 2}, 400, ["n=2", "not supported"]),
        ({"response_format": {"type": "json_object"}}, 400, ["response_format"]),
        ({"tools": [MULTIPLY], "tool_choice": "required"}, 400, ["tool_choice"]),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, ["tools.0.function.name"]),
        (
            {"tools": [{"type": "function", "function": {**TOOL, "parameters": {"type": "strng"}}}]},
            400,
            ["tools[0].function.parameters", "not a JSON schema", ".type", "strng"],
        ),
        (
            {"tools": [{"type": "function", "function": {**TOOL, "parameters": {"type": "string"}}}]},
            400,
            ["tools[0].function.parameters", "object", "string"],
        ),
        (
            {
                "messages": [
                    *COUNT,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}],
                    },
                ]
            },
            400,
            ["messages[1].tool_calls[0]", "arguments"],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            ["messages"],
        ),
    ],
)
def test_a_bad_request_is_told_in_one_line(
    served: Served, body: dict[str, Any], status: int, words: list[str]
) -> None:
    answer = ask(served, **body)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("prompt", "word"), [([], "empty"), ([0, 10**6], "1000000"), (["a", "b"], "one prompt"), ("", "empty")]
)
def test_a_bad_prompt_of_a_completion_is_told_in_one_line(served: Served, prompt: Any, word: str) -> None:
    answer = ask(served, "/v1/completions", prompt=prompt)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


def test_a_body_that_is_no_json_or_too_long_is_refused(served: Served) -> None:
    url = f"{served.endpoint.base_url}/chat/completions"
    assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    long = ask(served, messages=[{"role": "user", "content": "x" * 100_000}])
    assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_long")

    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 10_000

    assert httpx.post(url, content=endless()).status_code == 413


def test_sessions_are_used_once_and_hand_out_what_they_have(served: Served) -> None:
    url = f"{served.endpoint.url}/sessions/once"
    assert httpx.get(url).status_code == 404
    opened = httpx.put(url, json={"task_id": "t", "group_id": "g/0", "sample_index": 1})
    assert opened.json() == {"session_id": "once", "base_url": "/sessions/once/v1"}
    assert httpx.put(url).status_code == 409
    chat(client_of(served, f"{url}/v1"), COUNT, max_tokens=3)
    assert len(httpx.get(url).json()["turns"]) == 1
    ended = httpx.post(
        f"{url}/end", json={"reward": 0.5, "stop_reason": "tool_error", "error": "it broke"}
    ).json()
    assert (ended["trajectory_id"], ended["outcome"], ended["error"]) == ("g/0/1", "tool_failed", "it broke")
    assert httpx.post(f"{url}/end", json={"reward": 9.0}).json() == ended  # whoever missed it may ask again
    with pytest.raises(openai.ConflictError, match="has ended"):
        chat(client_of(served, f"{url}/v1"), COUNT, max_tokens=3)
    assert httpx.put(url).status_code == 409
    assert served.ended[-1].trajectory_id == "g/0/1"


def test_a_client_that_goes_away_takes_its_request_back(served: Served) -> None:
    base_url = served.endpoint.open_session("gone")
    with httpx.stream("POST", f"{base_url}/chat/completions", json=LONG, timeout=DEADLINE_S) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert metrics(served)["dualpath_http_requests_running"] == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{base_url}/chat/completions", json={**LONG, "stream": False}, timeout=1.0)
    eventually(lambda: metrics(served)["dualpath_http_requests_running"] == 0)
    served.backend.pause()  # returns when no turn runs any more
    served.backend.resume()
    trajectory = served.endpoint.end_session("gone")
    assert trajectory.turns == trajectory.segments == ()
    assert metrics(served)["dualpath_http_requests_total,/sessions/{session_id}/v1/chat/completions,499"] >= 1


def test_ending_a_session_ends_its_requests(served: Served) -> None:
    base_url = served.endpoint.open_session("ending")
    with httpx.stream("POST", f"{base_url}/chat/completions", json=LONG, timeout=DEADLINE_S) as answer:
        lines = answer.iter_lines()
        next(lines)
        trajectory = served.endpoint.end_session("ending", stop_reason=StopReason.DROPPED)
        told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert told[-1]["error"]["code"] == "session_ended"
    assert trajectory.turns == ()


def test_a_request_has_its_time(served: Served) -> None:
    with another(served, request_timeout_s=0.5) as endpoint:
        client = openai.OpenAI(base_url=endpoint.base_url, api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError) as late:
            chat(client, COUNT, max_tokens=1400, extra_body={"ignore_eos": True})
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError):  # not an answer that looks whole
            list(chat(client, COUNT, max_tokens=1400, stream=True, extra_body={"ignore_eos": True}))


def test_requests_and_sessions_beyond_their_number_are_told_to_come_back(served: Served) -> None:
    with another(served, max_requests=1, max_sessions=1) as endpoint:
        url = f"{endpoint.base_url}/chat/completions"
        with httpx.stream("POST", url, json=LONG, timeout=DEADLINE_S) as answer:
            lines = answer.iter_lines()
            next(lines)
            busy = httpx.post(url, json=LONG, timeout=DEADLINE_S)
        assert (busy.status_code, busy.json()["error"]["code"]) == (429, "busy")
        assert busy.headers["retry-after"] == "1"
        endpoint.open_session("one")
        full = httpx.put(f"{endpoint.url}/sessions/two")
        assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_sessions")
        endpoint.end_session("one")
        assert httpx.put(f"{endpoint.url}/sessions/two").status_code == 200


def test_a_session_that_nobody_uses_times_out(served: Served) -> None:
    with another(served, session_idle_s=0.2) as endpoint:
        endpoint.open_session("idle")
        url = f"{endpoint.url}/sessions/idle"
        eventually(lambda: httpx.get(url).json()["outcome"] == "timed_out")
        assert endpoint.end_session("idle").outcome is Outcome.TIMED_OUT


def test_a_token_is_asked_for_where_there_is_one(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("open-sesame\n")
    with another(served, token_file=str(file)) as endpoint:
        client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.token, max_retries=0)
        assert client.models.list().data
        stranger = openai.OpenAI(base_url=endpoint.base_url, api_key="open", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="bearer token"):
            stranger.models.list()
        assert httpx.get(f"{endpoint.url}/metrics").status_code == 401
        assert httpx.get(f"{endpoint.url}/health").status_code == 200


def test_health_and_metrics_tell_of_the_backend(served: Served) -> None:
    health = httpx.get(f"{served.endpoint.url}/health").json()
    assert health == {"status": "ok", "weights_version": served.backend.weights_version, "failures": {}}
    chat(client_of(served), COUNT, max_tokens=3)
    told = metrics(served)
    assert told["dualpath_turn_tokens_total,output"] >= 3
    assert told["dualpath_rollout_weights_version"] == served.backend.weights_version
    assert told["dualpath_kv_written_bytes"] > 0
    assert told["dualpath_engines_rows,prefill-0-0"] > 0
