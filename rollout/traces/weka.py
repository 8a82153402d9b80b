"""WEKA / kv-cache-tester JSON: one object a session, in a file of its own or one a line.

    {"id", "block_size", "tool_tokens", "system_tokens", "requests": [{"t", "type", "in", "out", "hash_ids"}]}

`hash_ids` lists the ids of the prompt's whole blocks; the run-length form has `h` in its place, as [first,
count, first, count, ...]. Ids are the session's own (`hash_id_scope` local or absent), but for the tools
and the system prompt, which sessions with the same two lengths share. `t` is seconds from the session's
start, `think_time` seconds from the answer before to this request. Requests of sub-agents are left out, as
are those that generated nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from rollout.traces.fields import Fields, as_object
from rollout.traces.hashed import HashedRequest, HashScope, Run, rounds_of, runs_of
from rollout.traces.session import Session

DEFAULT_BLOCK_TOKENS = 64


def read_session(fields: Fields) -> Session | None:
    """The session of one object; None if its main agent generated nothing."""
    session_id = fields.name_text("id")
    requests: list[HashedRequest] = []
    think_s: list[float | None] = []
    for request in _main_requests(fields):
        parsed = _request(request)
        if parsed.output_tokens:
            requests.append(parsed)
            think_s.append(request.seconds("think_time", 0.0) if "think_time" in request.record else None)
    if not requests:
        return None
    rounds = rounds_of(requests, _waits_s(requests, think_s), _scope(fields, session_id), session_id)
    return Session(session_id, rounds)


def _main_requests(fields: Fields) -> Iterator[Fields]:
    for place, record in enumerate(fields.list_of("requests", dict)):
        request = as_object(record, f"{fields.where}: requests[{place}]")
        if request.record.get("type") != "subagent":
            yield request


def _request(fields: Fields) -> HashedRequest:
    return HashedRequest(
        at_s=fields.seconds("t", 0.0),
        input_tokens=fields.count("in", at_least=1),
        output_tokens=fields.count("out"),
        runs=_runs(fields),
    )


def _runs(fields: Fields) -> tuple[Run, ...]:
    if "h" not in fields.record:
        return runs_of([_as_id(fields, value) for value in fields.list_of("hash_ids", int)])
    numbers = [_as_id(fields, value) for value in fields.list_of("h", int)]
    if len(numbers) % 2 or any(count < 1 for count in numbers[1::2]):
        raise fields.wrong("h", "pairs of a first id and a count of at least 1")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _as_id(fields: Fields, value: object) -> int:
    assert isinstance(value, int)
    if value < 0:
        raise fields.wrong("h" if "h" in fields.record else "hash_ids", "ids of at least 0")
    return value


def _scope(fields: Fields, session_id: str) -> HashScope:
    block_tokens = fields.count("block_size", at_least=1) if "block_size" in fields.record else None
    tokens = [fields.count(name) if name in fields.record else 0 for name in ("tool_tokens", "system_tokens")]
    prefix = f"weka/prefix/{tokens[0]}/{tokens[1]}"
    shared = fields.record.get("hash_id_scope") == "global"
    return HashScope(
        name="weka/blocks" if shared else f"{session_id}/blocks",
        block_tokens=block_tokens or DEFAULT_BLOCK_TOKENS,
        prefix=prefix if sum(tokens) and not shared else None,
        prefix_tokens=sum(tokens),
    )


def _waits_s(requests: list[HashedRequest], think_s: list[float | None]) -> list[float]:
    """Think time stands with the request it comes before; without it, the time between the two."""
    waits = []
    for before, request, thought in zip(requests, requests[1:], think_s[1:], strict=False):
        waits.append(max(0.0, request.at_s - before.at_s) if thought is None else thought)
    return [*waits, 0.0]
