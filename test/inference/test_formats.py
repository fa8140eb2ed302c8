"""Results as text."""

import json
import re
from itertools import pairwise

import pytest

from espnet_moe.inference.formats import FORMATS, cues, words
from espnet_moe.inference.results import Result, Segment, Timings

SEGMENTS = (
    Segment(0.0, 2.5, "ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "pa"),
    Segment(2.5, 4.0, "", "hi"),
    Segment(4.0, 31.4, "è <b>vero</b> & bello " + "molto " * 30 + "fine", "it"),
    Segment(3599.5, 3661.25, "ciao", "it"),
)


@pytest.fixture
def result():
    text = " ".join(s.text for s in SEGMENTS if s.text)
    gates = {"hi": 0.25, "it": 0.75}
    return Result(text, (1, 2), "it", gates, -0.5, "eos", SEGMENTS, Timings(3661.25, 1.0, 0.5, 0.0))


def test_words_fill_their_stretch():
    for segment in SEGMENTS:
        found = list(words(segment))
        assert " ".join(w for _, _, w in found) == " ".join(segment.text.split())
        if found:
            assert found[0][0] == segment.start and found[-1][1] == pytest.approx(segment.end)
        assert all(a[1] == b[0] and a[0] < a[1] for a, b in pairwise(found))


def test_cues_are_short_and_in_turn(result):
    found = list(cues(result))
    assert len(found) > 4 and all(len(line) <= 42 for _, _, t in found for line in t.split("\n"))
    assert all(t.count("\n") <= 1 for _, _, t in found)
    assert " ".join(" ".join(t.split()) for _, _, t in found) == " ".join(result.text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(found))


def test_subtitles(result):
    srt, vtt = FORMATS["srt"]("a", result), FORMATS["vtt"]("a", result)
    clock = r"\d\d:\d\d:\d\d,\d{3}"
    blocks = srt.strip().split("\n\n")
    for i, block in enumerate(blocks, 1):
        assert re.fullmatch(rf"{i}\n{clock} --> {clock}\n.+(\n.+)?", block)
    assert blocks[-1].endswith("00:59:59,500 --> 01:01:01,250\nciao")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nਸਤ ਸ੍ਰੀ ਅਕਾਲ\n\n")
    assert "è &lt;b&gt;vero&lt;/b&gt; &amp; bello" in vtt and "<b>" not in vtt


def test_scoring_formats(result):
    stm, ctm = FORMATS["stm"]("a b", result), FORMATS["ctm"]("a b", result)
    rows = [line.split(" ", 6) for line in stm.splitlines()]
    assert [row[:6] for row in rows] == [
        ["a_b", "1", "a_b", "0.00", "2.50", "<pa>"],
        ["a_b", "1", "a_b", "4.00", "31.40", "<it>"],
        ["a_b", "1", "a_b", "3599.50", "3661.25", "<it>"],
    ]
    lines = [line.split() for line in ctm.splitlines()]
    assert all(len(line) == 5 and float(line[3]) > 0 for line in lines)
    assert [line[4] for line in lines] == result.text.split()


def test_plain_and_json(result):
    assert FORMATS["txt"]("a", result) == result.text + "\n"
    told = json.loads(FORMATS["json"]("dir/a.wav", result))
    assert told["file"] == "dir/a.wav" and told["gates"] == {"hi": 0.25, "it": 0.75}
    assert told["segments"][0] == {"start": 0, "end": 2.5, "text": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "language": "pa"}
    assert "ਸਤ" in FORMATS["json"]("a", result) and FORMATS["json"]("a", result).count("\n") == 1


def test_silence(result):
    silent = Result("", (), "hi", {}, 0.0, "eos", (SEGMENTS[1],), Timings(1.5, 1.0, 0.5, 0.0))
    assert [write("a", silent) for name, write in FORMATS.items() if name not in ("json",)] == [
        "\n",
        "",
        "WEBVTT\n\n",
        "",
        "",
    ]
