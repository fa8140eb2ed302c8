"""Several processes: what they learn together is what one learns alone."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from espnet_moe.interruption import REQUEUE
from espnet_moe.model import trained
from espnet_moe.model.trained import share_of_mean
from espnet_moe.task import MoETask

STEPS = [
    *("--max_epoch", "2", "--num_iters_per_epoch", "2", "--batch_size", "5", "--grad_clip", "1e9"),
    *("--optim", "sgd", "--optim_conf", "lr=0.2", "--model_conf", "label_smoothing=0.1"),
]
JOINT = [
    *("--phase", "joint", "--router", "linear", "--router_conf", "layer=1"),
    *("--expert_conf", "first_layer=1", "--router_lr", "0.5", "--joint_conf", "balance=0.5"),
    *("--joint_conf", "z=0.01", "--joint_conf", "entropy=0.02", "--joint_conf", "router=0.3"),
    *("--joint_conf", "usage_interval=2"),
]
FRAMES = [
    *("--phase", "router", "--router", "cnn", "--router_conf", "layer=1"),
    *("--router_conf", "level=frame", "--router_conf", "dropout=0.0"),
    *("--augment_conf", "splice_share=0.0"),
]


def test_means_of_processes_make_the_mean_of_all(monkeypatch):
    """By hand: 2 rows with 3 numbers and 3 rows with 11, averaged by their rows as ESPnet does."""
    assert share_of_mean(torch.tensor(3), 2) == 1.0
    values = torch.randn(14, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(trained, "global_sum", lambda x: torch.tensor([14.0, 5.0]))
    whole = 0.0
    for part, rows in ((values[:3], 2), (values[3:], 3)):
        whole += rows / 5 * share_of_mean(torch.tensor(len(part)), rows) * part.mean()
    assert whole.item() == pytest.approx(values.mean().item(), rel=1e-5)


@pytest.fixture(scope="module")
def ddp_args(train_args, make_datadir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    train = make_datadir(folder / "train", {"hi": 9, "it": 5, "pa": 3}, seed=1)
    valid = make_datadir(folder / "dev", {"hi": 3, "it": 3, "pa": 3}, seed=2)
    ids = [line.split()[0] for line in (train / "utt2lang").open()]
    weights = [f"{utt} {0.5 + 0.1 * (i % 7):g}\n" for i, utt in enumerate(ids)]
    (train / "utt2weight").write_text("".join(weights))

    def make(output, *more):
        args = train_args(output)
        if "router" in more:
            place = args.index("--expert_conf")
            del args[place : place + 2]
        for name, path in (("train", train), ("valid", valid)):
            for kind in ("dir", "stats"):
                args[args.index(f"--{name}_{kind}") + 1] = str(path)
        args[args.index("--experts") + 1 : args.index("--experts") + 2] = ["hi", "it", "pa"]
        place = args.index("--optim_conf")
        del args[place : place + 2]
        return [*args, *STEPS, *more]

    return make


def start(args, meet):
    """Two processes that train together."""
    ranks = ["--dist_world_size", "2", "--dist_backend", "gloo", "--ngpu", "0"]
    ranks += ["--dist_init_method", f"file://{meet}"]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "espnet_moe.bin.train"),
                *(*args, *ranks, "--dist_rank", str(rank)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def wait(processes, code=0):
    """Until they have ended with this status; what they have said."""
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=300)[1])
            assert process.returncode == code, said[-1][-3000:]
    finally:
        for process in processes:
            process.kill()
    return "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [[], JOINT, FRAMES], ids=["expert", "joint", "frame_router"])
def test_two_processes_equal_one(ddp_args, tmp_path, phase):
    """Rows and tokens are shared unevenly: five rows a batch, of two and three."""
    MoETask.main(cmd=ddp_args(tmp_path / "one", *phase))
    start_of = torch.load(tmp_path / "one" / "1epoch.pth", weights_only=True)
    wait(start(ddp_args(tmp_path / "two", *phase), tmp_path / "meet"))
    one, two = (torch.load(tmp_path / n / "2epoch.pth", weights_only=True) for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4, msg=name)
    moved = max((value - start_of[name]).abs().max().item() for name, value in one.items())
    assert moved > 1e-2  # far more than what they may differ by
    stats = [
        torch.load(tmp_path / n / "checkpoint.pth", weights_only=True)["reporter"]["stats"][2]
        for n in ("one", "two")
    ]
    for key in ("loss", "acc"):
        for split in ("train", "valid"):
            assert stats[0][split][key] == pytest.approx(stats[1][split][key], rel=1e-3), key
    assert list((tmp_path / "two").glob("*/*.json"))


@pytest.mark.slow
def test_two_processes_that_are_asked_to_leave_go_on_together(ddp_args, tmp_path):
    """One of them gets the signal, both leave at the same step, and nothing is different."""
    # Enough steps that the signal comes before the last of them.
    more = ["--num_iters_per_epoch", "12", "--max_epoch", "3", "--expert_conf", "dropout=0.1"]
    wait(start(ddp_args(tmp_path / "calm", *more), tmp_path / "meet0"))
    processes = start(ddp_args(tmp_path / "asked", *more), tmp_path / "meet1")
    until = time.monotonic() + 120
    while not (tmp_path / "asked" / "1epoch.pth").exists():
        assert time.monotonic() < until and processes[0].poll() is None
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGUSR1)
    said = wait(processes, REQUEUE)
    assert "a signal to another process: checkpoint written after iteration" in said
    left = torch.load(tmp_path / "asked" / "checkpoint.pth", weights_only=True)["positions"]
    assert [p["rank"] for p in left] == [0, 1]
    assert left[0]["epoch"] == left[1]["epoch"] and left[0]["iterations"] == left[1]["iterations"]
    wait(start(ddp_args(tmp_path / "asked", *more), tmp_path / "meet2"))
    calm, asked = (
        torch.load(tmp_path / n / "3epoch.pth", weights_only=True) for n in ("calm", "asked")
    )
    assert calm.keys() == asked.keys()
    assert all(torch.equal(calm[name], asked[name]) for name in calm)
