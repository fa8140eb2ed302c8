"""What wandb is told: names, groups, provenance."""

import os
import time

import pytest
import yaml

from espnet_moe import provenance, tracking
from espnet_moe.task import MoETask


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_RUN_GROUP"):
        # First set, so that what the code sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def parsed(train_args, folder, *more):
    return MoETask.get_parser().parse_args(train_args(folder, "--use_wandb", "true", *more))


@pytest.mark.parametrize(
    ("more", "name", "group"),
    [
        (["--expert_conf", "rank=16"], "whisper-small-hi-r16", "phase1-lora"),
        (["--experts", "hi", "pa"], "whisper-small-hi+pa-r4", "phase1-lora"),
        (["--phase", "router", "--router", "mlp"], "whisper-small-mlp", "phase2-routing"),
        (["--phase", "joint", "--router", "mlp"], "whisper-small-joint-r4", "phase2-routing"),
    ],
)
def test_names_and_groups(train_args, tmp_path, more, name, group):
    path = ["--backbone_conf", "path=openai/whisper-small"]
    args = parsed(train_args, tmp_path, *path, *more)
    tracking.fill(args)
    assert (args.wandb_project, args.wandb_name) == ("espnet_moe", name)
    assert os.environ["WANDB_RUN_GROUP"] == group
    assert os.environ["WANDB_MODE"] == "offline"


def test_what_the_user_has_set_stays(train_args, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    args = parsed(
        train_args,
        tmp_path,
        *("--wandb_project", "p", "--wandb_name", "n", "--wandb_id", "i"),
    )
    tracking.fill(args)
    assert (args.wandb_project, args.wandb_name, args.wandb_id) == ("p", "n", "i")
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_RUN_GROUP"]) == ("online", "mine")


def test_a_training_that_goes_on_is_a_run_of_its_own(train_args, tmp_path):
    """wandb keeps one of two offline runs with the same id."""
    ids = []
    for _ in range(2):
        args = parsed(train_args, tmp_path)
        tracking.fill(args)
        ids.append(args.wandb_id)
    assert ids[0] != ids[1]


def test_the_configuration_tells_what_a_training_was_made_from(train_args, tmp_path):
    words = train_args(tmp_path, "--max_epoch", "1")
    MoETask.main(cmd=words)
    found = yaml.safe_load((tmp_path / "config.yaml").read_text())["provenance"]
    assert found["git_commit"] == provenance.commit()["git_commit"]
    folder = words[words.index("--train_dir") + 1]
    assert found["data"]["train"] == provenance.data_digest(folder) != found["data"]["valid"]
    assert found["versions"]["torch"]


@pytest.mark.slow
def test_trainings_and_scores_offline(train_args, tmp_path, monkeypatch):
    """Real wandb, without a network; what it is given is what it was asked to keep."""
    import wandb

    started = []
    init = wandb.init

    def noted(**options):
        started.append(options | {"group": os.environ["WANDB_RUN_GROUP"]})
        return init(**options)

    monkeypatch.setattr(wandb, "init", noted)
    MoETask.main(cmd=train_args(tmp_path, "--use_wandb", "true", "--max_epoch", "1"))
    assert started[0]["name"].endswith("-hi-r4") and started[0]["group"] == "phase1-lora"
    exp = tmp_path / "exp"
    exp.mkdir()
    row = {"system": "hard", "inference_tag": "greedy", "set": "test_hi", "language": "hi"}
    results = {
        **{"command": "score", "git_commit": None, "git_commit_date": None, "environment": {}},
        **{"experts": [], "routers": [], "rows": [{**row, "wer": 8.0, "cer": 2.0}]},
        "averages": [{**row, "wer": 8.0}],
    }
    monkeypatch.delenv("WANDB_RUN_GROUP")
    tracking.log_scores(exp, results)
    assert (started[1]["name"], started[1]["group"]) == ("exp-scores", "phase3-analysis")
    [written] = exp.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 60  # wandb's own process writes it
    while b"wer/hard/greedy" not in written.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)
