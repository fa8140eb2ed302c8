"""What an utterance's ``audio`` names: a file, a part of one, or a row of a parquet file.

    path                        the whole file
    path#t=12.34,56.78          from one time to another, seconds
                                (W3C media fragment, https://www.w3.org/TR/media-frags/#naming-time)
    path.parquet#row=123        the audio file that the row holds, from 0

A path in which ``#`` is followed by anything else is the path of a file.
"""

import re
from dataclasses import dataclass

from espnet_moe.data.utterance import Seconds

_NUMBER = r"\d+(?:\.\d+)?"
_PART = re.compile(rf"(?P<path>.+)#t=(?P<start>{_NUMBER}),(?P<end>{_NUMBER})", re.DOTALL)
_ROW = re.compile(r"(?P<path>.+\.parquet)#row=(?P<row>\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Where audio is.

    Attributes:
        path: The file.
        start: Where the part begins, seconds from the beginning; ``None`` for a whole file.
        end: Where it ends, likewise.
        row: Row of a parquet file, from 0; ``None`` for other files.
    """

    path: str
    start: Seconds | None = None
    end: Seconds | None = None
    row: int | None = None

    def __str__(self) -> str:
        if self.row is not None:
            return f"{self.path}#row={self.row}"
        if self.start is not None and self.end is not None:
            return f"{self.path}#t={_written(self.start)},{_written(self.end)}"
        return self.path

    @property
    def whole(self) -> bool:
        """Whether it is a file by itself."""
        return self.start is None and self.row is None

    @property
    def order(self) -> tuple[str, int, Seconds]:
        """What to sort by, so that what lies together is read together."""
        return self.path, self.row or 0, self.start or 0.0


def parse_source(audio: str) -> AudioSource:
    """Read what ``Utterance.audio`` says.

    Examples:
        >>> parse_source("a.wav#t=1,2.5")
        AudioSource(path='a.wav', start=1.0, end=2.5, row=None)
        >>> parse_source("take #1.wav")
        AudioSource(path='take #1.wav', start=None, end=None, row=None)
    """
    if "#" in audio:
        if part := _PART.fullmatch(audio):
            return AudioSource(part["path"], float(part["start"]), float(part["end"]))
        if row := _ROW.fullmatch(audio):
            return AudioSource(row["path"], row=int(row["row"]))
    return AudioSource(audio)


def _written(time: Seconds) -> str:
    """A microsecond is well below a sample, so that the sample meant is the one that is read."""
    return f"{time:.6f}".rstrip("0").rstrip(".")


def file_of(audio: str) -> str:
    """Return the path of the file that audio is in."""
    return parse_source(audio).path
