"""OWSM as a backbone: ESPnet's S2T model in lower layers, upper layers, decoder step, CTC.

Encoder and teacher-forced decoder call ESPnet's own modules in ESPnet's own order, so that a batch
padded to 30 s (which is all that ESPnet gives OWSM) has ESPnet's numbers to the bit. Two things
are added: convolutions see zeros behind a row's end, so that a row does not depend on the batch it
is in, and a decoder step with keys and values cached, where ESPnet projects the whole prefix and
the whole encoder output anew at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from espnet_moe.backbones.attention import DecoderState, Encoded, Projections
from espnet_moe.backbones.features import SAMPLE_RATE
from espnet_moe.backbones.owsm_tokens import OwsmTokens
from espnet_moe.backbones.protocol import CONTEXTS, IGNORE, Augment
from espnet_moe.errors import UserError
from espnet_moe.experts.gates import current_gates, use_gates
from espnet_moe.experts.kinds import names_of_experts
from espnet_moe.linear import quicken

if TYPE_CHECKING:
    from espnet2.s2t.espnet_model import ESPnetS2TModel


PROMPT = 4  # <sos>, language, task, <notimestamps>
# Frames kept of those that an input layer is given: 1 in so many.
_SUBSAMPLING = {"conv2d1": 1, "conv2d2": 2, "conv2d": 4, "conv2d6": 6, "conv2d8": 8}


def max_target_length(config: Mapping[str, Any]) -> int:
    """What :attr:`OwsmBackbone.max_target_length` is, up to two tokens less, from the config."""
    seconds = float((config.get("preprocessor_conf") or {}).get("speech_length", 30.0))
    hop = int((config.get("frontend_conf") or {}).get("hop_length", 128))
    kept = _SUBSAMPLING.get((config.get("encoder_conf") or {}).get("input_layer", "conv2d"), 8)
    return round(seconds * SAMPLE_RATE) // hop // kept - 2 + PROMPT


class OwsmBackbone(nn.Module):
    """An OWSM model (v3.1, v4), frozen or not, with the house's backbone protocol.

    Args:
        s2t: ESPnet's model: E-Branchformer encoder, Transformer decoder, CTC.
        tokens: Its tokens and prompt builder.
        context: ``padded`` pads to the length OWSM was trained on, as ESPnet does; ``variable``
            encodes an utterance at its own length.
        seconds: That length.
        config: What the model was built from, for :meth:`save_pretrained`.

    Raises:
        UserError: For a context or an architecture that is not known here.
    """

    def __init__(
        self,
        s2t: ESPnetS2TModel,
        tokens: OwsmTokens,
        context: str = "variable",
        seconds: float = 30.0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if context not in CONTEXTS:
            raise UserError(f"context '{context}' is unknown: choose one of {', '.join(CONTEXTS)}")
        _require_architecture(s2t)
        self.s2t = s2t
        self.tokens = tokens
        self.context = context
        self.max_seconds = seconds
        self.espnet_config = config
        self.gradient_checkpointing = False
        stft = s2t.frontend.stft
        self.hop, self.edge = stft.hop_length, stft.n_fft // 2
        convolutions = [m for m in s2t.encoder.embed.conv if isinstance(m, nn.Conv2d)]
        self._subsampling = [(m.kernel_size[0], m.stride[0]) for m in convolutions]
        quicken(s2t.decoder)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move ESPnet's position tables, too: no buffers, else every copy would move its own."""
        super()._apply(fn, recurse)
        for module in self.modules():
            table = getattr(module, "pe", None)
            if isinstance(table, torch.Tensor):
                module.pe = fn(table)
        return self

    #: What experts go into where a configuration names nothing: all attention, q and v.
    default_targets: tuple[str, ...] = ("linear_q", "linear_v")

    # -- facts ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.s2t.parameters()).device

    @property
    def network(self) -> ESPnetS2TModel:
        """The model that experts go into; their layers are named from here."""
        return self.s2t

    @property
    def token_mean(self) -> bool:
        """Whether the attention loss is a mean over tokens (``length_normalized_loss``)."""
        return bool(self.s2t.criterion_att.normalize_length)

    @property
    def ctc_weight(self) -> float:
        """Share of the CTC branch in the loss, by the model's configuration."""
        return float(self.s2t.ctc_weight)

    @property
    def num_encoder_layers(self) -> int:
        """Number of encoder layers ``n``; a split ``k`` is in ``0..n``."""
        return len(self.s2t.encoder.encoders)

    @property
    def dim(self) -> int:
        """Width of the encoder's frames."""
        return int(self.s2t.encoder.output_size())

    @property
    def frame_samples(self) -> int:
        """Samples from one encoder frame to the next: 640 or 1280."""
        samples = self.hop
        for _, stride in self._subsampling:
            samples *= stride
        return int(samples)

    @property
    def max_target_length(self) -> int:
        """Longest token sequence, prompt included: a token a frame, ESPnet's ``maxlenratio`` 1."""
        frames = self._frames(torch.tensor([round(self.max_seconds * SAMPLE_RATE)]))
        return int(frames) + PROMPT

    def layer_of(self, name: str) -> tuple[str, int] | None:
        """Part and layer number of a module name: ``("encoder", 3)``; ``None`` outside layers."""
        parts = name.split(".")
        for part in ("encoder", "decoder"):
            if part in parts and f"{part}s" in parts:
                return part, int(parts[parts.index(f"{part}s") + 1])
        return None

    def digest(self) -> str:
        """SHA-256 over names, shapes and values (fp32) of the base weights, experts excluded."""
        sha, experts = hashlib.sha256(), names_of_experts(self.s2t)
        for name, tensor in sorted(self.s2t.state_dict().items()):
            if name in experts:
                continue
            sha.update(f"{name.replace('.base.', '.')} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, statistics and tokens as a folder that loads again."""
        from espnet_moe.backbones.owsm_loading import save_owsm

        save_owsm(self, Path(folder))

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
            augment: Changes features ``(batch, frames, mels)`` and lengths, e.g. SpecAugment,
                before they are normalised.

        Raises:
            UserError: For an utterance longer than :attr:`max_seconds`.
        """
        if not 0 <= layer <= self.num_encoder_layers:
            raise UserError(f"encoder layer {layer} is not in 0..{self.num_encoder_layers}")
        if (seconds := int(lengths.max()) / SAMPLE_RATE) > self.max_seconds:
            raise UserError(
                f"an utterance of {seconds:.2f} s is longer than the {self.max_seconds:.0f} s "
                "that this backbone takes: cut it, or filter with --max_wav_duration"
            )
        with torch.no_grad(), torch.autocast(speech.device.type, enabled=False):
            features, feature_lengths = self._features(speech.float(), lengths, augment)
        hidden, _ = self.s2t.encoder.embed(features.to(self._dtype), None)
        valid = self._subsampled(feature_lengths)
        spoken = torch.minimum(self._frames(lengths), valid)
        return self.encode_layers(Encoded(hidden, valid, spoken), 0, layer)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.s2t.encoder.parameters()).dtype

    def _features(
        self, speech: torch.Tensor, lengths: torch.Tensor, augment: Augment | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised log-mel features ``(batch, frames, mels)`` and their lengths."""
        inside = torch.arange(speech.size(1), device=speech.device) < lengths.unsqueeze(1)
        speech = speech * inside
        if self.context == "padded":
            lengths = torch.full_like(lengths, round(self.max_seconds * SAMPLE_RATE))
            tail = int(lengths[0]) - speech.size(1)
        else:
            # The convolutions need so many frames: a shorter row is heard with silence behind it.
            lengths = lengths.clamp(min=(self._fewest - 1) * self.hop)
            # A window over a row's end sees silence there, in a batch as alone.
            tail = int(lengths.max()) + self.edge - speech.size(1)
        speech = F.pad(speech, (0, tail))
        features, lengths = self.s2t.frontend(speech, lengths)
        features = features[:, : int(lengths.max())]
        if augment is not None:
            features, lengths = augment(features, lengths)
        if self.s2t.normalize is not None:
            features, lengths = self.s2t.normalize(features, lengths)
        return features, lengths

    @property
    def _fewest(self) -> int:
        """Feature frames that the convolutions make one frame of."""
        count = 1
        for kernel, stride in reversed(self._subsampling):
            count = (count - 1) * stride + kernel
        return count

    def _subsampled(self, frames: torch.Tensor) -> torch.Tensor:
        """Encoder frames that see nothing but the first ``frames (batch,)`` feature frames."""
        for kernel, stride in self._subsampling:
            frames = (frames - kernel) // stride + 1
        return frames

    def _frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Encoder frames of ``samples (batch,)``, at least one."""
        return self._subsampled((samples // self.hop + 1).clamp(min=self._fewest))

    def encode_upper(self, lower: Encoded, layer: int) -> Encoded:
        """The encoder layers from ``layer`` on and the final norm; experts act here."""
        upper = self.encode_layers(lower, layer, self.num_encoder_layers)
        return replace(upper, hidden=self.s2t.encoder.after_norm(upper.hidden))

    def encode_layers(self, state: Encoded, start: int, stop: int) -> Encoded:
        """The encoder layers ``start`` … ``stop - 1`` on states of the layers below; no norm."""
        mask, x = state.mask(), state.hidden
        mask = None if mask is None else mask[:, 0]  # (batch, 1, frames)
        for block in list(self.s2t.encoder.encoders)[start:stop]:
            x = self._maybe_checkpoint(_encoder_layer, block, x, mask)
        return replace(state, hidden=x)

    # -- decoder ----------------------------------------------------------------------------------

    def decode(self, tokens: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        """Teacher-forced decoding.

        Args:
            tokens: ``(batch, tokens)`` prompt and text; padding at the end only.
            encoded: What :meth:`encode_upper` returned for the same rows.

        Returns:
            Logits ``(batch, tokens, vocabulary)`` of the token after each position.
        """
        decoder = self.s2t.decoder
        count = tokens.size(1)
        causal = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()[None]
        memory_mask = encoded.mask()
        memory_mask = None if memory_mask is None else memory_mask[:, 0]
        x = decoder.embed(tokens)
        for block in decoder.decoders:
            x = self._maybe_checkpoint(
                _decoder_layer, block, x, causal, encoded.hidden, memory_mask
            )
        return self._logits(x)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        decoder = self.s2t.decoder
        return decoder.output_layer(decoder.after_norm(x) if decoder.normalize_before else x)

    def start(
        self, encoded: Encoded, beams: int, max_length: int, record_attention: bool = False
    ) -> DecoderState:
        """Allocate caches for ``beams`` rows an utterance and up to ``max_length`` tokens.

        The gates in force are those of the utterances: they mix the experts of the
        cross-attention's key and value projections. ``record_attention`` makes every step leave
        where it looked in :attr:`DecoderState.attention`.
        """
        attentions = [projections(block.src_attn) for block in self.s2t.decoder.decoders]
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
        decoder, old, new = self.s2t.decoder, state.length, state.length + tokens.size(1)
        embedding, position = decoder.embed[0], decoder.embed[1]
        x = embedding(tokens)
        position.extend_pe(x.new_zeros(1).expand(1, new))
        x = x * position.xscale + position.pe[:, old:new].to(x)
        # Only a first call brings several tokens, onto an empty cache: plain causal attention.
        causal = tokens.size(1) > 1
        seen: list[torch.Tensor] | None = [] if state.record_attention else None
        for i, block in enumerate(decoder.decoders):
            normed = block.norm1(x)
            attention = projections(block.self_attn)
            keys, values = state.append(i, *attention.keys_values(normed))
            x = x + attention.attend(normed, keys, values, None, causal)
            x = x + projections(block.src_attn).attend_shared(
                block.norm2(x), state.cross_keys[i], state.cross_values[i], state.cross_mask, seen
            )
            x = x + block.feed_forward(block.norm3(x))
        state.length = new
        state.attention = torch.stack(seen).mean(0) if seen else None
        return self._logits(x[:, -1])

    def ctc_log_probs(self, encoded: Encoded) -> tuple[torch.Tensor, int]:
        """CTC's log-probabilities ``(batch, frames, vocabulary)`` in fp32, and the blank's id."""
        return self.s2t.ctc.log_softmax(encoded.hidden).float(), self.tokens.blank_id

    # -- training ---------------------------------------------------------------------------------

    def attention_loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        smoothing: float | None = None,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ESPnet's divergence from the smoothed target: over utterances, or tokens, a mean.

        Args:
            logits: ``(batch, tokens, vocabulary)`` in fp32.
            target: ``(batch, tokens)``, :data:`~espnet_moe.backbones.protocol.IGNORE` where none.
            smoothing: Label smoothing; ``None`` for the model's own.
            weight: ``(batch, 1)`` how much a row's tokens count, or ``None``.
        """
        criterion = self.s2t.criterion_att
        if smoothing is not None:
            criterion = type(criterion)(
                criterion.size, criterion.padding_idx, smoothing, criterion.normalize_length
            )
        target = target.masked_fill(target == IGNORE, criterion.padding_idx)
        if weight is None:
            return criterion(logits, target)
        rows = [criterion(x, y) for x, y in zip(logits.split(1), target.split(1), strict=True)]
        each = torch.stack(rows)
        if self.token_mean:
            counts = (target != criterion.padding_idx).sum(1)
            return (each * counts * weight[:, 0]).sum() / counts.sum()
        return (each * weight[:, 0]).mean()

    def ctc_loss(
        self,
        encoded: Encoded,
        text: torch.Tensor,
        lengths: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """CTC loss, a mean over the rows that have a transcript.

        Args:
            encoded: The encoder's output.
            text: ``(batch, tokens)``.
            lengths: ``(batch,)``; rows of none are left out, as ESPnet leaves out ``<na>``.
            weight: ``(batch, 1)`` how much a row counts, or ``None``.
        """
        kept = lengths > 0
        if not bool(kept.any()):
            # ESPnet's constant here has no graph, and is on the CPU wherever the model is. Where
            # the branch is trained, other processes expect its gradients from this one, too.
            own = sum(parameter.float().sum() for parameter in self.s2t.ctc.parameters())
            return 0.0 * (encoded.hidden.float().sum() + own)
        hidden, frames = encoded.hidden[kept], encoded.lengths[kept]
        text, lengths = text[kept], lengths[kept]
        ctc = self.s2t.ctc
        if weight is None:
            return ctc(hidden, frames, text[:, : int(lengths.max())], lengths)
        rows = [
            ctc(*(x[i : i + 1] for x in (hidden, frames)), text[i : i + 1, :n], lengths[i : i + 1])
            for i, n in enumerate(lengths.tolist())
        ]
        return (torch.stack(rows) * weight[kept, 0]).mean()

    # -- shared -----------------------------------------------------------------------------------

    def _maybe_checkpoint(self, layer: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        """Run a layer, recomputing it in backward where gradient checkpointing is on.

        As in :class:`~espnet_moe.backbones.whisper.WhisperBackbone`: non-reentrant, with the gates
        brought along.
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


def _encoder_layer(block: Any, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """An E-Branchformer layer (espnet2 ``e_branchformer_encoder.py``), padding silenced.

    Args:
        block: ESPnet's layer.
        x: ``(batch, frames, dim)``.
        mask: Valid frames ``(batch, 1, frames)``, or ``None`` where every row is full.
    """

    def silenced(frames: torch.Tensor) -> torch.Tensor:
        return frames if mask is None else frames * mask.transpose(1, 2)

    drop, scale = block.dropout, block.ff_scale
    if block.feed_forward_macaron is not None:
        x = x + scale * drop(block.feed_forward_macaron(block.norm_ff_macaron(x)))
    normed = block.norm_mha(x)
    attended = drop(block.attn(normed, normed, normed, mask))
    block.attn.attn = None  # ESPnet keeps the weights, (batch, heads, frames, frames) a layer
    mlp, unit = block.cgmlp, block.cgmlp.csgu
    # The gating unit's own forward, with its convolution kept from the padding.
    signal, gate = mlp.channel_proj1(block.norm_mlp(x)).chunk(2, dim=-1)
    gate = unit.conv(silenced(unit.norm(gate)).transpose(1, 2)).transpose(1, 2)
    if unit.linear is not None:
        gate = unit.linear(gate)
    convolved = drop(mlp.channel_proj2(unit.dropout(signal * unit.act(gate))))
    both = silenced(torch.cat([attended, convolved], dim=-1))
    fused = block.depthwise_conv_fusion(both.transpose(1, 2)).transpose(1, 2)
    x = x + drop(block.merge_proj(both + fused))
    if block.feed_forward is not None:
        x = x + scale * drop(block.feed_forward(block.norm_ff(x)))
    return block.norm_final(x)


def _decoder_layer(
    block: Any,
    x: torch.Tensor,
    causal: torch.Tensor,
    memory: torch.Tensor,
    memory_mask: torch.Tensor | None,
) -> torch.Tensor:
    out = block(x, causal, memory, memory_mask)[0]
    block.self_attn.attn = block.src_attn.attn = None  # not kept: see the encoder's
    return out


def projections(attention: Any) -> Projections:
    """ESPnet's attention module without its names."""
    return Projections(
        attention.linear_q,
        attention.linear_k,
        attention.linear_v,
        attention.linear_out,
        attention.h,
        attention.d_k**-0.5,
        attention.dropout_rate if attention.training else 0.0,
    )


def _require_architecture(s2t: ESPnetS2TModel) -> None:
    """Refuse by name what this backbone does not know how to run."""
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.frontend.default import DefaultFrontend

    problems = []
    for part, kind in (
        ("frontend", DefaultFrontend),
        ("encoder", EBranchformerEncoder),
        ("decoder", TransformerDecoder),
    ):
        found = getattr(s2t, part)
        if not isinstance(found, kind):
            problems.append(f"its {part} is {type(found).__name__}, not {kind.__name__}")
    if problems:
        raise UserError(f"this S2T model is not like OWSM v3.1 or v4: {'; '.join(problems)}")
    encoder, decoder = s2t.encoder, s2t.decoder
    if s2t.frontend.stft is None or not s2t.frontend.stft.center:
        problems.append("its features are not those of a centred STFT")
    enhancement = s2t.frontend.frontend
    if enhancement is not None and (enhancement.use_wpe or enhancement.use_beamformer):
        problems.append("its frontend enhances speech (WPE or beamforming)")
    if s2t.preencoder is not None or s2t.postencoder is not None:
        problems.append("it has a pre- or postencoder")
    if encoder.interctc_layer_idx:
        problems.append("it has intermediate CTC layers")
    if not all(isinstance(m, nn.Conv2d | nn.ReLU) for m in getattr(encoder.embed, "conv", [None])):
        problems.append("its input layer is none of conv2d, conv2d1, conv2d2, conv2d6, conv2d8")
    kinds = {type(layer.attn).__name__ for layer in encoder.encoders}
    if kinds != {"MultiHeadedAttention"}:
        problems.append(f"its encoder's attention is {', '.join(sorted(kinds))}, not selfattn")
    if type(decoder.embed[-1]).__name__ != "PositionalEncoding":
        problems.append("its decoder's positions are not sinusoidal (abs_pos)")
    blocks = list(decoder.decoders)
    if any(not b.normalize_before or b.concat_after for b in blocks):
        problems.append("its decoder layers normalise after, or concatenate")
    modules = [b.self_attn for b in blocks] + [b.src_attn for b in blocks]
    if any(not isinstance(m.q_norm, nn.Identity) for m in modules):
        problems.append("its attention normalises queries and keys")
    if problems:
        raise UserError(f"this S2T model is not like OWSM v3.1 or v4: {'; '.join(problems)}")
