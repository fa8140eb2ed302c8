"""The mini recipe from corpus to scored table, with a handful of utterances and two steps."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "egs2/mini/moe1"

# All of run.sh but those that differ in nothing but a strategy.
SYSTEMS = ("baseline", "oracle", "hard", "soft", "joint")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {n: tmp_path_factory.mktemp(n) for n in ("data", "dump", "exp", "downloads")}


def run(folders, *options):
    words = [f"--{n}dir {folders[n]}" for n in ("data", "dump", "exp")]
    # One corpus a language keeps it short; both layouts of every language have tests of their own.
    words += ["--langs", "'te it'", "--sources", "'te:kathbath it:mls'"]
    made = f"--corpus_dir {folders['downloads']} --size 12 --dev_size 4 --test_size 6"
    words += ["--local_data_opts", f"'{made}'", "--inference_nj 2"]
    steps = "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 4 --valid_batch_size 4"
    words += ["--train_args", f"'{steps}'"]
    words += [
        "--systems",
        f"'{' '.join(SYSTEMS)}'",
        "--codeswitch_systems",
        "'oracle frame segment'",
    ]
    # A dozen words are too few to probe, which would be told as a failure.
    analyses = "similarity spectrum layers transfer errors significance routing"
    words += ["--analyses", f"'{analyses}'"]
    words += options
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", f"{RECIPE}/run.sh {' '.join(words)}"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, time.monotonic() - began


def results(folders):
    return json.loads((folders["exp"] / "results.json").read_text())["rows"]


def test_from_corpus_to_table(folders):
    printed, _ = run(folders)
    rows = [row for row in results(folders) if row["language"] != "mixed"]
    assert {(r["system"], r["set"], r["language"]) for r in rows if "_cs_" not in r["set"]} == {
        (system, f"test_{code}", code) for system in SYSTEMS for code in ("te", "it")
    }
    for row in rows:
        assert row["utterances"] == 6 or "_cs_" in row["set"]
        assert row["words"] == row["cor"] + row["sub"] + row["del"]
        assert row["wer"] == pytest.approx(
            100 * (row["sub"] + row["del"] + row["ins"]) / row["words"], abs=0.01
        )
        assert row["seconds_audio"] > 0 and row["rtf"] > 0 and row["latency_ms_p50"] > 0
        assert (row["trainable_params"] > 0) == (row["system"] != "baseline")
    assert all(f"\n{system} " in printed for system in SYSTEMS)
    text = (folders["exp"] / "RESULTS.md").read_text()
    assert "### WER" in text and "### CER" in text and "espnet_moe.bin.decode" in text


def test_routing_and_code_switching_are_scored(folders):
    found = json.loads((folders["exp"] / "results.json").read_text())
    routed = {row["system"]: row for row in found["routing"] if row["set"] == "all"}
    assert routed.keys() >= {"hard", "soft", "joint"}
    for row in routed.values():
        assert 0 <= row["accuracy"] <= 100
        assert row["encoder_share"] > 0
    switched = {(row["system"], row["set"]) for row in found["codeswitch"]}
    kinds = [f"test_cs_{kind}" for kind in ("inter", "intra", "rapid")]
    assert switched == {(s, kind) for s in ("oracle", "frame", "segment") for kind in kinds}
    assert [row["name"] for row in found["targets"]]


def test_second_run_skips_everything(folders):
    before = {p: p.stat().st_mtime_ns for p in folders["exp"].rglob("*.pth")}
    printed, seconds = run(folders)
    assert seconds < 30
    stages = [line for line in printed.splitlines() if re.match(r"stage\d+", line)]
    assert len(stages) > 8
    assert all(line.endswith("skipped: done, nothing has changed") for line in stages)
    assert {p: p.stat().st_mtime_ns for p in folders["exp"].rglob("*.pth")} == before
    assert "oracle" in printed  # the table is printed all the same


def test_decoding_and_scoring_alone(folders):
    before = results(folders)
    (folders["exp"] / "oracle/decode_greedy/test_te/text").unlink()
    printed, _ = run(folders, "--stage 10", "--stop_stage 11")
    assert "Stage 8" not in printed
    kept = ("system", "set", "wer", "cer", "sub", "del", "ins")
    assert [{k: r[k] for k in kept} for r in results(folders)] == [
        {k: r[k] for k in kept} for r in before
    ]


def test_experts_by_clusters(folders):
    conf = folders["data"] / "clusters.yaml"
    conf.write_text("count: 2\nreduction: {method: pca, dims: 2}\nmin_size: 2\nfraction: 1.0\n")
    few = ["--systems", "'oracle hard joint'", "--codeswitch_systems", "segment"]
    few += ["--analyses", "routing"]  # what differs from experts of languages
    printed, _ = run(folders, "--experts_by", "kmeans", "--assign_config", str(conf), *few)
    systems = {row["system"] for row in results(folders)}
    assert systems >= {"oracle_kmeans", "hard_kmeans", "joint_kmeans", "segment_kmeans"}
    assert json.loads((folders["exp"] / "assign_kmeans/experts.json").read_text())["experts"] == [
        "c0",
        "c1",
    ]
    assert "hard_kmeans" in printed
