"""Error rates against hand counts, and everything around them that could lose or bend a number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from espnet_moe.data.normalize import NORMALIZER
from espnet_moe.errors import UserError
from espnet_moe.scoring import ScoringError, ScoringOptions, read_results, score_systems
from espnet_moe.scoring.files import to_json

# Counted by hand: 8 words, of them 5 correct, 1 substituted, 2 deleted, and 1 inserted.
ENGLISH = {
    "s-1": ("en", "a b c d", "a x c"),
    "s-2": ("en", "e f", "e f g"),
    "s-3": ("en", "h", ""),
    "s-4": ("en", "i", "i"),
}


def write_file(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_references(root: Path, name: str, texts: dict[str, tuple[str, str]]) -> None:
    """Write a data dir by hand: ``texts`` maps utterance ids to language and text."""
    folder = root / "dump/raw" / name
    files = {
        "wav.scp": lambda utt: f"{utt} /nowhere/{utt}.flac",
        "text": lambda utt: f"{utt} {texts[utt][1]}",
        "utt2spk": lambda utt: f"{utt} {utt.split('-')[0]}",
        "utt2lang": lambda utt: f"{utt} {texts[utt][0]}",
        "utt2dur": lambda utt: f"{utt} 2.0",
        "utt2num_samples": lambda utt: f"{utt} 32000",
    }
    for file, line in files.items():
        write_file(folder / file, [line(utt) for utt in sorted(texts)])
    speakers: dict[str, list[str]] = {}
    for utt in sorted(texts):
        speakers.setdefault(utt.split("-")[0], []).append(utt)
    write_file(folder / "spk2utt", [f"{spk} {' '.join(utts)}" for spk, utts in speakers.items()])


def write_hypotheses(
    root: Path, system: str, name: str, texts: dict[str, str], stats: bool = True
) -> Path:
    """Write a decode folder as the decoder leaves it, its utterances dealt to two jobs."""
    folder = root / "exp" / system / "greedy"
    ids = sorted(texts)
    write_file(folder / name / "text", [f"{utt} {texts[utt]}".rstrip() for utt in ids])
    for job in (1, 2) if stats else ():
        lines = [
            json.dumps(
                {
                    "utt_id": utt,
                    "seconds_audio": 2.0,
                    "latency_ms": 100.0 * (ids.index(utt) + 1),
                    "stop": "repetition" if texts[utt] == "" else "eos",
                }
            )
            for utt in ids[job - 1 :: 2]
        ]
        write_file(folder / name / f"logdir/output.{job}/stats.jsonl", lines)
        facts = {
            "wall_seconds": 1.5,
            "audio_seconds": 4.0,
            "peak_memory_mb": 100.0 * job,
            "params": 2000000,
            "trainable_params": 0,
            "device": "cpu",
            "batch_size": 16,
            "beam_size": 1,
            "num_jobs": 2,
            "command": f"python -m espnet_moe.bin.decode --system {system} --job {job}",
        }
        write_file(folder / f"logdir/output.{job}.json", [json.dumps(facts)])
    return folder


def write_system(
    root: Path, system: str, name: str, utterances: dict[str, tuple[str, str, str]]
) -> None:
    """Write references and hypotheses of ``{utt_id: (language, reference, hypothesis)}``."""
    write_references(root, name, {utt: entry[:2] for utt, entry in utterances.items()})
    write_hypotheses(root, system, name, {utt: entry[2] for utt, entry in utterances.items()})


def options(root: Path, *systems: str, test_sets: tuple[str, ...] = ("test",)) -> ScoringOptions:
    return ScoringOptions(
        exp=root / "exp",
        data=root / "dump/raw",
        systems=systems or ("baseline",),
        test_sets=test_sets,
        inference_tag="greedy",
        resamples=1000,
        command="score it",
    )


def test_hand_counted_set(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    (row,) = score_systems(options(tmp_path))["rows"]
    words = [row[key] for key in ("utterances", "words", "cor", "sub", "del", "ins")]
    assert words == [4, 8, 5, 1, 2, 1]
    assert row["wer"] == 50.0
    assert row["ser"] == 75.0
    # Spaces count: "a b c d" has 7 characters, and the extra " g" is two insertions.
    characters = [row[f"char_{kind}"] for kind in ("cor", "sub", "del", "ins")]
    assert (row["chars"], characters) == (12, [8, 1, 3, 2])
    assert row["cer"] == 50.0
    assert (row["set"], row["language"], row["normalizer"]) == ("test", "en", NORMALIZER)


def test_costs(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    (row,) = score_systems(options(tmp_path))["rows"]
    assert (row["latency_ms_p50"], row["latency_ms_p95"]) == (250.0, 385.0)
    assert (row["rtf"], row["seconds_audio"], row["peak_memory_mb"]) == (0.375, 8.0, 200.0)
    assert (row["params"], row["trainable_params"]) == (2000000, 0)
    assert (row["batch_size"], row["beam_size"], row["device"]) == (16, 1, "cpu")
    assert row["loop_rate"] == 0.25
    assert row["decode_commands"] == ["python -m espnet_moe.bin.decode --system baseline --job JOB"]


def test_hypotheses_without_statistics_have_unknown_costs(tmp_path: Path) -> None:
    write_references(tmp_path, "test", {"s-1": ("en", "a")})
    write_hypotheses(tmp_path, "baseline", "test", {"s-1": "a"}, stats=False)
    (row,) = score_systems(options(tmp_path))["rows"]
    unknown = ("latency_ms_p50", "latency_ms_p95", "rtf", "params", "loop_rate", "device")
    assert [row[key] for key in unknown] == [None] * len(unknown)
    assert (row["wer"], row["wer_ci"], row["seconds_audio"]) == (0.0, [0.0, 0.0], 2.0)


def test_a_wrong_matra_is_an_error(tmp_path: Path) -> None:
    utterances = {
        "s-1": ("hi", "मेरी किताब यहाँ है।", "मेरा किताब यहाँ है"),  # ी for ा
        "s-2": ("te", "నా పుస్తకం", "నా పుస్తకము"),  # anusvara for a letter and a vowel sign
        "s-3": ("pa", "ਮੇਰੀ ਕਿਤਾਬ", "ਮੇਰ ਕਿਤਾਬ"),  # a matra left out
    }
    write_system(tmp_path, "baseline", "test", utterances)
    rows = {row["language"]: row for row in score_systems(options(tmp_path))["rows"]}
    assert list(rows) == ["hi", "pa", "te", "all"]
    assert (rows["hi"]["words"], rows["hi"]["sub"], rows["hi"]["char_sub"]) == (4, 1, 1)
    assert (rows["pa"]["sub"], rows["pa"]["char_del"], rows["pa"]["char_sub"]) == (1, 1, 0)
    assert (rows["te"]["sub"], rows["te"]["char_sub"], rows["te"]["char_ins"]) == (1, 1, 1)
    assert (rows["all"]["words"], rows["all"]["sub"], rows["all"]["utterances"]) == (8, 3, 3)


def test_paired_comparison_sees_what_single_intervals_hide(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    baseline, better = {}, {}
    for number in range(40):
        wrong = int(generator.integers(1, 9))  # utterances differ much in difficulty
        text = " ".join("abcdefghij")
        baseline[f"s-{number:02}"] = ("en", text, " ".join("abcdefghij"[:-wrong]))
        better[f"s-{number:02}"] = ("en", text, " ".join("abcdefghij"[: 10 - wrong + 1]))
    write_system(tmp_path, "baseline", "test", baseline)
    write_system(tmp_path, "oracle", "test", better)
    first, second = score_systems(options(tmp_path, "oracle", "baseline"))["rows"]
    assert (first["system"], first["comparison"]) == ("baseline", None)
    assert second["wer_ci"][1] > first["wer_ci"][0]  # overlapping
    comparison = second["comparison"]
    assert comparison["significant"] is True
    assert comparison["wer_diff"] == pytest.approx(second["wer"] - first["wer"], abs=0.011)
    assert comparison["wer_diff_ci"][0] <= comparison["wer_diff"] <= comparison["wer_diff_ci"][1]
    relative = 100 * (second["wer"] - first["wer"]) / first["wer"]
    assert comparison["wer_relative"] == pytest.approx(relative, abs=0.1)


def test_ids_that_do_not_match_are_named_for_every_set_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    texts = {f"s-{number:02}": ("en", "a b") for number in range(30)}
    write_references(tmp_path, "test", texts)
    write_references(tmp_path, "other", {"s-1": ("en", "a")})
    write_hypotheses(tmp_path, "baseline", "test", {"s-00": "a b", "x-9": "c"})
    with pytest.raises(ScoringError) as raised:
        score_systems(options(tmp_path, test_sets=("test", "other")))
    message = str(raised.value)
    assert "29 references (s-01, s-02," in message
    assert "s-20 and 9 more) without a hypothesis" in message
    assert "s-21" not in message
    assert "1 hypothesis (x-9) without a reference" in message
    assert "baseline/greedy/other/text does not exist" in message
    assert not (tmp_path / "exp/results.json").exists()
    assert not (tmp_path / "exp/baseline/greedy/test/score_wer").exists()


def test_hypothesis_ids_given_twice_are_an_error(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    with (tmp_path / "exp/baseline/greedy/test/text").open("a") as stream:
        stream.write("s-2 again\n")
    with pytest.raises(ScoringError, match=r"1 utterance \(s-2\) there more than once"):
        score_systems(options(tmp_path))


def test_statistics_of_an_earlier_run_are_an_error(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    logdir = tmp_path / "exp/baseline/greedy/logdir"
    (logdir / "output.3.json").write_text((logdir / "output.1.json").read_text())
    with pytest.raises(ScoringError, match="a run of 2 jobs, but .* holds 3"):
        score_systems(options(tmp_path))


def test_empty_reference_is_an_error_unless_skipped(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", {**ENGLISH, "s-5": ("en", "?!", "")})
    with pytest.raises(ScoringError, match=r"1 reference \(s-5\) empty after normalisation"):
        score_systems(options(tmp_path))
    skipped = ["s-5\ttext empty", "s-6\tundecodable audio"]
    write_file(tmp_path / "dump/raw/test/skipped.tsv", skipped)
    (row,) = score_systems(options(tmp_path))["rows"]
    assert (row["utterances"], row["skipped"]) == (4, ["s-5", "s-6"])


def test_rows_of_others_stay_while_their_folder_exists(tmp_path: Path) -> None:
    for system in ("baseline", "oracle", "gone"):
        write_system(tmp_path, system, "test", ENGLISH)
    score_systems(options(tmp_path, "baseline", "oracle", "gone"))
    for path in sorted((tmp_path / "exp/gone").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    perfect = {utt: entry[1] for utt, entry in ENGLISH.items()}
    write_hypotheses(tmp_path, "baseline", "test", perfect)
    results = score_systems(options(tmp_path, "baseline"))
    assert [row["system"] for row in results["rows"]] == ["baseline", "oracle"]
    assert [row["wer"] for row in results["rows"]] == [0.0, 50.0]
    # The kept row is compared with the baseline as it is now; relative to zero has no meaning.
    comparison = results["rows"][1]["comparison"]
    assert (comparison["wer_diff"], comparison["wer_relative"]) == (50.0, None)
    assert read_results(tmp_path / "exp") == results


def test_comparison_needs_the_same_references(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_system(tmp_path, "oracle", "test", ENGLISH)
    score_systems(options(tmp_path, "oracle"))
    write_system(tmp_path, "baseline", "test", {**ENGLISH, "s-5": ("en", "new", "new")})
    results = score_systems(options(tmp_path, "baseline"))
    assert [row["comparison"] for row in results["rows"]] == [None, None]
    assert "scored against different references" in caplog.text


def test_score_files(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    score_systems(options(tmp_path))
    folder = tmp_path / "exp/baseline/greedy/test"
    reference = (folder / "score_cer/ref.trn").read_text().splitlines()
    assert reference[1] == "e <space> f\t(s-s-2)"
    hypothesis = (folder / "score_wer/hyp.trn").read_text().splitlines()
    assert hypothesis == ["a x c\t(s-s-1)", "e f g\t(s-s-2)", "\t(s-s-3)", "i\t(s-s-4)"]
    lines = (folder / "score_wer/result.txt").read_text().splitlines()
    summary = next(line for line in lines if "Sum/Avg" in line).replace("|", " ").split()
    assert summary == ["Sum/Avg", "4", "8", "62.5", "12.5", "25.0", "12.5", "50.0", "75.0"]
    start = lines.index("id: (s-s-1)")
    assert lines[start + 1 : start + 5] == [
        "Scores: (#C #S #D #I) 2 1 1 0",
        "REF:  a b c d",
        "HYP:  a x c *",
        "Eval:   S   D",
    ]


def test_json_never_holds_nan() -> None:
    read = json.loads(to_json({"a": [float("nan"), (float("inf"), 1.5)]}))
    assert read == {"a": [None, [None, 1.5]]}


def test_a_failed_write_keeps_the_old_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    score_systems(options(tmp_path))
    path = tmp_path / "exp/results.json"
    before = path.read_bytes()

    def disk_full(target: Path, _: str) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(UserError, match="No space left.*the earlier one is kept whole"):
        score_systems(options(tmp_path))
    assert path.read_bytes() == before
    assert not list((tmp_path / "exp").rglob("*.tmp"))


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "rows": []}', '{"format": 1}'])
def test_broken_results_are_not_overwritten(tmp_path: Path, content: str) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    path = tmp_path / "exp/results.json"
    path.write_text(content)
    with pytest.raises(ScoringError, match=r"results\.json"):
        score_systems(options(tmp_path))
    assert path.read_text() == content


def test_options_report_every_problem() -> None:
    with pytest.raises(UserError) as raised:
        ScoringOptions(Path("exp"), Path("dump"), (), ("a/b",), "greedy", resamples=10)
    message = str(raised.value)
    assert "systems is empty" in message
    assert "'a/b' is not the name" in message
    assert "at least 1000" in message


def run_bin(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where Python's default encoding is ASCII."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, **plain, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-m", "espnet_moe.bin.score", *words]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def parse_table(lines: list[str], start: int) -> dict[str, list[float]]:
    """Read the Markdown table after line ``start``: numbers by the name in the first column."""
    first = next(n for n in range(start, len(lines)) if lines[n].startswith("|---")) + 1
    table = {}
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        name, *cells = line.strip("|").split("|")
        table[name] = [float(cell) for cell in cells]
    return table


def test_command_line_in_an_ascii_locale_and_its_tables(tmp_path: Path) -> None:
    utterances = {
        "s-1": ("hi", "मेरी किताब यहाँ है", "मेरा किताब है"),
        "s-2": ("it", "la città è qui", "la citta è qui ora"),
    }
    write_system(tmp_path, "baseline", "test", utterances)
    write_system(tmp_path, "oracle", "test", {**utterances, "s-2": ("it", *["la città è qui"] * 2)})
    words = ["--test_sets", "test", "--systems", "baseline", "oracle", "--inference_tag", "greedy"]
    done = run_bin(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    last = next(line for line in done.stdout.splitlines() if line.startswith("oracle"))
    assert last.split()[1:] == ["50.00", "0.00", "25.00", "25.00", "-50.0", "%", "-"]

    rows = json.loads((tmp_path / "exp/results.json").read_text(encoding="utf-8"))["rows"]
    lines = (tmp_path / "exp/RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "# RESULTS"
    for row in rows:
        heading = lines.index(f"## exp/{row['system']}")
        for title, names, rate in (
            ("### WER", ("words", "cor", "sub", "del", "ins"), "wer"),
            ("### CER", ("chars", "char_cor", "char_sub", "char_del", "char_ins"), "cer"),
        ):
            table = parse_table(lines, lines.index(title, heading))
            size, *kinds = (row[name] for name in names)
            shares = [round(100 * kind / size, 2) for kind in kinds]
            expected = [row["utterances"], size, *shares, row[rate], row["ser"]]
            assert table[f"greedy/test ({row['language']})"] == expected
    assert "python -m espnet_moe.bin.decode --system oracle --job JOB" in lines
    assert f"python -m espnet_moe.bin.score {' '.join(words)}" in lines


def test_command_line_reports_a_users_mistake_without_traceback(tmp_path: Path) -> None:
    write_system(tmp_path, "baseline", "test", ENGLISH)
    words = ["--test_sets", "test", "--systems", "oracle", "--inference_tag", "greedy"]
    done = run_bin(tmp_path, *words)
    assert done.returncode == 2
    assert "error: exp/oracle/greedy/test/text does not exist" in done.stderr
    assert "Traceback" not in done.stderr
