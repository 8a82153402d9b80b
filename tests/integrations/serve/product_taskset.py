"""A taskset of verifiers, as a user of that package would write it: one question, one tool, one reward."""

from __future__ import annotations

from collections.abc import Iterable

import verifiers.v1 as vf

from tests.integrations.serve.known import QUESTION


class ProductTools(vf.Toolset[vf.ToolsetConfig, vf.State]):
    """Its server runs in a process of its own."""

    TOOL_PREFIX = "product"

    @vf.tool
    def multiply(self, a: int, b: int) -> str:
        """Multiply two integers."""
        return str(a * b)


class ProductTask(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [ProductTools(vf.ToolsetConfig())]

    @vf.reward
    async def says_the_product(self, trace: vf.Trace) -> float:
        return float("42" in trace.last_reply)


class ProductTaskset(vf.Taskset[ProductTask, vf.TasksetConfig]):
    def load(self) -> Iterable[ProductTask]:
        yield ProductTask(vf.TaskData(prompt=QUESTION), self.config.task)


if __name__ == "__main__":
    ProductTools.run()
