"""Experts, a router and both together on OWSM, through the command lines."""

import os
import subprocess
import sys

import pytest
import torch

from espnet_moe.bin import train as command
from espnet_moe.decoding.decoder import DecodeOptions, Decoder
from espnet_moe.decoding.sets import decode_sets
from espnet_moe.experts.expert_files import load_experts, read_manifest


@pytest.fixture
def train(owsm_folder, make_datadir, tmp_path):
    """``train(name, *more)`` trains for a second and returns the output folder."""
    languages = {"hi": 6, "it": 6}
    sets = [make_datadir(tmp_path / f"data{i}", languages, seed=i) for i in range(2)]

    def train(name, *more):
        options = f"""
            --output_dir {tmp_path}/{name} --backbone_conf path={owsm_folder}
            --train_dir {sets[0]} --valid_dir {sets[1]} --train_stats {sets[0]}
            --valid_stats {sets[1]} --batch_type sorted --batch_size 4 --num_workers 0 --ngpu 0
            --num_iters_per_epoch 4 --max_epoch 2 --seed 3 --use_matplotlib false
            --use_tensorboard false --optim_conf lr=0.02 --scheduler_conf warmup_steps=2
            --scheduler_conf total_steps=20"""
        command.main([*options.split(), *more])
        return tmp_path / name

    return train


def hypotheses(folder):
    rows = {}
    for path in sorted(folder.glob("**/logdir/output.*/text")):
        for line in path.read_text("utf-8").splitlines():
            key, _, text = line.partition(" ")
            rows[key] = text
    return rows


def test_trained_saved_and_loaded_in_a_fresh_process(
    train, owsm_folder, make_owsm, make_datadir, tmp_path
):
    """The same hypotheses; what trains is the expert, on ESPnet's loss; the base stays."""
    (tmp_path / "conf.yaml").write_text(
        "expert_conf: {rank: 4, targets: [all-linear]}\nprecision: bf16\nwer_interval: 1\n"
        "gradient_checkpointing: true\nspeed_perturb: [0.9, 1.1]\nspecaug: specaug\n"
        "specaug_conf: {apply_time_warp: false, time_mask_width_range: [0, 4]}\n"
    )
    out = train("expert", "--experts", "hi", "it", "--config", str(tmp_path / "conf.yaml"))
    log = (out / "train.log").read_text("utf-8") if (out / "train.log").exists() else ""
    manifest = read_manifest(out / "expert_hi")
    assert manifest["base_digest"] == make_owsm().digest()
    assert manifest["metrics"]["loss"] > 0, log
    test = make_datadir(tmp_path / "test", {"hi": 3, "it": 3}, seed=5)
    experts = {code: str(out / f"expert_{code}") for code in ("hi", "it")}

    backbone = make_owsm()
    found = load_experts(backbone, experts)
    assert all(t.abs().sum() > 0 for t in found.state("hi").values())
    options = DecodeOptions(batch_size=3, beam_size=3, max_tokens=12, ctc_weight=0.3)
    decode_sets(Decoder(backbone, found, options), [test], tmp_path / "here", {})
    (tmp_path / "decode.yaml").write_text(
        "batch_size: 4\nbeam_size: 3\nmax_tokens: 12\nctc_weight: 0.3\n"
    )
    there = f"""
        -m espnet_moe.bin.decode --backbone {owsm_folder} --system oracle --data {test}
        --config {tmp_path}/decode.yaml --out {tmp_path}/there --experts"""
    done = subprocess.run(
        [sys.executable, *there.split(), *(f"{k}={v}" for k, v in experts.items())],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours = hypotheses(tmp_path / "here")
    assert len(ours) == 6
    assert ours == hypotheses(tmp_path / "there")


def test_router_and_joint_phase(train):
    """An utterance router and a frame router on OWSM's frames; experts with a router beside."""
    common = ["--experts", "hi", "it", "--languages", "hi", "it"]
    layer = ["--router_conf", "layer=1"]
    router = train("router", "--phase", "router", *common, *layer, "--router", "mlp")
    frames = train(
        "frames",
        "--phase",
        "router",
        *common,
        *(*layer, "--router", "cnn", "--router_conf", "level=frame"),
    )
    assert (frames / "router" / "router.json").exists()
    # No utterance has a part in the CTC loss: neither alone nor in joint training.
    folder = frames.parent / "data0"
    utts = [line.split()[0] for line in (folder / "text").read_text("utf-8").splitlines()]
    (folder / "text.ctc").write_text("".join(f"{u} <na>\n" for u in utts), "utf-8")
    joint = train(
        "joint",
        *("--phase", "joint", *common, *layer, "--router", "mlp"),
        *("--init_router", str(router / "router")),
        *("--expert_conf", "first_layer=1"),
    )
    kept = torch.load(joint / "valid.loss.best.pth", weights_only=True)
    assert any("lora_" in name for name in kept)
    assert not any("merge_proj.base" in name for name in kept)
    state = torch.load(joint / "checkpoint.pth", weights_only=True)
    stats = state["reporter"]["stats"][2]
    assert stats["train"]["loss_ctc"] == 0.0
    assert stats["valid"]["loss_ctc"] > 0.0
