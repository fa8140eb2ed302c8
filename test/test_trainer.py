"""Training: resumption, checkpoints, criteria, several processes."""

import argparse
import errno
import os
from pathlib import Path

import pytest
import torch

from espnet_moe import training_data
from espnet_moe.errors import UserError
from espnet_moe.model import ESPnetMoEModel
from espnet_moe.task import MoETask
from espnet_moe.trainer import Trainer, is_first_process

# Everything random at once: speed, masks, dropout of the experts; and gradients left over.
RANDOM = [
    *("--speed_perturb", "0.9", "1.0", "1.1", "--specaug", "specaug"),
    *("--specaug_conf", "apply_time_warp=false", "--specaug_conf", "num_freq_mask=2"),
    *("--specaug_conf", "freq_mask_width_range=[0,16]", "--specaug_conf", "num_time_mask=2"),
    *("--specaug_conf", "apply_time_mask=true"),
    *("--specaug_conf", "time_mask_width_ratio_range=[0.0,0.2]"),
    *("--expert_conf", "dropout=0.2", "--accum_grad", "2", "--keep_nbest_models", "9"),
]


def state(folder, name):
    return torch.load(folder / name, map_location="cpu", weights_only=True)


def same(one, two):
    assert one.keys() == two.keys() and len(one) > 10
    return all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def uninterrupted(train_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    MoETask.main(cmd=train_args(folder, *RANDOM, "--max_epoch", "4"))
    return folder


def test_training_changes_the_experts_and_repeats_itself(uninterrupted, train_args, tmp_path):
    assert not same(state(uninterrupted, "1epoch.pth"), state(uninterrupted, "2epoch.pth"))
    MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "1"))
    assert same(state(uninterrupted, "1epoch.pth"), state(tmp_path, "1epoch.pth"))


def test_resumed_equals_uninterrupted(uninterrupted, train_args, tmp_path):
    MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "2"))
    MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "4"))
    for epoch in (1, 2, 3, 4):
        assert same(state(uninterrupted, f"{epoch}epoch.pth"), state(tmp_path, f"{epoch}epoch.pth"))
    one, two = (state(f, "checkpoint.pth") for f in (uninterrupted, tmp_path))
    assert one["schedulers"] == two["schedulers"]
    for a, b in zip(one["optimizers"], two["optimizers"], strict=True):
        assert a["param_groups"] == b["param_groups"]
        for key, values in a["state"].items():
            assert all(torch.equal(v, b["state"][key][k]) for k, v in values.items())
    losses = [[r["reporter"]["stats"][e]["valid"]["loss"] for e in range(1, 5)] for r in (one, two)]
    assert losses[0] == losses[1]


def test_killed_in_the_middle_of_an_epoch(uninterrupted, train_args, tmp_path, monkeypatch):
    forward, calls = ESPnetMoEModel.forward, []

    def die(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:  # 3 steps and 2 validation batches an epoch: in the third
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ESPnetMoEModel, "forward", die)
    with pytest.raises(KeyboardInterrupt):
        MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "4"))
    assert not (tmp_path / "3epoch.pth").exists() and (tmp_path / "2epoch.pth").exists()
    monkeypatch.undo()
    MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "4"))
    assert same(state(uninterrupted, "4epoch.pth"), state(tmp_path, "4epoch.pth"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
@pytest.mark.parametrize("which", [1, 2])
def test_disk_full_while_writing(uninterrupted, train_args, tmp_path, monkeypatch, error, which):
    """Which of the two files of the third epoch is cut; nothing earlier is lost."""
    save, calls = torch.save, []

    def full(content, path, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4 + which:
            path.write_bytes(b"half a file")
            raise error
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"could not write .*pth.*free space"):
        MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "4"))
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*tmp"))
    assert state(tmp_path, "checkpoint.pth")["reporter"]["epoch"] == 2
    assert same(state(uninterrupted, "2epoch.pth"), state(tmp_path, "2epoch.pth"))
    MoETask.main(cmd=train_args(tmp_path, *RANDOM, "--max_epoch", "4"))
    assert same(state(uninterrupted, "4epoch.pth"), state(tmp_path, "4epoch.pth"))


def test_checkpoints_are_small_and_safe_to_load(uninterrupted, tiny_folder):
    own = sum(v.numel() for v in state(uninterrupted, "4epoch.pth").values())
    assert own == 12 * (4 * 32 + 32 * 4)
    assert all(".lora_" in k for k in state(uninterrupted, "4epoch.pth"))
    size = (uninterrupted / "checkpoint.pth").stat().st_size
    assert size < 3 * 4 * own + 100_000 < (tiny_folder / "model.safetensors").stat().st_size


def test_links_and_forgotten_epochs(train_args, tmp_path):
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "5", "--keep_nbest_models", "1"))
    stats = state(tmp_path, "checkpoint.pth")["reporter"]["stats"]
    losses = {e: stats[e]["valid"]["loss"] for e in range(1, 6)}
    best = min(losses, key=losses.__getitem__)
    assert os.readlink(tmp_path / "valid.loss.best.pth") == f"{best}epoch.pth"
    assert os.readlink(tmp_path / "latest.pth") == "5epoch.pth"
    left = {p.name for p in tmp_path.glob("*epoch.pth")}
    assert left == {"5epoch.pth", f"{best}epoch.pth"}


def test_wer_is_measured_at_its_interval(train_args, tmp_path):
    more = ["--max_epoch", "5", "--wer_interval", "2", "--best_model_criterion", "valid,wer,min"]
    MoETask.main(cmd=train_args(tmp_path, *more))
    stats = state(tmp_path, "checkpoint.pth")["reporter"]["stats"]
    assert [e for e in stats if "wer" in stats[e]["valid"]] == [2, 4, 5]
    assert all("wer" not in stats[e]["train"] for e in stats)
    measured = {e: stats[e]["valid"]["wer"] for e in (2, 4, 5)}
    best = min(measured, key=lambda e: (measured[e], e))
    assert os.readlink(tmp_path / "valid.wer.best.pth") == f"{best}epoch.pth"


def test_wer_is_that_of_the_whole_set(train_args, tmp_path, monkeypatch):
    counts = iter([(2, 2), (0, 100)])  # of two batches
    monkeypatch.setattr(ESPnetMoEModel, "_word_errors", lambda self, *a: next(counts))
    more = ["--max_epoch", "1", "--wer_interval", "1", "--valid_batch_size", "2"]
    MoETask.main(cmd=train_args(tmp_path, *more))
    figures = state(tmp_path, "checkpoint.pth")["reporter"]["stats"][1]["valid"]
    assert figures["wer"] == pytest.approx(100 * 2 / 102)
    assert "wer_words" not in figures


def test_a_validation_without_a_number_is_not_the_best(train_args, tmp_path, monkeypatch):
    forward, losses = ESPnetMoEModel.forward, iter([1.9, float("nan"), 1.5, 1.7])

    def told(self, *args, **kwargs):
        loss, stats, weight = forward(self, *args, **kwargs)
        if not self.training:
            stats["loss"] = torch.full_like(stats["loss"], next(losses))
        return loss, stats, weight

    monkeypatch.setattr(ESPnetMoEModel, "forward", told)
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "4", "--valid_batch_size", "4"))
    assert os.readlink(tmp_path / "valid.loss.best.pth") == "3epoch.pth"


def test_early_stopping_by_wer(train_args, tmp_path, monkeypatch):
    errors = iter([50, 30, 40, 30, 35, 20, 10, 10])
    monkeypatch.setattr(ESPnetMoEModel, "_word_errors", lambda self, *a: (next(errors), 100))
    more = ["--max_epoch", "9", "--wer_interval", "1", "--patience", "2", "--valid_batch_size", "4"]
    more += ["--early_stopping_criterion", "valid", "wer", "min"]
    MoETask.main(cmd=train_args(tmp_path, *more))
    # Best in epoch 2; 3, 4 and 5 are no better: more than the patience of 2.
    assert state(tmp_path, "checkpoint.pth")["reporter"]["epoch"] == 5
    before = state(tmp_path, "5epoch.pth")
    MoETask.main(cmd=train_args(tmp_path, *more))
    assert same(before, state(tmp_path, "5epoch.pth")) and not (tmp_path / "6epoch.pth").exists()


def test_other_experts_than_the_checkpoint_has(uninterrupted, train_args, tmp_path):
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "1"))
    with pytest.raises(UserError, match="other experts: rank was 4, is 8"):
        MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "2", "--expert_conf", "rank=8"))
    with pytest.raises(UserError, match="other experts: where was both, is encoder"):
        more = ["--max_epoch", "2", "--expert_conf", "where=encoder"]
        MoETask.main(cmd=train_args(tmp_path, *more))


def test_a_checkpoint_of_another_base(train_args, make_backbone, tmp_path):
    """Else an expert trained on one base would be exported with the digest of another."""
    MoETask.main(cmd=train_args(tmp_path / "out", "--max_epoch", "1"))
    other = make_backbone()
    with torch.no_grad():
        other.hf.model.encoder.conv1.bias += 0.1
    other.save_pretrained(tmp_path / "base")
    more = ["--backbone_conf", f"path={tmp_path / 'base'}"]
    with pytest.raises(UserError, match="was trained on another base"):
        MoETask.main(cmd=train_args(tmp_path / "out", "--max_epoch", "1", *more))


def test_a_damaged_checkpoint(train_args, tmp_path):
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "1"))
    whole = (tmp_path / "checkpoint.pth").read_bytes()
    (tmp_path / "checkpoint.pth").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"checkpoint\.pth.*cannot be read"):
        MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "2"))


def test_not_finite_gradients_stop_the_training(train_args, tmp_path, monkeypatch):
    forward = ESPnetMoEModel.forward

    def broken(self, *args, **kwargs):
        loss, stats, weight = forward(self, *args, **kwargs)
        return loss * float("nan"), stats, weight

    monkeypatch.setattr(ESPnetMoEModel, "forward", broken)
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "4"))
    assert state(tmp_path, "checkpoint.pth")["reporter"]["epoch"] == 1


def test_tensorboard_and_curves(train_args, tmp_path):
    more = ["--use_tensorboard", "true", "--use_matplotlib", "true", "--max_epoch", "2"]
    MoETask.main(cmd=train_args(tmp_path, *more))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "valid")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [3, 6]  # optimiser steps so far
    assert (tmp_path / "images" / "loss.png").stat().st_size > 1000


def test_rows_with_several_experts_in_one_batch(train_args, make_datadir, tmp_path):
    folder = make_datadir(tmp_path / "train_all", {"hi": 3, "it": 3, "pa": 3})
    data = ["--train_dir", str(folder), "--train_stats", str(folder), "--batch_size", "9"]
    MoETask.main(cmd=train_args(tmp_path / "out", *data, "--experts", "hi", "it", "pa"))
    for name, value in state(tmp_path / "out", "2epoch.pth").items():
        if name.endswith("lora_B"):
            assert all(part.abs().sum() > 0 for part in value.chunk(3, dim=1)), name


def test_batches_in_which_experts_are_alike(train_args, make_datadir, tmp_path):
    folder = make_datadir(tmp_path / "train_all", {"hi": 6, "it": 3})
    data = ["--train_dir", str(folder), "--train_stats", str(folder), "--balance", "experts"]
    more = [*data, "--experts", "hi", "it", "--max_epoch", "1"]
    MoETask.main(cmd=train_args(tmp_path / "out", *more))
    assert (tmp_path / "out" / "1epoch.pth").exists()


def test_options_hold_the_wer_interval(train_args, tmp_path):
    args = MoETask.get_parser().parse_args(train_args(tmp_path, "--wer_interval", "3"))
    assert Trainer.build_options(args).wer_interval == 3


@pytest.mark.slow
def test_wandb_offline_touches_no_network(train_args, tmp_path, monkeypatch):
    import socket

    def refuse(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith("127."):
            raise AssertionError(f"network: {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    more = ["--use_wandb", "true", "--wandb_project", "test", "--max_epoch", "1"]
    MoETask.main(cmd=train_args(tmp_path / "out", *more))
    assert list(tmp_path.glob("**/offline-run-*"))
    import wandb

    wandb.finish()


def test_other_experts_do_not_go_on_from_a_checkpoint(train_args, tmp_path):
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "1"))
    before = (tmp_path / "checkpoint.pth").read_bytes()
    # The same shapes, another scale: the exported expert would be another one.
    more = ["--max_epoch", "2", "--expert_conf", "alpha=7.0"]
    with pytest.raises(UserError, match="other experts: alpha was .*, is 7"):
        MoETask.main(cmd=train_args(tmp_path, *more))
    assert (tmp_path / "checkpoint.pth").read_bytes() == before


def test_links_lost_with_a_kill_come_back(train_args, tmp_path):
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "2", "--keep_nbest_models", "9"))
    links = {p.name: os.readlink(p) for p in tmp_path.iterdir() if p.is_symlink()}
    for name in links:
        (tmp_path / name).unlink()
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "2", "--keep_nbest_models", "9"))
    assert {p.name: os.readlink(p) for p in tmp_path.iterdir() if p.is_symlink()} == links


def test_too_long_transcripts_are_left_out(train_args, tmp_path, monkeypatch, caplog):
    arguments = train_args(tmp_path, "--max_epoch", "1")
    args = MoETask.get_parser().parse_args(arguments)
    lines = Path(args.train_dir, "text").read_text(encoding="utf-8").splitlines()
    text = dict(line.split(" ", 1) for line in lines)
    tokens = training_data.load_tokens(args.backbone_conf["path"])
    counts = {utt: len(tokens.encode(words)) for utt, words in text.items()}
    room = sorted(counts.values())[-2] if len(set(counts.values())) > 1 else max(counts.values())
    monkeypatch.setattr(training_data, "max_target_length", lambda path: room + 4)
    MoETask.complete(args)
    shapes = Path(args.train_shape_file[0]).read_text(encoding="utf-8").splitlines()
    kept = {line.split()[0] for line in shapes}
    assert kept == {utt for utt, count in counts.items() if count <= room}
    assert ("are left out" in caplog.text) == (len(kept) < len(counts))


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_exports(monkeypatch, rank):
    args = argparse.Namespace(dist_rank=None, dist_launcher=None)
    assert is_first_process(args)  # alone, or waiting for those that it has started
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    assert is_first_process(args) == (rank == 0)
