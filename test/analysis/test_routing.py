"""Decisions of routers on hand-made decode folders."""

import json
from pathlib import Path

import numpy as np
import pytest

from espnet_moe.analysis.decodings import DecodedSets
from espnet_moe.analysis.routing import Switching, routing, spectrogram
from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import wilson


def test_wilson_by_hand():
    # 8 of 10: (8 + z²/2 ± z·√(8·2/10 + z²/4)) / (10 + z²) with z = 1.96.
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1 and wilson(0, 0) == (0, 1)


def test_spectrogram_of_a_tone():
    tone = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000)
    found = spectrogram(tone)
    frequency = np.linspace(0, 8000, len(found))[found[:, 50].argmax()]
    assert abs(frequency - 2000) < 30 and found.max() == 0
    assert abs(found.shape[1] - 100) < 5  # 10 ms a frame


@pytest.fixture
def experiment(tmp_path: Path, make_datadir) -> Path:
    """Ten Hindi utterances, of which one is taken for Italian, and four Italian ones."""
    for name, counts in (("test_hi", {"hi": 10}), ("test_it", {"it": 4}), ("test_cs", {"hi": 3})):
        data = make_datadir(tmp_path / "raw" / name, counts)
        rows = []
        durations = dict(line.split() for line in (data / "utt2dur").read_text().splitlines())
        language = next(iter(counts))
        for number, (utt, seconds) in enumerate(durations.items()):
            likely = "it" if language == "it" or (name == "test_hi" and number == 0) else "hi"
            sure = 0.6 if number == 0 else 0.9
            posteriors = {code: sure if code == likely else 1 - sure for code in ("hi", "it")}
            route = {"languages": posteriors, "experts": posteriors, "gates": posteriors}
            if name == "test_cs":
                half = round(float(seconds) / 2, 2)
                route["segments"] = [[0.0, half, "hi"], [half, float(seconds), "it"]]
            entry = {"utt_id": utt, "seconds_audio": float(seconds), "language": likely}
            rows.append(json.dumps({**entry, "route": route}) + "\n")
        if name == "test_cs":
            lines = [f"{u} 0.000:{float(s):.3f}:hi\n" for u, s in durations.items()]
            (data / "utt2segments").write_text("".join(lines))
        folder = tmp_path / "exp" / "soft" / "greedy" / name / "logdir" / "output.1"
        folder.mkdir(parents=True)
        (folder / "stats.jsonl").write_text("".join(rows))
    return tmp_path


def decoded(root: Path, *systems: str) -> DecodedSets:
    return DecodedSets(root / "exp", root / "raw", "greedy", systems, ("test_hi", "test_it"))


def test_hand_counted(experiment):
    switching = Switching(("soft", "hard"), ("test_cs", "nowhere"), examples=2)
    found = routing(decoded(experiment, "soft", "hard"), switching)
    content = found.content()["results"]
    whole = content["systems"]["soft"]["all"]
    hindi = whole["languages"]["hi"]
    assert hindi["utterances"] == 10 and hindi["largest"]["it"]["share"] == 0.1
    assert hindi["mean"]["hi"] == pytest.approx((0.4 + 9 * 0.9) / 10)
    assert hindi["accuracy"]["share"] == 0.9
    assert hindi["accuracy"]["interval"] == pytest.approx(wilson(9, 10), rel=1e-5)
    assert sum(whole["histogram"]["hi"]) == whole["utterances"] == 14
    assert sum(cell["utterances"] for cell in whole["durations"].values()) == 14
    # Bins of 1/15: 0.6 (one of two is right) and 0.9 (all twelve are).
    bins = whole["calibration"]
    filled = [(n, a) for n, a in zip(bins["count"], bins["accuracy"]) if n]
    assert filled == [(2, 0.5), (12, 1.0)]
    assert bins["ece"] == pytest.approx((abs(1.2 - 1) + abs(10.8 - 12)) / 14, abs=1e-4)
    # The second half of each utterance is decided wrongly.
    assert [row["frame_error"] for row in content["in_time"]] == pytest.approx([50, 50], abs=6)
    assert set(found.arrays) == {row["utt_id"] for row in content["in_time"]}
    assert "decode the set first" in found.not_available["hard on test_hi"]
    assert "saved no stretches" in found.not_available["hard on test_cs"]
    assert "does not exist" in found.not_available["nowhere"]


def test_nothing_routed(experiment):
    with pytest.raises(UserError, match="nothing to analyse"):
        routing(decoded(experiment, "hard"))
    stats = experiment / "exp" / "soft" / "greedy" / "test_it" / "logdir" / "output.1"
    (stats / "stats.jsonl").write_text("{cut")
    found = routing(decoded(experiment, "soft"))
    assert "is not JSON" in found.not_available["soft on test_it"]
    assert list(found.results["systems"]["soft"]) == ["test_hi"]
