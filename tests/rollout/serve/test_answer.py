"""What a client reads of sampled tokens: the same whether it waits or follows."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.environment import ToolCall
from rollout.prompt_format import ChatFormat
from rollout.serve.answer import Answer
from tests.rollout.test_prompt_format import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer(CHATML)
SPEECH = ChatFormat(TOKENIZER)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>'


def ids_of(text: str, *, ends: bool = True) -> array[int]:
    return array("i", TOKENIZER.encode(text + "<|im_end|>" * ends, add_special_tokens=False))


def answer(stops: tuple[str, ...] = (), *, reads_calls: bool = False) -> Answer:
    return Answer(SPEECH, stops, reads_calls=reads_calls)


def followed(asked: Answer, ids: array[int], cuts: list[int]) -> tuple[list[str], str, tuple[ToolCall, ...]]:
    """The pieces given out while the turn has so many tokens, then the whole."""
    pieces = [asked.push(ids[:cut]) for cut in cuts]
    rest, said = asked.end(ids)
    return [*pieces, rest], said.content, said.calls


pieces_of_text = st.lists(
    st.sampled_from(["abc", " CALC", "é雪", "<", "tool_call>", "STOP", "\n", CALL, "ST"])
)


@given(
    pieces_of_text.map("".join),
    st.sampled_from([(), ("STOP",), ("é", "OP")]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_pieces_add_up_to_what_is_said_at_once(
    text: str, stops: tuple[str, ...], reads_calls: bool, ends: bool, data: st.DataObject
) -> None:
    ids = ids_of(text, ends=ends)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)))))
    pieces, content, calls = followed(answer(stops, reads_calls=reads_calls), ids, cuts)
    rest, said = answer(stops, reads_calls=reads_calls).end(ids)
    assert "".join(pieces) == content == rest == said.content
    assert calls == said.calls
    assert not any(stop in content for stop in stops)
    assert text.startswith(content)


def test_calls_are_read_and_the_text_ends_ahead_of_them() -> None:
    pieces, content, calls = followed(answer(reads_calls=True), ids_of("So: " + CALL), [3, 5, 9, 20])
    assert content == "So: "
    assert calls == (ToolCall("look", {"at": "it"}),)
    assert "".join(pieces) == "So: "


@pytest.mark.parametrize("text", ["<tool_call>nonsense", CALL[:-20] + "x", f"<think>{CALL}"])
def test_calls_that_cannot_be_read_stay_in_the_text(text: str) -> None:
    _, content, calls = followed(answer(reads_calls=True), ids_of(text), [4, 9])
    assert (content, calls) == (text, ())


def test_thoughts_are_no_calls() -> None:
    text = f"<think>{CALL}</think>now {CALL}"
    _, content, calls = followed(answer(reads_calls=True), ids_of(text), [4, 9])
    assert content == f"<think>{CALL}</think>now "
    assert len(calls) == 1


def test_part_of_a_character_or_of_a_stop_string_is_held_back() -> None:
    ids = ids_of("é", ends=False)
    assert len(ids) == 2
    asked = answer()
    assert [asked.push(ids[:1]), asked.push(ids)] == ["", "é"]
    asked = answer(("STOP",))
    assert [asked.push(ids_of(text, ends=False)) for text in ("aS", "aSTO", "aSTOx")] == ["a", "", "STOx"]


def test_an_attempt_that_failed_may_leave_fewer_tokens_and_none_are_given_out_twice() -> None:
    ids, asked = ids_of("abc CALC"), answer()
    assert asked.push(ids[:2]) + asked.push(ids[:1]) + asked.push(ids[:2]) + asked.end(ids)[0] == "abc CALC"
    asked = answer()
    asked.push(ids[:2])
    with pytest.raises(ValueError, match="sampled again"):
        asked.end(ids[1:])
