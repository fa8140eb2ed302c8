"""The fused layer against a loop over experts, and gates between threads."""

import threading

import pytest
import torch
from torch import nn

from espnet_moe.errors import UserError
from espnet_moe.experts.gates import Gates, current_gates, use_gates
from espnet_moe.experts.lora import LoRALinear

BATCH, FRAMES, IN, OUT = 5, 7, 12, 9


def make(ranks, seed=0, dropout=0.0, bias=True):
    torch.manual_seed(seed)
    alphas = [2.0 * r + e for e, r in enumerate(ranks)]
    layer = LoRALinear(nn.Linear(IN, OUT, bias=bias), ranks, alphas, dropout)
    nn.init.normal_(layer.lora_B, std=0.5)
    return layer, alphas


def loop(layer, alphas, x, weights):
    """One expert after the other, one row after the other, from autograd's own slices."""
    rows = []
    for b in range(x.size(0)):
        y = nn.functional.linear(x[b], layer.base.weight, layer.base.bias)
        start = 0
        for e, rank in enumerate(layer.ranks):
            a = layer.lora_A[start : start + rank]
            up = layer.lora_B[:, start : start + rank]
            update = (x[b] @ a.T) @ up.T * (alphas[e] / rank)
            gate = weights[b, :, e : e + 1] if weights.dim() == 3 else weights[b, e]
            y = y + gate * update
            start += rank
        rows.append(y)
    return torch.stack(rows)


def gates_of(kind, experts):
    if kind == "dense":
        return Gates.of(torch.rand(BATCH, experts).softmax(-1))
    if kind == "frames":
        return Gates.of(torch.rand(BATCH, FRAMES, experts))
    if kind == "zero":
        return Gates.of(torch.zeros(BATCH, experts))
    if kind == "uniform":
        return Gates.one_hot([experts - 1] * BATCH, experts, torch.device("cpu"))
    return Gates.one_hot(
        [(3 * b + 1) % experts for b in range(BATCH)], experts, torch.device("cpu")
    )


@pytest.mark.parametrize("ranks", [(4,), (3, 3, 3), (1, 4, 2), (2,) * 11, (2, 3) * 6])
@pytest.mark.parametrize("kind", ["dense", "frames", "hard", "uniform", "zero"])
def test_equals_a_loop_over_experts(ranks, kind):
    layer, alphas = make(ranks)
    gates = gates_of(kind, len(ranks))
    x = torch.randn(BATCH, FRAMES, IN, requires_grad=True)
    direction = torch.randn(BATCH, FRAMES, OUT)
    parameters = [x, layer.lora_A, layer.lora_B]
    want = loop(layer, alphas, x, gates.weights)
    want_gradients = torch.autograd.grad((want * direction).sum(), parameters)
    with use_gates(gates):
        got = layer(x)
    got_gradients = torch.autograd.grad((got * direction).sum(), parameters)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for g, w in zip(got_gradients, want_gradients):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_soft_gates():
    layer, alphas = make((2, 3))
    weights = torch.rand(BATCH, 2, requires_grad=True)
    x = torch.randn(BATCH, FRAMES, IN)
    with use_gates(Gates.of(weights)):
        (got,) = torch.autograd.grad(layer(x).square().sum(), weights)
    (want,) = torch.autograd.grad(loop(layer, alphas, x, weights).square().sum(), weights)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "frames", "hard", "uniform"])
@pytest.mark.parametrize("ranks", [(4, 2), (2,) * 10])
def test_zero_b_is_the_base_to_the_bit(kind, ranks):
    layer, _ = make(ranks)
    nn.init.zeros_(layer.lora_B)
    x = torch.randn(BATCH, FRAMES, IN)
    want = layer.base(x)
    assert torch.equal(layer(x), want)
    with use_gates(gates_of(kind, len(ranks))):
        assert torch.equal(layer(x), want)


def test_new_layer_has_random_a_and_zero_b():
    layer = LoRALinear(nn.Linear(IN, OUT), [4, 8], [8, 8])
    assert torch.count_nonzero(layer.lora_B) == 0
    # kaiming_uniform(a=√5), as PEFT has it: uniform in ±1/√in for every expert whatever its rank.
    for e in range(2):
        assert 0.6 / IN**0.5 < layer.A(e).abs().max() <= 1 / IN**0.5


@pytest.mark.parametrize("kind", ["dense", "hard", "uniform"])
@pytest.mark.parametrize("ranks", [(4, 2), (2,) * 10])
def test_under_bf16_autocast(kind, ranks):
    layer, alphas = make(ranks)
    gates, x = gates_of(kind, len(ranks)), torch.randn(BATCH, FRAMES, IN)
    want = loop(layer, alphas, x, gates.weights)
    with torch.autocast("cpu", torch.bfloat16), use_gates(gates):
        got = layer(x)
        assert got.dtype == torch.bfloat16
        got.float().sum().backward()
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()
    assert layer.lora_A.grad.dtype == torch.float32 and layer.lora_A.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["dense", "hard", "uniform"])
def test_half_precision_weights_keep_their_type(kind):
    layer, alphas = make((4, 2))
    x, gates = torch.randn(BATCH, FRAMES, IN), gates_of(kind, 2)
    want = loop(layer, alphas, x, gates.weights)
    layer.to(torch.bfloat16)
    with use_gates(gates):
        got = layer(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


def test_dropout_only_in_training_and_only_on_the_update():
    layer, _ = make((4,), dropout=0.5)
    gates = Gates.one_hot([0] * BATCH, 1, torch.device("cpu"))
    x = torch.randn(BATCH, FRAMES, IN)
    with use_gates(gates):
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
    layer.train()
    assert torch.equal(layer(x), layer.base(x))


def test_empty_batch():
    for ranks in ((4, 2), (2,) * 10):
        layer, _ = make(ranks)
        with use_gates(Gates.one_hot([], len(ranks), torch.device("cpu"))):
            assert layer(torch.zeros(0, FRAMES, IN)).shape == (0, FRAMES, OUT)


def test_gates_are_undone_also_after_an_error():
    gates = Gates.one_hot([0], 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="boom"), use_gates(gates):
        assert current_gates() is gates
        with use_gates(None):
            assert current_gates() is None
        assert current_gates() is gates
        raise RuntimeError("boom")
    assert current_gates() is None


def test_threads_do_not_see_each_others_gates():
    layer, _ = make((2, 2))
    layer.eval()
    x, device = torch.randn(3, FRAMES, IN), torch.device("cpu")
    kinds = [None, Gates.one_hot([0] * 3, 2, device), Gates.one_hot([1, 0, 1], 2, device)]
    want = []
    for gates in kinds:
        with use_gates(gates):
            want.append(layer(x))
    barrier, wrong = threading.Barrier(3), []

    def work(i):
        with use_gates(kinds[i]):
            for _ in range(50):
                barrier.wait(timeout=30)
                if not torch.equal(layer(x), want[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    with use_gates(kinds[2]):
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_select_repeats_and_reorders_rows():
    gates = Gates.one_hot([2, 0, 1], 3, torch.device("cpu"))
    rows = torch.tensor([1, 1, 2, 0])
    chosen = gates.select(rows)
    assert chosen.hard.tolist() == [0, 0, 1, 2] and chosen.uniform is None
    assert chosen.weights.argmax(-1).tolist() == [0, 0, 1, 2]
    assert Gates.one_hot([1, 1], 3, torch.device("cpu")).select(rows % 2).uniform == 1


def test_wrong_gates_are_refused():
    with pytest.raises(UserError, match=r"have \(4,\)"):
        Gates.of(torch.rand(4))
    with pytest.raises(UserError, match=r"\[-1, 3\] are not in 0..2"):
        Gates.one_hot([0, 3, -1], 3, torch.device("cpu"))


@pytest.mark.parametrize("rows", [3, 1])
def test_gates_of_another_batch(rows):
    # Broadcasting would silently give every row the gates of one.
    layer, _ = make((2, 2))
    with use_gates(Gates.of(torch.rand(rows, 2))), pytest.raises(ValueError, match="batch of 5"):
        layer(torch.randn(BATCH, FRAMES, IN))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", ["dense", "frames", "hard", "uniform", "zero"])
@pytest.mark.parametrize(("ranks", "bias"), [((3, 3, 3), True), ((1, 4, 2), False)])
def test_without_gradient_long_rows_equal_a_loop_too(kind, ranks, bias, inference, monkeypatch):
    # Where rows have many frames, and nothing is trained, mixtures are merged row by row.
    frames = 40
    monkeypatch.setattr(f"{__name__}.FRAMES", frames)
    layer, alphas = make(ranks, bias=bias)
    merged, original = [], LoRALinear._merged_rows
    monkeypatch.setattr(
        LoRALinear, "_merged_rows", lambda *args: merged.append(1) or original(*args)
    )
    gates, x = gates_of(kind, len(ranks)), torch.randn(BATCH, frames, IN)
    kept = x.clone()
    with torch.inference_mode(inference), torch.no_grad(), use_gates(gates):
        got, again = layer(x), layer(x)
    want = loop(layer, alphas, x, gates.weights)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(got, again) and torch.equal(x, kept)
    assert bool(merged) == (kind in ("dense", "zero"))
    nn.init.zeros_(layer.lora_B)
    with torch.no_grad(), use_gates(gates):
        torch.testing.assert_close(layer(x), layer.base(x), rtol=1e-6, atol=1e-6)


def test_gates_of_inference_serve_in_training():
    # What layers keep of the weights is made once; tensors of inference mode allow no gradient.
    layer, _ = make((3, 3))
    other, others_alphas = make((2, 4), seed=1)
    gates, x = gates_of("dense", 2), torch.randn(BATCH, FRAMES, IN)
    with torch.inference_mode(), use_gates(gates):
        layer(x)
    with use_gates(gates):
        layer(x).sum().backward()
        got = other(x)
    assert layer.lora_B.grad is not None
    torch.testing.assert_close(got, loop(other, others_alphas, x, gates.weights))


@pytest.mark.parametrize("bias", [True, False])
def test_merged_mixture_equals_the_mixture(bias):
    layer, alphas = make((1, 4, 2), bias=bias)
    weights, x = torch.tensor([0.5, 0.2, 0.3]), torch.randn(BATCH, FRAMES, IN)
    before = layer.weight.clone()
    want = loop(layer, alphas, x, weights.expand(BATCH, -1))
    torch.testing.assert_close(layer.merged_mixture(weights)(x), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.weight, before)
