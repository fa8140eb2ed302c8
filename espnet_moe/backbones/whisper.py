"""Whisper as a backbone: transformers' weights in lower layers, upper layers, decoder step.

The layers' arithmetic is written out here over transformers' own modules (``q_proj`` and the
rest), for three things that its forward does not have: encoder input of any length with masks,
expert layers in place of any projection, and a decoder step whose cross-attention keys are shared
by the beams of an utterance. Logits equal transformers' to rounding; a test holds that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import WhisperConfig, WhisperForConditionalGeneration

from espnet_moe.backbones.attention import DecoderState, Encoded, Projections
from espnet_moe.backbones.features import (
    HOP_LENGTH,
    SAMPLE_RATE,
    LogMel,
    pad_to_chunk,
    silence_behind,
)
from espnet_moe.backbones.protocol import CONTEXTS, IGNORE, Augment
from espnet_moe.backbones.whisper_tokens import WhisperTokens
from espnet_moe.errors import UserError
from espnet_moe.experts.gates import current_gates, use_gates
from espnet_moe.experts.kinds import names_of_experts
from espnet_moe.linear import quicken


class WhisperBackbone(nn.Module):
    """A Whisper model of any size, frozen or not, with the house's backbone protocol.

    Args:
        hf: The transformers model.
        tokens: Its tokenizer and prompt builder.
        context: ``variable`` encodes an utterance at its own length; ``padded`` pads to 30 s with
            silence as Whisper was trained.
    """

    def __init__(
        self,
        hf: WhisperForConditionalGeneration,
        tokens: WhisperTokens,
        context: str = "variable",
    ) -> None:
        super().__init__()
        if context not in CONTEXTS:
            raise UserError(f"context '{context}' is unknown: choose one of {', '.join(CONTEXTS)}")
        self.hf = hf
        self.tokens = tokens
        self.context = context
        self.gradient_checkpointing = False
        self.log_mel = LogMel(hf.config.num_mel_bins)
        # Sinusoids: loading a checkpoint makes them trainable again.
        hf.model.encoder.embed_positions.requires_grad_(False)
        for part in (hf.model.decoder, hf.proj_out):
            quicken(part)

    @classmethod
    def from_pretrained(cls, path: str, context: str = "variable") -> WhisperBackbone:
        """Load a hub name, a local folder, or an OpenAI ``.pt`` file, in single precision.

        Raises:
            UserError: Where nothing loadable is found at ``path``.
        """
        from espnet_moe.backbones.whisper_loading import load_whisper

        hf, tokens = load_whisper(path)
        return cls(hf, tokens, context)

    #: What experts go into where a configuration names nothing.
    default_targets: tuple[str, ...] = ("q_proj", "v_proj")
    #: Whether the loss is a mean over tokens; otherwise over utterances.
    token_mean = True
    #: Share of a CTC branch in the loss: Whisper has none.
    ctc_weight = 0.0

    # -- facts ------------------------------------------------------------------------------------

    @property
    def config(self) -> WhisperConfig:
        """The transformers configuration."""
        return self.hf.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.device

    @property
    def network(self) -> WhisperForConditionalGeneration:
        """The model that experts go into; their layers are named from here."""
        return self.hf

    @property
    def num_encoder_layers(self) -> int:
        """Number of encoder layers ``n``; a split ``k`` is in ``0..n``."""
        return self.config.encoder_layers

    @property
    def dim(self) -> int:
        """Width of the encoder's frames."""
        return int(self.config.d_model)

    @property
    def frame_samples(self) -> int:
        """Samples from one encoder frame to the next: 320, which is 20 ms."""
        return 2 * HOP_LENGTH

    @property
    def max_target_length(self) -> int:
        """Longest token sequence, prompt included."""
        return self.config.max_target_positions

    @property
    def max_seconds(self) -> float:
        """Longest utterance the encoder takes in one piece (30 s for every Whisper)."""
        return self.config.max_source_positions * 0.02

    def layer_of(self, name: str) -> tuple[str, int] | None:
        """Part and layer number of a module name: ``("encoder", 3)``; ``None`` outside layers."""
        parts = name.split(".")
        for part in ("encoder", "decoder"):
            if part in parts and "layers" in parts:
                return part, int(parts[parts.index("layers") + 1])
        return None

    def digest(self) -> str:
        """SHA-256 over names, shapes and values (fp32) of the base weights, experts excluded."""
        sha, experts = hashlib.sha256(), names_of_experts(self.hf)
        for name, tensor in sorted(self.hf.state_dict().items()):
            if name in experts or name == "proj_out.weight":
                continue
            sha.update(f"{name.replace('.base.', '.')} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and generation config as a transformers folder."""
        self.hf.save_pretrained(folder)
        self.tokens.save_pretrained(folder)

    # -- encoder ----------------------------------------------------------------------------------

    def encode_lower(
        self,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        layer: int,
        augment: Augment | None = None,
    ) -> Encoded:
        """Features, convolutions and the encoder layers below ``layer``.

        Args:
            speech: ``(batch, samples)`` at 16 kHz.
            lengths: ``(batch,)`` samples.
            layer: The split ``k`` in ``0..num_encoder_layers``.
            augment: Changes features ``(batch, frames, mels)`` and lengths, e.g. SpecAugment.

        Raises:
            UserError: For an utterance longer than :attr:`max_seconds`.
        """
        self._require_length(int(lengths.max()) / SAMPLE_RATE)
        with torch.no_grad():
            mel, mel_lengths = self.log_mel(speech, lengths)
            if augment is not None:
                frames, mel_lengths = augment(mel.transpose(1, 2), mel_lengths)
                mel = frames.transpose(1, 2)
                if self.context == "padded":
                    # Time warping leaves zeros behind the shorter rows, which nothing would mask.
                    mel = silence_behind(mel, mel_lengths)
        return self.encode_features(mel, mel_lengths, layer)

    def encode_features(
        self, mel: torch.Tensor, mel_lengths: torch.Tensor, layer: int | None = None
    ) -> Encoded:
        """Convolutions and layers below ``layer`` on features ``(batch, mels, frames)``."""
        layer = self.num_encoder_layers if layer is None else layer
        if not 0 <= layer <= self.num_encoder_layers:
            raise UserError(f"encoder layer {layer} is not in 0..{self.num_encoder_layers}")
        encoder = self.hf.model.encoder
        mel = mel.to(encoder.conv1.weight.dtype)
        spoken = (mel_lengths + 1) // 2
        if self.context == "padded":
            mel = pad_to_chunk(mel)
            mel_lengths = torch.full_like(mel_lengths, mel.size(2))
        else:
            mel = mel[..., : int(mel_lengths.max())]
        # Alone, an utterance's convolutions see zeros behind its end: so must they in a batch.
        valid = torch.arange(mel.size(2), device=mel.device) < mel_lengths.unsqueeze(1)
        valid = valid.unsqueeze(1)
        x = F.gelu(encoder.conv1(mel * valid)) * valid
        x = F.gelu(encoder.conv2(x)).transpose(1, 2)
        self._require_length(x.size(1) * 0.02)
        x = x + encoder.embed_positions.weight[: x.size(1)]
        x = F.dropout(x, self.config.dropout, self.training)
        return self.encode_layers(Encoded(x, (mel_lengths + 1) // 2, spoken), 0, layer)

    def _require_length(self, seconds: float) -> None:
        if seconds > self.max_seconds:
            raise UserError(
                f"an utterance of {seconds:.2f} s is longer than the {self.max_seconds:.0f} s "
                "that this backbone takes: cut it, or filter with --max_wav_duration"
            )

    def encode_upper(self, lower: Encoded, layer: int) -> Encoded:
        """The encoder layers from ``layer`` on and the final norm; experts act here."""
        upper = self.encode_layers(lower, layer, self.num_encoder_layers)
        return replace(upper, hidden=self.hf.model.encoder.layer_norm(upper.hidden))

    def encode_layers(self, state: Encoded, start: int, stop: int) -> Encoded:
        """The encoder layers ``start`` … ``stop - 1`` on states of the layers below; no norm."""
        mask, x = state.mask(), state.hidden
        for block in self.hf.model.encoder.layers[start:stop]:
            x = self._maybe_checkpoint(self._encoder_layer, block, x, mask)
        return replace(state, hidden=x)

    def _encoder_layer(
        self, block: Any, x: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        normed = block.self_attn_layer_norm(x)
        attention = projections(block.self_attn)
        x = x + self._drop(attention.attend(normed, *attention.keys_values(normed), mask))
        return x + self._feed_forward(block, x)

    # -- decoder ----------------------------------------------------------------------------------

    def decode(self, tokens: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        """Teacher-forced decoding.

        Args:
            tokens: ``(batch, tokens)`` prompt and text; padding at the end only.
            encoded: What :meth:`encode_upper` returned for the same rows.

        Returns:
            Logits ``(batch, tokens, vocabulary)`` of the token after each position.
        """
        decoder = self.hf.model.decoder
        x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[: tokens.size(1)]
        x = self._drop(x)
        memory_mask = encoded.mask()
        for block in decoder.layers:
            x = self._maybe_checkpoint(self._decoder_layer, block, x, encoded.hidden, memory_mask)
        return self.hf.proj_out(decoder.layer_norm(x))

    def _decoder_layer(
        self,
        block: Any,
        x: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        normed = block.self_attn_layer_norm(x)
        attention = projections(block.self_attn)
        keys, values = attention.keys_values(normed)
        x = x + self._drop(attention.attend(normed, keys, values, None, causal=True))
        normed = block.encoder_attn_layer_norm(x)
        attention = projections(block.encoder_attn)
        keys, values = attention.keys_values(memory)
        x = x + self._drop(attention.attend(normed, keys, values, memory_mask))
        return x + self._feed_forward(block, x)

    def start(
        self, encoded: Encoded, beams: int, max_length: int, record_attention: bool = False
    ) -> DecoderState:
        """Allocate caches for ``beams`` rows an utterance and up to ``max_length`` tokens.

        The gates in force are those of the utterances: they mix the experts of the
        cross-attention's key and value projections. ``record_attention`` makes every step leave
        where it looked in :attr:`DecoderState.attention`.
        """
        attentions = [projections(block.encoder_attn) for block in self.hf.model.decoder.layers]
        return DecoderState.start(attentions, encoded, beams, max_length, record_attention)

    def step(self, tokens: torch.Tensor, state: DecoderState) -> torch.Tensor:
        """Decode the next token(s) with the caches in ``state``, which is updated in place.

        Args:
            tokens: ``(rows, n)`` the tokens not yet seen: the prompt first, then one at a time.
                Rows of an utterance stand together.
            state: From :meth:`start`.

        Returns:
            Logits ``(rows, vocabulary)`` after the last of them.
        """
        decoder, old, new = self.hf.model.decoder, state.length, state.length + tokens.size(1)
        x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[old:new]
        # Only a first call brings several tokens, onto an empty cache: plain causal attention.
        causal = tokens.size(1) > 1
        seen: list[torch.Tensor] | None = [] if state.record_attention else None
        for i, block in enumerate(decoder.layers):
            normed = block.self_attn_layer_norm(x)
            attention = projections(block.self_attn)
            keys, values = state.append(i, *attention.keys_values(normed))
            x = x + attention.attend(normed, keys, values, None, causal)
            normed = block.encoder_attn_layer_norm(x)
            x = x + projections(block.encoder_attn).attend_shared(
                normed, state.cross_keys[i], state.cross_values[i], state.cross_mask, seen
            )
            x = x + self._feed_forward(block, x)
        state.length = new
        state.attention = torch.stack(seen).mean(0) if seen else None
        return self.hf.proj_out(decoder.layer_norm(x[:, -1]))

    # -- training ---------------------------------------------------------------------------------

    def attention_loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        smoothing: float | None = None,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-entropy, a mean over the tokens.

        Args:
            logits: ``(batch, tokens, vocabulary)`` in fp32.
            target: ``(batch, tokens)``, :data:`~espnet_moe.backbones.protocol.IGNORE` where none.
            smoothing: Label smoothing; ``None`` for Whisper's own, which is none.
            weight: ``(batch, 1)`` how much a row's tokens count, or ``None``.
        """
        flat, classes = logits.flatten(0, 1), target.flatten()
        smoothing = smoothing or 0.0
        if weight is None:
            return F.cross_entropy(flat, classes, ignore_index=IGNORE, label_smoothing=smoothing)
        each = F.cross_entropy(
            flat, classes, ignore_index=IGNORE, label_smoothing=smoothing, reduction="none"
        )
        return (each.view_as(target) * weight).sum() / (target != IGNORE).sum()

    def ctc_loss(
        self,
        encoded: Encoded,
        text: torch.Tensor,
        lengths: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Never asked: Whisper has no CTC branch."""
        raise UserError("Whisper has no CTC branch")

    def ctc_log_probs(self, encoded: Encoded) -> tuple[torch.Tensor, int]:
        """Refused: Whisper has no CTC branch."""
        raise UserError("ctc_weight is 0 for Whisper, which has no CTC branch")

    # -- shared -----------------------------------------------------------------------------------

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def _feed_forward(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(block.fc1(block.final_layer_norm(x)))
        x = F.dropout(x, self.config.activation_dropout, self.training)
        return self._drop(block.fc2(x))

    def _maybe_checkpoint(self, layer: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        """Run a layer, recomputing it in backward where gradient checkpointing is on.

        Non-reentrant, because the input of a frozen stack needs no gradient and the reentrant form
        would then give none to the experts (huggingface/peft pull 1142). The recomputation happens
        after the caller's gates are gone (and on CUDA in another thread): it brings them along.
        """
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return layer(*args)
        gates = current_gates()
        return checkpoint(
            layer,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), use_gates(gates)),
        )


def projections(attention: Any) -> Projections:
    """Transformers' attention module without its names."""
    return Projections(
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.out_proj,
        attention.num_heads,
        attention.scaling,
        attention.dropout if attention.training else 0.0,
    )
