"""Each trace format becomes the same kind of sessions; what is malformed is named by file, line and field."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from rollout.traces.errors import TraceError
from rollout.traces.load import load_sessions, samples_folder
from rollout.traces.session import Piece, Session, num_tokens

HEADER = "session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms"
CSV = f"{HEADER}\na,0,0,100,10,1500\nb,0,0,7,1,0\na,1,110,20,5,0\n"


def load(tmp_path: Path, text: str, name: str = "trace") -> list[Session]:
    (tmp_path / name).write_text(text)
    return load_sessions(str(tmp_path / name))


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(TraceError) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lengths(session: Session) -> list[tuple[int, int]]:
    """(prompt, output) of each round."""
    return [(prompt, each.output_tokens) for prompt, each in session.prompts()]


def weka(**changes: object) -> dict[str, object]:
    """Two requests of 200 and 264 + 40 tokens that go on with one another."""
    first = {"t": 0.0, "type": "n", "in": 200, "out": 64, "hash_ids": [1, 2, 3]}
    second = {"t": 9.0, "type": "s", "in": 304, "out": 8, "hash_ids": [1, 2, 3, 4], "think_time": 2.5}
    return {"id": "w", "block_size": 64, "requests": [first, second]} | changes


def mooncake(at_ms: int, tokens: int, output: int, *hash_ids: int) -> str:
    return json.dumps(
        {"timestamp": at_ms, "input_length": tokens, "output_length": output, "hash_ids": list(hash_ids)}
    )


def bailian(chat: int, parent: int, tokens: int, output: int, *hash_ids: int) -> str:
    record = {"chat_id": chat, "parent_chat_id": parent, "timestamp": float(chat), "type": "text", "turn": 1}
    return json.dumps(record | {"input_length": tokens, "output_length": output, "hash_ids": list(hash_ids)})


def test_closed_loop_rounds_append_and_generate_what_their_rows_say(tmp_path):
    a, b = load(tmp_path, CSV)
    assert (a.session_id, b.session_id) == ("a", "b")
    assert lengths(a) == [(100, 10), (130, 5)]
    assert [each.tool_wait_s for each in a.rounds] == [1.5, 0.0]
    assert lengths(b) == [(7, 1)]


def test_what_a_closed_loop_trace_says_is_stored_already_changes_nothing(tmp_path):
    lied = f"{HEADER}\na,0,64,100,10,1500\nb,0,0,7,1,0\na,1,0,20,5,0\n"
    assert load(tmp_path, lied) == load(tmp_path, CSV)


def test_columns_may_stand_in_any_order_and_others_beside_them(tmp_path):
    text = (
        "arrival,output_len,session_id,input_len,round_idx,tool_wait_after_ms,prefix_len\n"
        "x,10,a,100,0,1500,0\ny,5,a,20,1,0,110\n"
    )
    assert load(tmp_path, text) == load(tmp_path, CSV)[:1]


def test_a_round_that_generates_nothing_joins_the_next_one(tmp_path):
    (session,) = load(tmp_path, f"{HEADER}\na,0,0,100,0,0\na,1,0,20,5,0\na,2,0,3,0,0\n")
    assert lengths(session) == [(120, 5)]


@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress])
def test_a_packed_trace_is_known_by_its_content_whatever_its_name(tmp_path, packed):
    (tmp_path / "trace.csv").write_bytes(packed(CSV.encode()))
    assert load_sessions(str(tmp_path / "trace.csv")) == load(tmp_path, CSV)


def test_a_folder_is_read_file_by_file(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.json").write_text(json.dumps(weka(id="one")))
    (folder / "2.json").write_text(json.dumps(weka(id="two"), indent=1))
    assert [session.session_id for session in load_sessions(str(folder))] == ["one", "two"]


def test_weka_prompts_have_the_recorded_lengths_and_the_generated_tokens_are_kept(tmp_path):
    (session,) = load(tmp_path, json.dumps(weka()))
    assert lengths(session) == [(200, 64), (304, 8)]
    assert session.rounds[1].keep_tokens is None
    assert session.rounds[1].append_tokens == 40
    assert [each.tool_wait_s for each in session.rounds] == [2.5, 0.0]


def test_the_run_length_form_and_the_original_are_one_trace(tmp_path):
    runs = weka()
    for request, pairs in zip(runs["requests"], ([1, 3], [1, 2, 3, 2]), strict=True):
        del request["hash_ids"]
        request["h"] = pairs
    assert load(tmp_path, json.dumps(runs) + "\n") == load(tmp_path, json.dumps(weka()))


def test_a_prompt_that_drops_something_keeps_what_it_shares_with_the_one_before(tmp_path):
    requests = [
        {"t": 0.0, "type": "n", "in": 200, "out": 64, "hash_ids": [1, 2, 3]},
        {"t": 1.0, "type": "n", "in": 190, "out": 8, "hash_ids": [1, 2, 9]},
        {"t": 2.0, "type": "n", "in": 190, "out": 8, "hash_ids": [1, 2, 9]},
    ]
    (session,) = load(tmp_path, json.dumps(weka(requests=requests)))
    assert [each.keep_tokens for each in session.rounds] == [None, 128, 190]
    assert lengths(session) == [(200, 64), (190, 8), (190, 8)]


def test_weka_sessions_with_the_same_tools_share_their_beginning_and_nothing_else(tmp_path):
    texts = [json.dumps(weka(id=name, tool_tokens=100, system_tokens=20)) for name in ("one", "two")]
    one, two = load(tmp_path, "\n".join(texts))
    assert one.rounds[0].append[0] == two.rounds[0].append[0] == Piece("weka/prefix/100/20", 0, 120)
    assert {piece.stream for piece in one.rounds[0].append[1:]}.isdisjoint(
        piece.stream for piece in two.rounds[0].append[1:]
    )


def test_requests_of_sub_agents_and_those_without_output_are_left_out(tmp_path):
    requests = [
        {"t": 0.0, "type": "n", "in": 200, "out": 64, "hash_ids": [1, 2, 3]},
        {"t": 1.0, "type": "subagent", "requests": []},
        {"t": 2.0, "type": "n", "in": 300, "out": 0, "hash_ids": [1, 2, 3, 4]},
    ]
    (session,) = load(tmp_path, json.dumps(weka(requests=requests)))
    assert lengths(session) == [(200, 64)]


def test_mooncake_requests_that_go_on_with_a_conversation_are_its_rounds(tmp_path):
    lines = [
        mooncake(0, 1100, 50, 0, 1, 2),
        mooncake(500, 1100, 60, 0, 3, 4),
        mooncake(4000, 1300, 70, 0, 1, 5),
        mooncake(5000, 600, 5, 0, 7),
    ]
    first, second, third = load(tmp_path, "\n".join(lines))
    assert lengths(first) == [(1100, 50), (1300, 70)]
    assert first.rounds[0].tool_wait_s == 4.0
    assert lengths(second) == [(1100, 60)]
    assert lengths(third) == [(600, 5)]


def test_equal_hash_ids_are_equal_pieces_across_requests(tmp_path):
    one, two = load(tmp_path, "\n".join([mooncake(0, 1024, 5, 0, 1), mooncake(9, 1024, 5, 0, 2)]))
    shared = Piece("mooncake/blocks", 0, 512)
    assert one.rounds[0].append == (Piece("mooncake/blocks", 0, 1024),)
    assert two.rounds[0].append[0] == shared


def test_bailian_chats_are_chained_by_their_parents(tmp_path):
    lines = [
        bailian(1, -1, 40, 8, 10, 11, 12),
        bailian(2, 1, 64, 4, 10, 11, 13, 14),
        bailian(3, 1, 70, 4, 10, 11, 15, 16, 17),
        bailian(4, 99, 16, 4, 10),
    ]
    sessions = load(tmp_path, "\n".join(lines))
    assert [lengths(session) for session in sessions] == [[(40, 8), (64, 4)], [(70, 4)], [(16, 4)]]


@pytest.mark.parametrize("sample", sorted(samples_folder().iterdir()), ids=lambda path: path.name)
def test_every_sample_that_ships_is_small_and_can_be_replayed(sample):
    assert sample.stat().st_size < 100_000
    for session in load_sessions(str(sample)):
        context_tokens = 0
        for prompt_tokens, each in session.prompts():
            assert each.keep_tokens is None or each.keep_tokens <= context_tokens
            assert prompt_tokens > 0
            assert each.output_tokens > 0
            context_tokens = prompt_tokens + each.output_tokens


def test_without_a_trace_the_sample_is_taken():
    assert load_sessions(None) == load_sessions(str(samples_folder() / "closed_loop.csv"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TIMESTAMP,ContextTokens\n1,2\n", ["trace:1", "unknown trace format", "closed-loop CSV"]),
        ('{"colour": 1}\n', ["trace:1", "unknown trace format"]),
        (f"{HEADER}\na,0,0,-5,1,0\n", ["trace:2", "input_len", ">= 0", "-5"]),
        (f"{HEADER}\na,0,0,5,,0\n", ["trace:2", "output_len", "missing"]),
        (f"{HEADER}\na,0,0,5,1\n", ["trace:2", "5 fields", "6"]),
        (f"{HEADER}\na,0,0,5,x,0\n", ["trace:2", "output_len", "whole number", '"x"']),
        (f"{HEADER}\na,0,0,5,1.5,0\n", ["trace:2", "output_len", "whole number", "1.5"]),
        (f"{HEADER}\na,0,0,5,1,-1\n", ["trace:2", "tool_wait_after_ms", ">= 0", "-1"]),
        (f"{HEADER}\na,0,0,5,1,nan\n", ["trace:2", "tool_wait_after_ms", "number"]),
        (f"{HEADER}\na,0,0,5,1,0\n\na,2,0,5,1,0\n", ["trace:4", "round_idx", "must be 1", "got 2"]),
        (f"{HEADER}\na,0,0,0,1,0\n", ["trace:2", "input_len", ">= 1"]),
        ("session_id,round_idx,input_len\n", ["trace:1", "no column", "prefix_len", "output_len"]),
        (f"{HEADER}\n", ["no session"]),
        ("", ["empty"]),
        (json.dumps(weka(requests=[{"t": 0, "out": 1, "hash_ids": []}])), ["requests[0]", "in is missing"]),
        (
            json.dumps(weka(requests=[{"in": 5, "out": -1, "hash_ids": []}])),
            ["trace:1", "requests[0]", "out", ">= 0", "-1"],
        ),
        (
            json.dumps(weka(requests=[{"in": 5, "out": 1, "h": [1, 0]}])),
            ["trace:1", "requests[0]", "h must be", "[1, 0]"],
        ),
        (json.dumps(weka(requests="none")), ["trace:1", "requests", "list"]),
        (json.dumps(weka(block_size=0)), ["trace:1", "block_size", ">= 1"]),
        ('{"id": "w",\n "requests": [\n', ["trace:", "not JSON"]),
        (mooncake(0, 600, 5, 0, 1) + "\n{torn", ["trace:2", "not JSON"]),
        (mooncake(0, -600, 5, 0, 1), ["trace:1", "input_length", "-600"]),
        (mooncake(0, 600, 5, 0, 1, 2), ["trace:1", "hash_ids", "3 blocks", "fills 2"]),
        ('{"timestamp": 0, "input_length": 5, "hash_ids": []}', ["trace:1", "output_length is missing"]),
        (bailian(1, -1, 16, 1, 3) + "\n" + bailian(1, -1, 16, 1, 3), ["trace:2", "chat_id 1", "trace:1"]),
        ('{"chat_id": 1, "timestamp": 0}', ["trace:1", "parent_chat_id is missing"]),
    ],
)
def test_what_is_malformed_is_one_line_that_names_place_and_field(tmp_path, text, words):
    message = error_of(tmp_path, text)
    for word in words:
        assert word in message, message


def test_a_file_that_is_not_there_or_torn_is_named(tmp_path):
    with pytest.raises(TraceError, match="does not exist"):
        load_sessions(str(tmp_path / "nowhere"))
    (tmp_path / "torn.xz").write_bytes(lzma.compress(CSV.encode() * 100)[:60])
    with pytest.raises(TraceError, match=r"torn\.xz cannot be read"):
        load_sessions(str(tmp_path / "torn.xz"))


def test_pieces_of_a_session_are_as_long_as_its_rounds_say(tmp_path):
    (session,) = load(tmp_path, json.dumps(weka()))
    assert [num_tokens(each.append) for each in session.rounds] == [200, 40]
