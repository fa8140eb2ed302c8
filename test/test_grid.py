"""Grids of experiments: what they consist of, when one is finished, what the report tells."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_moe.analysis.curves import read_curves
from espnet_moe.bin import grid as command
from espnet_moe.bin import score
from espnet_moe.config import ConfigError
from espnet_moe.files import write_manifest
from espnet_moe.grid import read_grid
from espnet_moe.scoring.results import MANIFEST
from test_scoring import ENGLISH, write_hypotheses, write_references

ROOT = Path(__file__).resolve().parents[1]
GRID = """
ranks:
  options: {systems: baseline oracle, joint_config: "", probe: true}
  axes:
    backbone: [openai/whisper-small, whisper_mini]
    langs: [en, it]
    rank:
      4: {train_args: --expert_conf rank=4}
      16: {train_args: --expert_conf rank=16}
"""


@pytest.fixture
def registry(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def results(tmp_path):
    """A scored experiment: baseline 50.00 %, oracle 0.00 %."""
    write_references(tmp_path, "test_en", {u: r[:2] for u, r in ENGLISH.items()})
    for system, column in (("baseline", 2), ("oracle", 1)):
        write_hypotheses(tmp_path, system, "test_en", {u: r[column] for u, r in ENGLISH.items()})
    folders = ["--exp", str(tmp_path / "exp"), "--data", str(tmp_path / "dump/raw")]
    systems = ["--systems", "baseline", "oracle", "--test_sets", "test_en"]
    score.main([*folders, *systems, "--inference_tag", "greedy"])
    return tmp_path / "exp"


def test_every_combination(registry):
    experiments = read_grid(registry, "ranks", "exp")
    assert len(experiments) == 8
    first = experiments[1]
    assert first.name == "whisper-small_en_rank16"
    assert first.folder == Path("exp/ranks/whisper-small_en_rank16")
    words = first.words().splitlines()
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--systems": "baseline oracle",
        "--joint_config": "",
        "--probe": "true",
        "--backbone": "openai/whisper-small",
        "--langs": "en",
        "--train_args": "--expert_conf rank=16",
        "--expdir": "exp/ranks/whisper-small_en_rank16",
    }


def test_arguments_of_the_training_from_several_axes(registry):
    registry.write_text(
        "ranks: {options: {train_args: --a 1}, axes: {x: {p: {train_args: --b 2}, q: {}}, "
        "y: {r: {train_args: --c 3}}}}"
    )
    found = [one.options["train_args"] for one in read_grid(registry, "ranks", "exp")]
    assert found == ["--a 1 --b 2 --c 3", "--a 1 --c 3"]


def test_the_recipes_own_grids():
    conf = ROOT / "egs2/multilingual/moe1/conf/grid.yaml"
    assert len(read_grid(conf, "ranks", "exp")) == 80
    assert len(read_grid(conf, "ratios", "exp")) == 3
    assert len(read_grid(conf, "domains", "exp")) == 2
    assert len(read_grid(ROOT / "egs2/mini/moe1/conf/grid.yaml", "ranks", "exp")) == 24
    transfer = read_grid(ROOT / "egs2/mini/moe1/conf/grid.yaml", "transfer", "exp")
    assert len(transfer) == 12 and transfer[-1].options["init_expert"].endswith("expert_it/expert")
    routers = [one.options["routers"] for one in read_grid(conf, "routing", "exp")]
    files = {f"train_{name}.yaml" for name in routers}
    assert len(files) == 5 == len({(conf.parent / name).read_text() for name in files})


# What another run has to leave before these can start.
OF_OTHER_RUNS = {"init_expert": "holds no expert", "experts_from": "does not exist"}


@pytest.mark.parametrize(
    ("recipe", "grid"),
    [
        *(("mini", grid) for grid in ("ranks", "transfer")),
        *(("multilingual", grid) for grid in ("ranks", "ratios", "domains", "routing")),
    ],
)
def test_a_recipe_takes_the_options_of_its_grids(recipe, grid, tmp_path):
    """Of every axis each value once."""
    folder = ROOT / "egs2" / recipe / "moe1"
    (tmp_path / "corpora").mkdir()
    seen = set()
    for one in read_grid(folder / "conf/grid.yaml", grid, tmp_path):
        if seen.issuperset(one.values.items()):
            continue
        seen.update(one.values.items())
        one.prepare()
        words = (one.folder / "options").read_text().splitlines()
        done = subprocess.run(
            [folder / "run.sh", *words, "--stage", "2", "--stop_stage", "1"],
            capture_output=True,
            text=True,
        )
        (told,) = done.stderr.splitlines()  # nothing else is wrong
        reasons = [
            f"--{name} {one.options[name]} {why}"
            for name, why in OF_OTHER_RUNS.items()
            if name in one.options
        ]
        assert any(why in told for why in ("there is no stage to run", *reasons)), one.name


def test_further_words_belong_to_the_results(registry, results, tmp_path):
    one = read_grid(registry, "ranks", tmp_path / "all")[0]
    shutil.copytree(results, one.folder)
    one.finish("--nj 1")
    assert one.is_done() and one.is_done("--nj 1") and not one.is_done("--nj 1 --context padded")
    one.prepare("--nj 2")
    assert not one.is_done()
    with pytest.raises(ConfigError, match="--run_args has --expdir, --train_args, which the grid"):
        one.prepare("--train_args x --expdir y --nj 1")


def test_in_domain_against_cross_domain(tmp_path, registry):
    registry.write_text(
        "domains: {axes: {trained_on: {read: {mix: 'mls:1 commonvoice:0'}, "
        "both: {mix: 'mls:1 commonvoice:1'}}}}"
    )
    experiments = read_grid(registry, "domains", tmp_path / "all")
    for one in experiments:
        for corpus, column in (("mls", 1), ("commonvoice", 2)):
            name = f"{corpus}_en_test"
            write_references(tmp_path, name, {u: r[:2] for u, r in ENGLISH.items()})
            write_hypotheses(tmp_path, "oracle", name, {u: r[column] for u, r in ENGLISH.items()})
        sets = ["--test_sets", "mls_en_test", "commonvoice_en_test", "--inference_tag", "greedy"]
        folders = ["--exp", str(tmp_path / "exp"), "--data", str(tmp_path / "dump/raw")]
        score.main([*folders, "--systems", "oracle", *sets])
        shutil.copytree(tmp_path / "exp", one.folder, dirs_exist_ok=True)
        one.finish()
    where = ["--registry", str(registry), "--exp", str(tmp_path / "all")]
    command.main(["report", "--grid", "domains", *where])
    report = (tmp_path / "all/domains/report.md").read_text().splitlines()
    (row,) = [line.split("|")[1:-1] for line in report if line.startswith("|read|en|oracle|mls")]
    assert row[3].startswith("mls 0.00 [") and row[4].startswith("commonvoice 50.00 [")
    # A training that has heard all corpora has no other domain.
    assert not any(line.startswith("|both|en|oracle|mls") for line in report)


TRANSFER = """
transfer:
  axes:
    langs: [en]
    start: {scratch: {}, hi: {init_expert: x}}
    hours: {0.1: {max_train_hours: 0.1}, all: {}}
"""


@pytest.fixture
def transfer(tmp_path, registry, results):
    """Finish all but one experiment of a grid, with a backbone; report on it."""

    def report(grid=TRANSFER, backbone="hub/tiny"):
        registry.write_text(grid)
        for path in results.glob("oracle/greedy/logdir/output.*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": backbone}))
        shutil.rmtree(tmp_path / "all", ignore_errors=True)
        for one in read_grid(registry, "transfer", tmp_path / "all")[:3]:
            data = one.folder / "assign_language/data/train_en"
            data.mkdir(parents=True)
            hours = 0.1 if "max_train_hours" in one.options else 1.0
            (data / "utt2dur").write_text(f"a {hours * 1800}\nb {hours * 1800}\n")
            shutil.copytree(results, one.folder, dirs_exist_ok=True)
            one.finish()
        where = ["--registry", str(registry), "--exp", str(tmp_path / "all")]
        command.main(["report", "--grid", "transfer", *where, "--system", "baseline"])
        return sorted((tmp_path / "all/transfer").glob("curves_*"))

    return report


def test_learning_curves_of_a_grid_of_starts(transfer):
    (path,) = transfer()
    curves = read_curves(path)["en"]
    # Of the oracle, whatever system the tables are of.
    assert [(p.hours, p.wer) for p in curves["scratch"]] == [(0.1, 0.0), (1.0, 0.0)]
    assert [p.hours for p in curves["hi"]] == [0.1]
    assert curves["hi"][0].interval == (0.0, 0.0)


@pytest.mark.parametrize("backbone", ["hub/tiny", "x/tiny.pt", "tiny.zip", "x/tiny/"])
def test_curves_are_named_as_recipes_look_for_them(transfer, backbone):
    assert [path.name for path in transfer(backbone=backbone)] == ["curves_tiny.tsv"]


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (TRANSFER.replace("langs: [en]", "nj: [1]"), "langs of its grid is not told"),
        (TRANSFER.replace("[en]", "[en it]"), "langs of its grid names en it"),
        (TRANSFER.replace("[en]", "[hi]"), "it has 0 results of that on test_hi"),
    ],
)
def test_what_is_in_no_learning_curve_is_told(transfer, caplog, grid, reason):
    assert transfer(grid) == []
    told = [record.message for record in caplog.records if "learning curve" in record.message]
    assert len(told) == 3 and all(reason in message for message in told)


def test_experts_of_clusters_have_no_learning_curve(transfer, results, caplog):
    path = results / "results.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:
        row["system"] = row["system"].replace("oracle", "oracle_kmeans")
    path.write_text(json.dumps(content))
    write_manifest(results / MANIFEST, [path])
    assert transfer() == [] and "experts by language, and it has 0" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other: {axes: {a: [1]}}", "has no grid ranks; there are other"),
        ("ranks: [1]", "a grid is a mapping with axes and options"),
        ("ranks: {axis: {a: [1]}}", "a grid is a mapping with axes and options"),
        ("ranks: {options: {a: 1}}", "has no axes"),
        ("ranks: {axes: {a: 1}}", "axis a is a list of values, or names with their options"),
        ("ranks: {axes: {a: []}}", "axis a is a list of values"),
        ("ranks: {options: {a: 1}, axes: {a: [2]}}", "axis a sets a a second time"),
        ("ranks: {axes: {backbone: [x/b, y/b]}}", "several values called b: name them"),
        ("ranks: {axes: {a: {x y: {b: 1}, x-y: {b: 2}}}}", "several experiments are called x-y"),
    ],
)
def test_grids_that_cannot_be(registry, text, message):
    registry.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_grid(registry, "ranks", "exp")


def test_when_one_is_finished(registry, results, tmp_path):
    one = read_grid(registry, "ranks", tmp_path / "all")[0]
    assert not one.is_done()
    shutil.copytree(results, one.folder)
    assert not one.is_done()  # of which options the results are is not known
    one.finish()
    assert one.is_done()
    registry.write_text(GRID.replace("rank=4", "rank=5"))
    changed = read_grid(registry, "ranks", tmp_path / "all")[0]
    assert changed.folder == one.folder and not changed.is_done()
    (one.folder / "results.json").write_text("{}")
    assert not one.is_done()


RUN = """#!/usr/bin/env bash
echo "$*" >>called
while [ $# -gt 0 ]; do
    [ "$1" != --expdir ] || expdir=$2
    [ "$1" != --langs ] || langs=$2
    shift
done
[ "$langs" != "$FAIL" ] || exit 1
mkdir -p "$expdir" && cp -r "$RESULTS"/* "$expdir"
"""


@pytest.fixture
def recipe(tmp_path, registry, results):
    """grid.sh beside a run.sh that only copies results."""
    template = ROOT / "egs2/TEMPLATE/moe1"
    shutil.copytree(template / "utils", tmp_path / "recipe/utils")
    folder = tmp_path / "recipe"
    shutil.copy(template / "cmd.sh", folder)
    shutil.copy(ROOT / "egs2/TEMPLATE/moe1/grid.sh", folder)
    (folder / "path.sh").write_text("")
    (folder / "run.sh").write_text(RUN)
    (folder / "run.sh").chmod(0o755)

    def run(*words, fail="none"):
        return subprocess.run(
            [folder / "grid.sh", "--registry", registry, *words],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "RESULTS": str(results),
                "FAIL": fail,
            },
        )

    return folder, run


def test_a_grid_goes_on_where_it_failed(recipe):
    folder, run = recipe
    done = run("--max_jobs_run", "2", "--run_args", "--nj 1", fail="it")
    assert done.returncode == 1
    assert "4 / 8 failed" in done.stderr
    called = (folder / "called").read_text().splitlines()
    assert len(called) == 8 and all(line.endswith("--ngpu 0 --nj 1") for line in called)
    done = run("--max_jobs_run", "2", "--run_args", "--nj 1")
    assert done.returncode == 0, done.stderr
    assert "4 of 8 experiments are finished" in done.stderr
    again = (folder / "called").read_text().splitlines()[8:]
    assert len(again) == 4 and all("--langs it" in line for line in again)
    assert "8 of 8 experiments are finished" in done.stdout
    done = run("--run_args", "--nj 1")
    assert done.returncode == 0 and len((folder / "called").read_text().splitlines()) == 12
    report = (folder / "exp/grid/ranks/report.md").read_text()
    assert "|backbone|langs|set|baseline|rank 4|rank 16|" in report
    assert "|whisper_mini|it|test_en|50.00 [" in report
    assert (folder / "exp/grid/ranks/wer.png").stat().st_size > 5000
    assert len((folder / "exp/grid/ranks/report.csv").read_text().splitlines()) == 1 + 4


def test_a_report_of_several_systems(recipe):
    folder, run = recipe
    run()
    done = run("--report", "true", "--system", "baseline oracle")
    assert done.returncode == 0, done.stderr
    report = (folder / "exp/grid/ranks/report.md").read_text()
    assert "|backbone|langs|set|system|baseline|rank 4|rank 16|" in report
    assert "|whisper_mini|it|test_en|oracle|50.00 [" in report


def test_a_report_of_what_there_is(recipe, registry, capsys):
    folder, run = recipe
    elsewhere = subprocess.run(
        ["recipe/grid.sh", "--help"], cwd=folder.parent, capture_output=True, text=True
    )
    assert elsewhere.returncode == 0 and "--run_args" in elsewhere.stdout
    assert run("--report", "true").returncode == 2
    run(fail="it")
    done = run("--report", "true", "--system", "baseline")
    assert done.returncode == 0, done.stderr
    assert "4 of 8 experiments are finished" in done.stdout
    assert len((folder / "called").read_text().splitlines()) == 8
    with pytest.raises(ConfigError, match="--name x is none of whisper-small_en_rank4"):
        command.main(["finish", "--registry", str(registry), "--grid", "ranks", "--name", "x"])
