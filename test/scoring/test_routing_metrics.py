"""Metrics of routing decisions against hand counts and plain loops."""

import math
from collections import Counter

import numpy as np
import pytest

from espnet_moe.scoring.routing import calibrate, describe, encoder_share, join_routes, read_routes


def entry(language: str, seconds: float, **languages: float) -> dict:
    return {
        "language": language,
        "seconds_audio": seconds,
        "route_ms": 10 * seconds,
        "route": {"languages": languages, "experts": languages, "gates": {language: 1.0}},
    }


def test_hand_counted_decisions() -> None:
    stats = {
        "a": entry("hi", 0.5, hi=0.9, it=0.1),
        "b": entry("it", 1.0, hi=0.4, it=0.6),
        "c": entry("it", 5.0, hi=0.2, it=0.8),
        "d": entry("it", 5.1, hi=0.3, it=0.7),
    }
    routes = read_routes("abcd", ["hi", "hi", "it", "it"], stats)
    assert routes is not None
    row = describe(routes)
    assert row["accuracy"] == 75.0
    assert row["confusion"] == {
        "languages": ["hi", "it"],
        "decided": ["hi", "it"],
        "counts": [[1, 1], [0, 2]],
    }
    durations = {name: tuple(cell.values()) for name, cell in row["accuracy_by_duration"].items()}
    assert durations == {
        "< 1 s": (1, 100.0),
        "1-2 s": (1, 0.0),
        "2-5 s": (1, 100.0),
        "> 5 s": (1, 100.0),
    }
    # Each alone in its bin: gaps of 0.1, 0.6, 0.2 and 0.3.
    assert row["ece"] == pytest.approx(0.3)
    assert row["usage"] == {"hi": 0.25, "it": 0.75}
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert row["usage_entropy"] == pytest.approx(expected, abs=1e-4)
    assert (row["route_ms_p50"], row["route_ms_p95"]) == (30.0, 50.85)


def test_calibration_against_a_loop_over_bins() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.25, 1, 500)
    confidence[:3] = [1 / 15, 1.0, 14 / 15]  # edges
    right = generator.random(500) < confidence**2
    found = calibrate(confidence, right, 15)
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert found["ece"] == pytest.approx(expected, abs=1e-3)
    assert sum(found["count"]) == 500


def test_confusion_against_counted_pairs() -> None:
    generator = np.random.default_rng(2)
    names = ["hi", "it", "pa", "te"]
    truth, decided = (generator.choice(names, 300).tolist() for _ in range(2))
    stats = {str(n): entry(name, 1.0, **{name: 1.0}) for n, name in enumerate(decided)}
    routes = read_routes([str(n) for n in range(300)], truth, stats)
    assert routes is not None
    row = describe(routes)
    pairs = Counter(zip(truth, decided))
    expected = [[pairs[true, other] for other in names] for true in names]
    assert row["confusion"]["counts"] == expected
    assert row["accuracy"] == round(sum(pairs[name, name] for name in names) / 3, 2)


def test_an_expert_that_one_set_never_used_has_its_own_column() -> None:
    first = read_routes(["a"], ["hi"], {"a": entry("hi", 1.0, hi=1.0)})
    second = read_routes(["b"], ["it"], {"b": entry("it", 1.0, it=1.0)})
    assert first is not None and second is not None
    assert describe(join_routes([first, second]))["gates"] == {"hi": 0.5, "it": 0.5}


def test_without_a_router_there_is_nothing_to_describe() -> None:
    assert read_routes(["a"], ["hi"], {"a": {"language": "hi"}}) is None
    assert read_routes(["a"], ["hi"], {}) is None
    oracle = {"language": "hi", "route": {"gates": {"hi": 1.0}}}
    assert read_routes(["a"], ["hi"], {"a": oracle}) is None


def test_share_of_the_encoder_is_of_all_jobs() -> None:
    jobs = [
        {"route_seconds": 0.1, "encode_seconds": 9},
        {"route_seconds": 0.1, "encode_seconds": 1},
    ]
    assert encoder_share(jobs) == 2.0
    assert encoder_share([*jobs, {"route_seconds": 1}]) is None
    assert encoder_share([]) is None
