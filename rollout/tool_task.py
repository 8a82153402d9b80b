"""A task with tools: the base class of an environment in which a model calls functions until it answers.

    class Capitals(ToolTask):
        def tools(self):
            return [look_up]                    # plain typed functions or methods, sync or async

        async def reward(self, answer):         # the reply without a call ends the task
            return float(self.task.answer in answer)

What the model is told of tools, how its calls are read, run and answered, and when bad calls are too many
is decided here and in rollout.tools; what a task is about, by its subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from rollout.environment import Message, Opening, Step, ToolCall, ToolError
from rollout.sandbox.sandbox import Sandbox
from rollout.tasks import Task
from rollout.tools.calls import read_calls, spoken
from rollout.tools.tool import MalformedCall, Tool
from rollout.workbench import Workbench


class ToolTask:
    """One trajectory of such a task."""

    system: str | None = None
    """The system message; None: there is none."""

    def __init__(self, task: Task, workbench: Workbench) -> None:
        self.task = task
        self._runner = workbench.runner
        self._sandbox_config = workbench.sandbox
        self._tools = {tool.name: tool for tool in map(Tool.of, self.tools())}
        self._malformed_in_a_row = 0

    # -- what a subclass says ------------------------------------------------------------------------

    def tools(self) -> Sequence[Callable[..., object]]:
        """The functions that the model may call."""
        return ()

    async def start(self) -> str:
        """Prepare what the task needs; returns what the user asks first."""
        return self.task.prompt

    async def reward(self, answer: str) -> float:
        """What the task was worth, now that the model has answered."""
        raise NotImplementedError

    # -- what it gets --------------------------------------------------------------------------------

    @cached_property
    def sandbox(self) -> Sandbox:
        """A workspace of this trajectory's own. It is started by its first command."""
        return Sandbox(self._sandbox_config)

    # -- the environment -----------------------------------------------------------------------------

    async def reset(self) -> Opening:
        asked = Message("user", await self.start())
        messages = (asked,) if self.system is None else (Message("system", self.system), asked)
        return Opening(messages, tuple(tool.schema for tool in self._tools.values()))

    async def step(self, text: str) -> Step:
        calls = read_calls(text)
        if not calls:
            return Step(reply=None, reward=await self.reward(spoken(text).strip()), done=True)
        results = [await self._answer(call) for call in calls]
        if self._malformed_in_a_row >= self._runner.config.max_malformed_calls:
            return Step(reply=None, reward=0.0, done=True, tool_calls=len(calls))
        reply = tuple(Message("tool", result) for result in results)
        return Step(reply=reply, reward=0.0, done=False, tool_calls=len(calls))

    async def close(self) -> None:
        if "sandbox" in self.__dict__:
            await self.sandbox.close()

    async def _answer(self, call: ToolCall | MalformedCall) -> str:
        """What the model is told of one call; nothing that a tool does ends the trajectory."""
        try:
            if isinstance(call, MalformedCall):
                raise call
            tool = self._tools.get(call.name)
            if tool is None:
                raise MalformedCall(f"there is no tool {call.name!r}; there are: {', '.join(self._tools)}")
            result = await self._runner.call(tool, call.arguments)
        except MalformedCall as error:
            self._malformed_in_a_row += 1
            self._runner.note_malformed()
            return f"ERROR: {error}"
        except ToolError as error:
            result = f"ERROR: {error}"
        self._malformed_in_a_row = 0
        return result
