"""From decode folders of a mixture to results.json, RESULTS.md and the pictures."""

import json
from pathlib import Path
from typing import Any

import pytest

from espnet_moe.bin import score
from espnet_moe.errors import UserError
from espnet_moe.scoring import ScoringOptions, score_systems
from espnet_moe.scoring.error_rates import count_best_edits

LANGUAGES = ("hi", "it")


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_data(
    root: Path, name: str, texts: dict[str, tuple[str, str]], **extra: list[str]
) -> None:
    folder = root / "dump/raw" / name
    columns = {
        "wav.scp": lambda utt: f"/nowhere/{utt}.flac",
        "text": lambda utt: texts[utt][1],
        "utt2spk": lambda utt: utt.split("-")[0],
        "utt2lang": lambda utt: texts[utt][0],
        "utt2dur": lambda utt: "4.0",
    }
    for file, value in columns.items():
        write_lines(folder / file, [f"{utt} {value(utt)}" for utt in sorted(texts)])
    for file, lines in extra.items():
        write_lines(folder / file.replace("text_", "text."), lines)


def write_decoded(
    root: Path, system: str, name: str, texts: dict[str, str], stats: dict[str, dict] | None = None
) -> None:
    folder = root / "exp" / system / "greedy"
    write_lines(folder / name / "text", [f"{utt} {texts[utt]}" for utt in sorted(texts)])
    if stats is not None:
        rows = [json.dumps({"utt_id": utt, "seconds_audio": 4.0, **stats[utt]}) for utt in stats]
        write_lines(folder / name / "logdir/output.1/stats.jsonl", rows)
        job = {"num_jobs": 1, "encode_seconds": 10.0, "route_seconds": 0.1}
        write_lines(folder / "logdir/output.1.json", [json.dumps(job)])


def route(decided: str, sure: float, **more: Any) -> dict:
    other = "it" if decided == "hi" else "hi"
    probabilities = {decided: sure, other: round(1 - sure, 4)}
    told = {"languages": probabilities, "experts": probabilities, "gates": {decided: 1.0}, **more}
    return {"language": decided, "route": told, "route_ms": 2.0}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two languages of four utterances; hard gets one wrong where the router is least sure."""
    for language in LANGUAGES:
        ids = [f"{language}-{n}" for n in range(4)]
        word = {"hi": "यह", "it": "è"}[language]
        right = {utt: " ".join([word] * 4) for utt in ids}
        name = f"test_{language}"
        write_data(tmp_path, name, {utt: (language, text) for utt, text in right.items()})
        write_decoded(tmp_path, "baseline", name, dict.fromkeys(ids, f"{word} x x x"))
        write_decoded(tmp_path, "oracle", name, dict.fromkeys(ids, f"{word} {word} {word} x"))
        decided = {utt: route(language, 0.9) for utt in ids}
        own = dict.fromkeys(ids, f"{word} {word} {word} x")
        if language == "hi":
            decided["hi-2"] = route("it", 0.6)
            decided["hi-3"] = route("hi", 0.7)
        write_decoded(tmp_path, "soft", name, own, decided)
        write_decoded(
            tmp_path, "hard", name, own | ({"hi-2": "x"} if language == "hi" else {}), decided
        )
    words = {"c-1": ("hi", "यह यह l'è è"), "c-2": ("hi", "यह è")}
    spans = ["c-1 0.0:2.0:hi 2.0:4.0:it", "c-2 0.0:2.0:hi 2.0:4.0:it"]
    write_data(tmp_path, "test_cs_inter", words, utt2segments=spans)
    parts = {
        "c-1-p1": ("hi", "यह यह"),
        "c-1-p2": ("it", "l'è è"),
        "c-2-p1": ("hi", "यह"),
        "c-2-p2": ("it", "è"),
    }
    write_data(tmp_path, "test_cs_inter_parts", parts)
    segments = [[0.0, 2.2, "hi"], [2.2, 3.99, "it"]]
    write_decoded(
        tmp_path,
        "frame",
        "test_cs_inter",
        {"c-1": "यह। यह L’è x", "c-2": "यह è"},
        {utt: route("hi", 0.9, segments=segments) for utt in words},
    )
    decided_parts = {utt: route(language, 0.9) for utt, (language, _) in parts.items()}
    texts = {utt: text for utt, (_, text) in parts.items()}
    write_decoded(
        tmp_path, "frame", "test_cs_inter_parts", texts | {"c-1-p1": "यह x"}, decided_parts
    )
    manifest = {"experts": ["hi", "it"], "experts_by": "language", "sizes": {"hi": 4}}
    write_lines(tmp_path / "exp/assign_language/experts.json", [json.dumps(manifest)])
    facts = {"network": "mlp", "layer": 2, "experts": ["hi", "it"], "facts": {"collapsed": ["it"]}}
    for folder in ("joint", "joint.old"):  # the recipe keeps what was before
        write_lines(tmp_path / f"exp/{folder}/router/router.json", [json.dumps(facts)])
    return tmp_path


def options(root: Path, **changes: Any) -> ScoringOptions:
    asked: dict[str, Any] = {
        "systems": ("baseline", "oracle", "hard", "soft"),
        "test_sets": ("test_hi", "test_it"),
        "inference_tag": "greedy",
        "codeswitch_systems": ("frame",),
        "codeswitch_sets": ("test_cs_inter", "test_cs_inter_parts"),
        "resamples": 1000,
    }
    return ScoringOptions(exp=root / "exp", data=root / "dump/raw", **{**asked, **changes})


def test_results_of_a_mixture(experiment: Path) -> None:
    results = score_systems(options(experiment))
    averages = {row["system"]: row for row in results["averages"]}
    assert {name: row["wer"] for name, row in averages.items()} == {
        "baseline": 75.0,
        "oracle": 25.0,
        "hard": round((43.75 + 25) / 2, 2),
        "soft": 25.0,
    }
    assert averages["hard"]["against"]["oracle"]["wer_relative"] == 37.5
    assert averages["soft"]["against"]["baseline"]["significant"] is True

    assert [router["name"] for router in results["routers"]] == ["joint"]

    routing = {(row["system"], row["set"]): row for row in results["routing"]}
    assert routing["hard", "all"]["accuracy"] == 87.5
    assert routing["hard", "test_hi"]["accuracy"] == 75.0
    assert routing["hard", "all"]["encoder_share"] == 1.0
    assert ("baseline", "all") not in routing
    assert ("frame", "test_cs_inter") not in routing
    assert routing["frame", "test_cs_inter_parts"]["accuracy"] == 100.0

    (least,) = results["low_confidence"]
    assert (least["utterances"], least["below"]) == (2, 0.7)
    assert (least["wer_soft"], least["wer_hard"]) == (25.0, 62.5)

    (switched,) = results["codeswitch"]
    assert switched["wer"] == round(100 / 6, 2)  # l'è keeps its apostrophe
    assert (switched["switches"], switched["missed"], switched["latency_p50"]) == (2, 0, 0.2)
    assert switched["frame_error"] == 5.0
    assert switched["parts"]["same"]["relative"] == 0.0
    languages = [row["language"] for row in results["rows"] if row["system"] == "frame"]
    assert languages == ["mixed", "all"]


def test_targets_are_met_missed_or_not_measured(experiment: Path) -> None:
    targets = score_systems(options(experiment))["targets"]
    judged = {row["name"]: (row["value"], row["met"]) for row in targets}
    assert judged == {
        "router accuracy": (87.5, False),
        "hard: average WER relative to oracle": (37.5, False),
        "soft: average WER relative to oracle": (0.0, True),
        "joint: average WER less the best of hard and soft": (None, None),
        "least sure quarter: WER of soft less that of hard": (-37.5, True),
        "switched between sentences: WER relative to the parts": (0.0, True),
        "switch detection latency, median": (0.2, True),
        "routing an utterance, median": (2.0, True),
        "routing in the encoder's time": (1.0, True),
    }


def test_command_line_report_and_pictures(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiment)
    words = "--systems baseline oracle hard soft --test_sets test_hi test_it --inference_tag greedy"
    more = "--codeswitch_systems frame --codeswitch_sets test_cs_inter test_cs_inter_parts"
    score.main([*words.split(), *more.split()])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == (
        ["system", "hi", "it", "mean", "to", "baseline", "to", "oracle", "cs_inter"]
    )
    assert "missed        router accuracy > 95 %: 87.50 % (hard, 8 utterances)" in printed
    assert "collapsed: joint hardly ever chooses it" in printed
    report = Path("exp/RESULTS.md").read_text(encoding="utf-8")
    assert "|router accuracy|> 95 %|87.50 %|**missed**|hard, 8 utterances|" in report
    assert "- 2 experts by language: hi (4), it" in report
    assert "**collapsed: joint hardly ever chooses it**" in report
    assert "|frame|test_cs_inter|16.67|" in report
    for name in ("wer_by_system", "confusion", "calibration"):
        assert f"](images/{name}.png)" in report
        assert Path(f"exp/images/{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_later_run_keeps_what_it_was_not_asked_for(experiment: Path) -> None:
    before = score_systems(options(experiment))
    changes = {"codeswitch_systems": (), "codeswitch_sets": (), "systems": ("hard",)}
    after = score_systems(options(experiment, **changes))
    for key in ("averages", "routing", "low_confidence", "codeswitch", "targets"):
        assert sorted(map(str, after[key])) == sorted(map(str, before[key]))


def test_sets_without_systems_are_an_error(experiment: Path) -> None:
    with pytest.raises(UserError, match="codeswitch_systems and codeswitch_sets need each other"):
        options(experiment, codeswitch_systems=())
    with pytest.raises(UserError, match="test_hi: in test_sets or in codeswitch_sets"):
        options(experiment, codeswitch_sets=("test_hi",))


def test_the_best_match_of_several_references_counts(tmp_path: Path) -> None:
    texts = {"s-1": ("it", "uno due tre"), "s-2": ("it", "a b")}
    alternatives = ["s-1 uno tre", "s-1 Uno due quattro cinque", "s-1 !"]
    write_data(tmp_path, "test", texts, text_alt=alternatives)
    write_decoded(tmp_path, "baseline", "test", {"s-1": "uno due quattro", "s-2": "a b"})
    write_decoded(tmp_path, "oracle", "test", {"s-1": "uno tre", "s-2": "a b"})
    asked = {"systems": ("baseline", "oracle"), "test_sets": ("test",)}
    none: dict[str, Any] = {"codeswitch_systems": (), "codeswitch_sets": ()}
    first, second = score_systems(options(tmp_path, **asked, **none))["rows"]
    assert first["references"] == "best of text and text.alt (1 utterance has alternatives)"
    # One of four is less than one of three.
    assert (first["words"], first["del"], first["wer"]) == (6, 1, 16.67)
    assert (second["words"], second["wer"]) == (4, 0.0)
    assert second["comparison"]["wer_diff"] == -16.67


def test_best_match_is_chosen_by_rate_and_the_first_of_equals() -> None:
    counts, alignments = count_best_edits([("a b", "a c", "x y z"), ("d",)], ["a q", "d"], "word")
    assert counts.errors.tolist() == [1, 0]
    assert alignments[0].reference == ("a", "b")
