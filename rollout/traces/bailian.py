"""Bailian JSONL (qwen-bailian usage traces), one request a line.

`chat_id`, `parent_chat_id`, `timestamp` (s), `input_length`, `output_length`, `hash_ids` of 16-token blocks.

Ids are global. A request whose parent is the last request of a session goes on with it; one whose parent is
not there (-1 or unknown), or has gone on already, begins a session of its own and shares blocks by their
ids. Requests that generated nothing are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rollout.traces.errors import TraceError
from rollout.traces.fields import json_object
from rollout.traces.hashed import HashedRequest, HashScope, gaps_s, rounds_of
from rollout.traces.mooncake import read_request
from rollout.traces.session import Session
from rollout.traces.trace_file import Line

BLOCK_TOKENS = 16
_SCOPE = HashScope("bailian/blocks", BLOCK_TOKENS)


def read_sessions(lines: Iterable[Line]) -> Iterator[Session]:
    """The chats in the order of their first requests."""
    chats: list[tuple[str, list[HashedRequest]]] = []
    chat_that_ends_with: dict[str, int] = {}
    line_of: dict[str, str] = {}
    for line in lines:
        fields = json_object(line.text, line.where)
        chat_id = fields.name_text("chat_id")
        parent = fields.name_text("parent_chat_id")
        request, _ = read_request(fields, "timestamp", BLOCK_TOKENS, per_second=1)
        if chat_id in line_of:
            raise TraceError(f"{line.where}: chat_id {chat_id} is taken by {line_of[chat_id]}")
        line_of[chat_id] = line.where
        index = chat_that_ends_with.pop(parent, None)
        if index is None:
            index = len(chats)
            chats.append((f"chat-{chat_id}", []))
        chat_that_ends_with[chat_id] = index
        if request.output_tokens:
            chats[index][1].append(request)
    for name, requests in chats:
        if requests:
            yield Session(name, rounds_of(requests, gaps_s(requests), _SCOPE, f"bailian/{name}"))
