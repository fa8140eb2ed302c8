"""Options: frozen dataclasses built from configuration mappings; an unknown key is an error."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from espnet_moe.errors import UserError

Options = TypeVar("Options")


class ConfigError(UserError):
    """A configuration that cannot be used."""


def build_options(cls: type[Options], conf: Mapping[str, Any] | None, name: str) -> Options:
    """Make a dataclass of options from a mapping.

    Args:
        cls: The dataclass.
        conf: Keys and values, as read from YAML or the command line.
        name: What the message calls the mapping, e.g. ``expert_conf``.

    Raises:
        ConfigError: For unknown or missing keys, all named at once with what is legal.
    """
    conf = dict(conf or {})
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    problems = []
    if unknown := sorted(conf.keys() - fields.keys()):
        problems.append(f"unknown key(s) {', '.join(unknown)}")
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
