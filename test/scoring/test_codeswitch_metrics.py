"""Figures of code-switching, worked out by hand."""

import pytest

from espnet_moe.data.extras import Segment
from espnet_moe.scoring.codeswitch import Switches, add_degradation, detections, frame_errors
from espnet_moe.scoring.mixed_text import normalize_mixed


def track(*parts: tuple[float, float, str]) -> list[Segment]:
    return [Segment(*part) for part in parts]


TRUTH = track((0, 2, "hi"), (2, 4, "it"), (4, 6, "hi"))


@pytest.mark.parametrize(
    ("decided", "offsets"),
    [
        (TRUTH, [0.0, 0.0]),
        (track((0, 2.3, "hi"), (2.3, 4.5, "it"), (4.5, 6, "hi")), [0.3, 0.5]),
        (track((0, 1.6, "hi"), (1.6, 3.8, "it"), (3.8, 6, "hi")), [-0.4, -0.2]),
        # Before the middle of the first segment: too early to be about this switch.
        (track((0, 0.5, "hi"), (0.5, 4, "it"), (4, 6, "hi")), [0.0]),
        # Early, but taken back before the switch, and found again after it.
        (track((0, 1.5, "hi"), (1.5, 1.8, "it"), (1.8, 2.1, "hi"), (2.1, 6, "it")), [0.1]),
        # Only after the next switch.
        (track((0, 4.2, "hi"), (4.2, 6, "it")), []),
        # Another language than the right one first.
        (track((0, 2, "hi"), (2, 2.5, "te"), (2.5, 6, "it")), [0.5]),
        (track((0, 6, "hi")), []),
    ],
)
def test_detections(decided: list[Segment], offsets: list[float]) -> None:
    assert detections(TRUTH, decided) == pytest.approx(offsets)


def test_frames_by_hand() -> None:
    # 0.3 s of 6 s late at the first switch, 0.1 s undecided at the end.
    decided = track((0, 2.3, "hi"), (2.3, 4, "it"), (4, 5.9, "hi"))
    assert frame_errors(TRUTH, decided) == (20, 300)


def test_switches_add_up() -> None:
    switches = Switches()
    switches.add(TRUTH, track((0, 2.3, "hi"), (2.3, 3.6, "it"), (3.6, 6, "hi")))
    switches.add(TRUTH, track((0, 1, "te"), (1, 6, "hi")))
    # Neighbours of one language are no switch.
    switches.add(track((0, 1, "pa"), (1, 2, "pa")), track((0, 2, "pa")))
    assert switches.metrics() == {
        "frame_error": round(100 * (15 + 20 + 50 + 100) / 700, 2),
        "switches": 4,
        "missed": 2,
        "false_switches": 1,
        "latency_p50": 0.15,
        "latency_p95": pytest.approx(0.285, abs=0.006),
        # With two of four missed, the median lies between a number and never.
        "latency_p50_all": None,
        "offset_p50": -0.05,
    }


def test_degradation_is_relative_to_the_parts() -> None:
    def row(system: str, name: str, language: str, wer: float) -> dict:
        place = {"system": system, "inference_tag": "greedy", "set": name}
        return {**place, "language": language, "wer": wer}

    rows = [
        row("frame_kmeans", "cs", "mixed", 24.0),
        row("frame_kmeans", "cs_parts", "all", 20.0),
        row("oracle_kmeans", "cs_parts", "all", 16.0),
        row("oracle", "cs_parts", "all", 1.0),
    ]
    found = [{"system": "frame_kmeans", "inference_tag": "greedy", "set": "cs"}]
    add_degradation(found, rows)
    assert found[0]["wer"] == 24.0
    assert found[0]["parts"] == {
        "same": {"system": "frame_kmeans", "wer": 20.0, "relative": 20.0},
        "oracle": {"system": "oracle_kmeans", "wer": 16.0, "relative": 50.0},
    }


def test_each_word_is_normalised_by_its_own_language() -> None:
    text = "L'Acqua è qui, यह १२ है। well-known"
    mixed = normalize_mixed(text, ("hi", "it"))
    assert mixed == "l'acqua è qui यह 12 है well known"
    assert normalize_mixed(text, ("it", "hi")) == mixed
    assert normalize_mixed(mixed, ("hi", "it")) == mixed
    # In no script of the utterance: all the rules.
    assert normalize_mixed("నా, —", ("hi", "it")) == "నా"
