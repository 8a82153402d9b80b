"""Tools that run a model's own code, in the sandbox of its trajectory.

Whatever the code does comes back as text: its output, then in brackets how it ended if that was not well.
"""

from __future__ import annotations

import json

from rollout.environment import ToolError
from rollout.sandbox.sandbox import Ran, Sandbox, signal_name

_EDIT = """
import json, sys
edit = json.load(sys.stdin)
try:
    with open(edit["path"], encoding="utf-8") as file:
        text = file.read()
    found = text.count(edit["old"])
    if found != 1:
        sys.exit(f"the old text stands {found} times in {edit['path']}; it must stand there once")
    with open(edit["path"], "w", encoding="utf-8") as file:
        file.write(text.replace(edit["old"], edit["new"]))
except (OSError, ValueError) as error:
    sys.exit(str(error))
"""


class CodeTools:
    """The tools `bash`, `python` and `edit` over one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def bash(self, command: str) -> str:
        """Run a bash command in your workspace and get what it prints. Files stay between calls, processes do
        not; there is no network."""
        return told(await self._sandbox.run(["bash", "-c", command]))

    async def python(self, code: str) -> str:
        """Run a Python program in your workspace and get what it prints. Files stay between calls, variables
        do not; there is no network."""
        return told(await self._sandbox.run(["python3", "-I", "-"], code))

    async def edit(self, path: str, old: str, new: str) -> str:
        """Replace a text in a file of your workspace. `old` must stand in the file exactly once."""
        request = json.dumps({"path": path, "old": old, "new": new})
        ran = await self._sandbox.run(["python3", "-I", "-S", "-c", _EDIT], request)
        if ran.exit_code != 0:
            raise ToolError(told(ran))
        return f"{path} is changed"


def told(ran: Ran) -> str:
    """What a model is told of a command."""
    notes = []
    if ran.stopped is not None:
        notes.append(ran.stopped)
    elif ran.exit_code != 0:
        notes.append(
            f"ended by {signal_name(ran.exit_code)}" if ran.exit_code < 0 else f"exit code {ran.exit_code}"
        )
    if ran.left and ran.stopped is None:
        notes.append(f"{ran.left} processes were still running and have been ended")
    return "\n".join([ran.output.rstrip("\n"), *(f"[{note}]" for note in notes)]).strip("\n") or "[no output]"
