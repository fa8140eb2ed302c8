"""What trains when."""

import logging

import pytest

from espnet_moe import phases
from espnet_moe.config import ConfigError
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions


class Model:
    def __init__(self, backbone):
        self.experts = ExpertSet(backbone, LoRAOptions(rank=4), ["a", "b"])
        self.named_parameters = backbone.named_parameters


@pytest.fixture
def model(backbone):
    return Model(backbone)


def test_exactly_the_experts_train(model, caplog):
    for _, p in model.named_parameters():
        p.requires_grad_(True)
    phases.begin("expert", model)
    with caplog.at_level(logging.INFO):
        trained = phases.require("expert", model)
    assert {id(p) for p in trained} == {id(p) for p in model.experts.parameters()}
    total = sum(p.numel() for _, p in model.named_parameters())
    own = 12 * 2 * (4 * 32 + 32 * 4)
    assert sum(p.numel() for p in trained) == own
    assert f"{own} of {total} parameters are trainable ({100 * own / total:.3f} %)" in caplog.text


def test_anything_else_trainable_is_an_error(model):
    phases.begin("expert", model)
    strange = dict(model.named_parameters())
    strange["hf.model.encoder.conv1.bias"].requires_grad_(True)
    with pytest.raises(ConfigError, match=r"(?s)1 others.*hf\.model\.encoder\.conv1\.bias"):
        phases.require("expert", model)


def test_a_frozen_expert_is_an_error(model):
    phases.begin("expert", model)
    model.experts.parameters()[3].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"1 of its own are frozen.*lora_B"):
        phases.require("expert", model)


def test_unknown_phase(model):
    with pytest.raises(ConfigError, match="'all' is unknown: choose one of router, expert, joint"):
        phases.begin("all", model)
