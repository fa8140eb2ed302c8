"""The layout of the summary table and of RESULTS.md for the shapes that results can take."""

from pathlib import Path
from typing import Any

import pytest

from espnet_moe.report.results_md import results_md, write_results_md
from espnet_moe.report.summary import summary_table, terminal_table


def make_row(system: str, test_set: str, language: str, wer: float, **changes: Any) -> dict:
    row = {
        "system": system,
        "inference_tag": "greedy",
        "set": test_set,
        "language": language,
        "wer": wer,
        "wer_ci": [wer - 1, wer + 1],
        "cer": wer / 2,
        "cer_ci": [wer / 2, wer / 2],
        "utterances": 4,
        "ser": 75.0,
        "normalizer": "n-1",
        "skipped": [],
        "decode_commands": [f"decode {system}"],
        "score_command": "score",
        "comparison": None,
    }
    row.update(dict.fromkeys(("words", "chars"), 100))
    for name in ("cor", "sub", "del", "ins"):
        row.update({name: 20, f"char_{name}": 10})
    for name in ("device", "batch_size", "beam_size", "trainable_params", "seconds_audio"):
        row[name] = None
    for name in ("latency_ms_p50", "latency_ms_p95", "rtf", "peak_memory_mb", "loop_rate"):
        row[name] = None
    return {**row, "params": 1234567, **changes}


def compared(relative: float, significant: bool) -> dict:
    return {"comparison": {"wer_relative": relative, "significant": significant}}


def make_average(system: str, wer: float | None, **relative: float) -> dict:
    against = {
        kind: {"wer_relative": change, "significant": change < -10}
        for kind, change in relative.items()
    }
    return {"system": system, "inference_tag": "greedy", "wer": wer, "against": against}


def make_results(*rows: dict, averages: tuple[dict, ...] = ()) -> dict:
    return {
        "format": 1,
        "command": "score",
        "date": "2026-01-01T00:00:00+00:00",
        "git_commit": None,
        "git_commit_date": None,
        "environment": {"python": "3.11", "espnet": "202511", "torch": None, "jiwer": "4"},
        "baseline": "baseline",
        "rows": list(rows),
        "averages": list(averages),
    }


def test_summary_has_languages_as_columns_and_marks_sure_changes() -> None:
    table = summary_table(
        make_results(
            make_row("baseline", "test_hi", "hi", 40.0),
            make_row("baseline", "test_it", "it", 20.0),
            make_row("oracle", "test_hi", "hi", 20.0, **compared(-50.0, True)),
            make_row("oracle", "test_it", "it", 19.0, **compared(-5.0, False)),
            make_row("half", "test_it", "it", 0.0, **compared(-100.0, True)),
            averages=(
                make_average("baseline", 30.0),
                make_average("oracle", 19.5, baseline=-35.0),
                make_average("half", None),
            ),
        )
    )
    assert table.header == ("system", "hi", "it", "mean")
    assert table.rows == (
        ("baseline", "40.00 [39.00, 41.00]", "20.00 [19.00, 21.00]", "30.00"),
        (
            "oracle",
            "20.00 [19.00, 21.00] -50.0 %*",
            "19.00 [18.00, 20.00] -5.0 %",
            "19.50 -35.0 %*",
        ),
        ("half", "-", "0.00 [-1.00, 1.00] -100.0 %*", "-"),
    )
    lines = table.to_text().splitlines()
    column = lines[0].index("it")
    assert [line[column - 2 : column] for line in lines] == ["  "] * 5


def test_a_mean_of_zero_is_shown() -> None:
    rows = [make_row("oracle", name, name, 0.0) for name in ("hi", "it")]
    results = make_results(*rows, averages=(make_average("oracle", 0.0),))
    assert summary_table(results).rows[0][-1] == "0.00"


def test_the_terminal_has_a_short_row_a_system() -> None:
    rows = [
        make_row("baseline", "test_hi", "hi", 40.0),
        make_row("baseline", "test_it", "it", 20.0),
        make_row("baseline", "test_cs_inter_parts", "all", 30.0),
        make_row("hard", "test_cs_inter", "mixed", 25.0),
        make_row("hard", "test_hi", "hi", 20.0, **compared(-50.0, True)),
        make_row("hard", "test_it", "it", 19.0, **compared(-5.0, False)),
        make_row("frame", "test_cs_inter", "mixed", 15.0),
    ]
    averages = (
        make_average("baseline", 30.0),
        make_average("hard", 19.5, baseline=-35.0, oracle=2.0),
    )
    table = terminal_table(make_results(*rows, averages=averages))
    assert table.header == (
        *("system", "hi", "it", "mean", "to baseline", "to oracle"),
        "cs_inter",
    )
    assert table.rows == (
        ("baseline", "40.00", "20.00", "30.00", "-", "-", "-"),
        ("hard", "20.00*", "19.00", "19.50", "-35.0 %*", "+2.0 %", "25.00"),
        ("frame", "-", "-", "-", "-", "-", "15.00"),
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([("cv_hi", "hi"), ("ka_hi", "hi")], ("cv_hi", "ka_hi", "mean")),
        ([("mix", "hi"), ("mix", "it"), ("mix", "all")], ("hi", "it", "all", "mean")),
        (
            [("mix", "hi"), ("mix", "all"), ("test_hi", "hi")],
            ("mix (hi)", "mix (all)", "test_hi", "mean"),
        ),
        ([("test_hi", "hi")], ("hi",)),
    ],
)
def test_columns_are_told_apart(columns: list[tuple[str, str]], expected: tuple[str, ...]) -> None:
    rows = [make_row("baseline", *column, 10.0) for column in columns]
    averages = (make_average("baseline", 10.0),)
    table = summary_table(make_results(*rows, averages=averages))
    assert table.header == ("system", *expected)
    if "mean" in expected:
        assert table.rows[0][-1] == "10.00"


def test_inference_tags_are_told_apart() -> None:
    rows = [
        make_row("baseline", "test", "hi", 10.0),
        make_row("baseline", "test", "hi", 9.0, inference_tag="beam"),
    ]
    table = summary_table(make_results(*rows))
    assert [line[0] for line in table.rows] == ["baseline/greedy", "baseline/beam"]
    report = results_md(make_results(*rows))
    assert "|greedy/test|4|100|20.00|20.00|20.00|20.00|10.00|75.00|" in report
    assert "|beam/test|4|100|20.00|20.00|20.00|20.00|9.00|75.00|" in report


def test_report_names_what_was_left_out_and_how_it_was_made(tmp_path: Path) -> None:
    results = make_results(
        make_row("baseline", "test_hi", "hi", 40.0, skipped=["a-1", "a-2"]),
        make_row("oracle", "test_hi", "hi", 20.0, skipped=["a-1", "a-2"]),
    )
    path = write_results_md(tmp_path, results)
    report = path.read_text(encoding="utf-8")
    headings = [line for line in report.splitlines() if line.startswith("## ")]
    name = tmp_path.name
    assert headings == [
        "## Environments",
        "## Summary",
        f"## {name}/baseline",
        f"## {name}/oracle",
        "## Costs",
        "## Left out of the test sets",
        "## Commands",
    ]
    assert "- test_hi: a-1, a-2 (2)" in report
    assert "decode baseline\ndecode oracle\nscore\n" in report
    assert "1,234,567" in report
    assert "- pytorch version: `pytorch -`" in report
    assert [file.name for file in tmp_path.iterdir()] == ["RESULTS.md"]
