"""Strategies against numpy, row by row and frame by frame."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_moe.errors import UserError
from espnet_moe.routing.families import load_families
from espnet_moe.routing.strategies import (
    STRATEGIES,
    StrategyOptions,
    build_strategy,
    training_gates,
)

EXPERTS = ("hi", "it", "pa", "te")
FAMILIES = [[0, 2], [1], [3]]


@pytest.fixture
def tree(tmp_path: Path) -> str:
    path = tmp_path / "families.yaml"
    path.write_text("Indo-Aryan: [hi, pa]\nRomance: [it]\nDravidian: [te, kn]\n")
    return str(path)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def best(p: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros_like(p)
    top = np.argsort(-p)[:k]
    out[top] = p[top] / p[top].sum()
    return out


def hierarchical(p: np.ndarray) -> np.ndarray:
    members = max(FAMILIES, key=lambda f: p[f].sum())
    return np.eye(4)[max(members, key=lambda e: p[e])]


REFERENCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hard": lambda p: best(p, 1),
    "soft": lambda p: p,
    "threshold": lambda p: best(p, 1 if p.max() > 0.6 else 2),
    "topk": lambda p: best(p, 3),
    "hierarchical": hierarchical,
    "fixed": lambda p: np.eye(4)[2],
}


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("shape", [(40, 4), (5, 9, 4)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_against_numpy(name: str, shape: tuple[int, ...], restricted: bool, tree: str) -> None:
    logits = np.random.default_rng(1).normal(0, 1.5, shape).astype(np.float32)
    seen = logits.copy()
    if restricted:
        seen[..., 1] = -np.inf
    allowed = ("te", "hi", "pa") if restricted else ()
    options = StrategyOptions(threshold=0.6, k=3, tree=tree, expert="pa", allowed=allowed)
    gates = build_strategy(name, options, EXPERTS).gates(torch.from_numpy(logits))
    expected = np.apply_along_axis(lambda x: REFERENCE[name](softmax(x)), -1, seen)
    np.testing.assert_allclose(gates.weights.numpy(), expected, atol=1e-6)
    if restricted:
        assert bool((gates.weights[..., 1] == 0).all())
    single = name in ("hard", "hierarchical", "fixed")
    assert (gates.hard is not None) == (single and len(shape) == 2)
    if gates.hard is not None:
        assert gates.hard.tolist() == expected.argmax(-1).tolist()
        assert gates.uniform == (2 if name == "fixed" else None)


def test_family_outvotes_the_best_language(tree: str) -> None:
    logits = torch.tensor([[0.3, 0.4, 0.25, 0.05]]).log()  # hi + pa beat it
    options = StrategyOptions(tree=tree)
    assert build_strategy("hierarchical", options, EXPERTS).gates(logits).uniform == 0
    assert build_strategy("hard", options, EXPERTS).gates(logits).uniform == 1


@pytest.mark.parametrize("name", ["soft", "threshold", "topk"])
def test_temperature_sharpens_mixtures_only(name: str) -> None:
    torch.manual_seed(5)
    logits = torch.randn(30, 4) * 2
    conf = {"threshold": 0.6, "k": 3}
    plain = build_strategy(name, StrategyOptions(**conf), EXPERTS).gates(logits).weights
    sharp = build_strategy(name, StrategyOptions(**conf, temperature=0.5), EXPERTS)
    for row, was, now in zip(logits, plain, sharp.gates(logits).weights, strict=True):
        # The square of each weight, renormalised.
        expected = was.double() ** 2 / (was.double() ** 2).sum()
        torch.testing.assert_close(now.double(), expected, rtol=1e-5, atol=1e-6)
        assert int(now.argmax()) == int(row.argmax())


def test_threshold_decides_for_each_row() -> None:
    logits = torch.tensor([[0.9, 0.05, 0.03, 0.02], [0.5, 0.3, 0.1, 0.1]]).log()
    strategy = build_strategy("threshold", StrategyOptions(threshold=0.8), EXPERTS)
    gates = strategy.gates(logits)
    expected = torch.tensor([[1, 0, 0, 0], [0.625, 0.375, 0, 0]])
    torch.testing.assert_close(gates.weights, expected)
    assert gates.hard is None
    assert strategy.gates(logits[:1]).uniform == 0


def test_fewer_are_allowed_than_k_or_two() -> None:
    logits = torch.zeros(2, 4)
    for name in ("topk", "threshold"):
        options = StrategyOptions(k=3, threshold=1.0, allowed=("te",))
        weights = build_strategy(name, options, EXPERTS).gates(logits).weights
        assert weights.tolist() == [[0, 0, 0, 1]] * 2


def test_one_expert() -> None:
    for name in ("hard", "soft", "threshold"):
        gates = build_strategy(name, StrategyOptions(), ("hi",)).gates(torch.zeros(3, 1))
        assert gates.weights.tolist() == [[1.0]] * 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("soft", {"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        ("best", {}, "strategy 'best' is unknown: choose one of hard, soft"),
        ("topk", {"k": 5}, "k is 5, but must be in 1..4"),
        ("topk", {"k": 0, "allowed": ("fr",)}, "fr are unknown; k is 0"),
        ("threshold", {"threshold": 1.2}, "threshold is 1.2, but must be in"),
        ("threshold", {"threshold": float("nan")}, "threshold is nan"),
        ("fixed", {"expert": "fr"}, "expert 'fr' is unknown; experts: hi, it, pa, te"),
        ("fixed", {"expert": "hi", "allowed": ("it",)}, "not among the allowed"),
        ("hierarchical", {}, "tree is needed"),
        ("hierarchical", {"tree": "missing.yaml"}, "missing.yaml cannot be read"),
    ],
)
def test_wrong_settings(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_strategy(name, StrategyOptions(**options), EXPERTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: [hi]\nB: [it, hi]\nC: []\n", "hi is in both A and B; C has no list of members"),
        ("A: [no, hi]\n", "A holds False, which is no name: quote it"),
        ("- hi\n", "write a family a line"),
        ("A: [hi\n", "is no YAML"),
    ],
)
def test_wrong_trees(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tree.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_families(tmp_path / "tree.yaml")


def test_a_tree_without_an_expert(tmp_path: Path) -> None:
    (tmp_path / "tree.yaml").write_text("A: [hi, it]\n")
    options = StrategyOptions(tree=str(tmp_path / "tree.yaml"))
    with pytest.raises(UserError, match="family tree lacks pa, te; it has hi, it"):
        build_strategy("hierarchical", options, EXPERTS)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4)])
def test_training_gates(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(shape, requires_grad=True)
    values = torch.randn(shape)

    def gradient(weights: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((weights * values).sum(), logits)[0]

    posteriors = logits.softmax(-1)
    soft = training_gates(logits, "soft").weights
    torch.testing.assert_close(soft, posteriors)
    hard = training_gates(logits, "straight_through").weights
    assert torch.equal(hard, torch.eye(4)[logits.argmax(-1)])
    torch.testing.assert_close(gradient(hard), gradient(posteriors))
    two = training_gates(logits, "topk", k=2).weights
    expected = np.apply_along_axis(lambda x: best(softmax(x), 2), -1, logits.detach().numpy())
    np.testing.assert_allclose(two.detach().numpy(), expected, atol=1e-6)
    assert bool((gradient(two) != 0).sum(-1).eq(2).all())


def test_noise_gives_other_experts_a_turn() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.0, -9.0]]).expand(400, -1)
    draws = [
        training_gates(logits, "topk", 1, 1.0, torch.Generator().manual_seed(s)).weights
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    counts = draws[0].sum(0)
    assert counts[0] > counts[1] > counts[2] > 20
    assert counts[3] == 0
    assert training_gates(logits, "topk", 1).weights[:, 0].sum() == 400


def test_wrong_training_gates() -> None:
    for conf, message in (
        (("hard",), "gates 'hard' are unknown"),
        (("topk", 5), "k is 5"),
        (("soft", 2, -1.0), "noise is -1.0"),
    ):
        with pytest.raises(UserError, match=message):
            training_gates(torch.zeros(1, 4), *conf)
