"""Family trees: which experts are relatives.

```yaml
Indo-Aryan: [hi, pa]
Romance: [it]
Dravidian: [te]
```
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from espnet_moe.errors import UserError


def load_families(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read a family tree.

    Args:
        path: YAML file: family → list of members.

    Returns:
        Members by family, in the file's order.

    Raises:
        UserError: For a file that cannot be read, an empty family, a member that is no name, or one
            of two families; all named at once.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"family tree {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"family tree {path} is no YAML: {error}") from error
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"family tree {path}: write a family a line, e.g. 'Indo-Aryan: [hi, pa]'")
    if problems := _problems(tree):
        raise UserError(f"family tree {path}: {'; '.join(problems)}")
    return {str(family): tuple(members) for family, members in tree.items()}


def _problems(tree: Mapping[object, object]) -> list[str]:
    """What is wrong with a tree as it was read."""
    problems: list[str] = []
    home: dict[str, object] = {}
    for family, members in tree.items():
        if not isinstance(members, list) or not members:
            problems.append(f"{family} has no list of members")
            continue
        for member in members:
            if not isinstance(member, str) or not member.strip():
                # YAML reads the language code no as a truth value.
                problems.append(f"{family} holds {member!r}, which is no name: quote it")
            elif member in home:
                problems.append(f"{member} is in both {home[member]} and {family}")
            else:
                home[member] = family
    return problems


def is_of_experts(
    tree: Mapping[str, Sequence[str]], experts: Sequence[str], languages: Sequence[str]
) -> bool:
    """Whether a tree is of the experts; where they are clusters it may be of the languages instead.

    Raises:
        UserError: Where it lacks some of both.
    """
    held = {member for members in tree.values() for member in members}
    if held.issuperset(experts):
        return True
    family_of(tree, experts if set(experts) == set(languages) else languages)
    return False


def family_of(tree: Mapping[str, Sequence[str]], experts: Sequence[str]) -> list[int]:
    """Number of the family that each expert is in; members without an expert do not matter.

    Raises:
        UserError: Where experts are missing from the tree.
    """
    home = {m: i for i, members in enumerate(tree.values()) for m in members}
    if missing := [e for e in experts if e not in home]:
        raise UserError(
            f"the family tree lacks {', '.join(missing)}; it has {', '.join(home)}: "
            "give each a family"
        )
    return [home[e] for e in experts]
