"""Mooncake JSONL, one request a line.

`timestamp` (ms), `input_length`, `output_length`, `hash_ids` of blocks of 512 tokens.

Ids are global and chained: an id stands for its block and all before it. Nothing names a conversation, so a
request goes on with an earlier one's if its prompt begins with all whole blocks of that prompt, the last of
which only that conversation has used, and is long enough to hold its answer. What other requests share with
it are equal ids, thus equal tokens. Requests that generated nothing are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rollout.traces.errors import TraceError
from rollout.traces.fields import Fields, json_object
from rollout.traces.hashed import HashedRequest, HashScope, gaps_s, num_blocks, rounds_of, runs_of
from rollout.traces.session import Session
from rollout.traces.trace_file import Line

BLOCK_TOKENS = 512
_SCOPE = HashScope("mooncake/blocks", BLOCK_TOKENS)


def read_sessions(lines: Iterable[Line]) -> Iterator[Session]:
    """The conversations in the order of their first requests."""
    conversations = _Conversations()
    for line in lines:
        fields = json_object(line.text, line.where)
        request, hash_ids = read_request(fields, "timestamp", BLOCK_TOKENS, per_second=1000)
        if request.output_tokens:
            conversations.add(request, hash_ids)
    for index, requests in enumerate(conversations.requests):
        name = f"conversation-{index}"
        yield Session(name, rounds_of(requests, gaps_s(requests), _SCOPE, f"mooncake/{name}"))


def read_request(
    fields: Fields, time_name: str, block_tokens: int, *, per_second: float
) -> tuple[HashedRequest, list[int]]:
    """A request as this format and Bailian's tell it, and its ids one by one."""
    hash_ids = [int(str(value)) for value in fields.list_of("hash_ids", int)]
    request = HashedRequest(
        at_s=fields.seconds(time_name) / per_second,
        input_tokens=fields.count("input_length", at_least=1),
        output_tokens=fields.count("output_length"),
        runs=runs_of(hash_ids),
    )
    most = -(-request.input_tokens // block_tokens)
    if num_blocks(request.runs) > most:
        raise TraceError(
            f"{fields.where}: hash_ids has {num_blocks(request.runs)} blocks of {block_tokens} tokens, "
            f"input_length={request.input_tokens} fills {most}"
        )
    return request, hash_ids


@dataclass(slots=True)
class _Conversations:
    """The requests seen so far, by conversation."""

    requests: list[list[HashedRequest]] = field(default_factory=list)
    _last_block: dict[int, int] = field(default_factory=dict)
    """The last whole block of a conversation's newest prompt -> the conversation."""
    _first_user: dict[int, int] = field(default_factory=dict)
    """Block -> the conversation that used it first."""

    def add(self, request: HashedRequest, hash_ids: list[int]) -> None:
        whole = hash_ids[: request.input_tokens // BLOCK_TOKENS]
        index = self._goes_on_with(request, whole)
        if index is None:
            index = len(self.requests)
            self.requests.append([])
        self.requests[index].append(request)
        for block in whole:
            self._first_user.setdefault(block, index)
        if whole and self._first_user[whole[-1]] == index:
            self._last_block[whole[-1]] = index

    def _goes_on_with(self, request: HashedRequest, whole: list[int]) -> int | None:
        for place in range(len(whole) - 1, -1, -1):
            index = self._last_block.get(whole[place])
            if index is None:
                continue
            before = self.requests[index][-1]
            ended_here = before.input_tokens // BLOCK_TOKENS == place + 1
            if ended_here and request.input_tokens >= before.input_tokens + before.output_tokens:
                return index
        return None
