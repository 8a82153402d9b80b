"""The one error of the guest: it cannot be had on this machine."""

from __future__ import annotations

from kvstore.tools.errors import WrongInput


class NoGuest(WrongInput):
    """Its text is one line that says why the guest cannot be built or did not run, and what to do."""
