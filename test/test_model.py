"""The trained model: loss against transformers' own, statistics, checkpoints."""

import jiwer
import pytest
import torch
from transformers import WhisperFeatureExtractor

from espnet_moe import phases
from espnet_moe.config import ConfigError
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.model import ESPnetMoEModel, precision_for
from espnet_moe.routing.oracle import OracleRouter

CODES = ["hi", "it", "pa"]
TEXTS = ["यह एक घर है", "ciao mondo bello", "ਪਾਣੀ"]


def make_model(backbone, names=("hi", "it", "pa"), std=0.2, **options):
    experts = ExpertSet(backbone, LoRAOptions(rank=4), names)
    torch.manual_seed(1)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=std)
    model = ESPnetMoEModel(backbone, experts, OracleRouter(), **options)
    phases.begin("expert", model)
    return model.eval()


@pytest.fixture
def batch(backbone, batch_of):
    speech, lengths = batch_of(0.7, 0.4, 0.55)
    ids = [backbone.tokens.encode(t) for t in TEXTS]
    text = torch.zeros(3, max(map(len, ids)), dtype=torch.long)
    for row, i in zip(text, ids):
        row[: len(i)] = torch.tensor(i)
    index = [[backbone.tokens.languages.index(c)] for c in CODES]
    return {
        "speech": speech,
        "speech_lengths": lengths,
        "text": text,
        "text_lengths": torch.tensor([len(i) for i in ids]),
        "language": torch.tensor(index),
        "language_lengths": torch.ones(3, dtype=torch.long),
        "utt_id": ["a", "b", "c"],
    }


def test_loss_equals_transformers(make_backbone, batch):
    backbone = make_backbone("padded")
    model = make_model(backbone)
    for p in model.experts.parameters():
        torch.nn.init.zeros_(p)
    loss, stats, weight = model(**batch)
    waves = [x[:n].numpy() for x, n in zip(batch["speech"], batch["speech_lengths"])]
    features = WhisperFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt")
    prompt, end = backbone.tokens.prompt(CODES), backbone.tokens.end_id
    longest = int(batch["text_lengths"].max())
    inputs = torch.full((3, 4 + longest), end)
    labels = torch.full((3, 4 + longest), -100)
    for i, n in enumerate(batch["text_lengths"].tolist()):
        inputs[i, : 4 + n] = torch.cat([prompt[i], batch["text"][i, :n]])
        labels[i, 3 : 4 + n] = torch.cat([batch["text"][i, :n], torch.tensor([end])])
    out = backbone.hf(
        input_features=features.input_features, decoder_input_ids=inputs, labels=labels
    )
    assert loss.item() == pytest.approx(out.loss.item(), rel=2e-4)
    counted = labels != -100
    right = (out.logits.argmax(-1) == labels) & counted
    assert stats["acc"].item() == pytest.approx(100 * (right.sum() / counted.sum()).item(), abs=2)
    assert weight.item() == 3


def test_loss_is_that_of_the_rows_alone(backbone, batch):
    model = make_model(backbone)
    together = model(**batch)[0].item()
    total = count = 0
    for i in range(3):
        n, m = int(batch["speech_lengths"][i]), int(batch["text_lengths"][i])
        row = {
            "speech": batch["speech"][i : i + 1, :n],
            "speech_lengths": batch["speech_lengths"][i : i + 1],
            "text": batch["text"][i : i + 1, :m],
            "text_lengths": batch["text_lengths"][i : i + 1],
            "language": batch["language"][i : i + 1],
        }
        total += model(**row)[0].item() * (m + 1)
        count += m + 1
    assert together == pytest.approx(total / count, rel=1e-5)


def test_padding_of_text_and_speech_is_ignored(backbone, batch):
    model = make_model(backbone)
    want = model(**batch)[0]
    batch["speech"] = torch.nn.functional.pad(batch["speech"], (0, 5000), value=0.7)
    batch["text"] = torch.nn.functional.pad(batch["text"], (0, 9), value=77)
    torch.testing.assert_close(model(**batch)[0], want, rtol=1e-5, atol=1e-5)


def test_label_smoothing_is_for_training_only(backbone, batch):
    model = make_model(backbone, label_smoothing=0.3)
    evaluated = model(**batch)[0].item()
    model.label_smoothing = 0.0
    assert model(**batch)[0].item() == evaluated
    model.train()
    plain = model(**batch)[0].item()
    model.label_smoothing = 0.3
    assert model(**batch)[0].item() != pytest.approx(plain, abs=1e-3)


def test_wer_in_validation_equals_a_decode(backbone, batch):
    model = make_model(backbone)
    assert not {"wer_errors", "wer_words"} & model(**batch)[1].keys()
    model.measure_wer = True
    stats = model(**batch)[1]
    gates = model.experts.one_hot(CODES, backbone.device)
    encoded = model.encode(batch["speech"], batch["speech_lengths"], gates)
    longest = 2 * int(batch["text_lengths"].max()) + 10
    prompts = backbone.tokens.prompt(CODES)
    found = search(backbone, encoded, prompts, SearchOptions(max_tokens=longest), gates)
    said = [backbone.tokens.decode(h.tokens) for h in found]
    rate = 100 * stats["wer_errors"].item() / stats["wer_words"].item()
    assert rate == pytest.approx(100 * jiwer.wer(TEXTS, said), abs=1e-3)
    assert model.train()(**batch)[1].keys() == {"loss", "acc"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_with_and_without_checkpointing(make_backbone, batch, checkpointing):
    model = make_model(make_backbone(), gradient_checkpointing=checkpointing).train()
    loss = model(**batch)[0]
    loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.abs().sum() > 0) == p.requires_grad, name
    if checkpointing:
        other = make_model(make_backbone()).train()
        other(**batch)[0].backward()
        for a, b in zip(model.experts.parameters(), other.experts.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_bf16_runs_near_fp32(make_backbone, batch):
    want = make_model(make_backbone(), std=0.05)(**batch)[0].item()
    model = make_model(make_backbone(), std=0.05, precision="bf16").train()
    loss = model(**batch)[0]
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(want, rel=0.05)
    loss.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.experts.parameters())
    model.eval().measure_wer = True
    assert torch.isfinite(model(**batch)[1]["wer_errors"])


def test_unknown_precision(backbone):
    with pytest.raises(ConfigError, match="'int4' is unknown: choose one of fp32, bf16, fp16"):
        make_model(backbone, precision="int4")


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("instructions", "fastest"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"architecture": "arm64", "neon": True, "bf16": True}, "bf16"),
        ({"architecture": "unknown"}, "fp32"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_has_it(monkeypatch, caplog, instructions, fastest):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert precision_for("auto", CPU) == fastest
    assert precision_for("fp32", CPU) == "fp32"
    caplog.clear()
    assert precision_for("bf16", CPU) == "bf16"  # what is asked for is done, but not in silence
    assert ("choose fp32, or auto" in caplog.text) == (fastest == "fp32")


@pytest.mark.parametrize("native", [False, True])
def test_auto_on_a_gpu_asks_the_gpu(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not native})
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    assert precision_for("auto", GPU) == ("bf16" if native else "fp32")
    assert precision_for("fp16", GPU) == "fp16"


def test_split_layer_keeps_experts_out_of_the_lower_layers(backbone, batch):
    model = make_model(backbone, split_layer=2)
    loss = model.train()(**batch)[0]
    loss.backward()
    dead = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert dead == {
        n for n, p in model.named_parameters() if "encoder.layers" in n and p.requires_grad
    }


def test_checkpoint_holds_the_experts_and_nothing_else(make_backbone, tmp_path):
    model = make_model(make_backbone())
    state = model.state_dict()
    assert state.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    torch.save(state, tmp_path / "small.pth")
    own = sum(p.numel() for p in model.experts.parameters())
    assert (tmp_path / "small.pth").stat().st_size < 4 * own + 20_000
    other = make_model(make_backbone())
    for p in other.experts.parameters():
        torch.nn.init.zeros_(p)
    other.load_state_dict(state)
    for a, b in zip(model.experts.parameters(), other.experts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_that_does_not_fit(make_backbone):
    model = make_model(make_backbone())
    state = model.state_dict()
    first = next(iter(state))
    state["elsewhere"] = state.pop(first)
    with pytest.raises(ConfigError) as error:
        model.load_state_dict(state)
    assert first in str(error.value) and "elsewhere" in str(error.value)


def test_too_long_a_transcript(backbone, batch):
    batch["text"] = torch.ones(3, 93, dtype=torch.long)
    batch["text_lengths"] = torch.tensor([93, 4, 5])
    with pytest.raises(ConfigError, match="93 tokens, this backbone takes 92"):
        make_model(backbone)(**batch)


@pytest.mark.parametrize("tokens", [91, 92])
def test_the_longest_transcript(backbone, batch, tokens):
    batch["text"] = torch.ones(3, tokens, dtype=torch.long)
    batch["text_lengths"] = torch.tensor([tokens, 4, 5])
    assert torch.isfinite(make_model(backbone)(**batch)[0])


def test_empty_transcript(backbone, batch):
    batch["text_lengths"] = torch.tensor([0, 3, 2])
    assert torch.isfinite(make_model(backbone)(**batch)[0])
