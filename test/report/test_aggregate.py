"""One table of many experiments, from what scoring has really written."""

import csv
import json
from pathlib import Path

import pytest

from espnet_moe.bin import aggregate, score
from espnet_moe.errors import UserError
from espnet_moe.report.aggregate import Run, table
from test_scoring import ENGLISH, write_hypotheses, write_references

ITALIAN = {"d-1": ("it", "a b c d", "a b c x")}
SYSTEMS = {"baseline": 2, "hard": 1}  # hypotheses: the third of a text's columns, or the truth


@pytest.fixture
def scored(tmp_path):
    """Two experiments on English and Italian; the first without the Italian set."""
    folders = []
    for name, texts in (("one", {"test_en": ENGLISH}), ("two", {})):
        root = tmp_path / name
        texts = texts or {"test_en": ENGLISH, "test_it": ITALIAN}
        for test_set, rows in texts.items():
            write_references(root, test_set, {u: r[:2] for u, r in rows.items()})
            for system, column in SYSTEMS.items():
                write_hypotheses(root, system, test_set, {u: r[column] for u, r in rows.items()})
        score.main(
            [
                *("--exp", str(root / "exp"), "--data", str(root / "dump/raw")),
                *("--systems", *SYSTEMS, "--test_sets", *texts, "--inference_tag", "greedy"),
            ]
        )
        folders.append(root / "exp")
    return folders


def test_a_row_a_system(scored, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "all"
    aggregate.main([*map(str, scored), "--out", str(out)])
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [(r["run"], r["system"]) for r in rows] == [
        ("one/exp", "baseline"),
        ("one/exp", "hard"),
        ("two/exp", "baseline"),
        ("two/exp", "hard"),
    ]
    assert [r["en"] for r in rows] == ["50.00", "0.00", "50.00", "0.00"]
    assert [r["it"] for r in rows] == ["", "", "25.00", "0.00"]
    assert [r["mean WER"] for r in rows] == ["50.00", "0.00", "37.50", "0.00"]
    assert rows[3]["to baseline %"].startswith("-100.0")
    markdown = (tmp_path / "all.md").read_text().splitlines()
    assert markdown[0].startswith("|run|system|decoding|en|it|mean WER|")
    assert len(markdown) == 2 + 4
    assert "two/exp" in capsys.readouterr().out


def test_character_errors(scored, capsys):
    capsys.readouterr()
    aggregate.main([str(scored[1]), "--metric", "cer"])
    [line] = [x for x in capsys.readouterr().out.splitlines() if "baseline" in x and "exp" in x]
    rows = json.loads((scored[1] / "results.json").read_text())["rows"]
    [cer] = [r["cer"] for r in rows if (r["system"], r["language"]) == ("baseline", "en")]
    assert f"{cer:.2f}" in line


def test_beside_what_others_have_published(scored, tmp_path, capsys):
    conf = Path(__file__).resolve().parents[2] / "egs2/TEMPLATE/moe1/conf/published.yaml"
    capsys.readouterr()
    aggregate.main([str(scored[1]), "--published", str(conf), "--out", str(tmp_path / "all")])
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    large = next(r for r in rows if r["system"] == "Whisper large")
    assert (large["it"], large["en"], large["decoding"]) == ("20.38", "", "published")
    conf = tmp_path / "wrong.yaml"
    conf.write_text("- {system: a}\n")
    with pytest.raises(UserError, match="is a list of sets, source, system, wer"):
        aggregate.main([str(scored[1]), "--published", str(conf)])


def test_the_router_is_judged_by_the_plain_sets():
    row = {"system": "hard", "inference_tag": "greedy", "trainable_params": 7}
    results = {
        "rows": [{**row, "set": "test_hi", "language": "hi", "wer": 9.0}],
        "routing": [
            {**row, "set": "test_hi", "accuracy": 99.0},
            {**row, "set": "test_cs_inter", "accuracy": 50.0},
            {**row, "set": "all", "accuracy": 98.0},
        ],
    }
    found = table([Run("exp", results)], "wer")
    assert dict(zip(found.header, found.rows[0], strict=True))["router %"] == "98.00"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda exp: (exp / "results.json").unlink(), "not scored yet (no results.json)"),
        (lambda exp: (exp / "results.manifest.json").unlink(), "is missing: run that step again"),
        (lambda exp: (exp / "results.json").write_text("{}"), "results.json changed after scoring"),
        (lambda exp: (exp / "results.manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_what_is_not_finished_is_named_and_left_out(scored, capsys, spoil, reason):
    spoil(scored[0])
    capsys.readouterr()
    aggregate.main([*map(str, scored)])
    printed = capsys.readouterr()
    assert f"left out: {scored[0]}: " in printed.err and reason in printed.err
    assert "two" not in printed.err
    aggregate.main([str(scored[1]), "exp/typo"])
    assert "left out: exp/typo: no such folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="no finished results in"):
        aggregate.main([str(scored[0])])
