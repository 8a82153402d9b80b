"""The endpoint as the released `openai` client sees it."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip("openai", reason="openai is not installed (pip install 'dualpath-rollout[serve-test]')")

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import torch
from transformers import AutoModelForCausalLM

from engines.model.tokenizer import load_tokenizer
from rollout.batch import make_rows
from rollout.prompt_format import open_format
from rollout.types import Outcome, Trajectory
from tests.integrations.serve.conftest import Served
from tests.integrations.serve.known import ANSWER, CALL, COUNTING, MULTIPLY, QUESTION

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = [{"role": "user", "content": "Count."}]


def client_of(served: Served, base_url: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=base_url or served.endpoint.base_url, api_key="none", max_retries=0, timeout=60
    )


def chat(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 96, **options}
    return client.chat.completions.create(model="taught", messages=messages, **options)


def run_tool_agent(client: openai.OpenAI, **options: Any) -> str:
    """An agent as people write them: call, work the tool, tell its result, until there is no call."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    while True:
        message = chat(client, messages, tools=[MULTIPLY], **options).choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return str(message.content)
        for call in message.tool_calls:
            given = json.loads(call.function.arguments)
            result = {"role": "tool", "tool_call_id": call.id, "content": str(given["a"] * given["b"])}
            messages.append(result)


def sampled(trajectory: Trajectory) -> list[str]:
    """The ids that the model sampled, turn by turn."""
    ids = []
    for turn in trajectory.turns:
        segment = trajectory.segments[turn.segment]
        assert set(segment.loss_mask[turn.prompt_tokens : turn.prompt_tokens + turn.output_tokens]) == {1}
        ids.append(list(segment.token_ids[turn.prompt_tokens : turn.prompt_tokens + turn.output_tokens]))
    return ids


def test_a_chat_is_answered(served: Served) -> None:
    answer = chat(client_of(served), COUNT)
    assert answer.choices[0].message.content == COUNTING
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "taught"
    assert answer.system_fingerprint == f"weights-{served.backend.weights_version}"
    cut = chat(client_of(served), COUNT, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert (cut.usage.completion_tokens, cut.usage.total_tokens) == (3, cut.usage.prompt_tokens + 3)


def test_the_model_is_listed(served: Served) -> None:
    (card,) = client_of(served).models.list().data
    assert card.id == "taught"
    assert client_of(served).models.retrieve("taught").id == "taught"


def test_an_agent_with_a_tool_is_recorded_token_by_token(served: Served) -> None:
    base_url = served.endpoint.open_session(
        "tool", task_id="product", group_id="step-0/product", sample_index=3
    )
    assert run_tool_agent(client_of(served, base_url)) == ANSWER
    trajectory = served.endpoint.end_session("tool", reward=1.0)

    assert trajectory.trajectory_id == "step-0/product/3"
    assert (trajectory.task_id, trajectory.reward) == ("product", 1.0)
    assert trajectory.outcome is Outcome.COMPLETED
    (segment,) = trajectory.segments
    segment.check()
    first, second = trajectory.turns
    assert second.prompt_tokens == first.prompt_tokens + first.output_tokens + first.tool_tokens
    assert second.hit_tokens > 0
    assert trajectory.phases.total == pytest.approx(trajectory.duration_s, rel=0.01)

    speech = open_format(load_tokenizer(str(served.model_dir)))
    assert [speech.text(ids) for ids in sampled(trajectory)] == [CALL, ANSWER]
    # Whatever was told in between, it is what the engines had: their logprobs are the model's own.
    model = AutoModelForCausalLM.from_pretrained(served.model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([segment.token_ids])).logits[0].log_softmax(-1)
    for place, (token_id, mask) in enumerate(zip(segment.token_ids, segment.loss_mask, strict=True)):
        if mask:
            assert segment.logprobs[place] == pytest.approx(float(logits[place - 1, token_id]), abs=1e-4)
    assert served.ended[-1] == trajectory


def test_recorded_trajectories_are_what_a_trainer_takes(served: Served) -> None:
    for index in range(2):
        base_url = served.endpoint.open_session(f"group-{index}", group_id="group", sample_index=index)
        run_tool_agent(client_of(served, base_url))
    ended = [served.endpoint.end_session(f"group-{index}", reward=float(index)) for index in range(2)]
    batch = make_rows(ended, normalise_std=False)
    assert [row.advantage for row in batch.rows] == [-0.5, 0.5]
    assert batch.num_loss_tokens == sum(len(ids) for t in ended for ids in sampled(t))


def test_a_request_that_goes_on_continues_its_segment_and_any_other_opens_one(served: Served) -> None:
    client = client_of(served, served.endpoint.open_session("segments"))
    said = chat(client, COUNT, max_tokens=5).choices[0].message.content
    more = [*COUNT, {"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}]
    chat(client, more, max_tokens=4)
    # The model's words are not what it said: a conversation of its own, and so is one with other tools.
    chat(client, [*COUNT, {"role": "assistant", "content": "None."}, more[-1]], max_tokens=4)
    chat(client, more, max_tokens=4, tools=[MULTIPLY])
    # The first is still there to go on from.
    trajectory = served.endpoint.end_session("segments")
    assert [turn.segment for turn in trajectory.turns] == [0, 0, 1, 2]
    first, second = trajectory.turns[:2]
    assert second.prompt_tokens == first.prompt_tokens + first.output_tokens + first.tool_tokens
    for segment in trajectory.segments:
        segment.check()


def test_a_turn_that_was_cut_is_closed_and_gone_on_from(served: Served) -> None:
    client = client_of(served, served.endpoint.open_session("cut"))
    answer = chat(client, COUNT, max_tokens=5, stop="never", extra_body={"return_token_ids": True})
    more = [*COUNT, answer.choices[0].message.model_dump(), {"role": "user", "content": "Go on."}]
    again = chat(client, more, max_tokens=4, extra_body={"return_token_ids": True})
    before = [*answer.prompt_token_ids, *answer.choices[0].token_ids]
    assert again.prompt_token_ids[: len(before)] == before
    speech = open_format(load_tokenizer(str(served.model_dir)))
    assert speech.text(again.prompt_token_ids[len(before) :]) == (
        "<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_overlapping_requests_of_a_session_open_segments_of_their_own(served: Served) -> None:
    client = client_of(served, served.endpoint.open_session("parallel"))
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: chat(client, COUNT), range(3)))
    assert [answer.choices[0].message.content for answer in answers] == [COUNTING] * 3
    trajectory = served.endpoint.end_session("parallel")
    assert sorted(turn.segment for turn in trajectory.turns) == [0, 1, 2]
    assert trajectory.phases.total == pytest.approx(trajectory.duration_s, rel=0.01)


def test_a_stream_says_the_same_piece_by_piece(served: Served) -> None:
    chunks = list(
        chat(client_of(served), COUNT, stream=True, logprobs=True, stream_options={"include_usage": True})
    )
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == COUNTING
    assert len(pieces) > 3  # not all at the end
    assert chunks[-1].usage.completion_tokens == len(COUNTING) + 1
    last = chunks[-2].choices[0]
    assert last.finish_reason == "stop"
    assert len(last.logprobs.content) == len(COUNTING) + 1


def test_a_streamed_call_is_recorded_and_gone_on_from(served: Served) -> None:
    client = client_of(served, served.endpoint.open_session("streamed"))
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with client.chat.completions.stream(
        model="taught", messages=messages, tools=[MULTIPLY], temperature=0, max_tokens=96
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 6, "b": 7}
    told = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    messages += [told, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    assert chat(client, messages, tools=[MULTIPLY]).choices[0].message.content == ANSWER
    assert len(served.endpoint.end_session("streamed").segments) == 1


def test_a_stop_string_ends_the_text_before_it(served: Served) -> None:
    whole = chat(client_of(served), COUNT, stop=["five"])
    assert whole.choices[0].message.content == "one two three four "
    chunks = chat(client_of(served), COUNT, stop=["five"], stream=True)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == "one two three four "


def test_calls_stay_in_the_text_where_they_are_not_wanted(served: Served) -> None:
    answer = chat(
        client_of(served), [{"role": "user", "content": QUESTION}], tools=[MULTIPLY], tool_choice="none"
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == CALL


def test_completions_take_and_give_token_ids(served: Served) -> None:
    speech = open_format(load_tokenizer(str(served.model_dir)))
    client = client_of(served, served.endpoint.open_session("ids"))
    prompt = list(chat(client_of(served), COUNT, extra_body={"return_token_ids": True}).prompt_token_ids)
    options: Any = {
        "model": "taught",
        "temperature": 0,
        "logprobs": 1,
        "extra_body": {"return_token_ids": True},
    }
    first = client.completions.create(prompt=prompt, max_tokens=7, **options).choices[0]
    assert first.prompt_token_ids == prompt
    assert first.text == COUNTING[:7] == speech.text(first.token_ids)
    assert first.finish_reason == "length"
    assert len(first.logprobs.token_logprobs) == 7
    # Going on from all ids so far continues them; other ids begin anew.
    rest = client.completions.create(prompt=prompt + first.token_ids, max_tokens=90, **options).choices[0]
    assert first.text + rest.text == COUNTING
    client.completions.create(prompt=prompt[:-1], max_tokens=2, **options)
    trajectory = served.endpoint.end_session("ids")
    assert [turn.segment for turn in trajectory.turns] == [0, 0, 1]
    assert trajectory.turns[0].tool_tokens == 0
    # A text is read with the special tokens in it.
    text = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n"
    assert (
        client_of(served).completions.create(prompt=text, max_tokens=90, **options).choices[0].text
        == COUNTING
    )
    streamed = client_of(served).completions.create(prompt=text, max_tokens=90, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == COUNTING


def test_a_seed_gives_the_same_again(served: Served) -> None:
    told = [{"role": "user", "content": "Anything."}]
    texts = [
        chat(client_of(served), told, temperature=1.5, max_tokens=12, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_new_weights_are_named_token_by_token(served: Served) -> None:
    client = client_of(served, served.endpoint.open_session("weights"))
    before = served.backend.weights_version
    said = chat(client, COUNT, max_tokens=5).choices[0].message.content
    model = AutoModelForCausalLM.from_pretrained(served.model_dir, dtype=torch.float32)
    served.backend.update_weights(before + 1, model.named_parameters())
    more = [*COUNT, {"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}]
    chat(client, more, max_tokens=4)
    (segment,) = served.endpoint.end_session("weights").segments
    assert set(segment.weights_versions) == {-1, before, before + 1}
