"""Loading from folders and openai-whisper checkpoints, and what is refused."""

import os
import pickle
import shutil

import pytest
import torch

from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.backbones.whisper_loading import load_tokens, load_whisper, openai_tokenizer
from espnet_moe.errors import UserError

whisper = pytest.importorskip("whisper")


@pytest.fixture(scope="module")
def openai_model():
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(0)
    dims = ModelDimensions(80, 1500, 32, 4, 2, 51865, 64, 32, 4, 3)
    model = Whisper(dims)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape)
            p.copy_(1 + 0.2 * noise if "ln" in name and "weight" in name else 0.2 * noise)
    return model.eval()


@pytest.fixture(scope="module")
def openai_file(openai_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("openai") / "tiny.pt"
    dims = openai_model.dims.__dict__
    torch.save({"dims": dims, "model_state_dict": openai_model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def loaded(openai_file):
    return WhisperBackbone.from_pretrained(str(openai_file), "padded")


@torch.no_grad()
def test_logits_equal_openai_whisper(openai_model, loaded, batch_of):
    tokenizer = whisper.tokenizer.get_tokenizer(True, language="hi", task="transcribe")
    prompt = loaded.tokens.prompt(["hi", "it"])
    assert prompt[0].tolist() == list(tokenizer.sot_sequence_including_notimestamps)
    tokens = torch.cat([prompt, torch.randint(0, 50257, (2, 12))], 1)
    mel = torch.randn(2, 80, 3000)
    want = openai_model(mel, tokens)
    lower = loaded.encode_features(mel, torch.tensor([3000, 3000]), 1)
    got = loaded.decode(tokens, loaded.encode_upper(lower, 1))
    assert want.std() > 0.5
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@torch.no_grad()
def test_from_waveform_to_logits_equals_openai_whisper(openai_model, loaded, batch_of):
    speech, lengths = batch_of(1.3)
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(speech[0]))[None]
    tokens = loaded.tokens.prompt(["it"])
    want = openai_model(mel, tokens)
    got = loaded.decode(tokens, loaded.encode_upper(loaded.encode_lower(speech, lengths, 0), 0))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "नमस्ते दुनिया, यह एक परीक्षा है।",
        "perché l'acqua è così fredda? 123 €",
        "The quick brown fox's 3 jumps — didn't stop.",
        "ਇਹ ਇੱਕ ਘਰ ਹੈ నమస్కారం 日本語 🙂",
    ],
)
def test_tokenizer_equals_openai_whisper(loaded, text):
    reference = whisper.tokenizer.get_tokenizer(multilingual=True)
    ids = reference.encode(" " + text)
    assert loaded.tokens.encode(text) == ids
    assert loaded.tokens.decode(ids) == reference.decode(ids).strip()


def test_special_ids_equal_openai_whisper(loaded):
    reference = whisper.tokenizer.get_tokenizer(multilingual=True)
    ids = loaded.tokens.tokenizer.get_added_vocab()
    for name, number in reference.special_tokens.items():
        assert ids[name] == number, name
    assert loaded.tokens.end_id == reference.eot
    assert set(loaded.tokens.languages) == set(reference.all_language_codes)
    assert loaded.config.vocab_size == 51865


def test_hundred_languages_of_large_v3():
    tokens = openai_tokenizer(51866)
    reference = whisper.tokenizer.get_tokenizer(multilingual=True, num_languages=100)
    assert tokens.convert_tokens_to_ids("<|yue|>") == reference.special_tokens["<|yue|>"]
    assert tokens.convert_tokens_to_ids("<|notimestamps|>") == reference.no_timestamps


def test_english_only_checkpoint_is_refused(tmp_path, openai_model):
    # The .en models have another vocabulary; a wrong one would give wrong text without an error.
    dims = {**openai_model.dims.__dict__, "n_vocab": 51864}
    torch.save({"dims": dims, "model_state_dict": {}}, tmp_path / "en.pt")
    with pytest.raises(UserError, match="English"):
        load_whisper(str(tmp_path / "en.pt"))


def test_checkpoint_without_a_weight(tmp_path, openai_model):
    weights = dict(openai_model.state_dict())
    del weights["decoder.ln.bias"]
    saved = {"dims": openai_model.dims.__dict__, "model_state_dict": weights}
    torch.save(saved, tmp_path / "cut.pt")
    with pytest.raises(UserError, match="decoder"):
        load_whisper(str(tmp_path / "cut.pt"))


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, how):
    trace, path = tmp_path / "was_run", tmp_path / "evil.pt"
    content = {"dims": Command(trace), "model_state_dict": {}}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for load in (load_whisper, load_tokens):
        with pytest.raises(UserError, match="evil.pt is not an openai-whisper checkpoint"):
            load(str(path))
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"RIFF....WAVE", b"PK\x03\x04 cut"])
def test_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="x.pt is not an openai-whisper checkpoint"):
        load_whisper(str(tmp_path / "x.pt"))


def test_missing_and_empty_folders(tmp_path):
    for load in (load_whisper, load_tokens):
        with pytest.raises(UserError, match="does not exist: give a transformers folder"):
            load(str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match="does not exist"):
            load("whisper-tiny")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="without config.json"):
            load(str(tmp_path / "empty"))


@pytest.fixture
def broken(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_folder_with_truncated_weights(broken):
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="could not be loaded"):
        load_whisper(str(broken))


def test_folder_without_weights(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        load_whisper(str(broken))


def test_folder_without_tokenizer(broken):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (broken / name).unlink(missing_ok=True)
    for load in (load_whisper, load_tokens):
        with pytest.raises(UserError, match="copy"):
            load(str(broken))


def test_folder_without_some_weights(broken):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="fc1.weight"):
        load_whisper(str(broken))


def test_folder_of_another_model(broken):
    text = (
        (broken / "config.json")
        .read_text()
        .replace('"model_type": "whisper"', '"model_type": "bert"')
    )
    (broken / "config.json").write_text(text)
    with pytest.raises(UserError, match="bert"):
        load_whisper(str(broken))


def test_folder_with_an_adapter_beside_the_model(broken):
    """Transformers would go where the adapter's configuration says."""
    (broken / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')
    with pytest.raises(UserError, match="an adapter beside the model"):
        load_whisper(str(broken))
