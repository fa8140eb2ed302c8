"""Optional files of data directories: written, read, joined, formatted; each damage is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from espnet_moe.data.combining import combine_datadirs
from espnet_moe.data.datadir import DataDirError, load_datadir, validate_datadir, write_datadir
from espnet_moe.data.extras import EXTRA_FILES, Extras, Segment, Word
from espnet_moe.data.formatting import FormatOptions, format_datadir
from espnet_moe.data.utterance import Utterance

SECONDS = {"a-1": 1.0, "a-2": 2.0, "b-1": 1.5}
FULL = Extras(
    alternatives={"a-1": ("uno tre", "due uno"), "b-1": ("z",)},
    timings={"a-1": (Word(0.1, 0.25, "uno"), Word(0.35, 0.5, "due"))},
    phones={"a-1": (Word(0.1, 0.05, "u"), Word(0.15, 0.1, "nː"), Word(0.4, 0.2, "d"))},
    segments={"a-2": (Segment(0.0, 0.5, "it"), Segment(0.5, 2.0, "hi"))},
    experts={"a-1": "it:1", "a-2": "it:0.6 hi:0.4", "b-1": "hi:1"},
    weights={"a-1": 1.0, "a-2": 0.25, "b-1": 0.5},
)


@pytest.fixture
def make(tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]):
    """Write a formatted set of tones with extras."""

    def build(name: str, ids: list[str], extras: Extras | None = None) -> Path:
        utterances = [
            Utterance(
                utt_id=key,
                audio=str(write_audio(tmp_path / f"audio/{key}.wav", tone(SECONDS[key]), 16000)),
                text="uno due",
                speaker=key[0],
                language="it",
                split="train",
                duration=SECONDS[key],
            )
            for key in ids
        ]
        samples = {key: round(SECONDS[key] * 16000) for key in ids}
        write_datadir(tmp_path / name, utterances, num_samples=samples, extras=extras)
        return tmp_path / name

    return build


def test_what_is_written_is_read_again_and_valid(make) -> None:
    path = make("train_it", list(SECONDS), FULL)
    data = load_datadir(path)
    assert {name: getattr(data, name) for name in vars(FULL)} == vars(FULL)
    assert (path / "text.alt").read_text() == "a-1 uno tre\na-1 due uno\nb-1 z\n"
    assert (path / "words.ctm").read_text().splitlines()[1] == "a-1 1 0.350 0.500 due"
    assert (path / "utt2segments").read_text() == "a-2 0.000:0.500:it 0.500:2.000:hi\n"
    validate_datadir(path)


def test_a_subset_takes_its_own_along_and_an_empty_set_leaves_no_file(make) -> None:
    data = load_datadir(make("train_it", list(SECONDS), FULL))
    part = load_datadir(make("train_part", ["a-2"], data))
    assert dict(part.weights) == {"a-2": 0.25} and not part.timings and part.segments
    path = make("train_it", list(SECONDS))
    assert not [name for name in EXTRA_FILES if (path / name).exists()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.alt", "a-1 x\nzz-1 y\n", "text.alt:2: zz-1 is not in wav.scp"),
        ("text.alt", "a-1\n", "text.alt:1: a-1 has no value"),
        ("words.ctm", "a-1 1 0.1 x uno\n", "words.ctm:1: a-1: 'x' is not a number from 0 on"),
        ("words.ctm", "a-1 1 -0.1 0.2 uno\n", "words.ctm:1: a-1: '-0.1' is not a number"),
        ("words.ctm", "a-1 0.1 0.2\n", "words.ctm:1: a-1: '0.1 0.2' is not '1 start duration"),
        ("words.ctm", "a-1 1 0.5 0.1 uno\na-1 1 0.1 0.1 due\n", "words of a-1 are not its text"),
        ("words.ctm", "zz-1 1 0.5 0.1 uno\n", "words.ctm:1: zz-1 is not in wav.scp"),
        ("words.ctm", "a-1 1 0.5 0.1 uno\n", "words.ctm: the words of a-1 are not its text"),
        ("words.ctm", "a-1 1 0.5 0.1 uno\na-1 1 0.9 0.2 due\n", "words.ctm: a-1 ends after its"),
        ("phones.ctm", "a-1 1 0.9 0.2 u\n", "phones.ctm: a-1 ends after its audio (1.000 s)"),
        ("utt2segments", "a-1 0:1\n", "utt2segments:1: a-1: '0:1' is not start:end:language"),
        ("utt2segments", "a-1 1:0:it\n", "utt2segments:1: a-1: '1:0:it' ends before it starts"),
        ("utt2segments", "a-1 0:0.4:it 0.5:1:hi\n", "segments of a-1 leave gaps or overlap"),
        ("utt2segments", "a-1 0:0.4:it\n", "utt2segments: a-1 does not end with its audio"),
        ("utt2segments", "a-1 0:1:xx\n", "utt2segments: unknown language 'xx'"),
        ("utt2weight", "a-1 1\na-2 nan\nb-1 1\n", "utt2weight:2: a-2: 'nan' is not a number"),
        ("utt2weight", "a-1 1\n", "utt2weight lacks a-2, which wav.scp has"),
        ("utt2experts", "a-1 x:1\na-1 x:1\n", "utt2experts:2: a-1 is there more than once"),
    ],
)  # fmt: skip
def test_each_damage_is_named(make, name: str, content: str, message: str) -> None:
    path = make("train_it", list(SECONDS))
    (path / name).write_text(content)
    with pytest.raises(DataDirError) as caught:
        validate_datadir(path)
    assert message in str(caught.value)


def test_ctm_files_of_other_tools_are_read(make) -> None:
    path = make("train_it", list(SECONDS))
    (path / "words.ctm").write_text(";; by hand\na-1 A 0.5 0.1 due 0.9\na-1 A 0.1 0.2 uno 1\n")
    phones = ";; by an aligner\nb-1 1 0 0.1 p\nzz-1 1 0 9 x\na-1 1 0.5 0.1 u\na-1 1 0.1 0.1 n\n"
    (path / "phones.ctm").write_text(phones)
    validate_datadir(path)
    data = load_datadir(path)
    assert data.timings == {"a-1": (Word(0.1, 0.2, "uno"), Word(0.5, 0.1, "due"))}
    assert data.phones == {
        "a-1": (Word(0.1, 0.1, "n"), Word(0.5, 0.1, "u")),
        "b-1": (Word(0.0, 0.1, "p"),),
    }


def test_what_would_not_be_read_is_not_written(make, tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="line break"):
        make("x", ["a-1"], Extras(alternatives={"a-1": ("uno\ndue",)}))
    with pytest.raises(DataDirError, match="'-1.000' is not a number"):
        make("x", ["a-1"], Extras(timings={"a-1": (Word(-1, 1, "uno"),)}))
    with pytest.raises(DataDirError, match="'sud est' of a-1 is empty or holds white space"):
        make("x", ["a-1"], Extras(timings={"a-1": (Word(0, 1, "sud est"),)}))
    with pytest.raises(DataDirError, match="utt2weight lacks a-2"):
        make("x", ["a-1", "a-2"], Extras(weights={"a-1": 1.0}))
    assert not list((tmp_path / "x").glob("*"))


def test_combining_joins_what_only_some_have(make, tmp_path: Path) -> None:
    first = make("one", ["a-1"], Extras(alternatives={"a-1": ("x",)}, timings=FULL.timings))
    second = make("two", ["b-1"], Extras(weights={"b-1": 0.5}, alternatives={"b-1": ("y", "z")}))
    combine_datadirs([first, second], tmp_path / "both")
    data = load_datadir(tmp_path / "both")
    assert data.alternatives == {"a-1": ("x",), "b-1": ("y", "z")}
    assert data.timings == FULL.timings and data.weights == {"a-1": 1.0, "b-1": 0.5}
    third = make("three", ["a-2"], Extras(experts={"a-2": "hi:1"}))
    with pytest.raises(DataDirError, match="some sets have utt2experts and others have none"):
        combine_datadirs([first, third], tmp_path / "all")


def test_formatting_shifts_times_by_what_is_cut_and_normalises(
    tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    # Half a second of silence, a second of sound, silence; 0.1 s is left at either end.
    silence = np.zeros((8000, 1), np.float32)
    audio = str(
        write_audio(tmp_path / "a.wav", np.concatenate([silence, tone(1.0), silence]), 16000)
    )
    utterances = [
        Utterance("a-1", audio, "«Ciao», Mondo!", "a", "it", "train"),
        Utterance("a-2", audio, "sud-est", "a", "it", "train"),
        Utterance("a-3", audio, "ciao", "a", "it", "train"),
    ]
    words = (Word(0.3, 0.5, "«Ciao»,"), Word(0.8, 0.05, "—"), Word(0.9, 5.0, "Mondo!"))
    extras = Extras(
        alternatives={"a-1": ("Ciao mondo", "Salve, mondo", "?!"), "a-3": ("!",)},
        timings={"a-1": words, "a-2": (Word(0.6, 0.4, "sud-est"),)},
        phones={
            "a-1": (Word(0.1, 0.2, "x"), Word(0.3, 0.5, "tʃ"), Word(1.2, 5.0, "o")),
            "a-3": (Word(0.0, 0.1, "x"),),  # all of it is cut
        },
        segments={"a-3": (Segment(0, 1.0, "it"), Segment(1.0, 2.0, "hi"))},
        weights=dict.fromkeys(("a-1", "a-2", "a-3"), 0.5),
    )
    write_datadir(tmp_path / "in", utterances, extras=extras)
    for _ in range(2):  # the second time the audio is finished: what was cut is remembered
        summary = format_datadir(tmp_path / "in", tmp_path / "out", FormatOptions())
        data = load_datadir(tmp_path / "out")
        length = data.num_samples["a-1"] / 16000
        first, last = data.timings["a-1"]
        assert (first.word, last.word) == ("ciao", "mondo")
        assert first.start == 0 and first.end == pytest.approx(0.4, abs=0.011)
        assert last.start == pytest.approx(0.5, abs=0.011)
        assert last.end == pytest.approx(length, abs=0.002)
        begun, ended = data.phones["a-1"]
        assert (begun.word, begun.start, ended.word) == ("tʃ", 0, "o")
        assert begun.end == pytest.approx(0.4, abs=0.011)
        assert ended.end == pytest.approx(length, abs=0.002) and "a-3" not in data.phones
        # "sud est" is two words, of which the file gives one time.
        assert "a-2" not in data.timings
        assert data.alternatives == {"a-1": ("salve mondo",)}
        one, two = data.segments["a-3"]
        assert one.start == 0 and one.end == pytest.approx(0.6, abs=0.011) == two.start
        assert two.end == pytest.approx(length, abs=0.001)
        assert data.weights == extras.weights
        validate_datadir(tmp_path / "out")
    assert summary.formatted == 0


def test_audio_of_before_word_times_is_done_again(
    tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    audio = str(write_audio(tmp_path / "a.wav", tone(1.0), 16000))
    utterances = [Utterance("a-1", audio, "uno", "a", "it", "train")]
    write_datadir(tmp_path / "in", utterances)
    format_datadir(tmp_path / "in", tmp_path / "out")
    journal = tmp_path / "out/data/.journal/finished.jsonl"
    journal.write_text(journal.read_text().replace(', "cut": 0', ""))
    assert format_datadir(tmp_path / "in", tmp_path / "out").formatted == 0
    journal.write_text(journal.read_text().replace(', "cut": null', ""))
    extras = Extras(timings={"a-1": (Word(0.1, 0.5, "uno"),)})
    write_datadir(tmp_path / "in", utterances, extras=extras)
    assert format_datadir(tmp_path / "in", tmp_path / "out").formatted == 1
    assert load_datadir(tmp_path / "out").timings == extras.timings
