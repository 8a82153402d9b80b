"""Composing a RunConfig: Hydra merges the files of conf/ with overrides, pydantic judges the result.

Both libraries' errors leave here as a UserError of one line that names the key and the value. Another
Hydra application's state is put back as it was. Imports neither torch nor ray.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from engines.model.derived_profile import MEASURED, derive_profile
from engines.model.dimensions import DimensionsUnknown, read_dimensions
from engines.model.profile import ModelProfile
from rollout.config import RunConfig
from rollout.errors import UserError

CONF_DIR = Path(__file__).parent / "conf"


def _paced_bytes(kind: str, full_bytes: float, scale: float, otherwise: int) -> int:
    """`${paced_bytes:...}` in conf/: a buffer's size at full size, scaled where engines are paced."""
    if kind != "paced":
        return otherwise
    if not isinstance(scale, int | float) or not scale > 0:
        return int(full_bytes)  # what is wrong with the scale is said where it is judged
    return int(full_bytes / scale)


def _by_profile(name: str | None, special: dict[str, float], otherwise: float) -> float:
    """`${by_profile:...}` in conf/: a number that differs between models."""
    return special.get(name, otherwise) if name is not None else otherwise


def _hf_profile(model_path: str, field: str) -> object:
    """`${hf_profile:...}` in conf/: a field of the profile that a model's config.json gives."""
    return _derived_profile(model_path)[field]


@lru_cache(maxsize=4)
def _derived_profile(model_path: str) -> dict[str, Any]:
    folder, adapter = CONF_DIR / "model_profile", TypeAdapter(ModelProfile)
    measured = {
        name: adapter.validate_python(yaml.safe_load((folder / f"{name}.yaml").read_text()))
        for name in MEASURED.values()
    }
    file = Path(model_path)
    name = file.parent.name if file.suffix == ".json" else file.name
    return asdict(derive_profile(name, read_dimensions(file), measured, model_path))


def load_config(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of conf/ with Hydra `overrides`, or a UserError of one line."""
    for override in overrides:
        _refuse_hydra_settings(override)
    return _judge(_compose(list(overrides)))


def to_yaml(config: RunConfig) -> str:
    """The whole configuration, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _compose(overrides: list[str]) -> object:
    """Plain dicts, lists and scalars, resolved."""
    try:
        with warnings.catch_warnings(), _own_hydra():
            warnings.filterwarnings("error", message=".* is not available", category=UserWarning)
            OmegaConf.register_new_resolver("paced_bytes", _paced_bytes, replace=True)
            OmegaConf.register_new_resolver("by_profile", _by_profile, replace=True)
            OmegaConf.register_new_resolver("hf_profile", _hf_profile, replace=True)
            composed = compose("config", overrides=overrides)
            return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise UserError(_missing_option(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        unknown = _cause(error, DimensionsUnknown)
        if unknown is not None:
            raise UserError(f"model_profile=hf reads model.path: {unknown}") from error
        raise UserError(_hydra_line(error)) from error
    except UserWarning as error:
        raise UserError(f"hydra.searchpath: {_one_line(str(error))}") from error
    except yaml.YAMLError as error:
        raise UserError(f"a configuration file is not YAML: {_one_line(str(error))}") from error
    except (AttributeError, TypeError, ValueError) as error:
        # Hydra does not check that the choice of a group is a name, and trips over it later.
        raise UserError(_nameless_choice(overrides) or f"bad override among {overrides}: {error}") from error


def _refuse_hydra_settings(override: str) -> None:
    """Hydra only composes here; a setting of its jobs, folders or logs would be ignored silently."""
    key = override.lstrip("+~").partition("=")[0]
    if key.startswith("hydra") and key != "hydra.searchpath":
        raise UserError(f"{key} has no effect here; of Hydra's own keys only hydra.searchpath has")


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra set up on conf/, whoever else in this process has set it up; their state comes back."""
    others = Singleton.get_state() if GlobalHydra.instance().is_initialized() else None
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR.resolve()), job_name="rollout", version_base="1.3"):
            yield
    finally:
        if others is not None:
            Singleton.set_state(others)


def _judge(composed: object) -> RunConfig:
    adapter = TypeAdapter(RunConfig)
    try:
        # JSON is where pydantic's strict mode takes a list for a tuple and yet no "3" for a 3.
        return adapter.validate_json(json.dumps(composed), strict=True)
    except ValidationError as error:
        raise UserError(_pydantic_line(error)) from error


def _pydantic_line(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return _field_line(errors[0]) + more


def _field_line(error: ErrorDetails) -> str:
    """One field's error: its key, its value, and what would be right."""
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "value_error":  # a dataclass's own check: it names its field and the value
            return message if not key or message.startswith(key) else f"{key}.{message}"
        case "unexpected_keyword_argument":
            return f"unknown key {key}{_suggestion(key)}"
        case "missing":
            return f"{key} is missing; give {key}=<value>"
    message = message.removeprefix("Input should be ")
    return f"{key} must be {message}, got {_shown(error['input'])}"


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _missing_option(error: MissingConfigException) -> str:
    """A group has no such option; Hydra knows which there are."""
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    if not group or not error.options:
        return _one_line(str(error))
    return f"{group}={option}: no such choice; {group} is one of {', '.join(error.options)}"


def _nameless_choice(overrides: list[str]) -> str | None:
    """The line for an override that gives a group no name, such as `model=null`."""
    for override in overrides:
        group, _, choice = override.partition("=")
        if choice in ("null", "") and (CONF_DIR / group).is_dir():
            options = sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml"))
            return f"{override}: no such choice; {group} is one of {', '.join(options)}"
    return None


def _cause(error: BaseException, kind: type[Exception]) -> BaseException | None:
    """What of this kind an error was raised from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__
    return cause


def _hydra_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, HydraException) else error
    key = getattr(cause, "full_key", None)
    if key and "is not in struct" in str(cause):
        return f"unknown key {key}{_suggestion(key)}"
    lines = str(error).splitlines()
    if isinstance(error, OverrideParseException):
        what = [line for line in lines if not line.startswith(("See ", "Error parsing"))]
        return f"cannot read the override {error.override!r}, want key=value: {'; '.join(what)}"
    if "multirun" in str(error):
        return f"{lines[0]}; one value a key: write a list as key=[a,b], a text as key='\"a,b\"'"
    return _one_line(str(error))


def _suggestion(key: str) -> str:
    """The key that was meant, or those that stand where `key` was looked for."""
    parent, _, name = key.rpartition(".")
    node = _compose([])
    for part in parent.split(".") if parent else ():
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return ""
    known = [str(each) for each in node if each != name]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {parent + '.' if parent else ''}{close[0]}?"
    return f"; {parent or 'the top level'} has {', '.join(known)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
