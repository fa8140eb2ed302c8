"""Systems by their names: what they are, and which experts they share with others."""

from typing import Any, NamedTuple

from espnet_moe.scoring.folders import ALL, MIXED

Row = dict[str, Any]

BASELINE, ORACLE = "baseline", "oracle"
PARTS = "_parts"  # ending of the set that holds a code-switched set's parts


class Group(NamedTuple):
    """Systems that can be compared: of the same experts, decoded with the same settings."""

    experts: str  # "" for the usual ones; else what follows the system's name, e.g. "kmeans"
    inference_tag: str


def kind_of(system: str) -> str:
    """Return what a system is: ``hard`` of ``hard_kmeans``."""
    return system.partition("_")[0]


def group_of(row: Row) -> Group:
    """Return the group of a result row."""
    return Group(row["system"].partition("_")[2], row["inference_tag"])


def sibling(row: Row, kind: str, baseline: str = BASELINE) -> str:
    """Name the system of a kind that a row is to be compared with; the baseline has no experts."""
    experts = group_of(row).experts
    return baseline if kind == BASELINE else f"{kind}_{experts}" if experts else kind


def is_plain(row: Row) -> bool:
    """Whether a row is of one language: neither pooled nor code-switched."""
    return row["language"] not in (ALL, MIXED)


def plain_columns(rows: list[Row]) -> list[tuple[str, str]]:
    """Return sets and languages of the rows of one language, in their order."""
    return list(dict.fromkeys((row["set"], row["language"]) for row in rows if is_plain(row)))
