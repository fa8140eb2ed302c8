"""Linear probes on planted labels, and chance where there is nothing to read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from espnet_moe.analysis.passes import draw_utterances, encode, load_subject, make_batches
from espnet_moe.analysis.probing import (
    WORD,
    Task,
    control_labels,
    feature_tasks,
    probe,
    probe_task,
    probing,
    read_timings,
    split_speakers,
    word_task,
)
from espnet_moe.analysis.timings import Span, read_ctm, spans_of
from espnet_moe.analysis.tokens import Tokens, collect, frame_spans, onsets
from espnet_moe.bin.analyze import main
from espnet_moe.data.extras import Word
from espnet_moe.errors import UserError


def planted(labels: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """Frames that hold the label in some directions, and noise."""
    draw = np.random.default_rng(seed)
    names = np.unique(labels)
    means = dict(zip(names.tolist(), draw.normal(size=(len(names), 20))))
    return np.stack([strength * means[name] for name in labels.tolist()]) + draw.normal(
        size=(len(labels), 20)
    )


@pytest.fixture
def tokens() -> Tokens:
    """600 phones of 12 kinds by 10 speakers; layer 1 tells them, layer 0 does not."""
    draw = np.random.default_rng(1)
    phones = draw.choice(["p", "b", "t", "d", "k", "ɡ", "s", "z", "m", "n", "a", "i"], 600)
    spans = [Span(0.0, 0.1, name, name) for name in phones]
    utterances = np.repeat(np.arange(60), 10)
    speakers = np.array([f"s{u % 10}" for u in utterances])
    values = {
        ("base", "0"): planted(phones, 0.0),
        ("base", "1"): planted(phones, 3.0),
        ("hi", "1"): planted(phones, 3.0),
    }
    return Tokens(spans, utterances, speakers, values)


def test_planted_labels_are_read_and_noise_is_not(tokens):
    rows = probe_task(word_task(tokens, 12), tokens)
    found = {(row["condition"], row["layer"]): row for row in rows}
    assert found["base", "1"]["accuracy"] > 0.95
    assert found["base", "1"]["control"] < 0.25, "shuffled labels are at chance"
    assert found["base", "1"]["selectivity"] > 0.7
    assert abs(found["base", "0"]["accuracy"] - 1 / 12) < 0.08
    assert abs(found["base", "0"]["selectivity"]) < 0.1
    low, high = found["base", "0"]["interval"]
    assert low <= found["base", "0"]["accuracy"] <= high
    same = {key: value for key, value in found["hi", "1"].items() if key != "condition"}
    assert same == {k: v for k, v in found["base", "1"].items() if k != "condition"}
    assert found["base", "1"]["train"] + found["base", "1"]["test"] == 600


def test_features_have_controls_by_type(tokens):
    tasks = {task.name: task for task in feature_tasks(tokens)}
    assert len(tasks["kind"].rows) == 600 and len(tasks["height"].rows) < 150
    task = tasks["voiced"]
    control = control_labels(task, 0)
    by_type = {t: set(control[task.types == t]) for t in np.unique(task.types)}
    assert all(len(values) == 1 for values in by_type.values()), "always the same for a phone"
    assert set(control) <= set(task.labels)
    (row,) = [r for r in probe_task(task, tokens) if (r["condition"], r["layer"]) == ("base", "1")]
    # Phones that can be told apart can be learnt by heart, too: that is what selectivity shows.
    assert row["accuracy"] > 0.95 and row["control"] > 0.8


def test_speakers_are_in_one_part_only(tokens):
    test = split_speakers(tokens.speakers, 3)
    assert not set(tokens.speakers[test]) & set(tokens.speakers[~test])
    assert 0.2 < test.mean() < 0.4
    with pytest.raises(UserError, match="cannot be split"):
        split_speakers(np.array(["a", "a"]), 0)


def test_a_probe_never_sees_the_test_speakers(tokens):
    """Labels that follow the speaker can be learnt, but not carried to others."""
    draw = np.random.default_rng(0)
    labels = np.array([f"w{s}" for s in tokens.speakers])
    test = split_speakers(tokens.speakers, 0)
    right, majority = probe(draw.normal(size=(600, 5)), labels, test)
    assert right.mean() == majority.mean() == 0


def test_too_little_to_probe(tokens):
    few = Task(WORD, np.arange(30), np.array(["a", "b"] * 15), np.array(["a", "b"] * 15))
    with pytest.raises(UserError, match="too few"):
        probe_task(few, tokens)
    with pytest.raises(UserError, match="one label only"):
        probe(np.zeros((4, 2)), np.array(["a"] * 4), np.array([True, False, False, False]))


def test_onsets_and_frames():
    timings = {"u": (Word(0.1, 0.3, "गीता"), Word(0.4, 0.02, "12"), Word(0.5, 0.04, "कल"))}
    found = onsets(timings, "hi")["u"]
    assert [(s.start, round(s.end, 3), s.label) for s in found] == [
        (0.1, 0.16, "ɡ"),
        (0.5, 0.54, "k"),
    ]
    frames = frame_spans(spans_of({"u": (Word(0.1, 0.06, "a"),)}), 0.02)["u"]
    assert [round(s.start, 3) for s in frames] == [0.1, 0.12, 0.14]


def test_ctm(tmp_path):
    path = tmp_path / "phones.ctm"
    path.write_text(";; comment\nu 1 0.5 0.1 b\nu 1 0.2 0.1 a 0.9\n", encoding="utf-8")
    assert read_ctm(path) == {"u": (Word(0.2, 0.1, "a"), Word(0.5, 0.1, "b"))}
    path.write_text("u 1 half 0.1 b\n")
    with pytest.raises(UserError, match="phones.ctm:1 is not"):
        read_ctm(path)


def test_phone_timings_are_probed_frame_by_frame(tiny_folder, save_random, make_datadir, tmp_path):
    """Five speakers, each with ten utterances of two phones: the labels of frames are there."""
    subject = load_subject(str(tiny_folder), "variable", save_random("hi", "it"), "cpu")
    data = make_datadir(tmp_path / "test_hi", {"hi": 20})
    lines = (data / "utt2spk").read_text().splitlines()
    drawn = draw_utterances([data], 0, 30.0)["hi"]
    own = [replace(utt, speaker=f"s{i % 5}") for i, utt in enumerate(drawn)]
    ids = [line.split()[0] for line in lines]
    ctm = "".join(f"{i} 1 0.0 0.2 {'pa'[n % 2]}\n{i} 1 0.2 0.2 s\n" for n, i in enumerate(ids))
    (data / "phones.ctm").write_text(ctm)
    words, phones = read_timings([data])
    found = probing(subject, {"hi": own}, {"hi": ("hi",)}, words, phones)
    rows = {(row["task"], row["source"]) for row in found.results["rows"]}
    assert ("kind", "phones") in rows and ("manner", "phones") in rows
    assert {row["train"] + row["test"] for row in found.results["rows"]} == {400, 300}
    assert "no word timings" in found.not_available["words of hi"]
    assert "phones of hi" not in found.not_available
    assert found.options["features of"] == {"hi": "frames, by the times of phones"}


def test_phones_of_a_table_and_outside_it(tiny_folder, save_random, make_datadir, tmp_path):
    """An aligner's own symbols have the features that its table says, and others have none."""
    folders = save_random("hi", "it")
    data = make_datadir(tmp_path / "test_hi", {"hi": 30})
    ids = [line.split()[0] for line in (data / "utt2spk").read_text().splitlines()]
    (data / "utt2spk").write_text("".join(f"{i} {i[:-1]}\n" for i in ids))  # three of them
    lines = [f"{i} 1 0 0.2 {('PP', 'AA')[n % 2]}\n{i} 1 0.2 0.1 spn\n" for n, i in enumerate(ids)]
    # The data's own times do not fill what these leave out.
    (tmp_path / "mine.ctm").write_text("".join(lines[:-3]))
    (data / "phones.ctm").write_text("".join(f"{i} 1 0 0.2 x\n" for i in ids))
    (tmp_path / "table.tsv").write_text("phone\tloud\nPP\tno\nAA\tyes\n")
    words = ["probing", "--backbone", str(tiny_folder), "--data", str(data), "--device", "cpu"]
    words += ["--experts", *(f"{name}={folder}" for name, folder in folders.items())]
    words += ["--phones", str(tmp_path / "mine.ctm"), "--out", str(tmp_path / "out")]
    main([*words, "--features", str(tmp_path / "table.tsv")])
    content = json.loads((tmp_path / "out" / "probing.json").read_text())
    assert {row["task"] for row in content["results"]["rows"]} == {"loud"}
    told = content["not_available"]["features of hi"]
    assert told == "33.3% of the tokens are phones that are not in the table: spn"
    with pytest.raises(UserError, match="nothing to probe.*kind of hi: no token has it"):
        main(words)


@pytest.fixture
def spoken(make_datadir, tmp_path):
    """A data directory with word timings: half of each utterance a word."""
    data = make_datadir(tmp_path / "test_hi", {"hi": 6, "it": 2})
    durations = dict(line.split() for line in (data / "utt2dur").read_text().splitlines())
    texts = dict(line.split(maxsplit=1) for line in (data / "text").read_text().splitlines())
    lines = []
    for utt, seconds in durations.items():
        words = texts[utt].split()
        each = float(seconds) / len(words)
        lines += [f"{utt} 1 {i * each:.3f} {each:.3f} {w}\n" for i, w in enumerate(words)]
    (data / "words.ctm").write_text("".join(lines), encoding="utf-8")
    return data


def test_spans_are_means_of_their_frames(tiny_folder, save_random, spoken):
    subject = load_subject(str(tiny_folder), "variable", save_random("hi", "it"), "cpu")
    drawn = draw_utterances([spoken], 0, 30.0)["hi"]
    batches = make_batches(subject, drawn, 4)
    words, phones = read_timings([spoken])
    assert phones == {} and len(words) == 8
    found = collect(subject, batches, spans_of(words), ("base", "hi"), [0, 1])
    assert {layer for _, layer in found.values} == {"0", "1", "output"}
    row = 0
    for batch in batches:
        encoded = encode(subject, batch, subject.gates("hi", len(batch.utterances)))
        for hidden, count, utt in zip(encoded.hidden, encoded.spoken, batch.utterances):
            for word in words[utt.utt_id]:
                a, b = round(word.start / 0.02), min(round(word.end / 0.02), int(count))
                want = hidden[a:b].mean(0)
                got = torch.from_numpy(found.values["hi", "output"][row]).float()
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
                assert found.spans[row].label == word.word
                row += 1
    assert row == len(found.spans) == len(found.speakers)


def test_what_cannot_be_probed_is_said(tiny_folder, save_random, spoken):
    subject = load_subject(str(tiny_folder), "variable", save_random("hi", "pa"), "cpu")
    drawn = draw_utterances([spoken], 0, 30.0)
    words, _ = read_timings([spoken])
    with pytest.raises(UserError, match="nothing to probe.*word of hi: 1 speaker.*no expert is of"):
        probing(subject, drawn, {"hi": ("hi",), "pa": ("pa",)}, words, {})
    with pytest.raises(UserError, match=r"no word timings \(words.ctm\)"):
        probing(subject, drawn, {"hi": ("hi",)}, {}, {})
