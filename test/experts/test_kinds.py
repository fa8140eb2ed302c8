"""Kinds of experts beside LoRA, and modules from outside that bring them."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from espnet_moe import extensions
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import load_experts, save_expert
from espnet_moe.experts.expert_set import ExpertError, ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.experts.kinds import KINDS, ExpertLayer, ExpertOptions, kind_of


@dataclass(frozen=True)
class ShiftOptions(ExpertOptions):
    @classmethod
    def layer(cls, base, each):
        return Shifted(base, len(each))


class Shifted(ExpertLayer):
    """A vector an expert, added to the output."""

    def __init__(self, base, experts):
        super().__init__(base)
        self.shift = nn.Parameter(torch.zeros(experts, base.out_features))

    def forward(self, x):
        gates = self.gate_weights(x)
        return self.base(x) if gates is None else self.base(x) + gates @ self.shift

    def tensors(self, expert):
        return {"shift": self.shift.data[expert]}

    @torch.no_grad()
    def merged(self, expert):
        bias = self.shift[expert] if self.bias is None else self.bias + self.shift[expert]
        return self.plain(self.weight.clone(), bias.clone())


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(KINDS, "shift", ShiftOptions)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    found = Shifted(nn.Linear(4, 3), 2)
    nn.init.normal_(found.shift)
    return found


def test_gates_of_a_layer(layer):
    x = torch.randn(2, 5, 4)
    weights, frames = torch.rand(2, 2), torch.rand(2, 5, 2)
    base = layer.base(x)
    assert torch.equal(layer(x), base)
    for gates, want in (
        (Gates.of(weights), base + (weights @ layer.shift)[:, None]),
        (Gates.of(frames), base + frames @ layer.shift),
        (Gates.one_hot([1, 0], 2, x.device), base + layer.shift[[1, 0]][:, None]),
        (Gates.one_hot([1, 1, 1], 2, x.device), base + layer.shift[1]),  # one for any batch
    ):
        with use_gates(gates):
            torch.testing.assert_close(layer(x), want)
    with use_gates(Gates(weights, off=frozenset([layer]))):
        assert torch.equal(layer(x), base)
    with use_gates(Gates.of(torch.rand(3, 2))), pytest.raises(ValueError, match="3 rows for a"):
        layer(x)


def test_parameters_are_those_of_the_experts(make_backbone):
    backbone = make_backbone()
    experts = ExpertSet(backbone, ShiftOptions(where="encoder"), ["a", "b"])
    trained = {id(p) for p in experts.parameters()}
    assert len(trained) == len(experts.layers) == 4
    assert trained == {id(p) for p in backbone.parameters() if p.requires_grad}


def test_saved_loaded_and_merged(make_backbone, batch_of, tmp_path):
    backbone = make_backbone()
    experts = ExpertSet(backbone, ShiftOptions(first_layer=1), ["a"])
    for p in experts.parameters():
        nn.init.normal_(p)
    save_expert(tmp_path / "a", experts, "a", backbone.digest(), {})
    manifest = json.loads((tmp_path / "a/expert.json").read_text())
    assert manifest["kind"] == "shift" and manifest["options"]["first_layer"] == 1
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["peft_type"] == "SHIFT"
    again = make_backbone()
    loaded = load_experts(again, {"a": tmp_path / "a"})
    speech, lengths = batch_of(0.5, 0.4)

    def frames(model):
        with torch.no_grad():
            return model.encode_upper(model.encode_lower(speech, lengths, 0), 0).hidden

    with use_gates(loaded.one_hot(["a", "a"], again.device)):
        adapted = frames(again)
    assert (adapted - frames(again)).abs().max() > 0.1
    loaded.merge(again, "a")
    torch.testing.assert_close(frames(again), adapted, rtol=1e-4, atol=1e-4)


def test_one_kind_in_a_set(make_backbone):
    options = {"a": LoRAOptions(rank=2), "b": ShiftOptions()}
    with pytest.raises(ExpertError, match="b differ from a in kind"):
        ExpertSet(make_backbone(), options, ["a", "b"])


def test_unknown_kinds(make_backbone, mixture, tmp_path, monkeypatch):
    backbone = make_backbone()
    experts = ExpertSet(backbone, ShiftOptions(), ["a"])
    save_expert(tmp_path / "a", experts, "a", backbone.digest(), {})
    monkeypatch.delitem(KINDS, "shift")
    message = r"kind shift, format 1; this version reads kind lora.*ESPNET_MOE_EXTENSIONS"
    with pytest.raises(ExpertError, match=message):
        load_experts(make_backbone(), {"a": tmp_path / "a"})
    with pytest.raises(ExpertError, match="ShiftOptions are options of no kind"):
        kind_of(ShiftOptions())


def test_modules_that_the_environment_names(tmp_path, monkeypatch):
    (tmp_path / "brings_it.py").write_text(
        "from espnet_moe.experts.kinds import KINDS\nKINDS['brought'] = KINDS['lora']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(extensions.VARIABLE, "brings_it, brings_it")
    monkeypatch.setattr("espnet_moe.experts.kinds.KINDS", found := dict(KINDS))
    extensions.load()
    assert "brought" in found
    monkeypatch.setenv(extensions.VARIABLE, "is_nowhere")
    with pytest.raises(UserError, match="names is_nowhere, which cannot be imported.*PYTHONPATH"):
        extensions.load()
