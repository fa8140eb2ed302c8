"""Options from mappings."""

from dataclasses import dataclass

import pytest

from espnet_moe.config import ConfigError, build_options


@dataclass(frozen=True)
class Options:
    """Something to configure."""

    path: str
    size: int = 3
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)
    loud: bool = False
    limit: int | None = None


def test_values_and_defaults():
    got = build_options(Options, {"path": "x", "names": ["b", "c"], "rate": 2, "limit": None}, "o")
    assert got == Options("x", 3, 2, ("b", "c"))
    assert build_options(Options, {"path": "x"}, "o") == Options("x")


def test_everything_wrong_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        build_options(Options, {"sise": 1, "colour": "red"}, "expert_conf")
    message = str(error.value)
    assert message.startswith("expert_conf: ")
    assert "unknown key(s) colour, sise" in message and "missing key(s) path" in message
    assert "legal keys: path, size, rate, names, loud, limit" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", "4"), ("size", 4.5), ("size", True), ("rate", "1e-3"), ("path", 5), ("loud", "no")],
)
def test_values_of_another_type(key, value):
    with pytest.raises(ConfigError, match=f"{key} is of the type .*{value!r}"):
        build_options(Options, {"path": "x", key: value}, "o")


def test_a_word_is_no_list():
    with pytest.raises(ConfigError, match="names is a list, not 'abc'"):
        build_options(Options, {"path": "x", "names": "abc"}, "o")


def test_no_mapping_means_no_keys():
    with pytest.raises(ConfigError, match=r"missing key\(s\) path"):
        build_options(Options, None, "o")
