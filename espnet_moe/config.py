"""Options: frozen dataclasses built from configuration mappings; an unknown key is an error."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from espnet_moe.errors import UserError

Options = TypeVar("Options")


class ConfigError(UserError):
    """A configuration that cannot be used."""


def read_config(path: str | Path | None) -> dict[str, Any]:
    """Read what ``--config`` names: options and their values; none without it.

    Raises:
        ConfigError: When it is missing, no YAML, or something else than a mapping.
    """
    import yaml  # not needed by the command lines that only build options

    if path is None:
        return {}
    if not Path(path).is_file():
        raise ConfigError(f"--config {path} does not exist")
    try:
        conf = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(conf, dict):
        raise ConfigError(f"--config {path} is no mapping of options to values")
    return conf


def build_options(cls: type[Options], conf: Mapping[str, Any] | None, name: str) -> Options:
    """Make a dataclass of options from a mapping.

    Args:
        cls: The dataclass.
        conf: Keys and values, as read from YAML or the command line.
        name: What the message calls the mapping, e.g. ``expert_conf``.

    Raises:
        ConfigError: For unknown or missing keys and values of another type, all named at once with
            what is legal.
    """
    conf = dict(conf or {})
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    problems = []
    if unknown := sorted(conf.keys() - fields.keys()):
        problems.append(f"unknown key(s) {', '.join(unknown)}")
    problems += [p for k, v in conf.items() if k in fields and (p := _type_problem(cls, k, v))]
    needed = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := sorted(set(needed) - conf.keys()):
        problems.append(f"missing key(s) {', '.join(missing)}")
    if problems:
        raise ConfigError(f"{name}: {'; '.join(problems)}; legal keys: {', '.join(fields)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in conf.items()}
    return cls(**values)


def _type_problem(cls: type[Any], key: str, value: Any) -> str | None:
    """What is wrong with the type of a value; YAML reads ``1e-3`` as a word, for one."""
    kind = typing.get_type_hints(cls)[key]
    if typing.get_origin(kind) is tuple:
        return None if isinstance(value, list | tuple) else f"{key} is a list, not {value!r}"
    if kind not in (int, float, str, bool):
        return None
    legal = (int, float) if kind is float else kind
    if isinstance(value, legal) and (kind is bool or not isinstance(value, bool)):
        return None
    return f"{key} is of the type {kind.__name__}, not {value!r}"
