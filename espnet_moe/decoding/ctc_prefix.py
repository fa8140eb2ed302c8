"""CTC's probability that a transcript begins with a prefix, for many prefixes at once.

Algorithm 2 of Watanabe et al., "Hybrid CTC/Attention Architecture for End-to-End Speech
Recognition", without its loop over frames: the forward variables are linear recurrences, and
cumulative sums in the logarithm solve them for all frames together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOGZERO = -1e10


@dataclass
class Extended:
    """Prefixes longer by one token, for :meth:`CtcPrefixScorer.select`.

    Attributes:
        ids: ``(rows, n)`` the tokens.
        ending: ``(rows, n)`` log-probability of the prefix with each token behind it.
        forward: ``(frames, 2, rows, n)`` probabilities of having said it all, by frame, with the
            token or a blank as last symbol.
    """

    ids: torch.Tensor
    ending: torch.Tensor
    forward: torch.Tensor


class CtcPrefixScorer:
    """CTC scores of the next token, for a group of ``beams`` rows an utterance.

    Args:
        log_probs: ``(utterances, frames, vocabulary)``.
        lengths: ``(utterances,)`` valid frames.
        beams: Rows an utterance.
        blank: Id of the blank.
        lead: Frames that a prefix has to leave before its first token. 0 is right; ESPnet counts
            OWSM's prompt as tokens that were spoken, which is 3.
    """

    def __init__(
        self,
        log_probs: torch.Tensor,
        lengths: torch.Tensor,
        beams: int,
        blank: int,
        lead: int = 0,
    ) -> None:
        self.log_probs = log_probs  # of all utterances, to the end: copies of it would be large
        self.utterances = torch.arange(len(log_probs), device=log_probs.device)
        self.lengths, self.beams, self.blank, self.lead = lengths, beams, blank, lead
        frames = log_probs.size(1)
        # Sums over hundreds of frames are subtracted from one another: single precision would
        # leave three digits.
        silent = log_probs[:, :, blank].double().cumsum(1).t()  # (frames, utterances)
        silent = silent.repeat_interleave(beams, dim=1)
        #: Per frame, spoken all with the last token or a blank as last symbol: (frames, 2, rows).
        self.forward = torch.stack([torch.full_like(silent, LOGZERO), silent], dim=1)
        rows = silent.size(1)
        self.score = silent.new_zeros(rows)
        self.last = torch.full((rows,), -1, device=log_probs.device)
        self.count = 0
        self.times = torch.arange(frames, device=log_probs.device)

    def ending(self) -> torch.Tensor:
        """``(rows,)`` what ending here adds: all of the speech is the prefix."""
        total = torch.logsumexp(self.forward, dim=1)  # (frames, rows)
        last = (self.lengths - 1).repeat_interleave(self.beams)
        return (total.gather(0, last.unsqueeze(0))[0] - self.score).float()

    def extend(self, ids: torch.Tensor) -> tuple[torch.Tensor, Extended]:
        """What each of ``ids (rows, n)`` behind its row's prefix adds to the score.

        Returns:
            ``(rows, n)`` in fp32, and what :meth:`select` needs.
        """
        rows, n = ids.shape
        frames = self.log_probs.size(1)
        owner = self.utterances.repeat_interleave(self.beams)
        times = torch.arange(frames, device=ids.device)
        token = self.log_probs[owner[None, :, None], times[:, None, None], ids[None]].double()
        blank = self.log_probs[:, :, self.blank].double().t()[:, owner]
        # Spoken so far at the frame before; a token after itself needs a blank between.
        before = torch.logsumexp(self.forward, dim=1).unsqueeze(2).expand(-1, -1, n)
        again = ids == self.last.unsqueeze(1)
        before = torch.where(again, self.forward[:, 1].unsqueeze(2), before)
        before = torch.cat([before.new_full((1, rows, n), LOGZERO), before[:-1]])
        if self.count == 0 and self.lead == 0:
            before[0] = 0.0
        before[: self.count + self.lead] = LOGZERO
        with_token = _recurrence(before, token)
        after = torch.cat([with_token.new_full((1, rows, n), LOGZERO), with_token[:-1]])
        with_blank = _recurrence(after, blank.unsqueeze(2))
        inside = self.times.unsqueeze(1) < self.lengths.repeat_interleave(self.beams)
        starts = (before + token).masked_fill(~inside.unsqueeze(2), LOGZERO)
        ending = torch.logsumexp(starts, dim=0)
        made = Extended(ids, ending, torch.stack([with_token, with_blank], dim=1))
        return (ending - self.score.unsqueeze(1)).float(), made

    def select(self, made: Extended, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """Go on with ``rows (n,)`` of what was extended, each by its one of ``tokens (n,)``."""
        place = (made.ids[rows] == tokens.unsqueeze(1)).long().argmax(1)
        self.forward = made.forward[:, :, rows, place]
        self.score = made.ending[rows, place]
        self.last = tokens
        self.count += 1

    def keep(self, utterances: torch.Tensor) -> None:
        """Go on with the utterances ``(n,)``; their rows are chosen by :meth:`select`."""
        self.utterances = self.utterances.index_select(0, utterances)
        self.lengths = self.lengths.index_select(0, utterances)


def _recurrence(inflow: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``y(t) = (y(t - 1) + inflow(t)) · factor(t)`` over the first axis, all in the logarithm.

    Unrolled: ``y(t) = F(t) · Σ_{s ≤ t} inflow(s) / F(s - 1)``, where ``F`` is the running product.
    """
    product = factor.cumsum(0)
    earlier = torch.cat([torch.zeros_like(product[:1]), product[:-1]])
    return product + torch.logcumsumexp(inflow - earlier, dim=0)
