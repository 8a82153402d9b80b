"""The one error of the command line: what it was given cannot be worked with; nothing was changed."""

from __future__ import annotations

from kvstore.errors import KvStoreError


class WrongInput(KvStoreError):
    """Its text is one line that names the value and what to do."""
