"""Results as text: plain, JSON, subtitles, and the formats of NIST's scoring.

Only stretches have times that were measured. Where words or subtitles need their own, a stretch is
shared out by characters: an estimate, good for reading along, not for alignment.
"""

import html
import json
from collections.abc import Callable, Iterator

from espnet_moe.inference.results import Result, Segment

Word = tuple[float, float, str]  # start, end (seconds), word

_LINE = 42  # characters, of two lines: what subtitlers allow (BBC, Netflix style guides)


def words(segment: Segment) -> Iterator[Word]:
    """The words of a stretch with estimated times; together they fill it."""
    found = segment.text.split()
    total = sum(len(word) + 1 for word in found)
    seconds, at = segment.end - segment.start, 0
    for word in found:
        start = segment.start + seconds * at / total
        at += len(word) + 1
        yield start, segment.start + seconds * at / total, word


def cues(result: Result) -> Iterator[tuple[float, float, str]]:
    """Subtitles of at most two lines, none over two stretches."""
    for segment in result.segments:
        lines: list[list[Word]] = []
        for word in words(segment):
            if lines and len(" ".join([*(w for _, _, w in lines[-1]), word[2]])) <= _LINE:
                lines[-1].append(word)
            else:
                lines.append([word])
        for i in range(0, len(lines), 2):
            two = lines[i : i + 2]
            text = "\n".join(" ".join(word for _, _, word in line) for line in two)
            yield two[0][0][0], two[-1][-1][1], text


def _clock(seconds: float, point: str) -> str:
    total = round(1000 * seconds)
    minutes, rest = divmod(total, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def to_txt(name: str, result: Result) -> str:
    """The transcript in one line."""
    return f"{result.text}\n"


def to_json(name: str, result: Result) -> str:
    """All that is known, in one line."""
    return json.dumps({"file": name, **result.to_dict()}, ensure_ascii=False) + "\n"


def to_srt(name: str, result: Result) -> str:
    """SubRip subtitles."""
    return "".join(
        f"{i}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"
        for i, (start, end, text) in enumerate(cues(result), 1)
    )


def to_vtt(name: str, result: Result) -> str:
    """WebVTT subtitles (https://www.w3.org/TR/webvtt1)."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        for start, end, text in cues(result)
    )


def to_stm(name: str, result: Result) -> str:
    """NIST segment time marks: recording, channel, speaker, start, end, <language>, text."""
    recording = "_".join(name.split())
    return "".join(
        f"{recording} 1 {recording} {s.start:.2f} {s.end:.2f} <{s.language}> {s.text}\n"
        for s in result.segments
        if s.text
    )


def to_ctm(name: str, result: Result) -> str:
    """NIST time-marked words: recording, channel, start, duration, word."""
    recording = "_".join(name.split())
    return "".join(
        f"{recording} 1 {start:.2f} {end - start:.2f} {word}\n"
        for segment in result.segments
        for start, end, word in words(segment)
    )


#: By name: from a recording's name and result to text.
FORMATS: dict[str, Callable[[str, Result], str]] = {
    "txt": to_txt,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "stm": to_stm,
    "ctm": to_ctm,
}
