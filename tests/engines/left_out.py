"""Imports without packages that nothing here uses, where a processor is emulated and an import takes long.

torch and transformers import their compiler, its algebra and the sharding of models for classes to derive
from and to compare with. A module that is left out has any name that it is asked for, as a class that nobody
makes use of; one that is made use of all the same fails where it is.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ABSENT = ("accelerate", "deepspeed")
"""What transformers does without where it is not installed."""
HOLLOW = (
    "sympy",
    "torch._dynamo",
    "torch._export",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributions",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx",
    "torch.testing",
    "transformers.generation.continuous_batching",
    "transformers.integrations.flex_attention",
)
"""Packages with all in them: four of ten modules, and more than half of the time."""
NOT_HOLLOW = {
    "torch._dynamo": {"disable": lambda function, *args, **kwargs: function},
    "torch.fx.experimental.symbolic_shapes": {
        "expect_true": bool,
        "guard_or_false": bool,
        "guard_or_true": bool,
        "guard_size_oblivious": bool,
        "is_nested_int": lambda size: False,
        "sym_and": lambda *conditions: all(conditions),
        "sym_eq": operator.eq,
        "sym_or": lambda *conditions: any(conditions),
    },
}
"""What torch does call in them, as it is where nothing is compiled."""

MODELS = (
    "__init__.py",
    "auto",
    "deepseek_v3",
    "deepseek_v32",
    "encoder_decoder",
    "llama",
    "qwen2",
    "qwen3",
    "timm_backbone",
)
"""Those of transformers that are to be had. On its import it reads the files of all that it finds, twice."""


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
    vars(os)["scandir"] = _without_models(os.scandir)
    for name, functions in NOT_HOLLOW.items():
        vars(import_module(name)).update(functions)


def _without_models(scandir: Callable[..., Any]) -> Callable[..., Any]:
    def scanned(path: Any = ".") -> Any:
        if not str(path).endswith(os.path.join("transformers", "models")):
            return scandir(path)
        with scandir(path) as entries:
            return nullcontext([entry for entry in entries if entry.name in MODELS])

    return scanned
