"""The model of phase ``router``: only the lower encoder layers run, and a router on top of them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import nn

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError
from espnet_moe.model.trained import TrainedModel, share_of_mean
from espnet_moe.routing.augment import crop, splice
from espnet_moe.routing.losses import IGNORE, cross_entropy
from espnet_moe.routing.pooling import valid_frames
from espnet_moe.routing.routers import Routed, Router

REPLAYED = 100  # batches that are kept for it


@dataclass(frozen=True)
class AugmentOptions:
    """What happens to the speech that a router is trained on.

    Attributes:
        crop_share: Of the batches whose utterances are cut to a random piece (utterance level).
        crop_seconds: Shortest and longest piece.
        splice_share: Of the rows that are joined from pieces of several utterances (frame level).
        splice_seconds: Shortest and longest piece.
        cross_fade: Seconds over which two pieces overlap.
    """

    crop_share: float = 0.5
    crop_seconds: tuple[float, ...] = (1.0, 5.0)
    splice_share: float = 0.5
    splice_seconds: tuple[float, ...] = (0.5, 3.0)
    cross_fade: float = 0.02

    def __post_init__(self) -> None:
        wrong = []
        for name in ("crop_share", "splice_share"):
            if not 0 <= getattr(self, name) <= 1:
                wrong.append(f"{name} is in [0, 1], not {getattr(self, name)}")
        for name in ("crop_seconds", "splice_seconds"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                wrong.append(f"{name} is [shortest, longest] above 0, not {list(values)}")
        if self.cross_fade < 0:
            wrong.append(f"cross_fade is 0 or more, not {self.cross_fade}")
        if wrong:
            raise ConfigError(f"augment_conf: {'; '.join(wrong)}")


class LanguageIndex(nn.Module):
    """From the backbone's numbers of languages to a router's.

    Args:
        known: The backbone's languages.
        routed: The router's.

    Raises:
        ConfigError: For a language of the router that the backbone has no token for.
    """

    def __init__(self, known: Sequence[str], routed: Sequence[str]) -> None:
        super().__init__()
        if strange := sorted(set(routed) - set(known)):
            raise ConfigError(
                f"the backbone has no token for the language(s) {' '.join(strange)}; "
                f"it has: {' '.join(known)}"
            )
        index = [routed.index(code) if code in routed else -1 for code in known]
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.index: torch.Tensor

    def forward(self, language: torch.Tensor) -> torch.Tensor:
        """Numbers ``(batch,)`` in the router's order, of ``language (batch, 1)``."""
        numbers = self.index[language[:, 0]]
        if bool((numbers < 0).any()):
            raise ConfigError("the batch has a language that the router does not know")
        return numbers


@dataclass(frozen=True)
class Heard:
    """A batch as the router heard it: states of the frozen encoder, and the targets.

    Attributes:
        frames: ``(batch, frames, dim)``.
        spoken: ``(batch,)`` valid frames.
        languages: ``(batch,)`` in the router's order.
        memberships: ``(batch, experts)`` or ``None``.
        weight: ``(batch, 1)`` or ``None``.
        rows: ``(batch, frames)`` as :func:`routing_loss` takes them, or ``None``.
    """

    frames: torch.Tensor
    spoken: torch.Tensor
    languages: torch.Tensor
    memberships: torch.Tensor | None
    weight: torch.Tensor | None
    rows: torch.Tensor | None


class RouterModel(TrainedModel):
    """A router on frozen encoder layers, trained to tell languages and experts.

    The encoder costs ten times and more what the router costs. With ``replay`` each step learns
    from batches before as well, whose spoken frames are kept in half precision: a hundred of them
    at most, of this epoch only. (An epoch that is resumed from within has none of those before, and
    then differs in what it hears again.)

    Args:
        backbone: The foundation model, without experts.
        router: The network that trains.
        specaug: ESPnet's SpecAugment, or ``None``.
        augment: What happens to the speech in training.
        label_smoothing: Of the cross-entropy in training, in [0, 1).
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic of the encoder.
        replay: Batches before, drawn at random, that a step learns from besides its own.

    Raises:
        ConfigError: For a ``replay`` that is no whole number from 0 on.
    """

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        specaug: AbsSpecAug | None = None,
        augment: AugmentOptions | None = None,
        label_smoothing: float = 0.0,
        precision: str = "fp32",
        replay: int = 0,
    ) -> None:
        super().__init__(backbone, label_smoothing, precision)
        if not isinstance(replay, int) or replay < 0:
            raise ConfigError(f"model_conf: replay is a whole number from 0 on, not {replay}")
        self.replay = replay
        self.heard: deque[Heard] = deque(maxlen=REPLAYED)
        self.experts = None
        self.router = router
        self.specaug = specaug
        self.augment = AugmentOptions() if augment is None else augment
        self.language_index = LanguageIndex(backbone.tokens.languages, router.languages)

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        language: torch.Tensor,
        memberships: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Loss of a batch.

        Args:
            speech: ``(batch, samples)`` at 16 kHz.
            speech_lengths: ``(batch,)`` samples.
            language: ``(batch, 1)`` index into the backbone's languages.
            memberships: ``(batch, experts)`` how much a row belongs to each expert.
            weight: ``(batch, 1)`` how much an utterance counts, or ``None`` for one each.

        Returns:
            Loss, statistics (``loss``; ``acc`` and ``acc_expert``: of rows, or of frames, in
            percent), and the number of utterances.
        """
        languages, rows = self.language_index(language), None
        if self.training:
            speech, speech_lengths, rows = self._augment(speech, speech_lengths)
        routed, lower = self.route(speech, speech_lengths)
        if rows is not None:
            rows = fit_frames(rows, lower.hidden.size(1))
        loss, stats = routing_loss(
            routed, lower.spoken, languages, memberships, weight, self.smoothing or 0.0, rows
        )
        if self.training and self.replay:
            now = Heard(lower.hidden, lower.spoken, languages, memberships, weight, rows)
            loss = self._with_replay(loss, now)
        stats = {"loss": loss.detach(), **stats}
        gathered: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]
        gathered = force_gatherable((loss, stats, speech.size(0)), loss.device)
        return gathered

    def train(self, mode: bool = True) -> "RouterModel":
        """Training mode for the router; the frozen layers below it stay without dropout."""
        super().train(mode)
        self.backbone.eval()
        if not mode:
            self.heard.clear()
        return self

    def route(self, speech: torch.Tensor, lengths: torch.Tensor) -> tuple[Routed, Encoded]:
        """What the router says of ``speech (batch, samples)``, and the states that it read."""
        augment = self.specaug if self.training else None
        with torch.no_grad(), self.autocast(speech.device):
            lower = self.backbone.encode_lower(speech, lengths, self.router.layer, augment)
        return self.router(lower.hidden, lower.spoken), lower

    def _with_replay(self, loss: torch.Tensor, now: Heard) -> torch.Tensor:
        """The mean of a batch's loss and those of earlier ones; the batch is kept in turn."""
        draw = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        chosen = (
            torch.randint(len(self.heard), (self.replay,), generator=draw) if self.heard else ()
        )
        losses = [loss]
        for number in map(int, chosen):
            then = self.heard[number]
            routed = self.router(then.frames, then.spoken)
            targets = (then.languages, then.memberships, then.weight, self.smoothing or 0.0)
            losses.append(routing_loss(routed, then.spoken, *targets, then.rows)[0])
        # What is padding in every row (most of it, with 30 s for each) would be kept for nothing.
        spoken = int(now.spoken.max())
        kept = now.frames[:, :spoken].detach().to(torch.bfloat16, copy=True)
        rows = None if now.rows is None else now.rows[:, :spoken]
        self.heard.append(replace(now, frames=kept, rows=rows))
        return torch.stack(losses).mean()

    def _augment(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Random pieces; at frame level joined ones, and the row ``(batch, frames)`` of each."""
        options = self.augment
        # A generator of its own, seeded from the global one, which a resumed epoch seeds anew.
        draw = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        if self.router.options.level == "frame":
            numbers = torch.arange(len(speech), device=speech.device)
            return splice(
                speech,
                lengths,
                numbers,
                (options.splice_seconds[0], options.splice_seconds[1]),
                options.splice_share,
                draw,
                options.cross_fade,
                self.backbone.frame_samples,
            )
        if torch.rand((), generator=draw) < options.crop_share:
            low, high = options.crop_seconds
            speech, lengths = crop(speech, lengths, (low, high), draw)
        return speech, lengths, None


def fit_frames(labels: torch.Tensor, frames: int) -> torch.Tensor:
    """Labels ``(batch, any)`` cut or filled up to as many frames as the encoder made."""
    missing = frames - labels.size(1)
    if missing > 0:
        return torch.cat([labels, labels[:, -1:].expand(-1, missing)], dim=1)
    return labels[:, :frames]


def routing_loss(
    routed: Routed,
    lengths: torch.Tensor,
    languages: torch.Tensor,
    memberships: torch.Tensor | None,
    weight: torch.Tensor | None,
    smoothing: float,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy of a router's logits against what is known of the utterances.

    Where the experts are the languages there is one head, and the languages are its targets.
    Otherwise the loss is the sum of the language head's and, where memberships are known, the
    expert head's.

    Args:
        routed: The router's logits, of rows or of frames.
        lengths: ``(batch,)`` valid frames.
        languages: ``(batch,)`` in the router's order.
        memberships: ``(batch, experts)`` or ``None``.
        weight: ``(batch, 1)`` or ``None``.
        smoothing: Label smoothing.
        rows: ``(batch, frames)`` the row that a frame's labels are those of, where utterances were
            joined; ``None`` where all are those of its own.

    Returns:
        The loss, and ``acc`` and ``acc_expert`` in percent.
    """
    shares = None
    if memberships is not None:
        shares = memberships / memberships.sum(-1, keepdim=True).clamp(min=1e-9)
    frame_level = routed.languages.dim() == 3
    valid = torch.ones_like(languages, dtype=torch.bool)
    if frame_level:
        valid = valid_frames(lengths, routed.languages.size(1))
        if rows is None:
            own = torch.arange(len(languages), device=languages.device)
            rows = own.unsqueeze(1).expand_as(valid)
        valid = valid & (rows >= 0)
        rows = rows.clamp(min=0)
        languages = languages[rows].masked_fill(~valid, IGNORE)
        shares = None if shares is None else shares[rows] * valid.unsqueeze(2)
    one_head = routed.experts is routed.languages
    common = (lengths if frame_level else None, weight, smoothing)
    loss = cross_entropy(routed.languages, languages, *common)
    if not one_head and shares is not None:
        loss = loss + cross_entropy(routed.experts, shares, *common)
    elif not one_head:
        # A head without targets is touched all the same: processes wait for its gradient.
        loss = loss + 0.0 * routed.experts.sum()
    share = share_of_mean(valid.sum(), len(valid))
    stats = {"acc": share * _accuracy(routed.languages, languages, valid)}
    if one_head:
        stats["acc_expert"] = stats["acc"]
    elif shares is not None:
        stats["acc_expert"] = share * _accuracy(routed.experts, shares.argmax(-1), valid)
    return loss, stats


def _accuracy(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Percent of what is valid."""
    right = (logits.argmax(-1) == target) & valid
    return 100.0 * right.sum() / valid.sum()
