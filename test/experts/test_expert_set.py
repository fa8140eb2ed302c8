"""Experts inside the backbone: which layers, what trains, what changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from espnet_moe.experts.expert_set import ExpertError, ExpertSet, LoRAOptions, find_targets
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.experts.kinds import ExpertLayer
from espnet_moe.experts.lora import LoRALinear

ALL = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def randomise(experts, seed=0, std=0.2):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in experts.parameters():
            p.copy_(std * torch.randn(p.shape, generator=draw))


def run(backbone, speech, lengths, codes, gates, k=0):
    prompt = backbone.tokens.prompt(codes)
    text = torch.arange(10).repeat(len(codes), 1)
    lower = backbone.encode_lower(speech, lengths, k)
    with use_gates(gates):
        encoded = backbone.encode_upper(lower, k)
        return encoded.hidden, backbone.decode(torch.cat([prompt, text], 1), encoded)


@torch.no_grad()
@pytest.mark.parametrize("context", ["variable", "padded"])
@pytest.mark.parametrize("experts", [1, 3, 10])
def test_zero_b_reproduces_the_backbone_to_the_bit(make_backbone, batch_of, context, experts):
    plain, with_experts = make_backbone(context), make_backbone(context)
    found = ExpertSet(with_experts, LoRAOptions(ALL, rank=4), [f"e{i}" for i in range(experts)])
    speech, lengths = batch_of(0.7, 0.3, 0.5)
    codes = ["hi", "it", "pa"]
    want = run(plain, speech, lengths, codes, None)
    for gates in (
        None,
        found.one_hot(["e0"] * 3, plain.device),
        found.one_hot([f"e{i % experts}" for i in range(3)], plain.device),
        Gates.of(torch.rand(3, experts)),
    ):
        got = run(with_experts, speech, lengths, codes, gates)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@torch.no_grad()
@pytest.mark.parametrize("rank", [8, 16, 32, 64])
@pytest.mark.parametrize("where", ["encoder", "decoder", "both"])
def test_a_trained_expert_changes_what_it_should(make_backbone, batch_of, rank, where):
    backbone = make_backbone()
    found = ExpertSet(backbone, LoRAOptions(rank=rank, where=where), ["hi"])
    speech, lengths = batch_of(0.4, 0.3)
    before = run(backbone, speech, lengths, ["hi", "hi"], None)
    randomise(found)
    with_gates = run(
        backbone, speech, lengths, ["hi", "hi"], found.one_hot(["hi"] * 2, backbone.device)
    )
    without = run(backbone, speech, lengths, ["hi", "hi"], None)
    assert torch.equal(without[1], before[1]), "without gates the backbone is what it was"
    assert torch.equal(with_gates[0], before[0]) == (where == "decoder")
    assert (with_gates[1] - before[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("experts", [3, 10])
def test_rows_of_a_mixed_batch_equal_rows_alone(backbone, batch_of, experts):
    names = [f"e{i}" for i in range(experts)]
    found = ExpertSet(backbone, LoRAOptions(ALL, rank=4), names)
    randomise(found)
    speech, lengths = batch_of(0.7, 0.3, 0.5)
    chosen, codes = ["e2", "e0", names[-1]], ["hi", "it", "pa"]
    together = run(backbone, speech, lengths, codes, found.one_hot(chosen, backbone.device))
    for i, n in enumerate(lengths.tolist()):
        gates = found.one_hot([chosen[i]], backbone.device)
        alone = run(backbone, speech[i : i + 1, :n], lengths[i : i + 1], [codes[i]], gates)
        torch.testing.assert_close(together[1][i], alone[1][0], rtol=0, atol=1e-4)


def gradients(backbone, found, batch, checkpointing):
    backbone.gradient_checkpointing = checkpointing
    backbone.train()
    for p in found.parameters():
        p.grad = None
    gates = found.one_hot(["a", "b", "a"], backbone.device)
    torch.manual_seed(7)
    # Backward happens after the gates are gone, as in training.
    _, logits = run(backbone, *batch, ["hi", "it", "pa"], gates)
    logits.log_softmax(-1)[..., 5].sum().backward()
    return [p.grad.clone() for p in found.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_every_parameter_of_every_expert_gets_a_gradient(backbone, batch_of, dropout):
    found = ExpertSet(backbone, LoRAOptions(ALL, rank=4, dropout=dropout), ["a", "b"])
    randomise(found)
    # 2 encoder layers with 6, 2 decoder layers with 4 + 4 + 2 linear layers.
    assert len(found.layers) == 2 * 6 + 2 * 10
    batch = batch_of(0.7, 0.3, 0.5)
    plain = gradients(backbone, found, batch, False)
    recomputed = gradients(backbone, found, batch, True)
    rows = dict(zip([f"{n}.{s}" for n in found.layers for s in "AB"], plain, strict=True))
    for name, gradient in rows.items():
        # The bias-free key projection of attention shifts all scores alike: no row may be dead
        # otherwise. Each expert's share is looked at alone.
        for part in gradient.chunk(2, dim=0 if name.endswith("A") else 1):
            assert part.abs().max() > 0, name
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in backbone.hf.parameters() if not p.requires_grad)


def test_checkpointing_with_a_split(backbone, batch_of):
    found = ExpertSet(backbone, LoRAOptions(rank=4, first_layer=1), ["a"])
    randomise(found)
    backbone.train()
    backbone.gradient_checkpointing = True
    speech, lengths = batch_of(0.4)
    run(backbone, speech, lengths, ["hi"], found.one_hot(["a"], backbone.device), 1)[
        1
    ].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in found.parameters())


def test_base_weights_are_byte_identical_after_training(backbone, batch_of):
    found = ExpertSet(backbone, LoRAOptions(ALL, rank=4), ["a", "b"])
    digest = backbone.digest()
    before = {n: p.clone() for n, p in backbone.named_parameters() if ".lora_" not in n}
    optimizer = torch.optim.AdamW(found.parameters(), lr=0.1)
    start = [p.detach().clone() for p in found.parameters()]
    for _ in range(3):
        gates = found.one_hot(["a", "b"], backbone.device)
        run(backbone, *batch_of(0.4, 0.3), ["hi", "it"], gates)[1].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in backbone.named_parameters():
        assert ".lora_" in name or torch.equal(p, before[name]), name
    assert backbone.digest() == digest
    assert all(not torch.equal(a, b) for a, b in zip(start, found.parameters()))


def test_digest_is_the_same_with_and_without_experts(make_backbone):
    plain, other = make_backbone(), make_backbone()
    found = ExpertSet(other, LoRAOptions(ALL), ["a"])
    randomise(found)
    assert plain.digest() == other.digest()


@pytest.mark.parametrize(
    ("options", "count", "has", "has_not"),
    [
        ({}, 2 * 2 + 2 * 4, "encoder.layers.0.self_attn.q_proj", "fc1"),
        ({"where": "encoder"}, 4, "encoder.layers.1.self_attn.v_proj", "decoder"),
        ({"where": "decoder"}, 8, "decoder.layers.0.encoder_attn.v_proj", "encoder.layers"),
        ({"first_layer": 1}, 2 + 8, "encoder.layers.1.self_attn.q_proj", "encoder.layers.0"),
        ({"first_layer": 2}, 8, "decoder.layers.0.self_attn.q_proj", "encoder.layers"),
        ({"targets": ("fc1", "fc2"), "where": "both"}, 8, "decoder.layers.1.fc2", "q_proj"),
        ({"targets": (r".*encoder_attn\.k_proj",)}, 2, "layers.1.encoder_attn.k_proj", "self_attn"),
    ],
)
def test_which_layers(backbone, options, count, has, has_not):
    found = ExpertSet(backbone, LoRAOptions(**options), ["a"])
    names = list(found.layers)
    assert len(names) == count
    assert any(has in n for n in names) and not any(has_not in n for n in names)
    wrapped = [n for n, m in backbone.hf.named_modules() if isinstance(m, LoRALinear)]
    assert sorted(wrapped) == sorted(names)


def test_only_experts_are_trainable_and_follow_the_backbone(backbone):
    found = ExpertSet(backbone, LoRAOptions(), ["a"])
    trainable = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == {f"hf.{n}.lora_{s}" for n in found.layers for s in "AB"}
    assert trainable <= backbone.state_dict().keys()
    assert {id(p) for p in found.parameters()} <= {id(p) for p in backbone.parameters()}


def test_unknown_targets_tell_what_exists(backbone):
    with pytest.raises(ExpertError) as error:
        ExpertSet(backbone, LoRAOptions(("q_proj", "query", "w_1")), ["a"])
    message = str(error.value)
    assert "query, w_1" in message
    assert all(name in message for name in ALL)
    with pytest.raises(ExpertError, match="is no regular expression"):
        find_targets(backbone, LoRAOptions((r"(.*",)))
    assert not any(isinstance(m, LoRALinear) for m in backbone.modules()), "nothing was changed"


def test_no_layer_left(backbone):
    with pytest.raises(ExpertError, match="no layer is left.*encoder.*first_layer 2"):
        ExpertSet(backbone, LoRAOptions(where="encoder", first_layer=2), ["a"])


def test_wrong_options_are_named_together():
    with pytest.raises(ExpertError) as error:
        LoRAOptions(("q_proj",), "middle", -1, 0, -2.0, 1.5)
    for word in ("'middle'", "first_layer", "rank", "alpha", "dropout"):
        assert word in str(error.value)


def test_names(backbone):
    with pytest.raises(ExpertError, match="each once; these are: a, a"):
        ExpertSet(backbone, LoRAOptions(), ["a", "a"])
    with pytest.raises(ExpertError, match="need names"):
        ExpertSet(backbone, LoRAOptions(), [])
    found = ExpertSet(backbone, LoRAOptions(), ["a", "b"])
    with pytest.raises(ExpertError, match="no expert 'c'; experts: a b"):
        found.index("c")
    with pytest.raises(ExpertError, match="holds experts already"):
        ExpertSet(backbone, LoRAOptions(), ["c"])


def test_a_second_set_that_is_refused_changes_nothing(backbone):
    first = ExpertSet(backbone, LoRAOptions(where="decoder"), ["a"])
    layers = [name for name, m in backbone.hf.named_modules() if isinstance(m, ExpertLayer)]
    with pytest.raises(ExpertError, match="holds experts already"):
        ExpertSet(backbone, LoRAOptions(where="both"), ["b", "c"])
    with pytest.raises(ExpertError, match="holds experts already"):
        ExpertSet(backbone, LoRAOptions(where="encoder"), ["b", "c"])
    assert layers == [n for n, m in backbone.hf.named_modules() if isinstance(m, ExpertLayer)]
    assert all(p.requires_grad for p in first.parameters())


def test_options_of_one_set_differ_in_rank_only(make_backbone):
    options = {"a": LoRAOptions(rank=4), "b": LoRAOptions(rank=8, alpha=3.0)}
    found = ExpertSet(make_backbone(), options, ["a", "b"])
    shapes = {e: found.state(e)[next(iter(found.state(e)))].shape[0] for e in "ab"}
    assert shapes == {"a": 4, "b": 8}
    options["b"] = LoRAOptions(where="encoder")
    with pytest.raises(ExpertError, match="b differ from a in kind, targets, where or first_layer"):
        ExpertSet(make_backbone(), options, ["a", "b"])


def test_state_that_does_not_fit_changes_nothing(backbone):
    found = ExpertSet(backbone, LoRAOptions(rank=4), ["a", "b"])
    randomise(found)
    before = [p.detach().clone() for p in found.parameters()]
    good = found.state("b")
    first, second, *_ = good
    bad = {k: v + 1 for k, v in good.items() if k != first}
    bad["elsewhere.lora_A"] = torch.zeros(1)
    bad[second] = torch.zeros(3, 3)
    with pytest.raises(ExpertError) as error:
        found.load_state("a", bad)
    for words in ("1 tensors are missing", first, "1 tensors have no place", "elsewhere", "(3, 3)"):
        assert words in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, found.parameters()))
    found.load_state("a", good)
    assert all(torch.equal(found.state("a")[k], v) for k, v in good.items())
    assert all(torch.equal(found.state("b")[k], v) for k, v in good.items())


@torch.no_grad()
def test_copies_of_a_backbone_with_experts(backbone, batch_of):
    found = ExpertSet(backbone, LoRAOptions(rank=4), ["a", "b"])
    randomise(found)
    gates = found.one_hot(["b", "a"], backbone.device)
    batch = batch_of(0.4, 0.3)
    want = run(backbone, *batch, ["hi", "it"], gates)[1]
    twins = [copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))]
    randomise(found, seed=1)
    for twin in twins:
        assert torch.equal(run(twin, *batch, ["hi", "it"], gates)[1], want)


def test_copied_together_set_and_backbone_stay_together(backbone):
    found = ExpertSet(backbone, LoRAOptions(rank=4), ["a"])
    both = copy.deepcopy({"backbone": backbone, "experts": found})
    inside = {id(p) for p in both["backbone"].parameters()}
    assert all(id(p) in inside for p in both["experts"].parameters())


def test_other_modules_are_no_targets(backbone):
    assert isinstance(backbone.hf.proj_out, nn.Linear)
    with pytest.raises(ExpertError, match="proj_out"):
        find_targets(backbone, LoRAOptions(("proj_out",)))


@torch.no_grad()
def test_removed_experts_leave_the_backbone_as_it_was(backbone, batch_of):
    before = run(backbone, *batch_of(0.4), ["hi"], None)[1]
    found = ExpertSet(backbone, LoRAOptions(), ["a"])
    randomise(found)
    gates = found.one_hot(["a"], backbone.device)
    found.remove(backbone)
    assert torch.equal(run(backbone, *batch_of(0.4), ["hi"], gates)[1], before)
    assert not any(isinstance(m, LoRALinear) for m in backbone.modules())
    ExpertSet(backbone, LoRAOptions(), ["b"])


@torch.no_grad()
def test_merged_mixture_does_what_the_mixture_does(backbone, batch_of):
    experts = ExpertSet(backbone, LoRAOptions(rank=2), ["a", "b"])
    for layer in experts.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    speech, lengths = batch_of(1.1, 0.6)
    weights = torch.tensor([0.7, 0.3])

    def logits():
        encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
        return backbone.decode(backbone.tokens.prompt(["hi", "it"]), encoded)

    without = logits()
    with experts.use(Gates.of(weights.expand(2, -1))):
        want = logits()
    with pytest.raises(ExpertError, match="2 experts"):
        experts.merge_mixture(backbone, torch.ones(3))
    experts.merge_mixture(backbone, weights)
    torch.testing.assert_close(logits(), want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(), without, atol=1e-2)
