"""Load Whisper from a hub name, a transformers folder, or an OpenAI ``.pt`` checkpoint."""

import base64
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from espnet_moe.backbones.whisper_tokens import WhisperTokens, special_tokens
from espnet_moe.errors import UserError

MULTILINGUAL_VOCABULARY = 51865  # 99 languages; large-v3 and turbo have one more
_RENAMES = (
    (r"^(encoder|decoder)\.blocks\.", r"model.\1.layers."),
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.out\.", ".out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.ln_post\.", ".layer_norm."),
    (r"^model\.decoder\.ln\.", "model.decoder.layer_norm."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.token_embedding\.", ".embed_tokens."),
)


def load_whisper(path: str) -> tuple[WhisperForConditionalGeneration, WhisperTokens]:
    """Load model and tokenizer.

    Args:
        path: A folder with a transformers Whisper, a ``.pt`` file of openai-whisper, or a hub name
            such as ``openai/whisper-small``.

    Raises:
        UserError: Where nothing of the three is there.
    """
    if Path(path).is_file():
        return load_openai(Path(path))
    _require_folder_or_hub_name(path)
    try:
        model, report = WhisperForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"backbone '{path}' could not be loaded: {error}") from error
    if lost := sorted(report["missing_keys"]):
        raise UserError(
            f"backbone '{path}' lacks {len(lost)} weights, e.g. {lost[0]}: copy or convert it again"
        )
    rules = model.generation_config
    tokenizer = load_tokens(path).tokenizer
    first = rules.begin_suppress_tokens or ()
    return model, WhisperTokens(tokenizer, rules.suppress_tokens or (), first)


def load_tokens(path: str) -> WhisperTokens:
    """Load the tokenizer alone; what :func:`load_whisper` takes, and its errors."""
    if Path(path).is_file():
        return WhisperTokens(openai_tokenizer(_read_openai(Path(path))["dims"]["n_vocab"]))
    _require_folder_or_hub_name(path)
    try:
        tokens = WhisperTokens(WhisperTokenizer.from_pretrained(path))
        if not tokens.languages:
            raise ValueError("it has no language tokens: are the tokenizer's files there?")
        tokens.prompt(tokens.languages[:1])
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer of '{path}' could not be loaded: {error}") from error
    return tokens


def max_target_length(path: str) -> int:
    """Longest token sequence of a model, prompt included, without loading its weights."""
    if Path(path).is_file():
        return int(_read_openai(Path(path))["dims"]["n_text_ctx"])
    _require_folder_or_hub_name(path)
    try:
        return int(WhisperConfig.from_pretrained(path).max_target_positions)
    except (OSError, ValueError) as error:
        raise UserError(f"the configuration of '{path}' could not be loaded: {error}") from error


def _read_openai(path: Path) -> dict[str, Any]:
    """``{"dims", "model_state_dict"}`` of a multilingual checkpoint; weights stay on disk."""
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        vocabulary, _ = saved["dims"]["n_vocab"], saved["model_state_dict"]
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise UserError(
            f"{path} is not an openai-whisper checkpoint (dims and model_state_dict): {error}"
        ) from error
    if vocabulary < MULTILINGUAL_VOCABULARY:
        raise UserError(
            f"{path} is one of Whisper's English-only models (vocabulary {vocabulary}): "
            "take a multilingual one, without .en in its name"
        )
    return saved


def _require_folder_or_hub_name(path: str) -> None:
    local = Path(path)
    if local.exists() and not (local / "config.json").is_file():
        raise UserError(
            f"{path} is a folder without config.json: a backbone folder is what transformers' "
            "save_pretrained writes (config.json, model.safetensors, tokenizer files)"
        )
    if local.exists():
        try:
            kind = json.loads((local / "config.json").read_text(encoding="utf-8")).get("model_type")
        except ValueError as error:
            raise UserError(f"{local / 'config.json'} is not JSON: {error}") from error
        if kind != "whisper":
            raise UserError(f"{path} holds a model of the type {kind}, not whisper")
        if (local / "adapter_config.json").exists():
            # transformers would go where that file says, and put the adapter into the model.
            raise UserError(
                f"{path} holds an adapter beside the model (adapter_config.json): a backbone is "
                "the plain model, an adapter an expert (espnet-moe convert); keep them apart"
            )
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise UserError(
            f"backbone '{path}' does not exist: give a transformers folder, an openai-whisper .pt "
            "file, or a hub name such as openai/whisper-small"
        )


def load_openai(path: Path) -> tuple[WhisperForConditionalGeneration, WhisperTokens]:
    """Convert an openai-whisper checkpoint (``{"dims", "model_state_dict"}``).

    The multilingual vocabulary is read from the openai-whisper package where it is installed.

    Raises:
        UserError: Where the file is no such checkpoint, or the vocabulary is missing.
    """
    saved = _read_openai(path)
    dims, weights = saved["dims"], saved["model_state_dict"]
    config = WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=dims["n_audio_state"],
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        decoder_ffn_dim=4 * dims["n_text_state"],
    )
    tokens = WhisperTokens(openai_tokenizer(dims["n_vocab"]))
    config.eos_token_id = config.bos_token_id = config.pad_token_id = tokens.end_id
    config.decoder_start_token_id = tokens.end_id + 1
    model = WhisperForConditionalGeneration(config)
    renamed = {rename_openai(name): value.float() for name, value in weights.items()}
    try:
        renamed["proj_out.weight"] = renamed["model.decoder.embed_tokens.weight"]
        model.load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"the weights in {path} do not fit its dimensions: {error}") from error
    model.generation_config = GenerationConfig.from_model_config(config)
    return model.eval(), tokens


def rename_openai(name: str) -> str:
    """The transformers name of an openai-whisper parameter."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def openai_tokenizer(vocab_size: int) -> WhisperTokenizer:
    """Transformers' tokenizer from the rank file that the openai-whisper package ships.

    ``tiktoken`` ranks are merges in order: a token of several bytes is the merge of the two parts
    that ranks before it split it into.
    """
    try:
        import whisper
    except ImportError as error:
        raise UserError(
            "an openai-whisper .pt file has no vocabulary of its own: install the package "
            "openai-whisper, or use a transformers folder"
        ) from error
    ranks_file = os.path.join(os.path.dirname(whisper.__file__), "assets", "multilingual.tiktoken")
    with open(ranks_file, encoding="ascii") as lines:
        ranks = {
            base64.b64decode(t): int(r) for t, r in (line.split() for line in lines if line.strip())
        }
    languages = list(LANGUAGES)[: 99 + vocab_size - MULTILINGUAL_VOCABULARY]
    return build_tokenizer(ranks, special_tokens(languages))


def build_tokenizer(ranks: dict[bytes, int], specials: list[str]) -> WhisperTokenizer:
    """A byte-level BPE tokenizer from ranked byte strings and special tokens behind them."""
    shown = _byte_characters()

    def show(token: bytes) -> str:
        return "".join(shown[b] for b in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _split_by_rank(token, ranks, rank)
            merges.append((show(left), show(right)))
    vocab = {show(token): rank for token, rank in ranks.items()}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    return tokenizer


def _split_by_rank(token: bytes, ranks: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(pairwise(parts))]
        _, best = min(pairs)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _byte_characters() -> list[str]:
    """GPT-2's printable character for every byte (openai/gpt-2 ``encoder.py``)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    extra = (b for b in range(256) if b not in table)
    table |= {b: chr(256 + i) for i, b in enumerate(extra)}
    return [table[b] for b in range(256)]
