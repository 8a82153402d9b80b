"""How much a trajectory has left, guessed from those that have ended: what `scheduler.order` may go by.

Ours; DualPath (arXiv 2602.21548) orders turns by arrival. Samples of one task are alike, so the guess is the
longest of its task so far, of any task until one of its own has ended, and what the limit leaves once a
trajectory has outgrown that: whoever is longer than all others is likely to be the last. Pure.
"""

from __future__ import annotations


class ExpectedLengths:
    """One per agent worker: it knows only the trajectories that ended there. Lengths are in tokens."""

    def __init__(self) -> None:
        self._longest: dict[str, int] = {}
        self._longest_of_all: int | None = None

    def note(self, task_id: str, num_tokens: int) -> None:
        """A trajectory of this task has come to its end by itself."""
        self._longest[task_id] = max(num_tokens, self._longest.get(task_id, 0))
        self._longest_of_all = max(num_tokens, self._longest_of_all or 0)

    def remaining(self, task_id: str, context_tokens: int, max_context_tokens: int) -> int | None:
        """What a trajectory with so long a context will still append and generate; None: nothing is known."""
        expected = self._longest.get(task_id, self._longest_of_all)
        if expected is None:
            return None
        return (expected if expected > context_tokens else max_context_tokens) - context_tokens
