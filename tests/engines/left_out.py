"""Imports without packages that nothing here uses, where a processor is emulated and an import takes long.

torch and transformers import their compiler, its algebra and the sharding of models for classes to derive
from and to compare with. A module that is left out has any name that it is asked for, as a class that nobody
makes use of; one that is made use of all the same fails where it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ABSENT = ("accelerate", "deepspeed")
"""What transformers does without where it is not installed."""
HOLLOW = (
    "torch._dynamo",
    "torch._export",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributions",
    "torch.export",
    "torch.onnx",
    "torch.testing",
    "transformers.generation.continuous_batching",
    "transformers.integrations.flex_attention",
)
"""Packages with all in them: four of ten modules, and more than half of the time."""
NOT_HOLLOW = {
    "torch._dynamo": {"disable": lambda function, *args, **kwargs: function},
}
"""What torch does call in them, as it is where nothing is compiled."""


class HollowModule(ModuleType):
    """Has every name, but for those that Python itself asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {"__init__": lambda self, *args, **kwargs: None}))
        return self.__dict__[name]


class HollowPackages(MetaPathFinder, Loader):
    """Finds and makes the modules of the packages named."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return HollowModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


def leave_out() -> None:
    """From now on, in this process and those forked from it."""
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]
    sys.meta_path.insert(0, HollowPackages(HOLLOW))
    for name, functions in NOT_HOLLOW.items():
        vars(import_module(name)).update(functions)
