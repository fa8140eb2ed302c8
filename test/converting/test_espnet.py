"""LoRA of ESPnet's own trainings as experts, against ESPnet's model in the state it decodes in."""

import copy

import pytest
import torch
import yaml

from espnet_moe.converting.adapters import write_expert
from espnet_moe.converting.espnet_files import read_espnet
from espnet_moe.experts.expert_files import load_experts
from espnet_moe.experts.expert_set import ExpertError
from espnet_moe.experts.gates import use_gates

TARGETS = ["linear_q", "linear_v", "w_1"]


@pytest.fixture
def trained(make_owsm, tmp_path):
    """ESPnet's model with its own LoRA layers, trained (by chance), and its config."""
    from espnet2.layers.create_adapter_fn import create_lora_adapter

    s2t = copy.deepcopy(make_owsm().s2t)
    create_lora_adapter(s2t, rank=4, alpha=12, target_modules=TARGETS)
    s2t.train()  # unmerges what is nothing yet
    torch.manual_seed(5)
    for name, p in s2t.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.1)
    conf = {"rank": 4, "alpha": 12, "target_modules": TARGETS}
    config = {"use_adapter": True, "adapter": "lora", "adapter_conf": conf}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return s2t


def logits(backbone, gates=None, seed=7):
    """Teacher-forced logits of two random utterances, the second padded."""
    draw = torch.Generator().manual_seed(seed)
    speech, lengths = 0.1 * torch.randn(2, 24000, generator=draw), torch.tensor([24000, 15000])
    tokens = torch.cat([backbone.tokens.prompt(["hi", "it"]), torch.arange(20, 28).expand(2, 8)], 1)
    with torch.no_grad(), use_gates(gates):
        lower = backbone.encode_lower(speech, lengths, 0)
        return backbone.decode(tokens, backbone.encode_upper(lower, 0))


def expert_logits(make_owsm, checkpoint, tmp_path):
    backbone = make_owsm()
    write_expert(read_espnet(checkpoint, backbone), backbone, tmp_path / "hi", "hi", {})
    experts = load_experts(backbone, {"hi": tmp_path / "hi"})
    return logits(backbone, experts.one_hot(["hi"] * 2, backbone.device))


@pytest.mark.parametrize("kind", ["merged", "unmerged", "adapter_only", "checkpoint"])
def test_the_update_counts_once(trained, make_owsm, tmp_path, kind):
    """Saved after a validation (merged), within an epoch (not), the adapter alone, or in full."""
    from espnet_moe.backbones.owsm import OwsmBackbone

    state = trained.state_dict()  # in training mode: the weight is the base's
    trained.eval()
    want = logits(OwsmBackbone(trained, make_owsm().tokens).eval())
    plain = logits(make_owsm())
    assert (want - plain).abs().max() > 0.1
    state = {k: v.clone() for k, v in state.items()}
    if kind == "unmerged":
        trained.train()
        state = trained.state_dict()
    elif kind == "adapter_only":
        state = {k: v for k, v in state.items() if "lora_" in k}
    saved = {"model": state, "optimizers": []} if kind == "checkpoint" else state
    torch.save(saved, tmp_path / "model.pth")
    got = expert_logits(make_owsm, tmp_path / "model.pth", tmp_path)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_weights_that_are_neither(trained, make_owsm, tmp_path):
    """Issue 6092: marked merged by a load, training on takes away what was never added."""
    trained.eval()
    trained.train()
    corrupt = trained.state_dict()
    name = next(k for k in corrupt if k.endswith("linear_q.lora_A")).removesuffix(".lora_A")
    update = 3.0 * corrupt[f"{name}.lora_B"] @ corrupt[f"{name}.lora_A"]
    corrupt = {**corrupt, f"{name}.weight": corrupt[f"{name}.weight"] - update}
    torch.save(corrupt, tmp_path / "model.pth")
    with pytest.raises(ExpertError, match=f"1 weights are neither .*{name}.weight"):
        read_espnet(tmp_path / "model.pth", make_owsm())


def test_a_base_that_was_trained_too(trained, make_owsm, tmp_path):
    """ESPnet freezes nothing by itself."""
    state = trained.state_dict()
    state["encoder.after_norm.weight"] += 0.01
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ExpertError, match=r"after_norm.weight.*without freeze_param"):
        read_espnet(tmp_path / "model.pth", make_owsm())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_adapter": False}, "without an adapter"),
        ({"adapter": "houlsby"}, "the adapter is a houlsby; only lora"),
        ({"adapter_conf": {"rank": 8}}, "has no update of the rank 8"),
        ({"adapter_conf": {"rank": 4, "bias_type": "all"}}, r"bias_type: all"),
    ],
)
def test_other_trainings(trained, make_owsm, tmp_path, changes, message):
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
    with pytest.raises(ExpertError, match=message):
        read_espnet(tmp_path / "model.pth", make_owsm())


def test_no_config_and_no_lora(trained, make_owsm, tmp_path):
    plain = {k: v for k, v in trained.state_dict().items() if "lora_" not in k}
    torch.save(plain, tmp_path / "model.pth")
    with pytest.raises(ExpertError, match="holds no lora_A and lora_B"):
        read_espnet(tmp_path / "model.pth", make_owsm())
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ExpertError, match="rank and alpha, cannot be read"):
        read_espnet(tmp_path / "model.pth", make_owsm())


def test_espnets_whisper_has_openais_names(make_backbone, tmp_path):
    """encoder.encoders.blocks.0.attn.query.lora_A, as ESPnetASRModel has it."""
    backbone = make_backbone()
    config = {"use_adapter": True, "adapter_conf": {"rank": 2, "target_modules": ["query"]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    draw, state = torch.Generator().manual_seed(3), {}
    own = backbone.network.state_dict()
    for part in ("encoder", "decoder"):
        for layer in range(2):
            theirs = f"{part}.{part}s.blocks.{layer}.attn.query"
            state[f"{theirs}.lora_A"] = torch.randn(2, 32, generator=draw)
            state[f"{theirs}.lora_B"] = torch.randn(32, 2, generator=draw)
            ours = own[f"model.{part}.layers.{layer}.self_attn.q_proj.weight"]
            update = 4.0 * state[f"{theirs}.lora_B"] @ state[f"{theirs}.lora_A"]
            state[f"{theirs}.weight"] = ours + update if layer else ours.clone()
    torch.save(state, tmp_path / "model.pth")
    updates = read_espnet(tmp_path / "model.pth", backbone)
    assert sorted(updates) == sorted(
        f"model.{part}.layers.{layer}.self_attn.q_proj"
        for part in ("encoder", "decoder")
        for layer in range(2)
    )
    first = updates["model.encoder.layers.0.self_attn.q_proj"]
    assert first.scale == 4.0
    assert torch.equal(first.down, state["encoder.encoders.blocks.0.attn.query.lora_A"])
    with pytest.raises(ExpertError, match="1 weights are neither"):
        key = "decoder.decoders.blocks.1.attn.query.weight"
        torch.save({**state, key: state[key] + 1}, tmp_path / "model.pth")
        read_espnet(tmp_path / "model.pth", backbone)
