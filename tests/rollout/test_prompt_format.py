"""Text to ids at turn boundaries: what is appended turn by turn is what the template renders at once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rollout.chain_arithmetic import ALPHABET
from rollout.environment import Message, ToolSchema
from rollout.errors import UserError
from rollout.prompt_format import ChatFormat, PlainFormat, PromptFormat, PromptFormatError, open_format

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|bos|>{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|bos|>[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} <|im_end|>{% endif %}{% endfor %}"
)
PLAIN_MARKS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
LAST_ONLY = "{{ messages[-1]['content'] }}<|im_start|>assistant\n"
COUNTS = CHATML.replace("{{ m['role'] }}", "{{ m['role'] }} {{ messages | length }}")
NUMBERED = CHATML.replace("{{ m['role'] }}", "{{ m['role'] }} {{ loop.index }}")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>", "<|start|>", "<|end|>", "<|eot|>")


def byte_tokenizer(template: str | None, eos_token: str | None = "<|im_end|>") -> PreTrainedTokenizerFast:
    """Bytes with a few merges, so that where a text is cut matters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("C", "A"), ("L", "C"), ("CA", "LC"), ("Ċ", "Ċ"), ("Ġ", "a")]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    rust = RustTokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token=eos_token)
    tokenizer.name_or_path = "models/bytes"
    tokenizer.chat_template = template
    return tokenizer


def char_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny model's: one token a character, turns end with `;`."""
    rust = RustTokenizer(models.BPE(vocab={c: i for i, c in enumerate(ALPHABET)}, merges=[]))
    rust.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token=";", pad_token="_")


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    (token_id,) = tokenizer.encode(token, add_special_tokens=False)
    return token_id


texts = st.text(st.sampled_from("abcCALC \n\t.7é雪"), min_size=1, max_size=12)
rounds = st.lists(st.tuples(texts, texts, st.booleans()), min_size=1, max_size=4)


@dataclass(frozen=True)
class Dialect:
    """A template, and how a model that follows it writes a turn."""

    tokenizer: PreTrainedTokenizerFast
    before: str = ""
    """What the model writes ahead of its text, because the template puts it there."""
    end: str = ""
    """The token with which the model closes its turn; empty where we always do."""


DIALECTS = {
    "chatml": Dialect(byte_tokenizer(CHATML), end="<|im_end|>"),
    "llama3": Dialect(byte_tokenizer(LLAMA3, eos_token="<|endoftext|>"), end="<|eot|>"),
    "llama2": Dialect(byte_tokenizer(LLAMA2), before=" "),
    "marks": Dialect(byte_tokenizer(PLAIN_MARKS, eos_token="<|endoftext|>")),
}
FORMATS = {name: ChatFormat(dialect.tokenizer) for name, dialect in DIALECTS.items()}


@pytest.mark.parametrize("name", list(DIALECTS))
@settings(max_examples=40)
@given(question=texts, turns=rounds)
def test_a_context_grown_turn_by_turn_is_what_the_template_renders(
    name: str, question: str, turns: list[tuple[str, str, bool]]
) -> None:
    form, dialect = FORMATS[name], DIALECTS[name]
    tokenizer = dialect.tokenizer
    opening = (Message("user", "abc"), Message("assistant", "CALC"), Message("user", question))
    ids = form.open(opening)
    conversation = [{"role": m.role, "content": m.content} for m in opening]
    for said, heard, closes in turns:
        written = dialect.before + said
        spoken = tokenizer.encode(written + dialect.end * closes, add_special_tokens=False)
        assert form.ended(spoken) == (closes and dialect.end != "")
        assert form.text(spoken) == written
        ids += spoken + form.reply(heard, ended=form.ended(spoken))
        conversation += [{"role": "assistant", "content": said}, {"role": "user", "content": heard}]
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == rendered


def test_ids_at_special_tokens_equal_those_of_the_whole_rendering() -> None:
    tokenizer, form = DIALECTS["chatml"].tokenizer, FORMATS["chatml"]
    conversation = [("user", "abc\n\nab"), ("assistant", "CALC"), ("user", "ab"), ("assistant", "abc")]
    messages = [Message(role, text) for role, text in conversation]
    ids = form.open(messages[:1]) + tokenizer.encode("CALC<|im_end|>") + form.reply("ab", ended=True)
    ids += tokenizer.encode("abc<|im_end|>") + form.reply("c", ended=True)
    assert ids == form.open([*messages, Message("user", "c")])


def test_a_turn_that_was_cut_is_closed_and_a_closed_one_is_not_closed_twice() -> None:
    tokenizer, form = DIALECTS["chatml"].tokenizer, FORMATS["chatml"]
    cut, closed = form.reply("abc", ended=False), form.reply("abc", ended=True)
    assert cut == [id_of(tokenizer, "<|im_end|>"), *closed]
    assert tokenizer.decode(closed) == "\n<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"


def test_stop_ids_are_the_templates_the_tokenizers_and_the_generation_configs() -> None:
    tokenizer = DIALECTS["llama3"].tokenizer
    form = ChatFormat(tokenizer, eos_ids=[id_of(tokenizer, "<|end|>"), id_of(tokenizer, "<|eot|>")])
    wanted = ["<|eot|>", "<|endoftext|>", "<|end|>"]
    assert form.stop_ids == tuple(id_of(tokenizer, token) for token in wanted)
    assert form.stop_strings == ()


def test_another_end_token_than_the_templates_is_dropped_from_the_text_but_does_not_close() -> None:
    tokenizer, form = DIALECTS["llama3"].tokenizer, FORMATS["llama3"]
    spoken = tokenizer.encode("abc<|endoftext|>", add_special_tokens=False)
    assert form.text(spoken) == "abc"
    assert not form.ended(spoken)
    assert not form.ended([])
    assert form.text([]) == ""


def test_a_template_that_opens_with_a_thought_opens_every_turn_so() -> None:
    tokenizer = byte_tokenizer(THINKING)
    form = ChatFormat(tokenizer)
    for ids in (form.open([Message("user", "abc")]), form.reply("abc", ended=True)):
        assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize("template", [LAST_ONLY, COUNTS, NUMBERED])
def test_a_template_that_changes_earlier_turns_is_refused_naming_the_model(template: str) -> None:
    with pytest.raises(PromptFormatError, match=r"^[^\n]*models/bytes drops or changes earlier turns[^\n]*$"):
        ChatFormat(byte_tokenizer(template))


def test_a_missing_or_failing_template_is_an_error_of_one_line_naming_the_model() -> None:
    with pytest.raises(PromptFormatError, match=r"^the tokenizer of models/bytes has no chat template$"):
        ChatFormat(byte_tokenizer(None))
    form = ChatFormat(byte_tokenizer(NO_SYSTEM))
    with pytest.raises(PromptFormatError, match=r"^[^\n]*models/bytes cannot render[^\n]*no system role$"):
        form.open([Message("system", "a"), Message("user", "b")])
    assert issubclass(PromptFormatError, UserError)


def test_plain_text_of_the_tiny_model_follows_one_another() -> None:
    tokenizer = char_tokenizer()
    form = open_format(tokenizer)
    semicolon = ALPHABET.index(";")
    assert isinstance(form, PlainFormat)
    assert form.stop_ids == (semicolon,)
    assert form.open([Message("user", "Q2+3?")]) == [ALPHABET.index(c) for c in "Q2+3?"]
    spoken = [ALPHABET.index(c) for c in "C2+3;"]
    assert form.ended(spoken)
    assert form.text(spoken) == "C2+3"
    assert form.reply("R5;", ended=True) == [ALPHABET.index(c) for c in "R5;"]
    assert form.reply("R5;", ended=False) == [ALPHABET.index(c) for c in ";R5;"]
    assert not form.ended([])


def test_plain_text_without_any_end_token_is_never_closed() -> None:
    form: PromptFormat = PlainFormat(byte_tokenizer(None, eos_token=None))
    assert form.stop_ids == ()
    assert form.stop_strings == ()
    assert form.reply("abc", ended=False) == form.reply("abc", ended=True)


def test_the_format_follows_from_whether_there_is_a_template() -> None:
    assert isinstance(open_format(byte_tokenizer(CHATML)), ChatFormat)
    plain = open_format(byte_tokenizer(None), eos_ids=[7])
    assert isinstance(plain, PlainFormat)
    assert plain.stop_ids == (id_of(byte_tokenizer(None), "<|im_end|>"), 7)


QWEN = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}# Tools\n<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    'Write <tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "{% elif messages[0].role == 'system' %}"
    "<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "<|im_start|>user{% endif %}{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""In the manner of Qwen3: it has tools, and drops the reasoning of turns before the user's last message."""
LOOK: ToolSchema = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look around.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def test_tools_are_told_and_answered_in_the_templates_own_way() -> None:
    tokenizer = byte_tokenizer(QWEN)
    form = ChatFormat(tokenizer)
    messages = [Message("system", "Be brief."), Message("user", "Where am I?")]
    conversation: list[dict[str, object]] = [{"role": m.role, "content": m.content} for m in messages]
    ids = form.open(messages, [LOOK])
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
        conversation, [LOOK], tokenize=False, add_generation_prompt=True
    )
    results = (Message("tool", "a cellar"), Message("tool", "dark"))
    assert tokenizer.decode(form.reply(results, ended=True)) == (
        "\n<|im_start|>user\n<tool_response>\na cellar\n</tool_response>\n"
        "<tool_response>\ndark\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_reasoning_that_the_template_would_drop_stays_where_it_was_sampled() -> None:
    tokenizer = byte_tokenizer(QWEN)
    form = ChatFormat(tokenizer)
    ids = form.open([Message("user", "Go.")])
    for heard in ("on", (Message("tool", "done"),), "stop"):
        ids += tokenizer.encode("<think>\nhm\n</think>\n\nyes<|im_end|>", add_special_tokens=False)
        ids += form.reply(heard, ended=True)
    assert tokenizer.decode(ids).count("<think>\nhm\n</think>") == 3


def test_a_template_without_tools_tells_of_them_in_words() -> None:
    tokenizer = byte_tokenizer(CHATML)
    form = ChatFormat(tokenizer)
    opened = tokenizer.decode(form.open([Message("system", "Be brief."), Message("user", "Go.")], [LOOK]))
    assert opened.startswith("<|im_start|>system\nBe brief.\n\nYou may call these tools")
    assert '"description": "Look around."' in opened
    alone = tokenizer.decode(form.open([Message("user", "Go.")], [LOOK]))
    assert "call.\n\nGo.<|im_end|>" in alone
    results = (Message("tool", "a cellar"), Message("tool", "dark"))
    assert tokenizer.decode(form.reply(results, ended=True)) == (
        "\n<|im_start|>user\n<tool_response>\na cellar\n</tool_response>\n"
        "<tool_response>\ndark\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_plain_model_reads_tools_and_results_as_text() -> None:
    tokenizer = byte_tokenizer(None)
    form = open_format(tokenizer)
    assert "Look around." in tokenizer.decode(form.open([Message("user", "Go.")], [LOOK]))
    assert tokenizer.decode(form.reply((Message("tool", "x"),), ended=True)) == (
        "<tool_response>\nx\n</tool_response>"
    )
