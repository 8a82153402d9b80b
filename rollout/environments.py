"""Which class plays a task: one of the bundled environments, or a user's own as `module:Class`.

Such a class is made for each trajectory as `Class(task, workbench)` and then is an Environment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

from rollout.environment import Environment
from rollout.errors import UserError
from rollout.tasks import ENVIRONMENTS, Task
from rollout.workbench import Workbench

EnvironmentClass = Callable[[Task, Workbench], Environment]


class UnknownEnvironment(UserError, ValueError):
    """No such environment; the message names those there are."""


@cache
def environment_class(name: str) -> EnvironmentClass:
    """The class of that name, imported; raises UnknownEnvironment with one line."""
    module, colon, attribute = ENVIRONMENTS.get(name, name).partition(":")
    if not colon:
        known = ", ".join(ENVIRONMENTS)
        raise UnknownEnvironment(f"environment {name!r} is unknown; known ones: {known}, or module:Class")
    try:
        found: EnvironmentClass = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownEnvironment(f"environment {name!r} cannot be imported: {error}") from None
    return found


def needs_sandbox(task: Task) -> bool:
    """Whether the environment of `task` says that it runs code in a sandbox."""
    asks: Callable[[Task], bool] | None = getattr(environment_class(task.environment), "needs_sandbox", None)
    return asks is not None and asks(task)


def make_environment(task: Task, workbench: Workbench) -> Environment:
    """A fresh environment for one trajectory of `task`."""
    return environment_class(task.environment)(task, workbench)
