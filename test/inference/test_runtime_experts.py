"""Experts that come and go in a loaded model, and merging them into its weights."""

import copy
import shutil

import pytest
import soundfile
import torch

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError
from espnet_moe.experts import expert_files
from espnet_moe.experts.expert_files import WEIGHTS, load_experts
from espnet_moe.experts.expert_set import ExpertError
from espnet_moe.experts.gates import use_gates
from mixtures import write_expert


def test_an_expert_comes_and_goes(make_model, mixture, recordings):
    model = make_model()
    routed, without = model(recordings), model(recordings, language="en")
    model.load_expert("en", mixture.extra)
    with_expert = model(recordings, language="en")
    assert [r.tokens for r in with_expert] != [r.tokens for r in without]
    assert {tuple(r.gates.items()) for r in with_expert} == {(("en", 1.0),)}
    # What the router chooses is not touched by it.
    assert [r.tokens for r in model(recordings)] == [r.tokens for r in routed]
    model.unload_expert("en")
    assert [r.tokens for r in model(recordings, language="en")] == [r.tokens for r in without]
    model.load_expert("english", mixture.extra)
    named = model(recordings, expert="english")
    assert [r.tokens for r in named] == [r.tokens for r in with_expert]
    assert {r.language for r in named} == {"en"}, "the language of its training data"


def test_calls_that_are_under_way_keep_their_expert(make_model, mixture, recordings, tmp_path):
    files = [tmp_path / f"{i}.wav" for i in range(3)]
    for path, x in zip(files, recordings, strict=False):
        soundfile.write(path, x, 16000)
    model = make_model()
    without = [r.tokens for _, r in model.stream(files, language="en")]
    model.load_expert("en", mixture.extra)
    want = [r.tokens for _, r in model.stream(files, language="en")]
    assert want != without
    for wishes in ({"language": "en"}, {"expert": "en"}):
        running = model.stream(files, **wishes)
        model.unload_expert("en")
        assert [r.tokens for _, r in running] == want
        running = model.stream(files, language="en")
        model.load_expert("en", mixture.extra)
        assert [r.tokens for _, r in running] == without


def test_listing(make_model, mixture):
    model = make_model()
    model.load_expert("en", mixture.extra)
    told = {facts.name: facts for facts in model.list_experts()}
    assert list(told) == ["hi", "it", "pa", "en"]
    assert told["en"].rank == 8 and told["en"].languages == ("en",) and not told["en"].routed
    assert told["hi"].routed and told["hi"].folder == mixture.experts["hi"]


def test_what_is_refused(make_model, mixture, make_backbone, tmp_path):
    model = make_model()
    with pytest.raises(ExpertError, match="there is an expert 'hi' already"):
        model.load_expert("hi", mixture.extra)
    with pytest.raises(ExpertError, match="router chooses 'hi'"):
        model.unload_expert("hi")
    with pytest.raises(ExpertError, match="no expert 'xx'; experts: hi it pa"):
        model.unload_expert("xx")
    with pytest.raises(ExpertError, match="holds no whole expert"):
        model.load_expert("xx", tmp_path)
    stranger = make_backbone()
    stranger.hf.model.encoder.conv1.bias.data[0] += 1
    write_expert(stranger, tmp_path / "stranger", "en", 3)
    with pytest.raises(ExpertError, match="experts of another base"):
        model.load_expert("en", tmp_path / "stranger")
    write_expert(make_backbone("padded"), tmp_path / "padded", "en", 3)
    with pytest.raises(ConfigError, match="trained with --context padded"):
        model.load_expert("en", tmp_path / "padded")
    assert [facts.name for facts in model.list_experts()] == ["hi", "it", "pa"]


def test_a_hundred_experts(make_model, mixture, recordings, monkeypatch):
    """Loading reads a description; weights are read once, at the first use, of that one alone."""
    read = []
    weights = expert_files.read_weights

    def counted(folder, manifest):
        read.append(folder)
        return weights(folder, manifest)

    monkeypatch.setattr(expert_files, "read_weights", counted)
    model = make_model()
    for i in range(100):
        model.load_expert(f"expert{i}", mixture.extra)
    assert read == [] and len(model.list_experts()) == 103
    for _ in range(2):
        model(recordings[:2], expert="expert99")
        assert read == [mixture.extra]
    # Those used last stay in memory, not all.
    for i in range(40):
        model(recordings[3], expert=f"expert{i}", language="hi")
    assert len(model._replicas._sets) <= 16


def test_damaged_weights_are_found_at_the_first_use(make_model, mixture, recordings, tmp_path):
    shutil.copytree(mixture.extra, tmp_path / "en")
    (tmp_path / "en" / WEIGHTS).write_bytes(b"cut")
    model = make_model()
    model.load_expert("en", tmp_path / "en")
    with pytest.raises(ExpertError, match="truncated or no safetensors file"):
        model(recordings, language="en")
    assert model(recordings[0], language="it").text is not None


def logits(backbone, experts, name, waves):
    """Teacher-forced logits of the padded batch."""
    lengths = torch.tensor([len(x) for x in waves])
    speech = torch.zeros(len(waves), int(lengths.max()))
    for row, x in zip(speech, waves):
        row[: len(x)] = torch.from_numpy(x)
    tokens = torch.cat(
        [backbone.tokens.prompt(["hi"] * len(waves)), torch.arange(20, 28).expand(len(waves), 8)], 1
    )
    gates = None if experts is None else experts.one_hot([name] * len(waves), speech.device)
    with torch.no_grad(), use_gates(gates):
        return backbone.decode(tokens, backbone.encode_upper(
            backbone.encode_lower(speech, lengths, 0), 0))  # fmt: skip


@pytest.mark.parametrize("base", ["mixture", "owsm_mixture"])
@pytest.mark.parametrize("name", ["it", "en"])
def test_merged_is_the_same_without_experts(make_model, recordings, request, tmp_path, base, name):
    parts = request.getfixturevalue(base)
    model = make_model(parts)
    model.load_expert("en", parts.extra)
    out = model.merge(name, tmp_path / "merged")
    backbone = load_backbone(parts.backbone).eval()
    want = logits(load_backbone(parts.backbone).eval(), None, "", recordings)
    folder = parts.extra if name == "en" else parts.experts[name]
    experts = load_experts(backbone, {name: folder})
    adapted = logits(backbone, experts, name, recordings)
    assert (adapted - want).abs().max() > 0.1, "the expert must matter"
    plain = load_backbone(str(out)).eval()
    torch.testing.assert_close(logits(plain, None, "", recordings), adapted, rtol=0, atol=1e-3)
    # And the base of the model that wrote it is as it was.
    assert model.base.digest() == model.digest != plain.digest()
    from espnet_moe import Speech2Text

    again = Speech2Text(out, options=parts.options, device="cpu")
    got = again(recordings, language="hi")
    assert [r.tokens for r in got] == [
        r.tokens for r in model(recordings, language="hi", expert=name)
    ]


@torch.no_grad()
def test_transformers_reads_a_merged_whisper(make_model, mixture, tmp_path):
    """transformers' own forward on features, against our layers with the expert in force."""
    from transformers import WhisperForConditionalGeneration

    model = make_model()
    out = model.merge("pa", tmp_path / "merged")
    theirs = WhisperForConditionalGeneration.from_pretrained(out).eval()
    backbone = load_backbone(mixture.backbone, "padded").eval()
    experts = load_experts(backbone, {"pa": mixture.experts["pa"]})
    mel = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([backbone.tokens.prompt(["hi", "pa"]), torch.randint(0, 250, (2, 8))], 1)
    with use_gates(experts.one_hot(["pa", "pa"], backbone.device)):
        lower = backbone.encode_features(mel, torch.tensor([3000, 3000]), 0)
        want = backbone.decode(tokens, backbone.encode_upper(lower, 0))
    got = theirs(input_features=mel, decoder_input_ids=tokens).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


def test_merging_what_cannot_be_merged(make_model, tmp_path):
    model = make_model()
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there is there already: name a new folder"):
        model.merge("hi", tmp_path / "there")
    with pytest.raises(ExpertError, match="no expert 'xx'"):
        model.merge("xx", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_merging_rounds_once(make_backbone):
    """In single precision, whatever the expert's size: the update is not lost beside the weight."""
    from espnet_moe.experts.lora import LoRALinear

    torch.manual_seed(0)
    base = torch.nn.Linear(64, 64)
    layer = LoRALinear(copy.deepcopy(base), [8, 4], [16.0, 1.0])
    torch.nn.init.normal_(layer.lora_B, std=1e-4)
    for e, (rank, alpha) in enumerate([(8, 16.0), (4, 1.0)]):
        exact = base.weight.double() + alpha / rank * layer.B(e).double() @ layer.A(e).double()
        merged = layer.merged(e)
        assert (merged.weight - exact).abs().max() < 2e-8 * 8
        assert torch.equal(merged.bias, base.bias) and not merged.weight.requires_grad
    assert torch.equal(layer.base.weight, base.weight)
