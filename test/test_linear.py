"""Linear layers of a decoding step: other products, the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espnet_moe import linear as products
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.experts.lora import LoRALinear
from espnet_moe.linear import FewRowsLinear, quicken

WEIGHT_FIRST_PAYS = products.weight_first_pays


@pytest.fixture(autouse=True)
def measured_here(monkeypatch):
    """Every machine tests the path of those where it pays."""
    monkeypatch.setattr(products, "weight_first_pays", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer(bias=True, inside=800, out=780):
    torch.manual_seed(0)
    return FewRowsLinear(inside, out, bias=bias)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (4, 3), (16, 1), (2, 3, 8), (49,), (1,), (0, 5), ()])
def test_the_same_numbers(bias, shape):
    one = layer(bias)
    x = torch.randn(*shape, 800)
    got = one(x)
    torch.testing.assert_close(got, F.linear(x, one.weight, one.bias), rtol=1e-5, atol=1e-5)
    assert got.is_contiguous()  # experts are added to it where it lies


@torch.inference_mode()
def test_of_a_part_of_a_tensor():
    one, x = layer(), torch.randn(8, 3, 1600)[:, 1, ::2]
    torch.testing.assert_close(one(x), F.linear(x, one.weight, one.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "inside", "other_way"),
    [(8, 800, True), (48, 800, True), (7, 800, False), (49, 800, False), (8, 400, False)],
)
def test_where_it_pays(rows, inside, other_way, monkeypatch):
    def never(*_):
        raise AssertionError("x Wᵀ")

    one, x = layer(inside=inside), torch.randn(rows, inside)
    monkeypatch.setattr(F, "linear", never)
    with torch.inference_mode():
        if other_way:
            one(x)
        else:
            with pytest.raises(AssertionError, match="x Wᵀ"):
                one(x)
    with pytest.raises(AssertionError, match="x Wᵀ"):
        one(x)  # with gradient


@torch.inference_mode()
def test_several_threads_were_not_measured(monkeypatch):
    one, x = layer(), torch.randn(8, 800)
    torch.set_num_threads(2)
    assert torch.equal(one(x), F.linear(x, one.weight, one.bias))
    monkeypatch.setattr(torch, "mm", None)
    one(x)


def test_training_and_half_precision_are_its_parents():
    one, plain = layer(), nn.Linear(800, 780)
    plain.load_state_dict(one.state_dict())
    x = torch.randn(16, 800)
    for each in (one, plain):
        each(x).square().sum().backward()
    assert torch.equal(one.weight.grad, plain.weight.grad)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(one(x), plain(x)) and one(x).dtype == torch.bfloat16
        half = one.bfloat16()(x.bfloat16())
        assert torch.equal(half, plain.bfloat16()(x.bfloat16()))


def test_a_decoder_keeps_weights_and_names(make_backbone):
    backbone = make_backbone()
    decoder = backbone.hf.model.decoder
    linear = [m for m in decoder.modules() if isinstance(m, nn.Linear)]
    assert linear and all(type(m) is FewRowsLinear for m in [*linear, backbone.hf.proj_out])
    assert all(
        type(m) is nn.Linear
        for m in backbone.hf.model.encoder.modules()
        if isinstance(m, nn.Linear)
    )
    before = backbone.hf.state_dict()
    quicken(backbone.hf)
    after = backbone.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].data_ptr() == after[name].data_ptr() for name in before)


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["one", "hard", "soft"])
def test_experts_on_top(weights):
    """They are added in place to what the base has made, and merged layers are as quick."""
    torch.manual_seed(0)
    expert = LoRALinear(layer(), [256, 512], [16.0, 16.0])
    expert.lora_B.normal_(std=0.02)
    x = torch.randn(8, 3, 800)
    mix = {"one": [[0.0, 1.0]] * 8, "hard": [[0.0, 1.0], [1.0, 0.0]] * 4, "soft": [[0.3, 0.7]] * 8}
    with use_gates(Gates.of(torch.tensor(mix[weights]))):
        got = expert(x)
        expert.base.__class__ = nn.Linear
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "weight_first_pays", lambda: False)
            torch.testing.assert_close(got, expert(x), rtol=1e-4, atol=1e-4)


def test_merged_layers_stay_what_their_base_is():
    for base in (layer(), nn.Linear(800, 780)):
        assert type(LoRALinear(base, [4], [8.0]).merged(0)) is type(base)


def test_only_machines_where_it_was_measured(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products.Path, "exists", lambda _: True)
    for maker, pays in (("GenuineIntel", True), ("AuthenticAMD", False)):
        monkeypatch.setattr(products.Path, "read_text", lambda *_, m=maker, **__: f"vendor_id: {m}")
        assert WEIGHT_FIRST_PAYS.__wrapped__() is pays
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(products.Path, "read_text", lambda *_, **__: "GenuineIntel")
    assert WEIGHT_FIRST_PAYS.__wrapped__() is False
