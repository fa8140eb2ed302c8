"""What every corpus reader shares: its error, reading of transcript files, choice of splits."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from espnet_moe.data.files import listed
from espnet_moe.data.utterance import Gender
from espnet_moe.errors import UserError

USUAL_SPLITS = ("train", "dev", "test")

_GENDERS: Mapping[str, Gender] = {"f": "f", "female": "f", "m": "m", "male": "m"}

# All white space but the no-break space, which is the corpus's own text until normalisation.
_WHITE_SPACE = re.compile(r"[^\S\u00a0\u202f]+")


class CorpusError(UserError):
    """A corpus that is not there, or not laid out as its publisher does."""


def drawing(docstring: str | None) -> str:
    """Return the indented part of a reader's docstring: the folder it expects."""
    return "\n".join(line for line in (docstring or "").splitlines() if line.startswith("    "))


def other_layout(problem: str, layout: str) -> CorpusError:
    """Return the error for a folder of another layout, with a drawing of the expected one."""
    return CorpusError(f"{problem}; expected is:\n{layout}")


def check_root(root: str | Path, layout: str) -> Path:
    """Return ``root`` as an absolute path.

    Raises:
        CorpusError: When it is no folder.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise other_layout(f"corpus folder {root} does not exist", layout)
    return root


def check_language(language: str, corpus: str, languages: Mapping[str, str]) -> str:
    """Return the corpus's own name for an ISO 639-1 code.

    Raises:
        CorpusError: When the corpus has no such language; the message lists those it has.
    """
    if language not in languages:
        raise CorpusError(f"no {corpus} language '{language}'; legal are {', '.join(languages)}")
    return languages[language]


def check_splits(splits: Iterable[str], legal: Sequence[str], corpus: str) -> list[str]:
    """Return the wanted splits in their usual order.

    Raises:
        CorpusError: When one does not exist, or none is wanted.
    """
    wanted = set(splits)
    if unknown := sorted(wanted - set(legal)):
        raise CorpusError(
            f"{corpus} has no split {', '.join(map(repr, unknown))}; legal are {', '.join(legal)}"
        )
    if not wanted:
        raise CorpusError(f"no split of {corpus} is asked for; legal are {', '.join(legal)}")
    return [split for split in legal if split in wanted]


def read_all_lines(path: Path, layout: str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line; the last one may end with the file.

    Raises:
        CorpusError: When the file is missing or not UTF-8.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise other_layout(f"{path} does not exist", layout) from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: {error}; unpack the corpus again") from None
    if content:
        for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
            yield number, line.removesuffix("\r")


def read_lines(path: Path, layout: str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank; see above."""
    return ((number, line) for number, line in read_all_lines(path, layout) if line.strip())


def read_pairs(path: Path, layout: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and transcript of ``key<TAB>transcript`` lines, without header.

    Only the first tab separates.

    Raises:
        CorpusError: When a line has no tab; all such lines are named.
    """
    wrong = []
    for number, line in read_lines(path, layout):
        key, tab, text = line.partition("\t")
        if tab:
            yield number, key.strip(), transcript(text)
        else:
            wrong.append((number, 1))
    raise_wrong_fields(path, wrong, 2)


def raise_wrong_fields(path: Path, wrong: Sequence[tuple[int, int]], expected: int) -> None:
    """Raise for rows with too few or too many fields, if there are any.

    Args:
        path: The file.
        wrong: Line number and number of fields of each such row.
        expected: The number of fields a row must have.

    Raises:
        CorpusError: Naming every such row, up to a limit.
    """
    if wrong:
        rows = listed((f"{path}:{line}: {found} of {expected} fields" for line, found in wrong))
        raise CorpusError(
            f"{len(wrong)} rows of {path.name} do not have {expected} tab-separated fields; "
            f"unpack the corpus again, or mend the rows:\n  {rows}"
        )


def gender_of(word: object) -> Gender | None:
    """Return the gender that ``Male``, ``f`` and their like say, ``None`` for any other word."""
    return _GENDERS.get(str(word).strip().lower())


def name_of(value: object) -> str:
    """Return what a file calls somebody, number or text; empty where it says nothing."""
    return "" if value is None else str(value).strip()


def counted(lost: Mapping[str, int]) -> str:
    """Tell how many utterances were left out, by the reason."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items())) or "none"


def transcript(text: str) -> str:
    """Return a transcript on one line, without white space at its ends."""
    return _WHITE_SPACE.sub(" ", text).strip(" ")
