"""What a vLLM server hits, loads and saves through the connector's halves, with a real store and no vLLM."""

from __future__ import annotations

import threading

import pytest

from kvstore.keys import WeightsId
from tests.engines.vllm.small_server import (
    BLOCK_TOKENS,
    PAGE_TOKENS,
    context,
    eventually,
    small_server,
)

PROMPT = context(5 * BLOCK_TOKENS + 3)


def segments(path):
    return sorted(path.glob("*.kv"))


def flip_a_byte(path, from_end):
    """Damage the data of a record, counted from the end of the newest segment."""
    with segments(path)[-1].open("r+b") as file:
        file.seek(-from_end, 2)
        byte = file.read(1)
        file.seek(-from_end, 2)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("dram_bytes", [0, 32 << 12])
def test_a_context_that_was_computed_once_is_loaded_afterwards(tmp_path, dram_bytes):
    with small_server(tmp_path, dram_bytes=dram_bytes) as server:
        assert server.turn(PROMPT) == 0
        assert server.turn(PROMPT + context(20, seed=2)) == 5 * BLOCK_TOKENS
        assert server.service.figures().get("reads_ok", 0) == (0 if dram_bytes else 5)


def test_one_token_at_least_is_computed(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT[: 2 * BLOCK_TOKENS])
        assert server.turn(PROMPT[: 2 * BLOCK_TOKENS]) == BLOCK_TOKENS
        assert server.turn(PROMPT[: 2 * BLOCK_TOKENS + 1]) == 2 * BLOCK_TOKENS


def test_a_conversation_of_eight_turns_hits_all_whole_blocks_it_had(tmp_path):
    with small_server(tmp_path) as server:
        tokens: list[int] = []
        for turn in range(8):
            before = len(tokens)
            tokens += context(13, seed=turn)
            assert server.turn(tokens) == min(before, len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS


def test_blocks_that_decoding_fills_are_saved_too(tmp_path):
    with small_server(tmp_path) as server:
        request, _ = server.admit(PROMPT)
        server.step(request)
        for token in range(BLOCK_TOKENS):
            request.all_token_ids.append(token)
            server.step(request)
        generated = list(request.all_token_ids)
        server.finish(request)
        server.settle()
        assert server.turn([*generated, 1, 2, 3]) == 6 * BLOCK_TOKENS


def test_what_is_computed_already_is_not_loaded(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
        request, _ = server.admit(PROMPT)  # to have pages to look at
        server.step(request)
        for computed in range(0, 5 * BLOCK_TOKENS, PAGE_TOKENS):
            other = type(request)(f"other-{computed}", list(PROMPT), list(request.pages), computed)
            answers = []
            eventually(
                lambda other=other, computed=computed, answers=answers: (
                    answers.append(server.scheduler.query(other, computed, "")) or answers[-1] is not None
                )
            )
            assert answers[-1] == 5 * BLOCK_TOKENS - computed
            server.scheduler.allocated(other, answers[-1])
            plan = server.scheduler.plan([(other.request_id, len(PROMPT))], lambda _: request.pages)
            assert plan.loads[0].moves.pages.tolist() == request.pages[computed // PAGE_TOKENS : 10]
            server.run(plan)
            server.check(request)
            server.scheduler.finished(other, 0, [])
        server.finish(request)


def test_a_hit_is_not_told_before_it_is_read(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
        gate, read = threading.Event(), server.service._store.store.read
        server.service._store.store.read = lambda reads, deadline_s: gate.wait(60) and read(reads, deadline_s)
        request = type(
            "Request", (), {"request_id": "r", "all_token_ids": PROMPT, "num_tokens": len(PROMPT)}
        )()
        assert [server.scheduler.query(request, 0, "") for _ in range(3)] == [None] * 3
        gate.set()
        eventually(lambda: server.scheduler.query(request, 0, "") == 5 * BLOCK_TOKENS)
        server.scheduler.finished(request, 0, [])
        server.settle()


def test_a_block_damaged_in_the_store_ends_the_hit_there(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
        layout = server.service.layout
        flip_a_byte(tmp_path, from_end=layout.slot_bytes - layout.full_block_bytes + 7)
        assert server.turn(PROMPT) == 4 * BLOCK_TOKENS
        assert server.service.figures()["reads_corrupt"] == 1
        assert server.turn(PROMPT) == 5 * BLOCK_TOKENS, "it was computed and stored again"


def test_a_block_damaged_in_memory_is_reported_page_by_page_and_not_found_again(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
        request, hit = server.admit(PROMPT)
        assert hit == 5 * BLOCK_TOKENS
        found = server.scheduler._entries[request.request_id].looking.result()
        slot = found.blocks[2].held.slot

        def damage():
            server.service._staging.slot(slot)[100] ^= 1

        server.step(request, before_load=damage)
        assert server.bad_pages == set(request.pages[4:6])
        server.finish(request)
        server.settle()
        assert server.turn(PROMPT) == 2 * BLOCK_TOKENS


def test_blocks_without_slots_are_saved_when_there_are_some_even_after_the_end(tmp_path):
    with small_server(tmp_path) as server:
        taken = server.service.room.take(server.service.room.num_slots - 2)
        request, _ = server.admit(PROMPT)
        server.step(request)
        server.settle()
        assert server.finish(request), "its pages are still needed"
        server.service.room.give_back(taken)
        assert server.run(server.scheduler.plan([], {}.__getitem__)) == {request.request_id}
        server.settle()
        assert server.turn(PROMPT) >= 4 * BLOCK_TOKENS


def test_an_aborted_request_leaves_nothing_behind(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
        request, _ = server.admit(PROMPT)
        assert not server.scheduler.finished(request, 0, [])
        eventually(lambda: server.service.room.num_free == server.service.room.num_slots)


def test_other_salts_and_other_weights_share_nothing(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
        request, hit = server.admit(PROMPT, salt="another tenant")
        assert hit == 0
        server.scheduler.finished(request, 0, [])
    with small_server(tmp_path, WeightsId("w1")) as other:
        assert other.turn(PROMPT) == 0


def test_after_new_weights_nothing_old_is_hit_and_nothing_begun_before_is_stored(tmp_path):
    with small_server(tmp_path, dram_bytes=32 << 12) as server:
        server.turn(PROMPT)
        running, _ = server.admit(context(100, seed=9))
        server.scheduler.forget_all()
        server.service.renew(WeightsId("w1"))
        server.step(running)
        server.finish(running)
        server.settle()
        assert server.turn(PROMPT) == 0
        assert server.turn(PROMPT) == 5 * BLOCK_TOKENS
        assert server.turn(context(100, seed=9)) == 0
    assert {path.name.partition(".")[0] for path in segments(tmp_path)} == {"w0", "w1"}


def test_a_later_server_finds_what_an_earlier_one_stored(tmp_path):
    with small_server(tmp_path) as server:
        server.turn(PROMPT)
    with small_server(tmp_path) as server:
        assert server.turn(PROMPT) == 5 * BLOCK_TOKENS


def test_servers_on_one_store_find_each_others_blocks_while_they_run(tmp_path):
    with small_server(tmp_path, refresh_s=0.02) as one, small_server(tmp_path, refresh_s=0.02) as other:
        one.turn(PROMPT)
        assert other.turn(PROMPT[:3]) == 0
        longer = PROMPT + context(40, seed=3)
        eventually(lambda: other.turn(PROMPT) == 5 * BLOCK_TOKENS)
        one.turn(longer)
        eventually(lambda: other.turn(longer) == len(longer) // BLOCK_TOKENS * BLOCK_TOKENS)
