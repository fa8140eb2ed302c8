"""Praat's TextGrid files, in both text forms.

Praat reads a text file as free-standing numbers, texts in double quotes and flags such as
``<exists>``, and leaves out everything else (Praat manual, "TextGrid file formats" and "Reading and
writing text files"). So does this reader: that is why the long form, which names every value, and
the short form, which does not, are the same to it.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from espnet_moe.data.extras import Word
from espnet_moe.errors import UserError

_TOKEN = re.compile(
    r'"(?P<text>(?:[^"]|"")*)"|(?P<comment>!.*)|(?<!\S)(?P<number>[-+]?\d\S*)(?!\S)'
    r"|(?P<flag><\w+>)|[^\s\"!]+"
)
_TEXT_FILES = ("ooTextFile", "ooTextFile short")  # the second as P2FA and older scripts write it
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF16_LE: "utf-16",
}


def read_textgrid(path: Path) -> dict[str, tuple[Word, ...]]:
    """Read the tiers of intervals; tiers of points have no stretches and are left out.

    Args:
        path: Long or short text form, in UTF-8, in UTF-16 with a byte order mark, or, as older
            files of Praat, in Latin-1.

    Returns:
        By tier the intervals that have a label, in their order: seconds and labels.

    Raises:
        UserError: For a file that cannot be read, is no such file (Praat's binary form is none), or
            ends too early; a tier's name that is there twice; an interval that ends before it
            starts.
    """
    try:
        tokens = _tokens(_decoded(path.read_bytes()))
        if next(tokens) not in _TEXT_FILES or next(tokens) != "TextGrid":
            raise ValueError("it does not begin as a TextGrid in Praat's text form does")
        _seconds(tokens), _seconds(tokens)
        if next(tokens) != "<exists>":
            return {}
        found: dict[str, tuple[Word, ...]] = {}
        for _ in range(_count(tokens)):
            kind, name = next(tokens), next(tokens)
            _seconds(tokens), _seconds(tokens)
            if kind not in ("IntervalTier", "TextTier"):
                raise ValueError(f"it has '{kind}' in place of a tier")
            if kind == "TextTier":
                for _ in range(_count(tokens)):
                    _seconds(tokens), next(tokens)
                continue
            if name in found:
                raise ValueError(f"it has several tiers called '{name}'")
            found[name] = _intervals(tokens)
        return found
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except StopIteration:
        raise UserError(f"TextGrid {path}: it ends too early") from None
    except ValueError as error:
        raise UserError(f"TextGrid {path}: {error}") from None


def _decoded(content: bytes) -> str:
    for mark, encoding in _ENCODINGS.items():
        if content.startswith(mark):
            return content.decode(encoding)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _tokens(text: str) -> Iterator[str]:
    """Numbers, texts without their quotes, and flags."""
    for match in _TOKEN.finditer(text):
        if match["text"] is not None:
            yield match["text"].replace('""', '"')
        elif value := match["number"] or match["flag"]:
            yield value


def _intervals(tokens: Iterator[str]) -> tuple[Word, ...]:
    found = []
    for _ in range(_count(tokens)):
        start, end, label = _seconds(tokens), _seconds(tokens), next(tokens).strip()
        if end < start:
            raise ValueError(f"'{label}' ends at {end} s, before it starts at {start} s")
        if label and end > start:
            found.append(Word(start, end - start, label))
    return tuple(found)


def _seconds(tokens: Iterator[str]) -> float:
    return float(next(tokens))


def _count(tokens: Iterator[str]) -> int:
    return int(next(tokens))
