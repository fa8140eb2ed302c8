"""Linear layers of a decoding step: other products, the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espnet_moe import linear as products
from espnet_moe.linear import FewRowsLinear, quicken


@pytest.fixture(autouse=True)
def measured_here(monkeypatch):
    """Every machine tests the path of those where it pays."""
    monkeypatch.setattr(products, "weight_first_pays", lambda: True)


def layer(bias=True, inside=600, out=520):
    torch.manual_seed(0)
    return FewRowsLinear(inside, out, bias=bias)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (4, 3), (16, 1), (2, 3, 8), (49,), (1,), (0, 5), ()])
def test_the_same_numbers(bias, shape):
    one = layer(bias)
    x = torch.randn(*shape, 600)
    got = one(x)
    torch.testing.assert_close(got, F.linear(x, one.weight, one.bias), rtol=1e-5, atol=1e-5)
    assert got.is_contiguous()  # experts are added to it where it lies


@torch.inference_mode()
def test_of_a_part_of_a_tensor():
    one, x = layer(), torch.randn(8, 3, 1200)[:, 1, ::2]
    torch.testing.assert_close(one(x), F.linear(x, one.weight, one.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "inside", "other_way"),
    [(8, 600, True), (48, 600, True), (7, 600, False), (49, 600, False), (8, 500, False)],
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


def test_training_and_half_precision_are_its_parents():
    one, plain = layer(), nn.Linear(600, 520)
    plain.load_state_dict(one.state_dict())
    x = torch.randn(16, 600)
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
