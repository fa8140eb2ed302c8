"""Adapters of PEFT as experts and back, against PEFT and transformers on random inputs."""

import json
import os

import pytest
import torch

from espnet_moe.converting.adapters import write_expert
from espnet_moe.converting.peft_files import read_peft
from espnet_moe.experts.expert_files import load_experts, read_manifest
from espnet_moe.experts.expert_set import ExpertError, ExpertSet, LoRAOptions
from espnet_moe.experts.gates import use_gates

peft = pytest.importorskip("peft")
QV = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def make_adapter(model, folder, **config):
    """Wrap a transformers model with PEFT, give the adapter random weights, save it."""
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"lora_alpha": 16, **config}))
    for name, p in wrapped.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.15)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


@pytest.fixture(scope="module")
def inputs():
    """Random features of two recordings, the second padded, and random text behind prompts."""
    draw = torch.Generator().manual_seed(1)
    mel = torch.randn(2, 80, 3000, generator=draw)
    mel[1, :, 1700:] = 0
    return mel, torch.randint(0, 250, (2, 8), generator=draw)


@torch.no_grad()
def theirs(model, inputs, backbone):
    mel, text = inputs
    tokens = torch.cat([backbone.tokens.prompt(["hi", "it"]), text], 1)
    # Around a task's type PEFT puts forwards of its own, which are for text.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model(input_features=mel, decoder_input_ids=tokens).logits


@torch.no_grad()
def ours(backbone, experts, name, inputs):
    mel, text = inputs
    tokens = torch.cat([backbone.tokens.prompt(["hi", "it"]), text], 1)
    gates = None if experts is None else experts.one_hot([name] * 2, mel.device)
    with use_gates(gates):
        lower = backbone.encode_features(mel, torch.tensor([3000, 3000]), 0)
        return backbone.decode(tokens, backbone.encode_upper(lower, 0))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize(("targets", "said"), [(QV, tuple(QV)), (ALL, ("all-linear",))])
def test_peft_to_ours_to_merged(make_backbone, tiny_folder, inputs, tmp_path, rank, targets, said):
    backbone = make_backbone("padded")
    plain = theirs(backbone.hf, inputs, backbone)
    adapted = make_adapter(make_backbone().hf, tmp_path / "peft", r=rank, target_modules=targets)
    want = theirs(adapted, inputs, backbone)
    assert (want - plain).abs().max() > 0.1
    digest = backbone.digest()
    write_expert(read_peft(tmp_path / "peft"), backbone, tmp_path / "hi", "hi", {})
    assert backbone.digest() == digest
    manifest = read_manifest(tmp_path / "hi")
    assert (manifest["options"]["rank"], manifest["options"]["alpha"]) == (rank, 16)
    assert tuple(manifest["options"]["targets"]) == said, "as experts that were trained here"
    experts = load_experts(backbone, {"hi": tmp_path / "hi"})
    close(ours(backbone, experts, "hi", inputs), want)
    # Merged into a transformers model, which knows no adapter.
    from transformers import WhisperForConditionalGeneration

    from espnet_moe import Speech2Text

    model = Speech2Text(tiny_folder, {"hi": tmp_path / "hi"}, context="padded", device="cpu")
    merged = WhisperForConditionalGeneration.from_pretrained(model.merge("hi", tmp_path / "out"))
    close(theirs(merged.eval(), inputs, backbone), want)


@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("all-linear",)])
@pytest.mark.parametrize("first_layer", [0, 1])
def test_ours_to_peft_to_ours(make_backbone, inputs, tmp_path, rank, targets, first_layer):
    from espnet_moe.experts.expert_files import save_expert

    backbone = make_backbone("padded")
    options = LoRAOptions(targets, rank=rank, alpha=24.0, first_layer=first_layer)
    experts = ExpertSet(backbone, options, ["hi"])
    torch.manual_seed(3)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.15)
    save_expert(tmp_path / "hi", experts, "hi", backbone.digest(), {"backbone": "tiny"})
    want = ours(backbone, experts, "hi", inputs)
    wrapped = peft.PeftModel.from_pretrained(make_backbone().hf, tmp_path / "hi").eval()
    close(theirs(wrapped, inputs, backbone), want)
    wrapped.save_pretrained(tmp_path / "peft")
    again = make_backbone("padded")
    write_expert(read_peft(tmp_path / "peft"), again, tmp_path / "again", "hi", {})
    loaded = load_experts(again, {"hi": tmp_path / "again"})
    assert loaded.options["hi"] == options, "they can be mixed with their like"
    for key, value in experts.state("hi").items():
        assert torch.equal(loaded.state("hi")[key], value)
    close(ours(again, loaded, "hi", inputs), want)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": QV, "use_rslora": True},
        {"target_modules": ALL, "rank_pattern": {"fc1": 3, r"layers.1.self_attn.\w+": 12}},
        {"target_modules": QV, "alpha_pattern": {"decoder.layers.0.self_attn.q_proj": 40}},
        {"target_modules": QV, "rank_pattern": {"v_proj": 2}, "use_rslora": True},
        {"target_modules": r".*decoder.*\.(q_proj|fc2)"},
        {"target_modules": "all-linear"},
        {"target_modules": ["fc1"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": QV, "exclude_modules": ["model.encoder.layers.0.self_attn.q_proj"]},
        {"target_modules": QV, "task_type": "SEQ_2_SEQ_LM", "lora_dropout": 0.1},
    ],
)
def test_patterns_and_scales(make_backbone, inputs, tmp_path, config):
    backbone = make_backbone("padded")
    adapted = make_adapter(make_backbone().hf, tmp_path / "peft", **{"r": 6, **config})
    want = theirs(adapted, inputs, backbone)
    assert (want - theirs(backbone.hf, inputs, backbone)).abs().max() > 0.1
    write_expert(read_peft(tmp_path / "peft"), backbone, tmp_path / "hi", "hi", {})
    close(ours(backbone, load_experts(backbone, {"hi": tmp_path / "hi"}), "hi", inputs), want)
    # What was made of it is an adapter of PEFT again.
    wrapped = peft.PeftModel.from_pretrained(make_backbone().hf, tmp_path / "hi").eval()
    close(theirs(wrapped, inputs, backbone), want)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "it is a DoRA"),
        ({"bias": "lora_only"}, r"trained biases \(bias: lora_only\)"),
        ({"modules_to_save": ["proj_out"]}, "it uses modules_to_save"),
        ({"lora_bias": True}, "it uses lora_bias"),
        ({"init_lora_weights": "pissa"}, "began as pissa, which changes the base"),
        ({"init_lora_weights": "olora"}, "began as olora"),
    ],
)
def test_other_than_plain_lora(make_backbone, tmp_path, config, message):
    make_adapter(make_backbone().hf, tmp_path / "peft", r=4, target_modules=QV, **config)
    with pytest.raises(ExpertError, match=message):
        read_peft(tmp_path / "peft")


def test_other_kinds_of_adapters(make_backbone, tmp_path):
    ia3 = peft.IA3Config(target_modules=QV, feedforward_modules=[])
    peft.get_peft_model(make_backbone().hf, ia3).save_pretrained(tmp_path / "peft")
    with pytest.raises(ExpertError, match="of the kind IA3; only LORA"):
        read_peft(tmp_path / "peft")


def test_keys_of_versions_to_come(make_backbone, tmp_path):
    """What is not known here is harmless only where it is not used."""
    make_adapter(make_backbone().hf, tmp_path / "peft", r=4, target_modules=QV)
    path = tmp_path / "peft" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_new_thing": False}))
    assert read_peft(tmp_path / "peft")
    path.write_text(json.dumps({**config, "use_new_thing": True}))
    with pytest.raises(ExpertError, match="it uses use_new_thing"):
        read_peft(tmp_path / "peft")


def test_adapters_that_do_not_fit(make_backbone, tmp_path):
    backbone = make_backbone()
    hf = make_backbone().hf
    make_adapter(hf, tmp_path / "peft", r=4, target_modules=["proj_out", "conv1"])
    with pytest.raises(ExpertError, match="conv1 is no linear layer of its encoder or decoder"):
        write_expert(read_peft(tmp_path / "peft"), backbone, tmp_path / "hi", "hi", {})
    make_adapter(make_backbone().hf, tmp_path / "two", r=4, target_modules=["fc1"])
    updates = read_peft(tmp_path / "two")
    wrong = {name.replace("fc1", "fc2"): update for name, update in updates.items()}
    with pytest.raises(ExpertError, match="fc2 is 32 × 64, not 64 × 32.*and 1 more"):
        write_expert(wrong, backbone, tmp_path / "hi", "hi", {})
    assert not (tmp_path / "hi").exists()
    config = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    (tmp_path / "two" / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(ExpertError, match="has the rank 4, but adapter_config.json says 5"):
        read_peft(tmp_path / "two")


@pytest.mark.parametrize(
    "changes",
    [{"r": 0}, {"r": "4"}, {"r": None}, {"lora_alpha": None}, {"rank_pattern": {"(": 4}},
     {"alpha_pattern": 3}],
)  # fmt: skip
def test_damaged_configurations(make_backbone, tmp_path, changes):
    make_adapter(make_backbone().hf, tmp_path / "peft", r=4, target_modules=QV)
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ExpertError, match=r"adapter_config.json: r, lora_alpha, .* cannot be read"):
        read_peft(tmp_path / "peft")
    path.write_text("[]")
    with pytest.raises(ExpertError, match=r"adapter_config.json cannot be read"):
        read_peft(tmp_path / "peft")


class Planted:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickled_adapter_is_read_and_its_code_is_not_run(make_backbone, tmp_path):
    make_adapter(make_backbone().hf, tmp_path / "peft", r=4, target_modules=QV)
    safe = tmp_path / "peft" / "adapter_model.safetensors"
    from safetensors.torch import load_file

    tensors, want = load_file(safe), read_peft(tmp_path / "peft")
    safe.unlink()
    with pytest.raises(ExpertError, match="holds no weights"):
        read_peft(tmp_path / "peft")
    torch.save(tensors, tmp_path / "peft" / "adapter_model.bin")
    got = read_peft(tmp_path / "peft")
    assert all(torch.equal(got[name].up, want[name].up) for name in want)
    torch.save({"x": Planted(tmp_path / "run")}, tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(ExpertError, match="is not run"):
        read_peft(tmp_path / "peft")
    assert not (tmp_path / "run").exists()
