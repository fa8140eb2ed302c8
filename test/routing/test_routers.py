"""Routers: padding changes nothing, only the router learns, and each network can learn."""

import pytest
import torch
import torch.nn.functional as F

from espnet_moe.config import build_options
from espnet_moe.errors import UserError
from espnet_moe.routing.calibration import Calibration
from espnet_moe.routing.routers import NETWORKS, Router, RouterOptions, restrict

LANGUAGES = ("hi", "it", "te")
EACH = pytest.mark.parametrize(
    ("network", "level"), [(n, v) for n in (*NETWORKS, "cnn/5") for v in ("utterance", "frame")]
)


def make(network: str, level: str, dim: int = 12, experts: tuple[str, ...] = LANGUAGES) -> Router:
    torch.manual_seed(0)
    network, _, stride = network.partition("/")
    conf = {"level": level, **({"stride": int(stride)} if stride else {})}
    options = build_options(NETWORKS[network], conf, "router_conf")
    return Router(options, dim, experts, LANGUAGES)


@pytest.mark.parametrize("gradients", [True, False])
@EACH
def test_alone_is_as_in_a_batch(network: str, level: str, gradients: bool) -> None:
    """With gradients Router clears the padding, without them each network is on its own."""
    with torch.set_grad_enabled(gradients):
        check_alone_is_as_in_a_batch(network, level)


def check_alone_is_as_in_a_batch(network: str, level: str) -> None:
    router = make(network, level, experts=("c0", "c1")).eval()
    torch.manual_seed(1)
    lengths = torch.tensor([90, 31, 1, 64])
    frames = torch.randn(4, 90, 12)
    for row, n in zip(frames, lengths):
        row[n:] = 100 * torch.randn(90 - int(n), 12)
    frames[1, 40:] = torch.nan
    together = router(frames, lengths)
    for i, n in enumerate(lengths.tolist()):
        alone = router(frames[i : i + 1, :n], lengths[i : i + 1])
        for one, all_rows in (
            (alone.experts, together.experts),
            (alone.languages, together.languages),
        ):
            row = all_rows[i : i + 1, :n] if level == "frame" else all_rows[i : i + 1]
            torch.testing.assert_close(one, row, rtol=1e-5, atol=1e-5)
    assert together.experts.shape[-1] == 2
    assert (together.lengths is None) == (level == "utterance")


@EACH
def test_only_the_router_gets_gradients(network: str, level: str) -> None:
    router = make(network, level, experts=("c0", "c1")).train()
    frames = torch.randn(3, 20, 12)
    frames[1, 9:] = torch.nan  # padding may hold anything
    routed = router(frames.requires_grad_(), torch.tensor([20, 9, 14]))
    inside = ... if level == "utterance" else (torch.arange(60) % 20 < 9).view(3, 20)
    (routed.experts[inside].square().sum() + routed.languages[inside].square().sum()).backward()
    assert frames.grad is None
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(bool(h.weight.grad.any()) for h in (router.expert_head, router.language_head))


@EACH
def test_learns_three_languages(network: str, level: str) -> None:
    draw = torch.Generator().manual_seed(3)
    centres = torch.randn(3, 12, generator=draw)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        labels = torch.arange(size) % 3
        frames = centres[labels].unsqueeze(1) + torch.randn(size, 16, 12, generator=draw)
        return frames, torch.randint(8, 17, (size,), generator=draw), labels

    router = make(network, level).train()
    optimiser = torch.optim.Adam(router.parameters(), 0.01)
    for _ in range(25):
        frames, lengths, labels = batch(24)
        logits = router(frames, lengths).languages
        if level == "frame":
            labels = labels.unsqueeze(1).expand(-1, 16)
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    frames, lengths, labels = batch(60)
    with torch.no_grad():
        found = router.eval()(frames, lengths).languages
    if level == "frame":
        found = found[:, :8].mean(1)
    assert float((found.argmax(-1) == labels).float().mean()) > 0.95


def test_one_head_where_experts_are_languages() -> None:
    routed = make("mlp", "utterance")(torch.randn(2, 5, 12), torch.tensor([5, 4]))
    assert routed.experts is routed.languages


def test_temperature_holds_in_evaluation_only() -> None:
    router = make("linear", "utterance")
    router.temperature.fill_(2.0)
    frames, lengths = torch.randn(2, 5, 12), torch.tensor([5, 4])
    trained, evaluated = router.train()(frames, lengths), router.eval()(frames, lengths)
    torch.testing.assert_close(trained.experts, 2 * evaluated.experts)


def test_attentive_pooling_is_a_weighted_mean_of_values() -> None:
    pooling = make("attention", "utterance").eval().trunk
    frames = torch.randn(3, 9, 12)
    lengths = torch.tensor([9, 4, 1])
    with torch.no_grad():
        found = pooling(frames, lengths)
        for row, n, own in zip(frames, lengths.tolist(), found, strict=True):
            x = pooling.norm(row[:n])
            weights = pooling.scores(pooling.hidden(x).tanh()).softmax(0)  # (frames, heads)
            values = pooling.values(x).chunk(pooling.heads, dim=1)
            want = [(w[:, None] * v).sum(0) for w, v in zip(weights.T, values, strict=True)]
            torch.testing.assert_close(own, torch.cat(want))


def test_two_heads_have_temperatures_of_their_own() -> None:
    torch.manual_seed(0)
    router = Router(NETWORKS["linear"](), 12, ("c0", "c1"), ("hi", "it", "pa"))
    router.set_temperatures(2.0, 0.5)
    frames, lengths = torch.randn(2, 5, 12), torch.tensor([5, 4])
    trained, evaluated = router.train()(frames, lengths), router.eval()(frames, lengths)
    torch.testing.assert_close(trained.experts, 2 * evaluated.experts)
    torch.testing.assert_close(trained.languages, 0.5 * evaluated.languages)


def test_calibrated_heads_give_calibrated_logits() -> None:
    torch.manual_seed(0)
    experts = Calibration(2.0, torch.tensor([0.3, -0.3]))
    languages = Calibration(0.5, torch.tensor([0.1, 0.0, -0.1]))
    frames, lengths = torch.randn(2, 5, 12), torch.tensor([5, 4])
    router = Router(NETWORKS["linear"](), 12, ("c0", "c1"), ("hi", "it", "pa")).eval()
    before = router(frames, lengths)
    router.calibrate(experts, languages)
    after = router(frames, lengths)
    torch.testing.assert_close(after.experts, experts(before.experts))
    torch.testing.assert_close(after.languages, languages(before.languages))
    one_head = Router(NETWORKS["linear"](), 12, ("hi", "it", "pa"), ("hi", "it", "pa")).eval()
    before = one_head(frames, lengths)
    one_head.calibrate(languages, languages)
    torch.testing.assert_close(one_head(frames, lengths).experts, languages(before.experts))


def test_single_precision_under_autocast() -> None:
    router = make("mlp", "utterance").eval()
    frames, lengths = torch.randn(2, 5, 12).bfloat16(), torch.tensor([5, 4])
    with torch.autocast("cpu", torch.bfloat16):
        found = router(frames, lengths).experts
    torch.testing.assert_close(found, router(frames.float(), lengths).experts)
    assert found.dtype == torch.float32


def test_cnn_sees_one_second() -> None:
    router = make("cnn", "frame").eval()
    frames, lengths = torch.randn(1, 121, 12), torch.tensor([121])
    changed = frames.clone()
    changed[0, 60] += torch.randn(12)
    moved = (router(frames, lengths).experts - router(changed, lengths).experts).abs().sum(2)[0]
    assert moved.nonzero().flatten().tolist() == list(range(34, 87))  # 53 frames, 1.06 s


@pytest.mark.parametrize(
    ("network", "conf", "message"),
    [
        ("mlp", {"level": "word"}, "level 'word' is unknown: choose one of utterance, frame"),
        ("mlp", {"layer": -1, "dropout": 1.0}, "layer is -1.*dropout is 1.0"),
        ("mlp", {"hidden": [0]}, "hidden holds 0"),
        ("mlp", {"width": 3}, "unknown key.*width"),
        ("cnn", {"kernel": 4}, "kernel is 4, but must be odd"),
        ("lstm", {"num_layers": 0}, "num_layers is 0"),
        ("attention", {"width": 30}, "width 30 cannot be shared by 4 heads"),
        ("attention", {"pooling": "mean_std"}, "pooling does not apply"),
        ("linear", {"pooling": "max"}, "pooling 'max' is unknown"),
    ],
)
def test_options_that_cannot_be_used(network: str, conf: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Router(build_options(NETWORKS[network], conf, "router_conf"), 8, LANGUAGES, LANGUAGES)


def test_names_and_widths_that_cannot_be_used() -> None:
    options = NETWORKS["linear"]()
    with pytest.raises(UserError, match="no experts are given; languages name hi twice"):
        Router(options, 8, (), ("hi", "hi"))
    with pytest.raises(UserError, match="languages hold an empty name"):
        Router(options, 8, LANGUAGES, ("hi", ""))
    with pytest.raises(UserError, match="takes frames 8 wide, but these are 9 wide"):
        Router(options, 8, LANGUAGES, LANGUAGES)(torch.ones(1, 2, 9), torch.tensor([2]))
    with pytest.raises(UserError, match="options of no router"):
        Router(RouterOptions(), 8, LANGUAGES, LANGUAGES)


def test_restrict() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    found = restrict(logits, LANGUAGES, ["te", "it"]).softmax(-1)[0]
    assert found[0] == 0
    torch.testing.assert_close(found[1:], torch.tensor([1.0, 2.0]).softmax(0))
    assert logits[0, 0] == 3.0
    with pytest.raises(UserError, match="pa, xx are unknown; legal names: hi, it, te"):
        restrict(logits, LANGUAGES, ["xx", "pa", "hi"])
    with pytest.raises(UserError, match="empty"):
        restrict(logits, LANGUAGES, [])
