"""Trajectories as an Arrow table and back, exactly: the schema of trajectories.parquet.

One row a trajectory, one list column for each of a segment's four arrays, moved as whole buffers. `step`
comes first, so that a row group's statistics tell which steps it holds. It does not know about files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from engines.types import PHASES, FinishReason, PhaseSeconds
from rollout.journal_record import writable
from rollout.types import Segment, StopReason, Trajectory, Turn

VERSION_KEY = b"rollout.trajectories.version"
VERSION = b"1"

Row = dict[str, Any]
"""A row as Arrow gives it: names are those of the dataclass it becomes."""

_TOKEN_COLUMNS: dict[str, tuple[Literal["i", "b", "f"], pa.DataType]] = {
    "token_ids": ("i", pa.int32()),
    "loss_mask": ("b", pa.int8()),
    "logprobs": ("f", pa.float32()),
    "weights_versions": ("i", pa.int32()),
}
_PHASES = pa.struct([(phase, pa.float64()) for phase in PHASES])
_SEGMENT = pa.struct([(name, pa.list_(kind)) for name, (_, kind) in _TOKEN_COLUMNS.items()])
_TURN = pa.struct(
    [
        ("segment", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("hit_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("tool_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("weights_version", pa.int32()),
        ("started_s", pa.float64()),
        ("ttft_s", pa.float64()),
        ("ttst_s", pa.float64()),
        ("tpot_s", pa.float64()),
        ("tool_s", pa.float64()),
        ("phases", _PHASES),
        ("recomputed_tokens", pa.int64()),
        ("num_attempts", pa.int32()),
        ("renewed_tokens", pa.int64()),
        ("older_kv_tokens", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("task_id", pa.string()),
        ("group_id", pa.string()),
        ("sample_index", pa.int32()),
        ("reward", pa.float64()),
        ("outcome", pa.string()),
        ("stop_reason", pa.string()),
        ("error", pa.string()),
        ("started_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("phases", _PHASES),
        ("segments", pa.list_(_SEGMENT)),
        ("turns", pa.list_(_TURN)),
    ],
    metadata={VERSION_KEY: VERSION},
)


def to_table(step: int, trajectories: Sequence[Trajectory]) -> pa.Table:
    """One row each, all of one step. `outcome` is written for readers; it follows from stop_reason."""
    columns: dict[str, list[object] | pa.Array] = {
        "step": [step] * len(trajectories),
        "task_id": [writable(t.task_id) for t in trajectories],
        "group_id": [writable(t.group_id) for t in trajectories],
        "sample_index": [t.sample_index for t in trajectories],
        "reward": [t.reward for t in trajectories],
        "outcome": [t.outcome.value for t in trajectories],
        "stop_reason": [t.stop_reason.value for t in trajectories],
        "error": [None if t.error is None else writable(t.error) for t in trajectories],
        "started_s": [t.started_s for t in trajectories],
        "duration_s": [t.duration_s for t in trajectories],
        "phases": [t.phases.as_dict() for t in trajectories],
        "segments": _segments_array([t.segments for t in trajectories]),
        "turns": [[_turn_row(turn) for turn in t.turns] for t in trajectories],
    }
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, SCHEMA.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def from_table(table: pa.Table) -> Iterator[tuple[int, Trajectory]]:
    """The trajectories of a table of this schema, each with its step."""
    segments = _segments(table.column("segments"))
    for row in table.drop_columns(["segments", "outcome"]).to_pylist():
        yield row.pop("step"), _trajectory(row, next(segments))


def _turn_row(turn: Turn) -> Row:
    row: Row = {field.name: getattr(turn, field.name) for field in _TURN}
    return row | {"phases": turn.phases.as_dict(), "finish_reason": turn.finish_reason.value}


def _segments_array(rows: Sequence[tuple[Segment, ...]]) -> pa.ListArray:
    segments = [segment for row in rows for segment in row]
    lengths = _offsets([len(segment) for segment in segments])
    columns = []
    for name, (typecode, kind) in _TOKEN_COLUMNS.items():
        joined = array(typecode)
        for segment in segments:
            joined.extend(getattr(segment, name))
        columns.append(pa.ListArray.from_arrays(lengths, pa.array(np.asarray(joined), kind)))
    structs = pa.StructArray.from_arrays(columns, fields=list(_SEGMENT))
    return pa.ListArray.from_arrays(_offsets([len(row) for row in rows]), structs)


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array([0, *accumulate(lengths)], pa.int32())


def _segments(column: pa.ChunkedArray) -> Iterator[tuple[Segment, ...]]:
    for chunk in column.chunks:
        structs = chunk.flatten()
        of_column = [_token_arrays(structs.field(name), name) for name in _TOKEN_COLUMNS]
        segments = (Segment(*arrays) for arrays in zip(*of_column, strict=True))
        for num_segments in chunk.value_lengths().to_pylist():
            yield tuple(next(segments) for _ in range(num_segments))


def _token_arrays(lists: pa.ListArray, name: str) -> Iterator[array[int] | array[float]]:
    """One array a segment, from one list column."""
    typecode, _ = _TOKEN_COLUMNS[name]
    values = lists.values.to_numpy()
    for start, end in pairwise(lists.offsets.to_pylist()):
        yield array(typecode, values[start:end].tobytes())


def _trajectory(row: Row, segments: tuple[Segment, ...]) -> Trajectory:
    row.update(
        segments=segments,
        turns=tuple(_turn(turn_row) for turn_row in row["turns"]),
        stop_reason=StopReason(row["stop_reason"]),
        phases=PhaseSeconds(**row["phases"]),
    )
    return Trajectory(**row)


def _turn(row: Row) -> Turn:
    row.update(finish_reason=FinishReason(row["finish_reason"]), phases=PhaseSeconds(**row["phases"]))
    return Turn(**row)
