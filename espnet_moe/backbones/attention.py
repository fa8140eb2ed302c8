"""Attention over a backbone's own projections, and the caches of a running decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Projection = Callable[[torch.Tensor], torch.Tensor]

# Training in bf16 on a CPU: what attention, forward and backward, takes in fp32 for one in bf16
# (torch 2.11 with AMX, heads 40 and 64 wide): 0.3 to 0.5 with 100 keys, 0.8 to 1.0 with 311, 0.9 to
# 1.2 with 500, 1.1 to 1.5 with 1500. Forward alone, bf16 is the faster one.
_LONG = 400


@dataclass
class Encoded:
    """Encoder states of a batch.

    Attributes:
        hidden: ``(batch, frames, dim)``.
        lengths: ``(batch,)`` valid frames of every row: those of 30 s where the backbone hears the
            padding too.
        speech_lengths: ``(batch,)`` frames of every row that hold speech; ``None`` where that is
            not known.
    """

    hidden: torch.Tensor
    lengths: torch.Tensor
    speech_lengths: torch.Tensor | None = None

    @property
    def spoken(self) -> torch.Tensor:
        """``(batch,)`` frames without padding of any kind: what poolings and routers look at."""
        return self.lengths if self.speech_lengths is None else self.speech_lengths

    def mask(self) -> torch.Tensor | None:
        """Valid keys ``(batch, 1, 1, frames)``, or ``None`` where every row is full."""
        frames = self.hidden.size(1)
        if bool((self.lengths >= frames).all()):
            return None
        valid = torch.arange(frames, device=self.hidden.device) < self.lengths.unsqueeze(1)
        return valid[:, None, None, :]


@dataclass(frozen=True, slots=True)
class Projections:
    """A backbone's attention module, seen without its names.

    Attributes:
        query, key, value, output: Its four linear layers, experts included.
        heads: Number of heads.
        scale: Factor on the queries.
        dropout: Of the weights; 0 in evaluation mode.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Projection
    heads: int
    scale: float
    dropout: float = 0.0

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, frames, dim)`` → ``(batch, heads, frames, head_dim)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``(batch, heads, frames, head_dim)`` of ``x (batch, frames, dim)``."""
        return self.split(self.key(x)), self.split(self.value(x))

    def attend(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        causal: bool = False,
    ) -> torch.Tensor:
        """Attention of ``x (batch, n, dim)`` over ``keys (batch, heads, m, head_dim)``."""
        query = self.split(self.query(x) * self.scale)
        out = _attention(query, keys, values, mask, self.dropout, causal)
        return self.output(out.transpose(1, 2).flatten(2))

    def attend_shared(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        seen: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attention of ``x (utterances · beams, n, dim)`` over keys that the beams share.

        Args:
            x: ``(utterances · beams, n, dim)``; the beams of an utterance stand together.
            keys: ``(utterances, heads, frames, head_dim)``.
            values: Of the same shape.
            mask: ``(utterances, 1, 1, frames)`` or ``None``.
            seen: Takes the weights ``(rows, frames)`` of the last position, mean over heads, where
                somebody asks; the fused kernel does not tell them, so they cost a product of their
                own.
        """
        rows, n, _ = x.shape
        utterances = keys.size(0)
        query = self.query(x) * self.scale
        query = self.split(query.reshape(utterances, -1, query.size(-1)))
        out = F.scaled_dot_product_attention(query, keys, values, mask, scale=1.0)
        if seen is not None:
            last = query[:, :, n - 1 :: n]  # (utterances, heads, beams, head_dim)
            scores = torch.matmul(last, keys.transpose(-1, -2)).float()
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            seen.append(scores.softmax(-1).mean(1).flatten(0, 1))
        return self.output(out.transpose(1, 2).reshape(rows, n, -1))


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
    causal: bool = False,
) -> torch.Tensor:
    """Attention ``(batch, heads, n, head_dim)`` of queries that are scaled already."""
    kind = query.dtype
    trained = query.requires_grad or keys.requires_grad or values.requires_grad
    slow = query.device.type == "cpu" and kind != torch.float32 and trained
    if not slow or keys.size(2) >= _LONG:
        return F.scaled_dot_product_attention(query, keys, values, mask, dropout, causal, scale=1.0)
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(), keys.float(), values.float(), mask, dropout, causal, scale=1.0
        )
    return out.to(kind)


@dataclass
class DecoderState:
    """Key-value caches of a running decode: one group of ``beams`` rows an utterance.

    Attributes:
        self_keys, self_values: Per layer ``(rows, heads, capacity, head_dim)``; the first
            ``length`` positions are filled.
        cross_keys, cross_values: Per layer ``(utterances, heads, frames, head_dim)``, shared by
            the beams of an utterance.
        cross_mask: ``(utterances, 1, 1, frames)`` or ``None``.
        length: Tokens decoded so far.
        record_attention: Whether steps leave their cross-attention in ``attention``.
        attention: ``(rows, frames)`` fp32: where the last token of the latest step looked, mean
            over heads and layers; rows sum to one. ``None`` before a step and where not recorded.
    """

    self_keys: list[torch.Tensor]
    self_values: list[torch.Tensor]
    cross_keys: list[torch.Tensor]
    cross_values: list[torch.Tensor]
    cross_mask: torch.Tensor | None
    length: int = 0
    record_attention: bool = False
    attention: torch.Tensor | None = None

    @classmethod
    def start(
        cls,
        attentions: Sequence[Projections],
        encoded: Encoded,
        beams: int,
        max_length: int,
        record_attention: bool = False,
    ) -> DecoderState:
        """Room for ``beams`` rows an utterance and up to ``max_length`` tokens.

        Args:
            attentions: Cross-attention of each decoder layer; the gates in force are those of the
                utterances.
            encoded: What it looks at.
            beams: Rows an utterance.
            max_length: Most tokens, the prompt included.
            record_attention: Whether steps are to leave where they looked.
        """
        # A step reads them whole: as the projections leave them, strided, in twice the time.
        cross = [
            (keys.contiguous(), values.contiguous())
            for keys, values in (attention.keys_values(encoded.hidden) for attention in attentions)
        ]
        rows, (_, heads, _, width) = encoded.hidden.size(0) * beams, cross[0][0].shape
        # Only what was filled is ever read.
        room = [cross[0][0].new_empty(rows, heads, max_length, width) for _ in 2 * cross]
        return cls(
            room[: len(cross)],
            room[len(cross) :],
            [keys for keys, _ in cross],
            [values for _, values in cross],
            encoded.mask(),
            record_attention=record_attention,
        )

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values ``(rows, heads, n, head_dim)`` of new tokens; return all so far.

        ``length`` is the caller's to raise, once all layers have theirs.
        """
        new = self.length + keys.size(2)
        self.self_keys[layer][:, :, self.length : new] = keys
        self.self_values[layer][:, :, self.length : new] = values
        return self.self_keys[layer][:, :, :new], self.self_values[layer][:, :, :new]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Reorder or drop rows ``(n,)``, no more than there are, of what belongs to a row.

        In place: the room of rows that leave stays with those that go on.
        """
        # What is not filled yet, mostly nearly all of the room, needs no copy.
        for caches in (self.self_keys, self.self_values):
            for i, cache in enumerate(caches):
                filled = cache[:, :, : self.length].index_select(0, rows)
                caches[i] = cache[: rows.numel()]
                caches[i][:, :, : self.length] = filled
        if self.attention is not None:
            self.attention = self.attention.index_select(0, rows)

    def select_utterances(self, utterances: torch.Tensor) -> None:
        """Keep a subset of utterances ``(n,)`` in the cross-attention caches."""
        self.cross_keys = [k.index_select(0, utterances) for k in self.cross_keys]
        self.cross_values = [v.index_select(0, utterances) for v in self.cross_values]
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask.index_select(0, utterances)
