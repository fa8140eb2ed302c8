"""The task: options, what is refused, preprocessing, schedules, and the command line."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from espnet_moe.bin import cli
from espnet_moe.bin import train as command
from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import load_experts, read_manifest
from espnet_moe.preprocessing import Preprocessor
from espnet_moe.schedulers import LinearWarmupDecay
from espnet_moe.task import MoETask


def refused(args, match, error=UserError):
    with pytest.raises(error, match=match):
        command.main(args)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backbone_conf", "colour=red"], r"backbone_conf: unknown key\(s\) colour; legal.*path"),
        (["--expert_conf", "rnk=4"], r"expert_conf: unknown key\(s\) rnk; legal keys: targets"),
        (["--expert_conf", "rank=x"], "rank is of the type int, not 'x'"),
        (["--expert_conf", "targets=[query]"], "no linear layer is named query; targets.*q_proj"),
        (["--router_conf", "k=1"], r"router_conf: unknown key\(s\) k"),
        (["--model_conf", "smooth=1"], "model_conf: unknown key.*smooth.*label_smoothing"),
        (["--model_conf", "replay=3"], "model_conf: unknown key.*replay"),  # of a router only
        (["--specaug", "specaug", "--specaug_conf", "colour=1"], "specaug_conf.*colour"),
        (["--specaug", "specaug", "--specaug_conf", "vtlp_range=0.2"], "specaug_conf.*vtlp_range"),
        (
            ["--specaug", "vtlp", "--specaug_conf", "vtlp_range=2"],
            r"vtlp_range is in \[0, 1\), not",
        ),
        (["--optim_conf", "speed=1"], "optim_conf.*speed"),
        (["--scheduler_conf", "speed=1"], "scheduler_conf.*speed"),
        (["--scheduler_conf", "warmup_steps=20"], "warmup_steps 20 is not in 0..total_steps - 1"),
        (["--phase", "all"], "--phase all is unknown: choose one of router, expert, joint"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
        (["--use_amp", "true"], "leave it out"),
        (["--freeze_param", "experts"], "freeze_param has no place here"),
        (["--init_param", "x.pth"], "init_param has no place here"),
        (["--speed_perturb", "0.9", "9"], r"\[9.0\]: factors are between 0.5 and 2.0"),
        (["--max_epoch", "0"], "max_epoch is at least 1"),
        (["--early_stopping_criterion", "valid", "wer", "min"], "set --wer_interval"),
        (["--best_model_criterion", "valid,loss,least"], "valid loss least.*min or max"),
        (["--early_stopping_criterion", "valid", "loss", "low"], "valid loss low.*min or max"),
        (["--scheduler", "steplr"], "steplr does not step with the optimiser.*linearwarmupdecay"),
        (["--wer_interval", "0"], "--wer_interval is at least 1"),
        (["--use_adapter", "true"], "--use_adapter has no effect here"),
        (["--train_dtype", "float16"], "--train_dtype stays float32"),
        (["--ngpu", "2"], "--ngpu 2 needs --multiprocessing_distributed true"),
        (["--train_dir", "nowhere"], "--train_dir nowhere has no wav.scp, text, utt2lang"),
        (["--backbone_conf", "path=./nowhere"], "backbone './nowhere' does not exist"),
        (["--backbone_conf", "context=short"], "'short' is unknown"),
    ],
)
def test_what_is_refused(train_args, tmp_path, more, message):
    refused(train_args(tmp_path / "out", *more), message)
    assert not list(tmp_path.glob("out/*.pth"))


def test_everything_wrong_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        command.main(["--output_dir", str(tmp_path / "out"), "--phase", "all"])
    for words in ("--phase all", "--experts", "--train_dir is missing", "--valid_stats is missing"):
        assert words in str(error.value)


def test_unknown_key_in_yaml_is_an_error(train_args, tmp_path, capsys):
    (tmp_path / "conf.yaml").write_text("expert_confs: {rank: 4}\n")
    with pytest.raises(SystemExit) as stop:
        command.main(train_args(tmp_path / "out", "--config", str(tmp_path / "conf.yaml")))
    assert stop.value.code == 2 and "expert_confs" in capsys.readouterr().err


def test_print_config(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])  # ESPnet looks at it
    with pytest.raises(SystemExit) as stop:
        command.main(["--print_config"])
    assert stop.value.code == 0
    conf = MoETask.get_default_config()
    assert conf["expert_conf"]["rank"] == 16 and conf["backbone_conf"]["context"] == "variable"
    assert conf["scheduler_conf"]["total_steps"] == 5000 and conf["phase"] == "expert"
    # Whatever is shown must be accepted when it is given back.
    assert conf["model_conf"] == {"label_smoothing": None}


def test_transcript_with_an_unknown_language(train_args, tmp_path, make_datadir):
    folder = make_datadir(tmp_path / "train_xx", {"hi": 2})
    (folder / "utt2lang").write_text("spkhi0-000 xx\nspkhi0-001 xx\n")
    more = ["--train_dir", str(folder), "--train_stats", str(folder)]
    refused(train_args(tmp_path / "out", *more), "spkhi0-00.*language 'xx'.*it has: en hi it")


# -- the whole command ----------------------------------------------------------------------------


@pytest.fixture
def run():
    """Run the command in a process of its own."""

    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "espnet_moe.bin.train", *args],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )

    return run


def test_the_command_line_trains_and_exports(run, train_args, tmp_path, make_backbone):
    (tmp_path / "conf.yaml").write_text(
        "expert_conf: {rank: 8, alpha: 16, targets: [q_proj, fc1]}\nprecision: auto\n"
        "gradient_checkpointing: true\nmodel_conf: {label_smoothing: 0.1}\n"
    )
    args = train_args(tmp_path / "out", "--config", str(tmp_path / "conf.yaml"))
    place = args.index("--expert_conf")
    del args[place : place + 2]
    done = run(*args)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith(f"expert: {tmp_path}/out/expert")
    assert "parameters are trainable" in done.stderr
    manifest = read_manifest(tmp_path / "out" / "expert")
    assert manifest["languages"] == ["hi"] and manifest["options"]["rank"] == 8
    assert (
        manifest["metrics"]["loss"] > 0 and manifest["normalizer"] and manifest["phase"] == "expert"
    )
    backbone = make_backbone()
    experts = load_experts(backbone, {"hi": tmp_path / "out" / "expert"})
    assert all(t.abs().sum() > 0 for t in experts.state("hi").values())
    best = torch.load(tmp_path / "out" / "valid.loss.best.pth", weights_only=True)
    for name, value in best.items():
        trained = dict(backbone.named_parameters())[name.removeprefix("backbone.")]
        assert torch.equal(trained, value)
    conf = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert conf["expert_conf"]["rank"] == 8 and conf["expert_conf"]["dropout"] == 0.0
    assert conf["precision"] in ("fp32", "bf16")  # what auto was here
    assert f"precision: {conf['precision']}, the fastest" in done.stderr


def test_mistakes_are_said_in_one_line(train_args, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _: command.main(train_args(tmp_path / "out", "--expert_conf", "rnk=4")))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    assert "error: expert_conf: unknown key(s) rnk" in said.strip().splitlines()[-1]


# -- parts ----------------------------------------------------------------------------------------


def test_linear_warmup_and_decay_by_hand():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = LinearWarmupDecay(optimizer, warmup_steps=4, total_steps=10)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    by_hand = [0.5, 1.0, 1.5, 2.0, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6, 0.0, 0.0]
    assert rates == pytest.approx(by_hand)
    again = LinearWarmupDecay(torch.optim.SGD([parameter], lr=2.0), warmup_steps=4, total_steps=10)
    again.load_state_dict(schedule.state_dict())
    assert again.last_epoch == 12
    with pytest.raises(ConfigError, match="warmup_steps 5 is not in"):
        LinearWarmupDecay(optimizer, 5, 5)
    none = LinearWarmupDecay(torch.optim.SGD([parameter], lr=2.0), 0, 4)
    assert none.get_last_lr() == [2.0]


def test_preprocessor(backbone, speak):
    tokens, wave = backbone.tokens, speak(1.0, 1)
    data = {"speech": wave, "text": "ciao", "language": "it"}
    plain = Preprocessor(False, tokens, [0.9, 1.1])("u", dict(data))
    assert np.array_equal(plain["speech"], wave)
    assert plain["text"].tolist() == tokens.encode("ciao")
    assert tokens.languages[plain["language"][0]] == "it"
    np.random.seed(0)
    change = Preprocessor(True, tokens, [0.9, 1.0, 1.1])
    seen = {len(change("u", dict(data))["speech"]) for _ in range(40)}
    assert sorted(seen) == pytest.approx([16000 / 1.1, 16000, 16000 / 0.9], abs=2)


def test_faster_speech_has_higher_pitch(backbone):
    time = np.arange(16000) / 16000
    data = {"speech": np.sin(2 * np.pi * 1000 * time), "text": "", "language": "it"}
    fast = Preprocessor(True, backbone.tokens, [1.25])("u", data)["speech"]
    spectrum = np.abs(np.fft.rfft(fast))
    assert spectrum.argmax() * 16000 / len(fast) == pytest.approx(1250, abs=5)


def test_speed_never_makes_an_utterance_too_long(backbone):
    data = {"speech": np.zeros(29 * 16000, np.float32), "text": "", "language": "it"}
    made = Preprocessor(True, backbone.tokens, [0.9])("u", data)
    assert len(made["speech"]) == 29 * 16000


def test_accumulated_gradients_equal_those_of_the_larger_batch(train_args, tmp_path, make_datadir):
    """Two batches of 2 with accum_grad 2 take the step of one batch of 4 (texts of one length)."""
    folder = make_datadir(tmp_path / "train_same", {"hi": 4})
    (folder / "text").write_text(
        "".join(f"spkhi0-{i:03d} {t}\n" for i, t in enumerate(["abcd", "bcda", "cdab", "dabc"]))
    )
    data = ["--train_dir", str(folder), "--train_stats", str(folder), "--max_epoch", "1"]
    data += ["--optim", "sgd", "--grad_clip", "1e9", "--num_iters_per_epoch"]
    states = []
    for name, more in (
        ("one", ["1", "--batch_size", "4"]),
        ("two", ["2", "--batch_size", "2", "--accum_grad", "2"]),
    ):
        MoETask.main(cmd=train_args(tmp_path / name, *data, *more))
        states.append(torch.load(tmp_path / name / "1epoch.pth", weights_only=True))
    assert any(v.abs().sum() > 0 for k, v in states[0].items() if k.endswith("lora_B"))
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-7)
