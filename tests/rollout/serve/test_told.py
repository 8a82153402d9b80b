"""Which requests go on from what a context has heard, and with which ids."""

from __future__ import annotations

from array import array

import pytest

from rollout.environment import Message, ToolCall, ToolSchema
from rollout.prompt_format import ChatFormat
from rollout.serve.told import ChatTold, IdsTold, Said
from tests.rollout.test_prompt_format import CHATML, LOOK, QWEN, byte_tokenizer

SPEECH = ChatFormat(byte_tokenizer(CHATML))
ASK, GO_ON = Message("user", "abc"), Message("user", "on")
SAID = Said(array("i", [1, 2]), " CALC\n")
HEARD = ChatTold((ASK,)).answered(SAID)


def more(told: ChatTold, speech: ChatFormat = SPEECH) -> str | None:
    ids = told.more(HEARD, speech, ended=True)
    return None if ids is None else byte_tokenizer(None).decode(ids)


@pytest.mark.parametrize("said", [" CALC\n", "CALC", "CALC "])
def test_messages_that_begin_with_all_that_was_heard_and_said_go_on(said: str) -> None:
    told = ChatTold((ASK, Message("assistant", said), GO_ON))
    assert more(told) == "\n<|im_start|>user\non<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "messages",
    [
        (ASK,),
        (ASK, Message("assistant", "CALC")),
        (ASK, Message("assistant", "CA LC"), GO_ON),
        (Message("user", "abc "), Message("assistant", "CALC"), GO_ON),
        (Message("system", "abc"), Message("assistant", "CALC"), GO_ON),
        (ASK, Message("assistant", "CALC"), GO_ON, Message("assistant", "a"), GO_ON),
        (ASK, Message("assistant", "CALC", (ToolCall("look", {}),)), GO_ON),
    ],
)
def test_any_others_do_not(messages: tuple[Message, ...]) -> None:
    assert more(ChatTold(messages)) is None


def test_other_tools_are_another_conversation() -> None:
    speech = ChatFormat(byte_tokenizer(QWEN))
    messages = (ASK, Message("assistant", "CALC"), GO_ON)
    heard = ChatTold((ASK,), (LOOK,)).answered(SAID)
    assert ChatTold(messages).more(heard, speech, ended=True) is None
    same: ToolSchema = {"type": "function", "function": dict(LOOK["function"])}
    assert ChatTold(messages, (same,)).more(heard, speech, ended=True) is not None


def test_a_call_is_compared_by_what_it_says_and_results_follow_it() -> None:
    speech = ChatFormat(byte_tokenizer(QWEN))
    call = ToolCall("look", {"at": "a"})
    heard = ChatTold((ASK,), (LOOK,)).answered(Said(array("i", [1]), "", (call,)))
    results = (Message("tool", "a cellar"), Message("tool", "dark"))
    for at, goes_on in (("a", True), ("b", False)):
        told = ChatTold((ASK, Message("assistant", "", (ToolCall("look", {"at": at}),)), *results), (LOOK,))
        ids = told.more(heard, speech, ended=True)
        assert (ids is not None) == goes_on
        if ids is not None:
            assert list(ids) == speech.reply(results, ended=True)


def test_a_conversation_with_calls_is_opened_as_the_template_tells_it() -> None:
    speech = ChatFormat(byte_tokenizer(QWEN))
    told = ChatTold(
        (ASK, Message("assistant", "", (ToolCall("look", {"at": "<|im_end|>"}),)), Message("tool", "dark")),
        (LOOK,),
    )
    ids = speech.open(told.messages, told.tools)
    text = byte_tokenizer(None).decode(ids)
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "<|im_end|>"}}\n</tool_call><|im_end|>' in text
    # What others wrote never becomes a special token.
    end = byte_tokenizer(None).encode("<|im_end|>", add_special_tokens=False)
    assert ids.count(end[0]) == text.count("<|im_end|>") - 1


def test_a_template_without_tools_hears_calls_and_results_in_words() -> None:
    messages = (ASK, Message("assistant", "b", (ToolCall("look", {}),)), Message("tool", "dark"), GO_ON)
    text = byte_tokenizer(None).decode(SPEECH.open(messages))
    assert text.endswith(
        "<|im_start|>assistant\nb\n<tool_call>\n"
        '{"name": "look", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\ndark\n</tool_response>\non<|im_end|>\n<|im_start|>assistant\n"
    )


def test_ids_go_on_where_all_of_them_are_the_same() -> None:
    heard = IdsTold(array("i", [1, 2])).answered(Said(array("i", [3]), "x"))
    assert IdsTold(array("i", [1, 2, 3, 4])).more(heard, SPEECH, ended=False) == array("i", [4])
    assert IdsTold(array("i", [1, 2, 3])).more(heard, SPEECH, ended=False) == array("i")
    assert IdsTold(array("i", [1, 2])).more(heard, SPEECH, ended=False) is None
    assert IdsTold(array("i", [1, 2, 9, 4])).more(heard, SPEECH, ended=False) is None
    assert ChatTold((ASK,)).more(heard, SPEECH, ended=False) is None
    assert IdsTold(array("i", [1])).more(HEARD, SPEECH, ended=False) is None
