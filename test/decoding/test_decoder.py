"""Decoding of test sets from the command line's function to the files that scoring reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_moe.bin import decode as command
from espnet_moe.config import ConfigError
from espnet_moe.data.utterance import Utterance
from espnet_moe.decoding.decoder import DecodeOptions, Decoder
from espnet_moe.decoding.loading import load_decoder, parse_experts
from espnet_moe.decoding.sets import Share, _Item, batches
from espnet_moe.experts.expert_files import save_expert
from espnet_moe.experts.expert_set import ExpertError, ExpertSet, LoRAOptions

COUNTS = {"test_indic": {"hi": 5, "pa": 4}, "test_it": {"it": 6}}


@pytest.fixture
def sets(make_datadir, tmp_path):
    for seed, (name, counts) in enumerate(COUNTS.items()):
        make_datadir(tmp_path / "raw" / name, counts, seed)
    return [str(tmp_path / "raw" / name) for name in COUNTS]


@pytest.fixture
def experts(make_backbone, tmp_path):
    backbone = make_backbone()
    found = ExpertSet(backbone, LoRAOptions(rank=4), ["hi", "it", "pa"])
    torch.manual_seed(1)
    for p in found.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for name in found.names:
        save_expert(tmp_path / "experts" / name, found, name, backbone.digest(), {})
    return [f"{name}={tmp_path / 'experts' / name}" for name in found.names]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "greedy.yaml").write_text("batch_size: 4\nmax_tokens: 12\n")
    return str(tmp_path / "greedy.yaml")


def run(tiny_folder, sets, out, *more):
    command.main(["--backbone", str(tiny_folder), "--data", *sets, "--out", str(out), *more])


def texts(out, name):
    lines = []
    for path in sorted((Path(out) / name / "logdir").glob("output.*/text")):
        lines += path.read_text(encoding="utf-8").split("\n")[:-1]
    return {key: text for key, _, text in (line.partition(" ") for line in lines)}


def test_two_jobs_write_what_one_job_writes(tiny_folder, sets, experts, config, tmp_path):
    common = ["--system", "oracle", "--experts", *experts, "--config", config, "--device", "cpu"]
    run(tiny_folder, sets, tmp_path / "one", *common)
    for job in "12":
        run(tiny_folder, sets, tmp_path / "two", *common, "--job", job, "--num_jobs", "2")
    for name, counts in COUNTS.items():
        one, two = texts(tmp_path / "one", name), texts(tmp_path / "two", name)
        assert len(one) == sum(counts.values()) and one == two
        ids = [line.split()[0] for line in (Path(sets[0]).parent / name / "text").open()]
        assert sorted(one) == sorted(ids)
        for job in "12":
            lines = (tmp_path / "two" / name / "logdir" / f"output.{job}" / "text").read_text()
            keys = [line.split()[0] for line in lines.splitlines()]
            assert keys == sorted(keys)
    report = json.loads((tmp_path / "two" / "logdir" / "output.2.json").read_text())
    assert report["num_jobs"] == 2 and report["audio_seconds"] > 0 and report["wall_seconds"] > 0
    assert report["experts"].keys() == {"hi", "it", "pa"} and "--num_jobs 2" in report["command"]
    assert report["trainable_params"] == 3 * 12 * (4 * 32 + 32 * 4)
    rows = [
        json.loads(line)
        for path in (tmp_path / "two").glob("*/logdir/output.*/stats.jsonl")
        for line in path.open()
    ]
    assert len(rows) == 15
    assert all(r["latency_ms"] > 0 and r["stop"] in ("eos", "length", "repetition") for r in rows)
    assert max(r["tokens"] for r in rows) == 12


def test_scoring_reads_it(tiny_folder, sets, config, tmp_path):
    from espnet_moe.scoring.folders import read_decoded, read_references

    out = tmp_path / "exp" / "baseline" / "decode_greedy"
    run(tiny_folder, sets, out, "--config", config, "--device", "cpu")
    for folder in sets:
        name = Path(folder).name
        # What moe.sh does after the jobs.
        merged = sorted(f"{k} {v}\n" for k, v in texts(out, name).items())
        (out / name / "text").write_text("".join(merged), encoding="utf-8")
        references = read_references(Path(folder))
        decoded = read_decoded(out, references)
        assert len(decoded.hypotheses) == sum(COUNTS[name].values())
        assert all(row["latency_ms"] > 0 for row in decoded.stats)
        assert [job["system"] for job in decoded.jobs] == ["baseline"]


def test_oracle_gives_each_utterance_its_own_expert(tiny_folder, sets, experts, config, tmp_path):
    run(tiny_folder, sets, tmp_path / "base", "--config", config, "--device", "cpu")
    oracle = ["--system", "oracle", "--config", config, "--device", "cpu", "--experts"]
    run(tiny_folder, sets, tmp_path / "mixed", *oracle, *experts)
    run(tiny_folder, sets[1:], tmp_path / "single", *oracle, experts[1])
    assert texts(tmp_path / "mixed", "test_it") == texts(tmp_path / "single", "test_it")
    assert texts(tmp_path / "mixed", "test_it") != texts(tmp_path / "base", "test_it")


def test_a_job_without_a_batch(tiny_folder, sets, config, tmp_path):
    last = ["--job", "9", "--num_jobs", "9", "--config", config, "--device", "cpu"]
    run(tiny_folder, sets, tmp_path / "out", *last)
    assert texts(tmp_path / "out", "test_it") == {}
    report = json.loads((tmp_path / "out" / "logdir" / "output.9.json").read_text())
    assert report["audio_seconds"] == 0


def test_batches_cover_everything_once_and_are_alike_in_length():
    draw = np.random.default_rng(0)
    utterances = [
        _Item("test", Utterance(f"s-{i}", "x", "", "s", "hi", "test", duration=draw.uniform(1, 20)))
        for i in range(103)
    ]
    jobs = [batches(utterances, 8, Share.of(j, 3)) for j in (1, 2, 3)]
    everything = [i.utterance.utt_id for job in jobs for batch in job for i in batch]
    assert sorted(everything) == sorted(i.utterance.utt_id for i in utterances)
    seconds = [sum(i.utterance.duration for b in job for i in b) for job in jobs]
    assert max(seconds) < 1.4 * min(seconds)
    for batch in jobs[0]:
        assert batch == sorted(batch, key=lambda i: -i.utterance.duration)
    for job, count in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(ConfigError, match=rf"--job {job} is not in 1..{count}"):
            Share.of(job, count)


@pytest.mark.parametrize(
    ("system", "pairs", "message"),
    [
        ("softer", ["hi=x"], "--system softer is unknown: choose one of baseline, oracle, hard"),
        ("soft", ["hi=x"], "--system soft needs --router FOLDER"),
        ("oracle", ["hi"], "'hi' is not NAME=FOLDER"),
        ("oracle", ["=x"], "'=x' is not NAME=FOLDER"),
        ("oracle", ["hi=x", "hi=y"], "names 'hi' twice"),
        ("oracle", [], "--system oracle needs --experts"),
        ("baseline", ["hi=x"], "leave --experts out"),
    ],
)
def test_wrong_systems_and_experts(system, pairs, message):
    with pytest.raises(ConfigError, match=message):
        parse_experts(system, pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beam_sise: 3\n", r"unknown key\(s\) beam_sise; legal keys: batch_size, beam_size"),
        ("- 1\n", "no mapping"),
        ("batch_size: 0\n", "batch_size is at least 1"),
        ("beam_size: 0\n", "beam_size is at least 1"),
        ("beam_size: five\n", "beam_size"),
        ("a: [1\n", "wrong.yaml"),
    ],
)
def test_wrong_config(tiny_folder, tmp_path, text, message):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_decoder(str(tiny_folder), "variable", {}, str(tmp_path / "wrong.yaml"), "cpu")
    assert type(error.value).__module__.startswith("espnet_moe")


def test_empty_and_missing_config(tiny_folder, tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    decoder = load_decoder(str(tiny_folder), "variable", {}, str(tmp_path / "empty.yaml"), "cpu")
    assert decoder.options == DecodeOptions()
    with pytest.raises(ConfigError, match="nowhere.yaml does not exist"):
        load_decoder(str(tiny_folder), "variable", {}, "nowhere.yaml", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "mps", ""])
def test_wrong_device(tiny_folder, device):
    with pytest.raises(ConfigError, match=f"--device {device}"):
        load_decoder(str(tiny_folder), "variable", {}, None, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tiny_folder):
    with pytest.raises(ConfigError, match="sees no GPU here; use auto or cpu"):
        load_decoder(str(tiny_folder), "variable", {}, None, "cuda")


def test_wrong_sets(tiny_folder, sets, tmp_path):
    with pytest.raises(ValueError, match="sets of the same name: test_it, test_it"):
        run(tiny_folder, [sets[1], sets[1]], tmp_path / "out", "--device", "cpu")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        run(tiny_folder, [str(tmp_path / "nowhere")], tmp_path / "out", "--device", "cpu")


def test_missing_expert_folder_and_language(tiny_folder, sets, experts, tmp_path):
    oracle = ["--system", "oracle", "--device", "cpu", "--experts"]
    with pytest.raises(ExpertError, match="holds no whole expert"):
        run(tiny_folder, sets, tmp_path / "out", *oracle, f"hi={tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"no expert for language\(s\) it; experts: hi pa"):
        run(tiny_folder, sets, tmp_path / "out", *oracle, experts[0], experts[2])


def test_the_same_utterance_in_two_sets_with_different_audio(tiny_folder, make_datadir, tmp_path):
    # Kathbath clean and noisy: the same ids, other recordings.
    one = make_datadir(tmp_path / "test_clean", {"hi": 3})
    two = make_datadir(tmp_path / "test_noisy", {"hi": 3})
    import soundfile

    for path in sorted((two / "wavs").iterdir()):
        soundfile.write(path, 0.3 * np.random.default_rng(5).standard_normal(9000), 16000)
    run(tiny_folder, [str(one), str(two)], tmp_path / "both", "--device", "cpu")
    run(tiny_folder, [str(one)], tmp_path / "alone", "--device", "cpu")
    run(tiny_folder, [str(two)], tmp_path / "alone", "--device", "cpu")
    for name in ("test_clean", "test_noisy"):
        assert texts(tmp_path / "both", name) == texts(tmp_path / "alone", name)
    assert texts(tmp_path / "both", "test_clean") != texts(tmp_path / "both", "test_noisy")


def test_decoder_in_memory(make_backbone, speak):
    decoder = Decoder(make_backbone(), None, DecodeOptions(max_tokens=8))
    rows = [speak(0.5, 1), speak(0.3, 2)]
    found = decoder(rows, ["hi", "it"])
    alone = decoder(rows[1:], ["it"])
    assert found[1].hypothesis.tokens == alone[0].hypothesis.tokens
    assert found[1].text == alone[0].text and all(f.latency > 0 for f in found)


def test_a_single_expert_is_for_its_own_language_only(tiny_folder, sets, experts, tmp_path):
    oracle = ["--system", "oracle", "--device", "cpu", "--experts", experts[0]]
    with pytest.raises(ValueError, match=r"no expert for language\(s\) it, pa; experts: hi"):
        run(tiny_folder, sets, tmp_path / "out", *oracle)
    assert not (tmp_path / "out").exists()


def test_experts_of_another_context_or_tokenizer(tiny_folder, sets, experts, tmp_path):
    manifest = tmp_path / "experts" / "hi" / "expert.json"
    content = json.loads(manifest.read_text())
    oracle = ["--system", "oracle", "--device", "cpu", "--experts", *experts]
    for key, value, message in (
        ("context", "padded", "'hi' was trained with --context padded.*decode has --context var"),
        ("tokenizer_digest", "0" * 64, "'hi' was trained with another tokenizer"),
    ):
        manifest.write_text(json.dumps({**content, key: value}))
        with pytest.raises(ValueError, match=message):
            run(tiny_folder, sets, tmp_path / "out", *oracle)
