"""Phase router: what is trained, on which targets; the router folder; what is refused."""

import json

import numpy as np
import pytest
import torch

from espnet_moe import phases, router_report
from espnet_moe.bin import train as command
from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError
from espnet_moe.model import AugmentOptions, RouterModel
from espnet_moe.model.router import fit_frames
from espnet_moe.router_report import Decisions, calibration_error, figures
from espnet_moe.routing.calibration import Calibration
from espnet_moe.routing.router_files import load_router
from espnet_moe.routing.routers import NETWORKS, Router

CODES = ["hi", "it", "pa", "it"]


def make_model(backbone, experts=("hi", "it", "pa"), network="linear", augment=None, **options):
    torch.manual_seed(1)
    own = {"layer": 1, "level": options.pop("level", "utterance")}
    router = Router(NETWORKS[network](**own), 32, experts, ("hi", "it", "pa"))
    model = RouterModel(backbone, router, augment=augment, **options)
    phases.begin("router", model)
    return model.eval()


@pytest.fixture
def batch(backbone, batch_of):
    speech, lengths = batch_of(0.9, 0.4, 0.65, 1.3)
    index = [[backbone.tokens.languages.index(c)] for c in CODES]
    return {"speech": speech, "speech_lengths": lengths, "language": torch.tensor(index)}


def logits_of(model, batch):
    lower = model.backbone.encode_lower(batch["speech"], batch["speech_lengths"], 1)
    return model.router(lower.hidden, lower.lengths), lower.lengths


def test_loss_of_languages_by_hand(backbone, batch):
    model = make_model(backbone)
    loss, stats, weight = model(**batch)
    p = logits_of(model, batch)[0].languages.double().log_softmax(-1).detach().numpy()
    truth = [("hi", "it", "pa").index(c) for c in CODES]
    assert loss.item() == pytest.approx(-p[range(4), truth].mean(), rel=1e-5)
    assert stats["acc"].item() == 100 * (p.argmax(-1) == truth).mean() == stats["acc_expert"].item()
    assert weight.item() == 4


def test_loss_of_memberships_by_hand(backbone, batch):
    model = make_model(backbone, experts=("c0", "c1"))
    rows = torch.tensor([[1.0, 0.0], [0.2, 0.6], [0.0, 2.0], [0.5, 0.5]])
    each = torch.tensor([[1.0], [0.5], [2.0], [0.0]])
    loss, stats, _ = model(**batch, memberships=rows, weight=each)
    routed = logits_of(model, batch)[0]
    shares = rows / rows.sum(1, keepdim=True)
    experts = -(shares * routed.experts.log_softmax(-1)).sum(-1)
    truth = torch.tensor([("hi", "it", "pa").index(c) for c in CODES])
    languages = -routed.languages.log_softmax(-1)[torch.arange(4), truth]
    wanted = ((experts + languages) * each[:, 0]).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert set(stats) == {"loss", "acc", "acc_expert"}


def test_frame_level_counts_valid_frames_only(backbone, batch):
    model = make_model(backbone, level="frame")
    loss = model(**batch)[0]
    routed, lengths = logits_of(model, batch)
    truth = [("hi", "it", "pa").index(c) for c in CODES]
    p = routed.languages.log_softmax(-1)
    rows = [-p[i, :n, truth[i]].mean() for i, n in enumerate(lengths.tolist())]
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)
    batch["speech"] = torch.nn.functional.pad(batch["speech"], (0, 9000), value=0.5)
    assert model(**batch)[0].item() == pytest.approx(loss.item(), rel=1e-4)


def test_only_the_router_trains_and_no_upper_layer_runs(backbone, batch, monkeypatch):
    model = make_model(backbone).train()
    for block in backbone.hf.model.encoder.layers[1:]:
        monkeypatch.setattr(block.self_attn, "q_proj", None)
    model(**batch)[0].backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in model.named_parameters() if n.startswith("router.")}
    assert touched <= model.state_dict().keys()
    assert all(k.startswith("router.") for k in model.state_dict())


def test_augmentation_is_for_training_only(backbone, batch):
    for level in ("utterance", "frame"):
        model = make_model(
            backbone,
            level=level,
            augment=AugmentOptions(
                crop_share=1.0, crop_seconds=(0.2, 0.3), splice_share=1.0, splice_seconds=(0.1, 0.2)
            ),
        )
        assert model(**batch)[0].item() == model(**batch)[0].item()
        model.train()
        torch.manual_seed(0)
        drawn = {round(model(**batch)[0].item(), 5) for _ in range(4)}
        torch.manual_seed(0)
        again = {round(model(**batch)[0].item(), 5) for _ in range(4)}
        assert len(drawn) == 4 and drawn == again


def test_joined_rows_have_the_labels_of_their_pieces(backbone, batch):
    """A router that knows which row a frame came from must be right on joined utterances."""
    model = make_model(
        backbone,
        level="frame",
        augment=AugmentOptions(splice_share=1.0, splice_seconds=(0.1, 0.3), cross_fade=0.0),
    ).train()
    # Rows with amplitudes that tell them apart.
    for i, n in enumerate(batch["speech_lengths"].tolist()):
        batch["speech"][i, :n] = 10.0**-i
    torch.manual_seed(3)
    speech, lengths, rows = model._augment(batch["speech"], batch["speech_lengths"])
    mixed = 0
    for i, n in enumerate(lengths.tolist()):
        for frame in range(n // 320):
            middle = speech[i, frame * 320 + 160].item()
            assert middle == pytest.approx(10.0 ** -rows[i, frame].item(), rel=1e-3)
        mixed += len(set(rows[i, : n // 320].tolist())) > 1
    assert mixed >= 2


def test_labels_fit_the_encoders_frames():
    labels = torch.tensor([[3, 4, 5]])
    assert fit_frames(labels, 2).tolist() == [[3, 4]]
    assert fit_frames(labels, 5).tolist() == [[3, 4, 5, 5, 5]]


def test_replay_learns_from_batches_before(backbone, batch):
    """The second step's loss: the mean of its own, and of the first batch's as often as asked."""
    whole = AugmentOptions(crop_share=0.0)
    model = make_model(backbone, replay=2, augment=whole).train()
    twin = make_model(backbone, augment=whole).train()
    earlier = {k: v[:3] for k, v in batch.items()}
    later = {k: v[2:] for k, v in batch.items()}
    first, second = (twin(**b)[0].item() for b in (earlier, later))
    assert model(**earlier)[0].item() == first
    loss, stats, weight = model(**later)
    # The frames that are kept have half the precision.
    assert loss.item() == pytest.approx((second + 2 * first) / 3, rel=1e-3)
    assert stats["loss"].item() == loss.item() and weight.item() == 2
    loss.backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in model.named_parameters() if n.startswith("router.")}
    assert model.eval()(**later)[0].item() == second
    assert model.train()(**later)[0].item() == second, "a new epoch starts without the last one's"


@pytest.mark.parametrize("context", ["variable", "padded"])
@pytest.mark.parametrize(
    ("level", "experts"), [("frame", ("hi", "it", "pa")), ("utterance", ("c0", "c1"))]
)
def test_replay_keeps_what_belongs_to_the_frames(make_backbone, batch, context, level, experts):
    """Labels of joined frames, memberships, weights; and no frame that is padding in every row."""
    augment = AugmentOptions(
        crop_share=1.0, crop_seconds=(0.2, 0.4), splice_share=1.0, splice_seconds=(0.1, 0.3)
    )
    options = {"level": level, "experts": experts, "augment": augment}
    model = make_model(make_backbone(context), replay=1, **options).train()
    twin = make_model(make_backbone(context), **options).train()
    batch["weight"] = torch.tensor([[1.0], [0.5], [2.0], [0.0]])
    if level == "utterance":
        batch["memberships"] = torch.tensor([[1.0, 0.0], [0.2, 0.6], [0.0, 2.0], [0.5, 0.5]])
    losses = []
    for seed, one in ((0, twin), (1, twin), (0, model), (1, model)):
        torch.manual_seed(seed)
        losses.append(one(**batch)[0].item())
    assert losses[0] != losses[1] and losses[2] == losses[0]
    assert losses[3] == pytest.approx((losses[1] + losses[0]) / 2, rel=1e-3)
    for kept in model.heard:
        assert kept.frames.size(1) == kept.spoken.max() < 100
        assert kept.frames.untyped_storage().nbytes() == 2 * kept.frames.numel()


@pytest.mark.parametrize("replay", [-1, 1.5])
def test_wrong_replay(backbone, replay):
    with pytest.raises(ConfigError, match=f"replay is a whole number from 0 on, not {replay}"):
        make_model(backbone, replay=replay)


def test_wrong_augmentation():
    with pytest.raises(ConfigError, match=r"crop_share is in \[0, 1\], not 2.*splice_seconds"):
        AugmentOptions(crop_share=2.0, splice_seconds=(3.0, 1.0))


def test_calibration_error_against_numpy():
    draw = np.random.default_rng(0)
    p = draw.dirichlet([0.5, 0.5, 0.5], 200)
    truth = draw.integers(0, 3, 200)
    sure, right = p.max(1), p.argmax(1) == truth
    wanted = 0.0
    for low in np.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15)
        if inside.any():
            wanted += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    found = calibration_error(torch.tensor(p, dtype=torch.float32), torch.tensor(truth))
    assert found == pytest.approx(wanted, abs=1e-5)


def test_figures_by_hand():
    logits = [torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]])]
    logits += [torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, 0.0]])]
    calibration = Calibration(2.0, torch.zeros(2))
    found = figures(Decisions(logits, torch.tensor([0, 1, 1, -1])), calibration, ["a", "b"])
    assert found["accuracy_before"] == found["accuracy"]
    assert found["accuracy"] == pytest.approx(200 / 3, abs=1e-3) and found["utterances"] == 3
    assert found["confusion"] == {"a": {"a": 1, "b": 0}, "b": {"a": 1, "b": 1}}
    biased = Calibration(2.0, torch.tensor([-0.6, 0.6]))  # of its own, 2 to 0 is 1 to 0 now
    found = figures(Decisions(logits, torch.tensor([0, 1, 1, -1])), biased, ["a", "b"])
    assert (found["accuracy_before"], found["accuracy"]) == (pytest.approx(66.667), 100.0)
    assert figures(Decisions(logits, torch.full((4,), -1)), calibration, ["a", "b"]) == {}


def test_calibration_by_some_of_very_many_frames(monkeypatch):
    torch.manual_seed(0)
    targets = torch.arange(60) % 2
    logits = [torch.randn(1, 2).repeat(7 + t % 3, 1) for t in range(60)]  # frames alike
    whole = Decisions(logits, targets).fit()
    seen = []
    fit = router_report.fit_calibration
    monkeypatch.setattr(
        router_report, "fit_calibration", lambda x, *rest: (seen.append(len(x)), fit(x, *rest))[1]
    )
    monkeypatch.setattr(router_report, "MOST_DECISIONS", 200)
    some = Decisions(logits, targets).fit()
    assert seen[0] < 0.5 * sum(map(len, logits))
    assert some.temperature == pytest.approx(whole.temperature, rel=1e-3)
    torch.testing.assert_close(some.bias, whole.bias, atol=1e-3, rtol=0)


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router_args(train_args, make_datadir, tmp_path_factory):
    """Command line of a router training: ``router_args(output_dir, *more)``."""
    folder = tmp_path_factory.mktemp("router_data")
    train = make_datadir(folder / "train", {"hi": 9, "it": 4, "pa": 3}, seed=1)
    valid = make_datadir(folder / "dev", {"hi": 3, "it": 3, "pa": 3}, seed=2)

    def make(output, *more):
        args = train_args(output)
        place = args.index("--expert_conf")
        del args[place : place + 2]
        for name, path in (("train", train), ("valid", valid)):
            for kind in ("dir", "stats"):
                args[args.index(f"--{name}_{kind}") + 1] = str(path)
        args[args.index("--experts") + 1 : args.index("--experts") + 2] = ["hi", "it", "pa"]
        args += ["--phase", "router", "--router", "mlp", "--router_conf", "layer=1"]
        return [*args, "--batch_size", "6", *more]

    make.folder = folder
    return make


def test_training_writes_a_router(router_args, make_backbone, tmp_path, capsys):
    command.main(router_args(tmp_path / "out", "--max_epoch", "3"))
    assert capsys.readouterr().out.strip().endswith(f"router: {tmp_path}/out/router")
    facts = json.loads((tmp_path / "out" / "router" / "router.json").read_text())["facts"]
    language = facts["metrics"]["language"]
    assert sum(sum(row.values()) for row in language["confusion"].values()) == 9
    assert 0 <= language["ece"] <= 1 and "collapsed" not in facts
    router = load_router(tmp_path / "out" / "router", make_backbone().digest())
    assert router.experts == ("hi", "it", "pa") and router.layer == 1
    temperature, bias = (facts["metrics"][key] for key in ("temperature", "bias"))
    assert router.temperature.item() == pytest.approx(temperature, abs=1e-3)
    best = torch.load(tmp_path / "out" / "valid.loss.best.pth", weights_only=True)
    for name, value in router.named_parameters():
        own = best[f"router.{name}"]
        if name != "expert_head.bias":
            assert torch.equal(value, own), name
            continue
        added = temperature * torch.tensor([bias[code] for code in router.experts])
        assert added.abs().max() > 0
        torch.testing.assert_close(value, own + added, atol=1e-4 * (1 + temperature), rtol=0)


def test_resumed_equals_uninterrupted(router_args, tmp_path):
    more = ["--keep_nbest_models", "9", "--speed_perturb", "0.9", "1.1"]
    more += ["--model_conf", "replay=2", "--specaug", "vtlp"]
    for option in ("apply_time_warp=false", "time_mask_width_range=[0,4]"):
        more += ["--specaug_conf", option]
    command.main(router_args(tmp_path / "one", *more, "--max_epoch", "3"))
    command.main(router_args(tmp_path / "two", *more, "--max_epoch", "1"))
    command.main(router_args(tmp_path / "two", *more, "--max_epoch", "3"))
    one, two = (
        torch.load(tmp_path / name / "3epoch.pth", weights_only=True) for name in ("one", "two")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(UserError, match="trained with other settings: .*router_conf"):
        command.main(router_args(tmp_path / "two", "--router_conf", "dropout=0.1"))


def test_clusters_have_a_head_of_their_own(router_args, make_backbone, tmp_path):
    more = ["--experts", "c0", "c1", "--max_epoch", "1"]
    with pytest.raises(UserError, match=r"c0 c1 are no languages: --train_dir needs utt2experts"):
        command.main(router_args(tmp_path / "out", *more))
    for name in ("train", "dev"):
        folder = router_args.folder / name
        ids = [line.split()[0] for line in (folder / "utt2lang").open()]
        lines = [f"{u} c{i % 2}:0.8 c{(i + 1) % 2}:0.2\n" for i, u in enumerate(ids)]
        (folder / "utt2experts").write_text("".join(lines))
    try:
        command.main(router_args(tmp_path / "out", *more, "--balance", "experts"))
    finally:
        for name in ("train", "dev"):
            (router_args.folder / name / "utt2experts").unlink()
    router = load_router(tmp_path / "out" / "router", make_backbone().digest())
    assert router.experts == ("c0", "c1") and router.languages == ("hi", "it", "pa")
    facts = json.loads((tmp_path / "out" / "router" / "router.json").read_text())["facts"]
    assert facts["metrics"]["expert"]["utterances"] == 9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--router", "oracle"], "phase router needs a router to train"),
        (["--router_conf", "layer=9"], r"layer 9 is not in 0\.\.2"),
        (["--router_conf", "colour=red"], r"router_conf: unknown key\(s\) colour"),
        (["--expert_conf", "rank=4"], "--expert_conf has no effect in phase router"),
        (["--experts", "hi", "it"], "no expert for language.s. pa of --train_dir"),
        (["--languages", "hi", "it"], r"--train_dir has the language\(s\) pa, which --languages"),
        (
            ["--languages", "hi", "it", "pa", "te", "--experts", "hi", "it", "pa", "te"],
            "no utterance of the language.s. te",
        ),
        (["--balance", "speakers"], "--balance speakers is unknown: choose one of languages"),
        (["--batch_type", "numel"], "use --batch_type sorted or unsorted, or --balance none"),
        (["--augment_conf", "crop_share=2.0"], r"crop_share is in \[0, 1\]"),
        (["--augment_conf", "speed=2"], r"augment_conf: unknown key\(s\) speed"),
    ],
)
def test_what_is_refused(router_args, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        command.main(router_args(tmp_path / "out", *more))
    assert not list(tmp_path.glob("out/*.pth"))
