"""Code-switched sets: what is joined, where the language changes, and who gets used how often."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_moe.bin import make_codeswitch as command
from espnet_moe.config import ConfigError
from espnet_moe.data.audio import load_audio
from espnet_moe.data.codeswitch import (
    CodeSwitchError,
    CodeSwitchOptions,
    Piece,
    Plan,
    Sizes,
    codeswitch_options,
    person,
    plan_codeswitch,
)
from espnet_moe.data.codeswitch_sets import make_codeswitch, render
from espnet_moe.data.datadir import DataDirError, load_datadir, validate_datadir, write_datadir
from espnet_moe.data.extras import Extras, Word
from espnet_moe.data.normalize import LanguageError
from espnet_moe.data.utterance import Utterance

HERTZ = {"hi": 300, "it": 1000, "te": 2400}  # each language is a tone of its own
WORD = 0.3  # seconds of each word
CONF = {"sizes": {"inter": 7, "intra": 6, "rapid": 5}, "seed": 3}
SETS = [f"test_cs_{kind}{end}" for kind in ("inter", "intra", "rapid") for end in ("", "_parts")]

MakeSet = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeSet:
    """Write a formatted set of a language: utterances of 3 to 6 words, 0.1 s of silence before."""
    root = tmp_path_factory.mktemp("sets")

    def build(
        name: str, language: str, count: int = 6, timed: bool = True, speakers: int = 3
    ) -> Path:
        draw = np.random.default_rng(count)
        utterances, timings, samples = [], {}, {}
        for number in range(count):
            words = [f"{language}{number}{letter}" for letter in "abcdef"[: 3 + number % 4]]
            speaker = f"x_{language}_{number % speakers}"
            key = f"{speaker}-{number}"
            length = round((0.1 + WORD * len(words)) * 16000)
            tone = np.sin(2 * np.pi * HERTZ.get(language, 99) * np.arange(length) / 16000)
            audio = root / name / f"{key}.flac"
            audio.parent.mkdir(exist_ok=True)
            soundfile.write(audio, tone * draw.uniform(0.05, 0.8), 16000)
            samples[key] = length
            timings[key] = tuple(Word(0.1 + WORD * i, WORD, word) for i, word in enumerate(words))
            utterances.append(
                Utterance(key, str(audio), " ".join(words), speaker, language, "test")
            )
        write_datadir(
            root / name,
            utterances,
            num_samples=samples,
            raw_text={utt.utt_id: f"{utt.text.title()}!" for utt in utterances},
            extras=Extras(timings=timings if timed else {}),
            corpora=[f"Corpus of {language}", "MLS"],
        )
        return root / name

    return build


@pytest.fixture(scope="module")
def sources(make: MakeSet) -> list[Path]:
    return [make(f"test_{language}", language) for language in HERTZ]


@pytest.fixture(scope="module")
def made(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make_codeswitch(sources, out, codeswitch_options(CONF))
    return out


def content(folder: Path) -> dict[str, bytes]:
    """What is in a folder, without the paths of the audio."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "wav.scp"
    }


def test_sets_are_valid_and_of_the_sizes_asked_for(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == sorted(SETS)
    for name in SETS:
        validate_datadir(made / name, check_audio=True)
        names = {f"Corpus of {language}" for language in HERTZ} | {"MLS"}
        assert load_datadir(made / name).corpora == tuple(sorted(names))
    for kind, size in CONF["sizes"].items():
        assert len(load_datadir(made / f"test_cs_{kind}").utterances) == size


@pytest.mark.parametrize("kind", ["inter", "intra", "rapid"])
def test_parts_make_the_whole(made: Path, kind: str) -> None:
    whole, parts = (load_datadir(made / f"test_cs_{kind}{end}") for end in ("", "_parts"))
    by_id = {utt.utt_id: utt for utt in parts.utterances}
    fewest, most = (4, 6) if kind == "rapid" else (2, 3)
    for utt in whole.utterances:
        own = [by_id.pop(f"{utt.utt_id}-p{n + 1}") for n in range(len(whole.segments[utt.utt_id]))]
        assert fewest <= len(own) <= most
        assert utt.text == " ".join(part.text for part in own)
        assert whole.raw_text[utt.utt_id] == " ".join(parts.raw_text[p.utt_id] for p in own)
        languages = [segment.language for segment in whole.segments[utt.utt_id]]
        assert languages == [part.language for part in own] and utt.language == languages[0]
        assert all(a != b for a, b in itertools.pairwise(languages))
        assert all(part.speaker == utt.speaker for part in own)
        if kind == "rapid":
            assert len(set(languages)) == 2 and all(part.duration < 1.05 for part in own)
        # The same samples: away from the overlaps, a part is found in the whole as it is.
        samples = load_audio(utt.audio)
        for part, segment in zip(own, whole.segments[utt.utt_id], strict=True):
            piece = load_audio(part.audio)[1600:-1600]
            start = round(segment.start * 16000)
            near = samples[start + 1600 - 450 : start + 1602 + len(piece)]
            if len(piece) > 320:
                windows = np.lib.stride_tricks.sliding_window_view(near, len(piece))
                assert np.abs(windows - piece).max(axis=1).min() < 2e-4
    assert not by_id


@pytest.mark.parametrize("kind", ["inter", "intra", "rapid"])
def test_the_language_changes_where_the_segments_say(made: Path, kind: str) -> None:
    # Each language is a tone: the loudest one 20 ms beside each change is the one stated.
    data = load_datadir(made / f"test_cs_{kind}")
    names = list(HERTZ)
    for utt in data.utterances:
        samples = load_audio(utt.audio)
        segments = data.segments[utt.utt_id]
        for a, b in itertools.pairwise(segments):
            for centre, language in ((a.end - 0.02, a.language), (b.start + 0.02, b.language)):
                at = round(centre * 16000)
                frame = samples[at - 240 : at + 240] * np.hanning(480)
                spectrum = np.abs(np.fft.rfft(frame, 16000))
                assert names[int(np.argmax([spectrum[HERTZ[name]] for name in names]))] == language
        words = data.timings[utt.utt_id]
        assert " ".join(word.word for word in words) == utt.text
        for word in words:  # each word lies in the segment of its language
            middle = word.start + word.duration / 2
            here = next(s for s in segments if s.start <= middle <= s.end)
            assert word.word.startswith(here.language)


def test_cuts_are_at_word_boundaries(made: Path) -> None:
    rows = [line.split("\t") for line in (made / "test_cs_intra/pieces.tsv").open()]
    for part, _, start, end, _ in rows:
        count = (float(end) - float(start)) / WORD
        assert 2 <= round(count) <= 4 and count == pytest.approx(round(count), abs=0.02), part
        assert (float(start) - 0.1) / WORD == pytest.approx(
            round((float(start) - 0.1) / WORD), abs=0.02
        )


def test_pieces_are_equally_loud_and_use_is_even(made: Path) -> None:
    for name in SETS[1::2]:
        for utt in load_datadir(made / name).utterances:
            rms = np.sqrt(np.mean(load_audio(utt.audio) ** 2))
            assert 20 * np.log10(rms) == pytest.approx(-26, abs=0.1)
    options = CodeSwitchOptions(sizes=Sizes(60, 0, 0))
    pool = [
        Utterance(f"{lang}_{n}-1", "x", "t", f"{lang}_{n}", lang, "test", duration=1.0 + n % 3)
        for lang, count in (("hi", 20), ("it", 10), ("te", 10))
        for n in range(count)
    ]
    used = Counter(p.source.utt_id for plan in plan_codeswitch("inter", pool, {}, options)
                   for p in plan.pieces)  # fmt: skip
    assert len(used) == len(pool) and max(used.values()) - min(used.values()) <= 1


def test_the_same_whatever_the_order_and_the_number_of_processes(
    sources: list[Path], made: Path, tmp_path: Path
) -> None:
    options = codeswitch_options(CONF)
    make_codeswitch(sources[::-1], tmp_path / "again", options, num_jobs=2)
    assert content(tmp_path / "again") == content(made)
    make_codeswitch(sources, tmp_path / "again", codeswitch_options({**CONF, "seed": 4}))
    assert content(tmp_path / "again") != content(made)
    assert len(list((tmp_path / "again/test_cs_inter/data").iterdir())) == 7


def test_audio_may_lie_elsewhere(sources: list[Path], made: Path, tmp_path: Path) -> None:
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump({**CONF, "sizes": {"inter": 2, "intra": 0, "rapid": 0}}))
    command.main(
        ["--data", *map(str, sources), "--config", str(conf), "--out", str(tmp_path / "raw"),
         "--audio_dir", str(tmp_path / "audio")]
    )  # fmt: skip
    (utt, _) = load_datadir(tmp_path / "raw/test_cs_inter").utterances
    assert utt.audio.startswith(f"{tmp_path}/audio/test_cs_inter/cs_")
    assert not (tmp_path / "raw/test_cs_inter/data").exists()
    assert not (tmp_path / "raw/test_cs_intra").exists()


@pytest.mark.parametrize("speakers", ["same", "different"])
def test_speakers_are_as_asked_for(sources: list[Path], tmp_path: Path, speakers: str) -> None:
    make_codeswitch(sources, tmp_path, codeswitch_options({**CONF, "speakers": speakers}))
    for kind in CONF["sizes"]:
        people: dict[str, list[str]] = {}
        for line in (tmp_path / f"test_cs_{kind}/pieces.tsv").open():
            part, source, *_, language = line.split()
            utt = Utterance(source, "", "", source.split("-")[0], language, "test")
            people.setdefault(part.rsplit("-", 1)[0], []).append(person(utt))
        for spoken in people.values():
            if speakers == "same":
                assert len(set(spoken)) == 1
            else:
                assert all(a != b for a, b in itertools.pairwise(spoken))


@pytest.mark.parametrize("gap", [0.0, 0.4])
def test_joining_by_hand(tmp_path: Path, gap: float) -> None:
    # Two noises: gains by hand, with the squares of the overlapping ones adding up to one.
    draw = np.random.default_rng(0)
    sounds = [draw.uniform(-0.2, 0.2, 8000).astype(np.float32) for _ in range(2)]
    pieces = []
    for name, sound in zip(("hi", "it"), sounds, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000, subtype="FLOAT")
        utt = Utterance(f"{name}-1", str(tmp_path / f"{name}.wav"), "t", name, name, "test")
        pieces.append(Piece(utt, 0.0, 0.5, "t"))
    whole, parts, offsets = render(Plan("x-1", "x", tuple(pieces), (0.04,), (gap,)), level=-20)
    scaled = [sound * 0.1 / np.sqrt(np.mean(sound**2)) for sound in sounds]
    for part, expected in zip(parts, scaled, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4)
    phase = 0.5 * np.pi * (np.arange(640) + 0.5) / 640
    first = scaled[0] * np.r_[np.ones(8000 - 640), np.cos(phase)]
    second = scaled[1] * np.r_[np.sin(phase), np.ones(8000 - 640)]
    start = 8000 + round(gap * 16000) if gap else 8000 - 640
    assert offsets == [0, start] and len(whole) == start + 8000
    expected = np.zeros(len(whole))
    expected[:8000] += first
    expected[start:] += second
    np.testing.assert_allclose(whole, expected, atol=1e-6)


def test_words_inside_a_fade_stay_in_order(tmp_path: Path) -> None:
    ends = {"hi": (Word(0.1, 0.3, "a"), Word(0.48, 0.02, "b")), "it": (Word(0.0, 0.2, "c"),)}
    sources = []
    for language, words in ends.items():
        wav = tmp_path / f"{language}.wav"
        soundfile.write(wav, np.random.default_rng(0).uniform(-0.2, 0.2, 8000), 16000)
        text = " ".join(word.word for word in words)
        utts = [Utterance(f"{language}-1", str(wav), text, language, language, "test", None, 0.5)]
        folder = tmp_path / f"test_{language}"
        timings = Extras(timings={f"{language}-1": words})
        write_datadir(folder, utts, num_samples={f"{language}-1": 8000}, extras=timings)
        sources.append(folder)
    conf = {"sizes": {"inter": 4, "intra": 0, "rapid": 0}, "pieces": [2, 2], "min_utterances": 1}
    options = codeswitch_options({**conf, "cross_fade": [0.04, 0.04]})
    make_codeswitch(sources, tmp_path / "out", options)  # refused, where they are out of order
    timings = load_datadir(tmp_path / "out/test_cs_inter").timings
    assert len(timings) == 4
    for words in timings.values():
        starts = [word.start for word in words]
        assert len(words) == 3 and starts == sorted(starts)
        assert all(word.duration >= 0 for word in words)


def test_names_of_the_sets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: test_mix\nsizes: {rapid: 0}\n")
    command.main(["--names", "--config", str(tmp_path / "c.yaml")])
    names = [f"test_mix_{kind}{end}" for kind in ("inter", "intra") for end in ("", "_parts")]
    assert capsys.readouterr().out.split() == names
    with pytest.raises(ConfigError, match="needed: --data, --out"):
        command.main(["--config", str(tmp_path / "c.yaml")])


def test_loud_peaks_are_turned_down_with_their_parts(tmp_path: Path) -> None:
    click = np.full(8000, 0.001, np.float32)
    click[4000] = 1.0
    soundfile.write(tmp_path / "x.wav", click, 16000, subtype="FLOAT")
    pieces = tuple(
        Piece(Utterance("a-1", str(tmp_path / "x.wav"), "t", "a", lang, "test"), 0.0, 0.5, "t")
        for lang in ("hi", "it")
    )
    whole, parts, _ = render(Plan("x-1", "x", pieces, (0.02,), (0.0,)), level=-10)
    assert np.abs(whole).max() == pytest.approx(0.99) == np.abs(parts[0]).max()


def test_long_utterances_stay_below_the_limit(tmp_path: Path) -> None:
    pool = [
        Utterance(f"{lang}_{n}-1", "x", "t", f"{lang}_{n}", lang, "test", duration=4.0 + 2 * n)
        for lang in ("hi", "it")
        for n in range(12)
    ]
    options = CodeSwitchOptions(sizes=Sizes(40, 0, 0), gap=(0.1, 0.5))
    for plan in plan_codeswitch("inter", pool, {}, options):
        assert sum(piece.seconds for piece in plan.pieces) + sum(plan.gaps) <= 28
    with pytest.raises(CodeSwitchError, match="no 2 utterances go together.*7 s at most"):
        plan_codeswitch("inter", pool, {}, CodeSwitchOptions(max_seconds=7.0))


def test_data_that_no_set_can_be_made_of(
    make: MakeSet, sources: list[Path], tmp_path: Path
) -> None:
    plain = make("test_pa", "pa", timed=False)
    few = make("test_en", "en", count=2)
    strange = make("test_xx", "xx")
    cases = [
        ([sources[0]], CodeSwitchError, "all utterances are of one language \\(hi\\)"),
        ([sources[0], plain], CodeSwitchError,
         "no utterance of pa has word times, which intra and rapid need.*alignment"),
        ([sources[0], few], CodeSwitchError, "en has 2 usable utterances, but 5 are needed"),
        ([*sources, sources[0]], CodeSwitchError, "6 utterances are in more than one"),
        ([sources[0], strange], LanguageError, "'xx'"),
        ([sources[0], tmp_path / "gone"], DataDirError, "gone does not exist"),
    ]  # fmt: skip
    for folders, error, message in cases:
        with pytest.raises(error, match=message):
            make_codeswitch(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Without word times whole sentences can be joined still.
    conf = {"sizes": {"inter": 3, "intra": 0, "rapid": 0}}
    make_codeswitch([sources[0], plain], tmp_path / "out", codeswitch_options(conf))
    assert not load_datadir(tmp_path / "out/test_cs_inter").timings


def test_nobody_speaks_two_languages(make: MakeSet, sources: list[Path], tmp_path: Path) -> None:
    data = load_datadir(sources[1])
    renamed = [
        Utterance(f"y_{u.utt_id}", u.audio, u.text, f"y_{u.speaker}", "it", "test")
        for u in data.utterances
    ]
    samples = {f"y_{key}": count for key, count in data.num_samples.items()}
    write_datadir(tmp_path / "test_it", renamed, num_samples=samples)
    conf = {"speakers": "same", "sizes": {"inter": 3, "intra": 0, "rapid": 0}}
    with pytest.raises(CodeSwitchError, match="nobody speaks two of the languages.*speakers: any"):
        make_codeswitch(
            [sources[0], tmp_path / "test_it"], tmp_path / "out", codeswitch_options(conf)
        )


def test_wrong_options_are_all_named() -> None:
    with pytest.raises(CodeSwitchError) as caught:
        codeswitch_options(
            {"pieces": [3, 2], "words": [0, 2], "cross_fade": [0.1], "speakers": "two",
             "name": "train_cs", "level": 3.0, "max_seconds": 60.0,
             "sizes": {"inter": 0, "intra": 0, "rapid": 0}}
        )  # fmt: skip
    for part in ("pieces is two whole numbers from 2 on", "words is", "cross_fade is two numbers",
                 "no speakers 'two'; legal are same, different, any", "begins with test",
                 "level is 3 dB", "max_seconds is 60", "one must be above 0"):  # fmt: skip
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="unknown key\\(s\\) intre; legal keys: inter"):
        codeswitch_options({"sizes": {"intre": 3}})
    with pytest.raises(ConfigError, match="unknown key\\(s\\) sise; legal keys: seed"):
        codeswitch_options({"sise": 3})


def test_the_mini_recipes_options_are_legal() -> None:
    path = Path(__file__).parents[2] / "egs2/mini/moe1/conf/codeswitch.yaml"
    assert codeswitch_options(yaml.safe_load(path.read_text())) == CodeSwitchOptions()
