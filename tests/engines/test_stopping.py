from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.stopping import StopCondition
from engines.types import FinishReason, SamplingParams
from tests.engines.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
STOP_ID = 300


def ids(text: str) -> list[int]:
    """One token a byte."""
    return [int(token) for token in TOKENIZER(text)["input_ids"]]


def condition(
    stops: tuple[str, ...] = (), earlier: str = "", max_tokens: int = 1000, stop_ids: tuple[int, ...] = ()
) -> StopCondition:
    params = SamplingParams(max_tokens=max_tokens, stop_ids=stop_ids, stop_strings=stops)
    return StopCondition(params, ids(earlier), TOKENIZER)


def num_pushed(stop: StopCondition, tokens: list[int]) -> tuple[int, FinishReason | None]:
    """How many tokens went in until the turn ended, and why it did."""
    for count, token in enumerate(tokens, start=1):
        reason = stop.push(token)
        if reason is not None:
            return count, reason
    return len(tokens), None


def test_a_stop_id_ends_the_turn_and_other_ids_do_not() -> None:
    stop = condition(stop_ids=(STOP_ID, 7))
    assert num_pushed(stop, [5, 6, 8, STOP_ID, 7]) == (4, FinishReason.STOP_ID)


@pytest.mark.parametrize(
    ("stop_string", "text", "pushed"),
    [("</tool>", "call</tool> more", 11), ("\n\n", "a\nb\n\nc", 5), ("x", "x", 1)],
)
def test_a_stop_string_ends_the_turn_at_the_token_that_completes_it(
    stop_string: str, text: str, pushed: int
) -> None:
    assert num_pushed(condition((stop_string,)), ids(text)) == (pushed, FinishReason.STOP_STRING)


def test_a_stop_string_may_begin_in_an_earlier_attempt() -> None:
    stop = condition(("</tool>",), earlier="call</to")
    assert num_pushed(stop, ids("ol> more")) == (3, FinishReason.STOP_STRING)


def test_half_a_stop_string_of_an_earlier_attempt_that_goes_on_differently_is_none() -> None:
    assert num_pushed(condition(("</tool>",), earlier="call</to"), ids("ad>")) == (3, None)


def test_a_stop_string_of_characters_of_many_tokens_is_found_at_its_last_byte() -> None:
    # Each of the three characters takes three or four tokens.
    text = "ab \u6b62\u3081\U0001f6d1 go on"
    pushed = len("ab \u6b62\u3081\U0001f6d1".encode())
    stop = condition(("\u6b62\u3081\U0001f6d1",))
    assert num_pushed(stop, ids(text)) == (pushed, FinishReason.STOP_STRING)


def test_half_a_character_stops_nothing() -> None:
    assert num_pushed(condition(("\U0001f6d1",)), ids("\U0001f6d1")[:3]) == (3, None)


def test_max_tokens_counts_the_tokens_of_earlier_attempts() -> None:
    stop = condition(earlier="12345", max_tokens=8)
    assert num_pushed(stop, ids("6789")) == (3, FinishReason.LENGTH)


def test_a_last_token_that_is_a_stop_id_ended_the_turn_for_that_reason() -> None:
    assert num_pushed(condition(max_tokens=2, stop_ids=(9,)), [1, 9]) == (2, FinishReason.STOP_ID)
    assert num_pushed(condition(("b",), max_tokens=2), ids("ab")) == (2, FinishReason.STOP_STRING)


@given(
    text=st.text("ab\u00e9\u6b62\U0001f6d1", max_size=30),
    stops=st.lists(st.text("ab\u00e9\u6b62\U0001f6d1", min_size=1, max_size=4), max_size=3),
    cut=st.integers(0, 30),
)
def test_the_turn_ends_where_the_text_first_contains_a_stop_string(
    text: str, stops: list[str], cut: int
) -> None:
    tokens = ids(text)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = len(text[: min(ends)].encode()) if ends else None
    if expected is not None and cut >= expected:
        cut = expected - 1  # an earlier attempt that held it would have ended the turn
    cut = min(cut, len(tokens))
    params = SamplingParams(max_tokens=1000, stop_strings=tuple(stops))
    stop = StopCondition(params, tokens[:cut], TOKENIZER)
    pushed, reason = num_pushed(stop, tokens[cut:])
    assert reason is (FinishReason.STOP_STRING if ends else None)
    assert cut + pushed == (len(tokens) if expected is None else expected)
