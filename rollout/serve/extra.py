"""Opens the part of the endpoint that needs the extra `serve`, or says in one line what is missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from rollout.errors import UserError

if TYPE_CHECKING:
    from rollout.serve.endpoint import Endpoint


def load_serving() -> Callable[..., AbstractAsyncContextManager[Endpoint]]:
    """rollout.serve.endpoint.serving. Raises UserError where its libraries are not installed."""
    try:
        from rollout.serve.endpoint import serving
    except ImportError as error:
        raise UserError(
            f"the endpoint needs {error.name}, which is not installed: pip install 'dualpath-rollout[serve]'"
        ) from error
    return serving
