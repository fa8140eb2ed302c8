"""Phase joint: gates that learn, losses, collapse and recovery, warm starts, what is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from espnet_moe import phases
from espnet_moe.bin import train as command
from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import current_gates
from espnet_moe.model import ESPnetMoEModel, JointModel, JointOptions
from espnet_moe.routing.routers import NETWORKS, Routed, Router
from espnet_moe.task import MoETask

CODES = ["hi", "it", "pa", "hi", "it", "pa"]
SECONDS = (0.7, 0.4, 0.55, 0.3, 0.65, 0.5)


def make_model(backbone, experts=("hi", "it", "pa"), network="linear", std=0.1, **options):
    conf = {k: options.pop(k) for k in ("layer", "level") if k in options}
    names = tuple(experts)
    torch.manual_seed(1)
    held = ExpertSet(backbone, LoRAOptions(rank=4, first_layer=1), names)
    for p in held.parameters():
        torch.nn.init.normal_(p, std=std)
    router = Router(NETWORKS[network](**{"layer": 1, **conf}), 32, names, ("hi", "it", "pa"))
    model = JointModel(backbone, held, router, joint=JointOptions(**options))
    phases.begin("joint", model)
    return model.train()


@pytest.fixture
def batch(backbone, batch_of):
    speech, lengths = batch_of(*SECONDS)
    tokens = backbone.tokens
    ids = [tokens.encode(t) for t in ("यह", "ciao mondo", "ਪਾਣੀ", "घर", "bello", "ਘਰ")]
    text = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    for row, own in zip(text, ids):
        row[: len(own)] = torch.tensor(own)
    return {
        "speech": speech,
        "speech_lengths": lengths,
        "text": text,
        "text_lengths": torch.tensor([len(own) for own in ids]),
        "language": torch.tensor([[tokens.languages.index(c)] for c in CODES]),
        "utt_id": list("abcdef"),
    }


@pytest.mark.parametrize("level", ["utterance", "frame"])
@pytest.mark.parametrize("gating", ["soft", "straight_through", "topk"])
def test_every_parameter_gets_a_gradient(backbone, batch, gating, level):
    """Else processes would wait for each other's; the task loss alone has to reach the router."""
    model = make_model(backbone, gating=gating, level=level, balance=0.0, z=0.0, router=0.0)
    model(**batch)[0].backward()
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in own.values())
    assert all(p.grad.abs().sum() > 0 for n, p in own.items() if n.startswith("router."))
    if gating == "soft":
        for name, p in own.items():
            if name.endswith("lora_B"):
                assert all(part.abs().sum() > 0 for part in p.grad.chunk(3, dim=1)), name
    assert {n for n, p in model.named_parameters() if p.grad is not None} == own.keys()


@pytest.mark.parametrize("network", ["cnn", "attention"])
def test_padded_context_is_mixed_by_the_last_frame_of_the_speech(make_backbone, batch, network):
    """As decoding does: what a router says of padding means nothing."""
    model = make_model(make_backbone("padded"), network=network, level="frame", std=0.3).eval()
    seen = []
    layer = next(v for n, v in model.experts.layers.items() if ".encoder." in f".{n}")
    layer.register_forward_pre_hook(lambda *_: seen.append(current_gates().weights))
    model(**batch)
    frames = [-(-int(n) // 320) for n in batch["speech_lengths"]]
    for row, n in zip(seen[0], frames, strict=True):
        assert len(row) == 1500 and n < 50
        assert torch.equal(row[n:], row[n - 1].expand(1500 - n, -1))
        assert not torch.equal(row[0], row[n - 1])


def test_experts_in_the_decoder_only_leave_all_encoder_layers_to_the_router(backbone, batch):
    experts = ExpertSet(backbone, LoRAOptions(rank=4, where="decoder"), ("hi", "it", "pa"))
    top = backbone.num_encoder_layers
    router = Router(NETWORKS["linear"](layer=top), 32, experts.names, ("hi", "it", "pa"))
    assert experts.lowest_encoder_layer is None
    assert torch.isfinite(JointModel(backbone, experts, router)(**batch)[0])


def test_a_head_without_targets_is_touched(backbone, batch):
    model = make_model(backbone, experts=("c0", "c1"), router=0.0, balance=0.0, z=0.0)
    model(**batch)[0].backward()
    assert model.router.language_head.weight.grad is not None


def test_the_loss_is_the_weighted_sum_of_its_parts(backbone, batch):
    weights = {"balance": 0.3, "z": 0.02, "entropy": 0.05, "router": 0.7}
    model = make_model(backbone, **weights).eval()
    loss, stats, weight = model(**batch)
    parts = {k: stats[f"loss_{k}"].item() for k in ("ce", *weights)}
    assert all(v > 0 for v in parts.values()) and weight.item() == 6
    whole = parts["ce"] + sum(w * parts[k] for k, w in weights.items())
    assert loss.item() == pytest.approx(whole, rel=1e-5)
    assert stats["loss"].item() == loss.item()


def test_losses_of_the_gates_by_hand(backbone, batch):
    model = make_model(backbone, gating="soft").eval()
    stats = model(**batch)[1]
    lower = model.backbone.encode_lower(batch["speech"], batch["speech_lengths"], 1)
    logits = model.router(lower.hidden, lower.lengths).experts.double()
    p = logits.softmax(-1)
    share = torch.bincount(p.argmax(-1), minlength=3) / 6
    truth = torch.tensor([("hi", "it", "pa").index(c) for c in CODES])
    wanted = {
        "balance": 3 * (share * p.mean(0)).sum(),
        "z": logits.exp().sum(-1).log().pow(2).mean(),
        "entropy": -(p * p.log()).sum(-1).mean(),
        "router": -p.log()[torch.arange(6), truth].mean(),
    }
    for name, value in wanted.items():
        assert stats[f"loss_{name}"].item() == pytest.approx(value.item(), rel=1e-4), name
    for i, name in enumerate(("hi", "it", "pa")):
        assert stats[f"usage_{name}"].item() == pytest.approx(share[i].item(), abs=1e-6)
        assert stats[f"gate_{name}"].item() == pytest.approx(p.mean(0)[i].item(), rel=1e-4)
    used = p.mean(0)
    assert stats["usage_entropy"].item() == pytest.approx(-(used * used.log()).sum().item(), 1e-4)


def test_one_sure_gate_is_the_expert_alone(make_backbone, batch):
    """With a router that is sure of the true language, the loss is that of phase expert."""
    model = make_model(make_backbone(), network="mlp", balance=0.0, z=0.0, router=0.0).eval()
    alone = ESPnetMoEModel(model.backbone, model.experts, split_layer=1).eval()

    def sure(hidden, lengths):
        truth = torch.tensor([("hi", "it", "pa").index(c) for c in CODES])
        logits = 200.0 * torch.nn.functional.one_hot(truth, 3).float()
        return Routed(logits, logits)

    model.router.forward = sure
    assert model(**batch)[0].item() == pytest.approx(alone(**batch)[0].item(), rel=1e-5)


def test_weights_of_utterances_count(backbone, batch):
    model = make_model(backbone, balance=0.0, z=0.0).eval()
    ones = torch.ones(6, 1)
    plain = model(**batch)[0].item()
    assert model(**batch, weight=ones)[0].item() == pytest.approx(plain, rel=1e-5)
    assert model(**batch, weight=0.5 * ones)[0].item() == pytest.approx(0.5 * plain, rel=1e-5)


# -- collapse -------------------------------------------------------------------------------------


def train_from_collapse(backbone, batch, balance, steps=60):
    """Usage at the end of a training that starts with everything at expert 0."""
    model = make_model(backbone, balance=balance, z=0.0, router=0.0, gating="straight_through")
    with torch.no_grad():
        model.router.expert_head.bias.copy_(torch.tensor([4.0, 0.0, 0.0]))
    groups = [{"params": model.experts.parameters(), "lr": 1e-3}]
    groups += [{"params": list(model.router.parameters()), "lr": 0.03}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    used = []
    for step in range(steps):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
        if step == 0:
            assert stats["usage_hi"].item() == 1.0
        if step >= steps - 20:
            used.append([stats[f"usage_{e}"].item() for e in ("hi", "it", "pa")])
    return torch.tensor(used).mean(0)


def test_a_collapsed_router_recovers_with_the_balance_loss_only(make_backbone, batch):
    recovered = train_from_collapse(make_backbone(), batch, balance=2.0)
    assert -(recovered * recovered.log()).sum() > 0.8 * math.log(3) and recovered.min() > 0.1
    lost = train_from_collapse(make_backbone(), batch, balance=0.0)
    assert lost.tolist() == [1.0, 0.0, 0.0]


# -- what is refused ------------------------------------------------------------------------------


def test_a_router_above_the_first_expert(backbone):
    with pytest.raises(ConfigError, match="reads encoder layer 2, but experts act from layer 1"):
        make_model(backbone, layer=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gating": "best"}, "gating 'best' is unknown: choose one of soft, straight_through"),
        ({"gating": "topk", "k": 4}, r"k is in 1\.\.3, the number of experts, not 4"),
        ({"balance": -1.0, "noise": -2.0}, "noise is 0 or more, not -2.0; balance is 0 or more"),
        ({"usage_interval": 0}, "usage_interval is at least 1, not 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        JointOptions(**options).check(["hi", "it", "pa"])


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joint(train_args, make_datadir, tmp_path_factory):
    """Trained router and experts, and the command line of a joint training from them."""
    folder = tmp_path_factory.mktemp("joint")
    train = make_datadir(folder / "train", {"hi": 5, "it": 5, "pa": 4}, seed=1)
    valid = make_datadir(folder / "dev", {"hi": 3, "it": 3, "pa": 3}, seed=2)

    def make(output, *more, phase="joint", first_layer=1):
        args = train_args(output)
        place = args.index("--expert_conf")
        del args[place : place + 2]
        for name, path in (("train", train), ("valid", valid)):
            for kind in ("dir", "stats"):
                args[args.index(f"--{name}_{kind}") + 1] = str(path)
        args[args.index("--experts") + 1 : args.index("--experts") + 2] = ["hi", "it", "pa"]
        if phase == "router":
            args += ["--router", "linear", "--router_conf", "layer=1"]
        if phase == "expert":
            args += ["--expert_conf", "rank=4", "--expert_conf", f"first_layer={first_layer}"]
        return [*args, "--phase", phase, "--batch_size", "6", "--max_epoch", "1", *more]

    command.main(make(folder / "router", phase="router"))
    command.main(make(folder / "experts", phase="expert"))
    make.warm = [
        *("--init_router", str(folder / "router" / "router"), "--init_experts"),
        *(f"{e}={folder}/experts/expert_{e}" for e in ("hi", "it", "pa")),
    ]
    make.folder = folder
    return make


NEW = ["--router", "mlp", "--router_conf", "layer=1", "--expert_conf", "rank=4"]
NEW += ["--expert_conf", "first_layer=1"]


def test_warm_start_from_what_was_trained(joint, tmp_path):
    args = MoETask.get_parser().parse_args(joint(tmp_path / "out", *joint.warm))
    MoETask.complete(args)
    model = MoETask.build_model(args)
    held = load_file(joint.folder / "router" / "router" / "router.safetensors")
    for name, value in model.router.named_parameters():
        assert torch.equal(value, held[name]), name
    assert model.router.temperature.item() == 1.0
    for name in ("hi", "it", "pa"):
        path = joint.folder / "experts" / f"expert_{name}" / "adapter_model.safetensors"
        for key, value in model.experts.state(name).items():
            assert torch.equal(value, load_file(path)[f"base_model.model.{key}.weight"])
    assert model.experts.options["it"].rank == 4 and model.split_layer == 1


def test_an_expert_starts_from_another_languages(joint, tmp_path):
    """As few-shot transfer does: names are the new experts', weights those of the old."""
    start = {"hi": "it", "it": "it", "pa": "hi"}
    folders = {name: joint.folder / "experts" / f"expert_{old}" for name, old in start.items()}
    words = ["--init_experts", *(f"{name}={folder}" for name, folder in folders.items())]
    args = MoETask.get_parser().parse_args(joint(tmp_path / "out", *words, phase="expert"))
    MoETask.complete(args)
    model = MoETask.build_model(args)
    for name, folder in folders.items():
        held = load_file(folder / "adapter_model.safetensors")
        for key, value in model.experts.state(name).items():
            assert torch.equal(value, held[f"base_model.model.{key}.weight"]), (name, key)
    command.main(joint(tmp_path / "out", *words, phase="expert"))
    trained = load_file(tmp_path / "out" / "expert_pa" / "adapter_model.safetensors")
    assert any(not torch.equal(value, held[key]) for key, value in trained.items())
    facts = json.loads((tmp_path / "out" / "expert_pa" / "expert.json").read_text())
    assert facts["name"] == "pa" and facts["phase"] == "expert"
    with pytest.raises(UserError, match="rank is 8, but expert 'hi' .* has 4"):
        command.main(joint(tmp_path / "o", *words, "--expert_conf", "rank=8", phase="expert"))


def test_a_router_is_calibrated_where_experts_learnt_alone(joint, tmp_path):
    """Not where they have learnt with its gates (the test below)."""
    command.main(joint(tmp_path / "out", *joint.warm, "--joint_conf", "gating=straight_through"))
    manifest = json.loads((tmp_path / "out" / "router" / "router.json").read_text())
    metrics = manifest["facts"]["metrics"]
    assert manifest["temperature"] == pytest.approx(metrics["temperature"], abs=1e-3) != 1.0
    assert any(metrics["bias"].values())


def test_training_writes_experts_and_router(joint, tmp_path, capsys):
    more = ["--router_lr", "0.001", "--max_epoch", "2", "--joint_conf", "usage_interval=2"]
    command.main(joint(tmp_path / "out", *joint.warm, *more))
    said = capsys.readouterr().out.split()
    assert said[-1] == f"{tmp_path}/out/router"
    manifest = json.loads((tmp_path / "out" / "router" / "router.json").read_text())
    assert manifest["temperature"] == 1.0 and "collapsed" in manifest["facts"]
    best = torch.load(tmp_path / "out" / "valid.loss.best.pth", weights_only=True)
    held = load_file(tmp_path / "out" / "router" / "router.safetensors")
    assert torch.equal(held["expert_head.bias"], best["router.expert_head.bias"])
    assert {"acc_language", "acc_expert", "language"} <= manifest["facts"]["metrics"].keys()
    for name in ("hi", "it", "pa"):
        facts = json.loads((tmp_path / "out" / f"expert_{name}" / "expert.json").read_text())
        assert facts["phase"] == "joint" and facts["languages"] == ["hi", "it", "pa"]
        assert facts["collapsed"] == manifest["facts"]["collapsed"]
    states = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)
    rates = [g["lr"] for g in states["optimizers"][0]["param_groups"]]
    assert rates[1] / rates[0] == pytest.approx(0.001 / 0.02)
    figures = states["reporter"]["stats"][1]
    for name in ("loss_ce", "loss_balance", "loss_z", "loss_entropy", "loss_router", "usage_it"):
        assert name in figures["train"] and name in figures["valid"]


def test_resumed_equals_uninterrupted(joint, tmp_path):
    more = [*NEW, "--router_lr", "0.005", "--joint_conf", "noise=0.3", "--keep_nbest_models", "9"]
    MoETask.main(cmd=joint(tmp_path / "one", *more, "--max_epoch", "3"))
    MoETask.main(cmd=joint(tmp_path / "two", *more, "--max_epoch", "1"))
    MoETask.main(cmd=joint(tmp_path / "two", *more, "--max_epoch", "3"))
    one, two = (
        torch.load(tmp_path / name / "3epoch.pth", weights_only=True) for name in ("one", "two")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(UserError, match="trained with other settings: joint_conf was"):
        MoETask.main(cmd=joint(tmp_path / "two", *NEW, "--joint_conf", "balance=0.5"))


def test_a_router_or_experts_of_another_base(joint, tmp_path, make_backbone):
    other = make_backbone()
    with torch.no_grad():
        other.hf.model.encoder.conv1.bias += 0.1
    other.save_pretrained(tmp_path / "base")
    base = ["--backbone_conf", f"path={tmp_path / 'base'}"]
    with pytest.raises(UserError, match=r"experts of another base: 'hi'"):
        command.main(joint(tmp_path / "out", *joint.warm, *base))
    with pytest.raises(UserError, match="router in .* was trained on another backbone"):
        command.main(joint(tmp_path / "out", *joint.warm[:2], *NEW[4:], *base))


def test_a_warm_start_that_does_not_fit(joint, tmp_path):
    router, experts = joint.warm[:2], joint.warm[2:]
    for more, message in (
        ([*router, *experts[:3]], "--init_experts starts hi it, --experts names hi it pa"),
        ([*router, *experts[:3], "pa="], "--init_experts pa: write NAME=FOLDER"),
        ([*router, *experts[:3], "pa=nowhere"], "nowhere holds no whole expert"),
        ([*router, *experts, "--expert_conf", "rank=8"], "rank is 8, but expert 'hi' .* has 4"),
        ([*router, *experts, "--router", "mlp"], "of the kind linear, not mlp"),
        ([*router, *experts, "--router_conf", "layer=0"], "its layer is 1, not 0"),
        ([*router, *NEW[4:], "--experts", "c0", "c1"], "knows the experts hi it pa, not c0 c1"),
        ([*experts], "phase joint needs a router to train"),
        ([*NEW, "--joint_conf", "gating=best"], "gating 'best' is unknown"),
        ([*NEW, "--experts", "hi", "it"], "no expert for language.s. pa of --train_dir"),
        ([*NEW, "--router_conf", "layer=2"], "reads encoder layer 2, but experts act from layer 1"),
        ([*NEW, "--router_lr", "0"], "--router_lr is positive, not 0"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(joint(tmp_path / "out", *more))
    assert not list(tmp_path.glob("out/*.pth"))
