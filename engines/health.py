"""How a part of the cluster is: an engine, a node agent, an agent worker or the scheduler.

    HEALTHY --no answer--> SUSPECT --no answer--> DEAD --due--> RESTARTING --up--> STALE --has all--> HEALTHY
       ^                      |                    |  ^             |                |
       `------- answered -----+--------------------'  `----------- failed -----------'

A SUSPECT part still gets work, so one that is slow once is not punished. A DEAD one may come back by itself
until it is due: soon if its process is gone, after `restart_after_s` if it is only silent. Each restart that
fails makes the next one wait twice as long. STALE: its process is up, but it knows nothing of the job yet, an
engine's weights least of all, so it gets no work.

Pure: it is told the time, and what was found out. Who asks is engines.cluster_watch, what a restart is
engines.supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Health(StrEnum):
    """What a part is good for now."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"


@dataclass(slots=True)
class PartHealth:
    """One part's."""

    restart_after_s: float
    """Silence after which a DEAD part is started anew."""
    state: Health = Health.HEALTHY
    why: str = ""
    """What ended it; nothing while it serves."""
    num_restarts: int = 0
    """Times it was brought back in a process of its own."""
    _pid: int | None = None
    """Of its process; None: it has not told."""
    _due_s: float = 0.0
    _pause_s: float = _FIRST_PAUSE_S

    @property
    def serves(self) -> bool:
        """Whether it gets work."""
        return self.state in (Health.HEALTHY, Health.SUSPECT)

    def answered(self, now_s: float, pid: int) -> None:
        """It gave a sign of life. Another process than before is a part that knows nothing."""
        self._pid = self._pid or pid
        if pid != self._pid:
            self.gone(now_s, "its process ended")
        elif self.state in (Health.SUSPECT, Health.DEAD):
            self.state, self.why = Health.HEALTHY, ""

    def missed(self, now_s: float, why: str) -> None:
        """It left a question unanswered for as long as that is waited for."""
        if self.state is Health.HEALTHY:
            self.state = Health.SUSPECT
        elif self.state is Health.SUSPECT:
            self._die(now_s + self.restart_after_s, why)

    def gone(self, now_s: float, why: str) -> None:
        """Its process is dead, or says that it is of no use any more."""
        if self.serves:
            self._die(now_s + _FIRST_PAUSE_S, why)
        elif self.state is Health.DEAD:
            self._due_s = min(self._due_s, now_s + _FIRST_PAUSE_S)

    def wants_restart(self, now_s: float) -> bool:
        return self.state is Health.DEAD and now_s >= self._due_s

    def restarting(self) -> None:
        """It is being started anew."""
        assert self.state is Health.DEAD, self.state
        self.state = Health.RESTARTING

    def started(self) -> None:
        """Its process is up; what the others have, it does not have yet."""
        assert self.state is Health.RESTARTING, self.state
        self.state = Health.STALE

    def back(self) -> None:
        """It has all that the others have."""
        assert self.state in (Health.RESTARTING, Health.STALE), self.state
        self.state, self.why, self._pid, self._pause_s = Health.HEALTHY, "", None, _FIRST_PAUSE_S
        self.num_restarts += 1

    def failed(self, now_s: float, why: str) -> None:
        """It could not be brought back; that is tried again."""
        assert self.state in (Health.RESTARTING, Health.STALE), self.state
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._die(now_s + self._pause_s, why)

    def _die(self, due_s: float, why: str) -> None:
        self.state, self.why, self._due_s = Health.DEAD, why, due_s
