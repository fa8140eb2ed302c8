"""Greedy and beam search over a batch of utterances, each row with its own prompt and experts.

Rows are independent: to rounding, what an utterance gets does not depend on the batch it is in.
Finished utterances leave the batch, so that a long one does not make the short ones wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.protocol import DecodingBackbone, Tokens
from espnet_moe.decoding.ctc_prefix import CtcPrefixScorer, Extended
from espnet_moe.errors import UserError
from espnet_moe.experts.gates import Gates, use_gates

PRE_BEAM = 1.5  # tokens that CTC scores a row, times the beam (espnet2 ``pre_beam_ratio``)


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search.

    Attributes:
        beam_size: Hypotheses kept an utterance; 1 is greedy (and hears no CTC).
        max_tokens: Most tokens of a transcript; 0 means as many as the backbone allows.
        length_penalty: Hypotheses are ranked by log-probability / tokens ** length_penalty.
        repetition_limit: Stop when the last tokens are this many copies of one phrase (and at least
            16 tokens): Whisper's loops on silence and unknown speech. 0 never stops.
        ctc_weight: Share of the CTC branch in the scores of a beam search, as ESPnet has it: the
            sum of log-probabilities then ranks hypotheses, and ``length_penalty`` does not count.
    """

    beam_size: int = 1
    max_tokens: int = 0
    length_penalty: float = 1.0
    repetition_limit: int = 4
    ctc_weight: float = 0.0

    def __post_init__(self) -> None:
        wrong = []
        if self.beam_size < 1:
            wrong.append(f"beam_size is at least 1, not {self.beam_size}")
        if self.max_tokens < 0:
            wrong.append(f"max_tokens is 0 (no cap) or more, not {self.max_tokens}")
        if self.repetition_limit == 1 or self.repetition_limit < 0:
            wrong.append(f"repetition_limit is 0 (off) or at least 2, not {self.repetition_limit}")
        if not 0 <= self.ctc_weight < 1:
            wrong.append(f"ctc_weight is in [0, 1), not {self.ctc_weight}")
        if wrong:
            raise UserError("; ".join(wrong))


@dataclass(frozen=True)
class Hypothesis:
    """What an utterance was decoded to.

    Attributes:
        tokens: Ids, without prompt and end.
        score: Log-probability / tokens ** length_penalty, the end token included; with CTC the
            weighted sum of both log-probabilities.
        stop: Why it ended: ``eos``, ``length`` or ``repetition``.
        steps: Decoder steps after which this utterance was done.
    """

    tokens: list[int]
    score: float
    stop: str
    steps: int


def repeats(tokens: Sequence[int], limit: int, at_least: int = 16) -> bool:
    """Whether the tail of ``tokens`` is ``limit`` or more copies of a phrase, 16 tokens or more."""
    for period in range(1, len(tokens) // max(limit, 1) + 1):
        copies = max(limit, -(-at_least // period))
        if copies * period > len(tokens):
            continue
        tail = tokens[-copies * period :]
        if all(tail[i] == tail[i + period] for i in range(len(tail) - period)):
            return True
    return False


@torch.inference_mode()
def search(
    backbone: DecodingBackbone,
    encoded: Encoded,
    prompts: torch.Tensor,
    options: SearchOptions,
    gates: Gates | None = None,
    first: torch.Tensor | None = None,
    tokens: Tokens | None = None,
) -> list[Hypothesis]:
    """Decode a batch.

    With gates a frame, the decoder's gates at a step are those of the encoder frames that its
    cross-attention looked at the step before: ``Σ_f attention_f · gates_f``, the attention being
    the mean over heads and layers.

    Args:
        backbone: Gives logits step by step.
        encoded: Encoder states of the batch.
        prompts: ``(batch, prompt tokens)``, any language in any row.
        options: Beam, caps, penalties.
        gates: Experts of each row ``(batch, experts)`` or frame ``(batch, frames, experts)``;
            ``None`` for the backbone alone.
        first: With gates a frame, those of the first step ``(batch, experts)``; without, the first
            frame's.
        tokens: Say what may be said; the backbone's own if ``None``.

    Returns:
        The best hypothesis of each row.
    """
    room = backbone.max_target_length - prompts.size(1)
    limit = min(options.max_tokens, room) if options.max_tokens else room
    run: type[_Search] = _Greedy
    if options.beam_size > 1:
        run = _JointBeams if options.ctc_weight > 0 else _Beams
    rows = _RowGates(gates, first, options.beam_size)
    own: Tokens = backbone.tokens if tokens is None else tokens
    return run(backbone, own, encoded, prompts, options, rows, limit).decode()


class _RowGates:
    """The gates of the utterances that still run, and of their rows: the beams of each.

    Args:
        gates: Of the utterances at the start; ``None`` for the backbone alone.
        first: See :func:`search`.
        beams: Rows an utterance.
    """

    def __init__(self, gates: Gates | None, first: torch.Tensor | None, beams: int) -> None:
        self.utterances, self.beams = gates, beams
        # One expert for all frames of all rows stays one, wherever a step looks.
        self.by_frame = gates is not None and gates.weights.dim() == 3 and gates.uniform is None
        start = gates
        if gates is not None and gates.weights.dim() == 3:
            start = Gates(gates.weights[:, 0] if first is None else first, None, gates.uniform)
        self.start = start
        self.rows = self._expanded(start)

    def _expanded(self, gates: Gates | None) -> Gates | None:
        if gates is None or self.beams == 1:
            return gates
        device = gates.weights.device
        return gates.select(
            torch.arange(gates.weights.size(0), device=device).repeat_interleave(self.beams)
        )

    def follow(self, attention: torch.Tensor | None) -> None:
        """Give every row what it looks at: ``attention (rows, frames)`` of its latest step."""
        if attention is None or not self.by_frame or self.utterances is None:
            return
        frames = self.utterances.weights  # (utterances, frames, experts)
        looks = attention.unflatten(0, (frames.size(0), self.beams)).to(frames.dtype)
        self.rows = Gates(torch.matmul(looks, frames).flatten(0, 1))

    def keep(self, utterances: torch.Tensor) -> None:
        """Go on with the utterances ``(n,)``."""
        if self.utterances is None or self.start is None:
            return
        self.utterances = self.utterances.select(utterances)
        self.start = self.start.select(utterances)
        self.rows = self._expanded(self.start)


class _Search:
    """What greedy and beam search share: the caches, the gates of the rows, leaving utterances."""

    #: Whether the tokens that are not ruled out have all of the probability.
    renormalised = True

    def __init__(
        self,
        backbone: DecodingBackbone,
        tokens: Tokens,
        encoded: Encoded,
        prompts: torch.Tensor,
        options: SearchOptions,
        gates: _RowGates,
        limit: int,
    ) -> None:
        self.backbone, self.tokens = backbone, tokens
        self.options, self.limit = options, limit
        self.beams = options.beam_size
        self.device = encoded.hidden.device
        batch = encoded.hidden.size(0)
        rows = torch.arange(batch, device=self.device).repeat_interleave(self.beams)
        self.gates = gates
        self.running = list(range(batch))
        self.done: list[Hypothesis | None] = [None] * batch
        self.banned = torch.tensor(tokens.suppressed, device=self.device)
        self.banned_first = torch.tensor(
            tokens.suppressed_first, device=self.device, dtype=torch.long
        )
        # Attention is recorded, at its cost, only where the gates follow it.
        record = {"record_attention": True} if gates.by_frame else {}
        with use_gates(gates.utterances):
            self.state = backbone.start(encoded, self.beams, prompts.size(1) + limit, **record)
        self.next = prompts.to(self.device).index_select(0, rows)

    def log_probabilities(self) -> torch.Tensor:
        """Of the next token, ``(rows, vocabulary)`` in fp32, special tokens ruled out."""
        if self.gates.by_frame:
            self.gates.follow(self.state.attention)
        with use_gates(self.gates.rows):
            logits = self.backbone.step(self.next, self.state).float()
        if not self.renormalised:
            logits = logits.log_softmax(-1)
        logits = logits.index_fill(1, self.banned, -torch.inf)
        if self.next.size(1) > 1:  # the prompt: what comes is the first token
            logits = logits.index_fill(1, self.banned_first, -torch.inf)
        return logits.log_softmax(-1) if self.renormalised else logits

    def decode(self) -> list[Hypothesis]:
        """Run to the end."""
        raise NotImplementedError

    def keep(self, slots: list[int]) -> None:
        """Go on with the utterances at ``slots`` of the running ones; the others leave."""
        index = torch.tensor(slots, dtype=torch.long, device=self.device)
        self.running = [self.running[s] for s in slots]
        self.state.select_utterances(index)
        self.gates.keep(index)

    def loops(self, tokens: Sequence[int]) -> bool:
        """Whether a transcript has begun to repeat itself."""
        return self.options.repetition_limit > 0 and repeats(tokens, self.options.repetition_limit)


class _Greedy(_Search):
    """The most probable token at every step."""

    def decode(self) -> list[Hypothesis]:
        end = self.tokens.end_id
        texts: list[list[int]] = [[] for _ in self.running]
        totals = [0.0] * len(self.running)
        for step in range(1, self.limit + 1):
            scores, chosen = self.log_probabilities().max(-1)
            stay = []
            steps = zip(self.running, scores.tolist(), chosen.tolist(), strict=True)
            for slot, (u, score, token) in enumerate(steps):
                totals[u] += score
                if token != end:
                    texts[u].append(token)
                stop = "eos" if token == end else "length" if step == self.limit else None
                if stop is None and self.loops(texts[u]):
                    stop = "repetition"
                if stop is None:
                    stay.append(slot)
                    continue
                count = len(texts[u]) + (stop == "eos")
                mean = totals[u] / count**self.options.length_penalty
                self.done[u] = Hypothesis(texts[u], mean, stop, step)
            if not stay:
                break
            self.next = chosen.unsqueeze(1)
            if len(stay) < len(self.running):
                rows = torch.tensor(stay, device=self.device)
                self.keep(stay)
                self.state.select_rows(rows)
                self.next = self.next.index_select(0, rows)
        return [h for h in self.done if h is not None]


class _Beams(_Search):
    """The best of ``beam_size`` hypotheses by length-normalised score.

    A hypothesis that ends leaves its beam to the next best one. An utterance is done when it has
    ``beam_size`` ended hypotheses and no running one has a better score, at its present length,
    than the worst of them (transformers' ``early_stopping=False``).
    """

    def decode(self) -> list[Hypothesis]:
        k, end = self.beams, self.tokens.end_id
        batch = len(self.running)
        totals = torch.full((batch, k), -torch.inf, device=self.device)
        totals[:, 0] = 0.0  # all beams begin alike: only the first counts
        texts = torch.zeros(batch, k, 0, dtype=torch.long, device=self.device)
        self.ended: list[list[Hypothesis]] = [[] for _ in self.running]
        for step in range(1, self.limit + 1):
            logp = self.scores()
            vocabulary = logp.size(-1)
            both = (totals.unsqueeze(-1) + logp.view(len(self.running), k, vocabulary)).flatten(1)
            best, index = both.topk(self.candidates, dim=-1)
            beam, token = index // vocabulary, index % vocabulary
            order, stay = self._advance(step, texts, best, beam, token, end)
            if not stay:
                break
            # Rows of the next step: k running candidates of each staying utterance, in order.
            filler = order < 0  # fewer candidates than beams: an empty beam takes the place
            order = order.clamp(min=0)
            totals = best.gather(1, order).masked_fill(filler, -torch.inf)
            beam, token = beam.gather(1, order), token.gather(1, order)
            kept = torch.tensor(stay, device=self.device)
            totals, beam, token = totals[kept], beam[kept], token[kept]
            rows = (kept.unsqueeze(1) * k + beam).flatten()
            self.chosen(rows, token.flatten())
            texts = texts.flatten(0, 1)[rows].view(len(stay), k, -1)
            texts = torch.cat([texts, token.unsqueeze(-1)], dim=-1)
            self.next = token.flatten().unsqueeze(1)
            self.state.select_rows(rows)
            if len(stay) < len(self.running):
                self.keep(stay)
        return [h for h in self.done if h is not None]

    @property
    def candidates(self) -> int:
        """Continuations looked at an utterance: at most ``beam_size`` of them end."""
        return 2 * self.beams

    @property
    def wanted(self) -> int:
        """Ended hypotheses that no running one may beat before an utterance is done."""
        return self.beams

    def final_scores(self, u: int) -> list[float]:
        """Scores of the hypotheses of an utterance that count as ended."""
        return [h.score for h in self.ended[u]]

    @property
    def power(self) -> float:
        """Of the length that scores are divided by."""
        return self.options.length_penalty

    def scores(self) -> torch.Tensor:
        """What each token would add to its row's score, ``(rows, vocabulary)``."""
        return self.log_probabilities()

    def chosen(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """The next step's rows: the ``rows (n,)`` there were, each with one of ``tokens (n,)``."""

    def _advance(
        self,
        step: int,
        texts: torch.Tensor,
        best: torch.Tensor,
        beam: torch.Tensor,
        token: torch.Tensor,
        end: int,
    ) -> tuple[torch.Tensor, list[int]]:
        """Take ended hypotheses out; say which candidates go on (-1: none) and who stays."""
        k, power = self.beams, self.power
        scores, beams, tokens = best.tolist(), beam.tolist(), token.tolist()
        history = texts.tolist()
        order, stay = [], []
        for slot, u in enumerate(self.running):
            going: list[int] = []
            for c in range(self.candidates):
                text = history[slot][beams[slot][c]]
                if scores[slot][c] == -float("inf"):
                    continue  # an empty beam
                if tokens[slot][c] == end:
                    if c < k:
                        score = scores[slot][c] / step**power
                        self.ended[u].append(Hypothesis(text, score, "eos", step))
                    continue
                longer = [*text, tokens[slot][c]]
                stop = "length" if step == self.limit else None
                if stop is None and self.loops(longer):
                    stop = "repetition"
                if stop is not None:
                    score = scores[slot][c] / step**power
                    self.ended[u].append(Hypothesis(longer, score, stop, step))
                    continue
                going.append(c)
                if len(going) == k:
                    break
            if self._is_done(u, [scores[slot][c] for c in going], step):
                self.done[u] = self._best(u)
            else:
                stay.append(slot)
            order.append((going + [-1] * k)[:k])
        return torch.tensor(order, device=self.device), stay

    def _is_done(self, u: int, running: list[float], step: int) -> bool:
        """Whether nothing runs, or nothing that runs is better now than what has ended."""
        if not running or step == self.limit:
            return True
        ended = sorted(self.final_scores(u), reverse=True)[: self.wanted]
        best = max(running) / step**self.power
        return len(ended) == self.wanted and best <= ended[-1]

    def _best(self, u: int) -> Hypothesis:
        """The best ended hypothesis; one that ended by itself before one that was cut."""
        natural = [h for h in self.ended[u] if h.stop == "eos"]
        return max(natural or self.ended[u], key=lambda h: h.score)


class _JointBeams(_Beams):
    """CTC and attention together, as espnet2's ``s2t_inference`` searches with one utterance.

    CTC scores a pre-beam of the decoder's best tokens. The ``beam_size`` best continuations are
    kept; those of them that end leave the beam. Scores are plain sums, so none that runs can come
    to beat one that has ended above it: the search stops there, with the result that ESPnet has
    when it runs on.
    """

    renormalised = False

    def __init__(
        self,
        backbone: DecodingBackbone,
        tokens: Tokens,
        encoded: Encoded,
        prompts: torch.Tensor,
        options: SearchOptions,
        gates: _RowGates,
        limit: int,
    ) -> None:
        super().__init__(backbone, tokens, encoded, prompts, options, gates, limit)
        log_probs, blank = backbone.ctc_log_probs(encoded)
        self.ctc = CtcPrefixScorer(log_probs, encoded.lengths, self.beams, blank)
        self.pre_beam = min(int(PRE_BEAM * self.beams), log_probs.size(-1))
        self.extended: Extended | None = None

    @property
    def candidates(self) -> int:
        """The beam itself."""
        return self.beams

    @property
    def wanted(self) -> int:
        """One: sums only fall."""
        return 1

    def final_scores(self, u: int) -> list[float]:
        """Of those that ended by themselves: a loop that was cut is beaten by any of them."""
        return [h.score for h in self.ended[u] if h.stop == "eos"]

    @property
    def power(self) -> float:
        """Sums are not divided."""
        return 0.0

    def scores(self) -> torch.Tensor:
        """Weighted sums; tokens outside the pre-beam are ruled out, but for the end."""
        weight, end = self.options.ctc_weight, self.tokens.end_id
        of_decoder = (1 - weight) * self.log_probabilities()
        best, ids = of_decoder.topk(self.pre_beam, dim=-1)
        of_ctc, self.extended = self.ctc.extend(ids)
        total = torch.full_like(of_decoder, -torch.inf).scatter(1, ids, best + weight * of_ctc)
        total[:, end] = of_decoder[:, end] + weight * self.ctc.ending()
        return total

    def chosen(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """CTC goes on with them, too."""
        assert self.extended is not None
        self.ctc.select(self.extended, rows, tokens)

    def keep(self, slots: list[int]) -> None:
        """Go on with the utterances at ``slots`` of the running ones; the others leave."""
        super().keep(slots)
        self.ctc.keep(torch.tensor(slots, dtype=torch.long, device=self.device))
