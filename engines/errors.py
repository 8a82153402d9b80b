"""Errors of the engines room.

EngineError
|- ModelUnsupported   a model these engines cannot serve; nothing was loaded
|- VllmRefused        a release of vLLM, or a setting of its connector, that cannot be; nothing was opened
|- RequestRefused     a request that could never fit or is out of date; nothing was reserved
|  |- StaleWeights    it names other weights than the engines hold
|  `- OlderKVLost     older KV that its context keeps is not stored any more
|- PlacementTimeout   no place was found by the deadline; nothing is reserved
|- PauseTimeout       turns still ran by the deadline; nothing is placed until resume
|- EngineFailed       an engine or node did not answer or broke; the turn may be tried elsewhere
|  |- EngineBroken    its loop has ended by an error; it does nothing more
|  |- EngineDead      its process is gone, so it touches nothing any more
|  `- NotJoined       its process has just begun and has not joined the cluster
|- KVDamaged          KV in HBM is not what was written for the prompt; the runner must not go on
`- TurnFailed         a turn failed on every attempt; nothing of it is reserved
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of this room's errors."""


class ModelUnsupported(EngineError):
    """A model these engines cannot serve."""


class VllmRefused(EngineError):
    """A release of vLLM, or a setting of its connector, that the connector does not work with."""


class RequestRefused(EngineError):
    """A request that could never fit, or that names other weights than the engines hold."""


class StaleWeights(RequestRefused):
    """A request that names other weights than the engines hold."""


class OlderKVLost(RequestRefused):
    """Only so many blocks of the older KV that a context keeps are still stored."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.num_blocks = num_blocks

    def __str__(self) -> str:
        return f"{self.num_blocks} blocks of older KV are left"


class PlacementTimeout(EngineError):
    """No place was found for the request by its deadline."""


class PauseTimeout(EngineError):
    """Turns still ran when all should have been through."""


class EngineFailed(EngineError):
    """An engine or node did not answer or broke."""


class EngineBroken(EngineFailed):
    """The loop of an engine has ended by an error."""


class EngineDead(EngineFailed):
    """The process of an engine or node is gone."""


class NotJoined(EngineFailed):
    """A part whose process has just begun: it touches nothing, and serves once it has joined the cluster."""


class KVDamaged(EngineError):
    """KV in HBM that is not what was written for the prompt: the data path is at fault."""


class TurnFailed(EngineError):
    """A turn failed on every attempt."""
