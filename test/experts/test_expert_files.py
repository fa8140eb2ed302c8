"""Experts on disk: round trips, PEFT, and everything that is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from espnet_moe.experts.expert_files import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    load_experts,
    read_manifest,
    read_weights,
    save_expert,
)
from espnet_moe.experts.expert_set import ExpertError, ExpertSet, LoRAOptions
from espnet_moe.experts.gates import use_gates
from espnet_moe.experts.lora import LoRALinear
from espnet_moe.files import sha256

OPTIONS = LoRAOptions(("q_proj", "v_proj", "fc1"), rank=4, alpha=10.0)


@pytest.fixture
def saved(make_backbone, tmp_path):
    """Two experts, saved; the set that they came from."""
    backbone = make_backbone()
    options = {"hi": OPTIONS, "it": LoRAOptions(OPTIONS.targets, rank=6, alpha=3.0)}
    experts = ExpertSet(backbone, options, ["hi", "it"])
    torch.manual_seed(3)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for name in ("hi", "it"):
        facts = {"backbone": "tiny", "languages": [name], "metrics": {"wer": 12.5}}
        save_expert(tmp_path / name, experts, name, backbone.digest(), facts)
    return tmp_path, experts


def test_round_trip(saved, make_backbone):
    folder, experts = saved
    backbone = make_backbone()
    # Another order and other names than they were saved under.
    again = load_experts(backbone, {"italian": folder / "it", "hindi": folder / "hi"})
    assert again.names == ("italian", "hindi")
    assert again.options["hindi"] == OPTIONS
    for new, old in (("italian", "it"), ("hindi", "hi")):
        for key, value in experts.state(old).items():
            assert torch.equal(again.state(new)[key], value)


def test_manifest_tells_where_an_expert_comes_from(saved):
    folder, _ = saved
    manifest = read_manifest(folder / "hi")
    assert manifest["languages"] == ["hi"] and manifest["metrics"] == {"wer": 12.5}
    assert manifest["sha256"][WEIGHTS] == sha256(folder / "hi" / WEIGHTS)
    assert sorted(p.name for p in (folder / "hi").iterdir()) == [CONFIG, WEIGHTS, MANIFEST]


@torch.no_grad()
def test_peft_reads_the_folder(saved, make_backbone):
    peft = pytest.importorskip("peft")
    folder, _ = saved
    ours, theirs = make_backbone("padded"), make_backbone("padded").hf
    experts = load_experts(ours, {"it": folder / "it", "hi": folder / "hi"})
    mel = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([ours.tokens.prompt(["hi", "it"]), torch.randint(0, 250, (2, 8))], 1)
    plain = theirs(input_features=mel, decoder_input_ids=tokens).logits
    model = peft.PeftModel.from_pretrained(theirs, folder / "hi", adapter_name="hi").eval()
    model.load_adapter(folder / "it", adapter_name="it")
    for name in ("hi", "it"):
        model.set_adapter(name)
        want = model(input_features=mel, decoder_input_ids=tokens).logits
        with use_gates(experts.one_hot([name] * 2, ours.device)):
            lower = ours.encode_features(mel, torch.tensor([3000, 3000]), 0)
            got = ours.decode(tokens, ours.encode_upper(lower, 0))
        assert (want - plain).abs().max() > 0.1, "PEFT must have found the weights"
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def refused(make_backbone, folders, match):
    backbone = make_backbone()
    with pytest.raises(ExpertError, match=match):
        load_experts(backbone, folders)
    assert not any(isinstance(m, LoRALinear) for m in backbone.modules()), "nothing is changed"


def test_expert_of_another_base(saved, make_backbone):
    folder, _ = saved
    backbone = make_backbone()
    with torch.no_grad():
        backbone.hf.model.encoder.conv1.bias[0] += 1
    with pytest.raises(ExpertError, match=r"(?s)'hi'.*trained on tiny.*give the backbone"):
        load_experts(backbone, {"hi": folder / "hi"})
    assert not any(isinstance(m, LoRALinear) for m in backbone.modules())


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(saved, make_backbone, keep):
    folder, _ = saved
    path = folder / "hi" / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    refused(make_backbone, {"hi": folder / "hi"}, "truncated or no safetensors file")


def test_changed_weights(saved, make_backbone):
    folder, _ = saved
    path = folder / "it" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(bytes(data))
    refused(make_backbone, {"hi": folder / "hi", "it": folder / "it"}, "SHA-256 differs")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_missing_file(saved, make_backbone, name):
    folder, _ = saved
    (folder / "hi" / name).unlink()
    refused(make_backbone, {"hi": folder / "hi"}, f"{name} missing")


def test_no_folder(make_backbone, tmp_path):
    refused(make_backbone, {"hi": tmp_path / "nowhere"}, "nowhere holds no whole expert")


def change_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.update(changes)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_damaged_and_foreign_manifests(saved, make_backbone):
    folder, _ = saved
    change_manifest(folder / "hi", format=99)
    refused(make_backbone, {"hi": folder / "hi"}, "format 99.*reads kind lora, format 1")
    change_manifest(folder / "hi", format=1, options={"rank": 4, "colour": "red"})
    refused(make_backbone, {"hi": folder / "hi"}, "colour")
    (folder / "hi" / MANIFEST).write_text('{"format": 1, "kind": "lora"}')
    refused(make_backbone, {"hi": folder / "hi"}, "base_digest")
    (folder / "hi" / MANIFEST).write_text("{cut")
    refused(make_backbone, {"hi": folder / "hi"}, "is not JSON")
    (folder / "hi" / MANIFEST).write_text("[]")
    refused(make_backbone, {"hi": folder / "hi"}, "expert.json")


def test_missing_and_unexpected_tensors(saved, make_backbone):
    folder, _ = saved
    path = folder / "hi" / WEIGHTS
    tensors = load_file(path)
    first = sorted(tensors)[0]
    tensors["base_model.model.nowhere.lora_A.weight"] = tensors.pop(first)
    save_file(tensors, path)
    hashes = {WEIGHTS: sha256(path), CONFIG: sha256(folder / "hi" / CONFIG)}
    change_manifest(folder / "hi", sha256=hashes)
    refused(make_backbone, {"hi": folder / "hi"}, "1 tensors are missing.*1 tensors have no place")


def test_weights_are_read_without_a_backbone(saved):
    folder, experts = saved
    tensors = read_weights(folder / "hi", read_manifest(folder / "hi"))
    assert tensors.keys() == experts.state("hi").keys()


def test_overwritten_while_the_disk_is_full(saved, monkeypatch):
    folder, experts = saved
    import espnet_moe.experts.expert_files as module

    before = {p.name: p.read_bytes() for p in (folder / "hi").iterdir()}

    def fill(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fill)
    with pytest.raises(ValueError, match="earlier expert in .* is kept whole"):
        save_expert(folder / "hi", experts, "hi", "other", {})
    assert {p.name: p.read_bytes() for p in (folder / "hi").iterdir()} == before
