"""Search against slow references, and independence of the batch."""

import itertools
import math

import pytest
import torch
from transformers import GenerationMixin

from espnet_moe.backbones.whisper import Encoded
from espnet_moe.decoding.search import SearchOptions, repeats, search
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import use_gates

# -- a model of a few words whose probabilities depend on the whole history -----------------------


class TableState:
    def __init__(self, utterances, beams):
        self.rows = [([], u) for u in utterances for _ in range(beams)]

    def select_rows(self, rows):
        self.rows = [(list(self.rows[r][0]), self.rows[r][1]) for r in rows.tolist()]

    def select_utterances(self, utterances):
        pass


def _rules(words):
    return {"end_id": 0, "suppressed": (words + 1, words + 2), "suppressed_first": ()}


class TableModel:
    """Token 0 ends; the last two tokens are special and must never be chosen."""

    def __init__(self, words, limit, seed, sharpness=1.5):
        self.vocabulary, self.seed, self.sharpness = words + 3, seed, sharpness
        self.max_target_length = limit + 1
        self.tokens = type("Tokens", (), _rules(words))()

    def logits(self, history, utterance):
        key = hash((tuple(history), utterance, self.seed)) % 2**31
        draw = torch.Generator().manual_seed(key)
        logits = self.sharpness * torch.randn(self.vocabulary, generator=draw)
        logits[-2:] += 5  # tempting
        return logits

    def log_probabilities(self, history, utterance):
        return self.logits(history, utterance)[:-2].log_softmax(-1).tolist()

    def start(self, encoded, beams, max_length):
        return TableState(encoded.hidden[:, 0, 0].int().tolist(), beams)

    def step(self, tokens, state):
        for (history, _), new in zip(state.rows, tokens.tolist(), strict=True):
            history += new
        return torch.stack([self.logits(h[1:], u) for h, u in state.rows])

    def search(self, utterances, **options):
        hidden = torch.tensor(utterances, dtype=torch.float32)[:, None, None]
        encoded = Encoded(hidden, torch.ones(len(utterances), dtype=torch.long))
        prompts = torch.full((len(utterances), 1), 9)
        return search(self, encoded, prompts, SearchOptions(repetition_limit=0, **options))


def exhaustive(model, utterance, limit, power=1.0):
    """The best of all sequences that end by themselves within the limit: (score, tokens)."""
    found, words = [], range(1, model.vocabulary - 2)
    for n in range(limit):
        for text in itertools.product(words, repeat=n):
            total = sum(model.log_probabilities(text[:i], utterance)[t] for i, t in enumerate(text))
            total += model.log_probabilities(text, utterance)[0]
            found.append((total / (n + 1) ** power, list(text)))
    return max(found)


def slow_beam(model, utterance, limit, k, power=1.0):
    """Beam search over lists, written from the description alone."""
    running, ended = [(0.0, [])], []
    for step in range(1, limit + 1):
        candidates = sorted(
            (
                (total + logp, [*text, token])
                for total, text in running
                for token, logp in enumerate(model.log_probabilities(text, utterance))
            ),
            reverse=True,
        )
        for score, text in candidates[:k]:
            if text[-1] == 0:
                ended.append((score / step**power, text[:-1]))
        running = [c for c in candidates if c[1][-1] != 0][:k]
        ended.sort(reverse=True)
        if len(ended) >= k and running[0][0] / step**power <= ended[k - 1][0]:
            break
    return max(ended) if ended else (running[0][0] / limit**power, running[0][1])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("k", "power"), [(2, 1.0), (3, 0.0), (5, 0.7)])
def test_beam_equals_a_slow_beam(seed, k, power):
    model = TableModel(4, 7, seed)
    found = model.search(list(range(6)), beam_size=k, length_penalty=power)
    for u, got in enumerate(found):
        score, tokens = slow_beam(model, u, 7, k, power)
        assert got.tokens == tokens
        assert got.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_finds_the_best_of_all(seed):
    model = TableModel(3, 4, seed, sharpness=0.7)
    greedy = model.search([0, 1, 2])
    for u, got in enumerate(model.search([0, 1, 2], beam_size=90, length_penalty=0.0)):
        score, tokens = exhaustive(model, u, 4, power=0.0)
        assert got.tokens == tokens and got.score == pytest.approx(score, abs=1e-4)
        if greedy[u].stop == "eos":
            whole = greedy[u].score * (len(greedy[u].tokens) + 1)
            assert got.score >= whole - 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_greedy_equals_a_loop(seed):
    model = TableModel(5, 9, seed)
    for u, got in enumerate(model.search([0, 1, 2, 3])):
        text, total, steps = [], 0.0, 0
        while steps < 9:
            steps += 1
            logp = model.log_probabilities(text, u)
            token = max(range(len(logp)), key=logp.__getitem__)
            total += logp[token]
            if token == 0:
                break
            text.append(token)
        assert (got.tokens, got.steps) == (text, steps)
        assert got.stop == ("eos" if token == 0 else "length")
        assert got.score == pytest.approx(total / steps, abs=1e-4)


@pytest.mark.parametrize("k", [1, 4])
def test_the_cap_on_length(k):
    model = TableModel(4, 30, 0)
    model.logits = lambda history, u: torch.tensor([-9.0, 0.0, 1.0, 0.5, 0.2, 5.0, 5.0])
    for cap, want in ((5, 5), (0, 30), (99, 30)):
        (got,) = model.search([0], beam_size=k, max_tokens=cap)
        assert len(got.tokens) == want and got.stop == "length"
        assert set(got.tokens) == {2}


@pytest.mark.parametrize("k", [1, 3])
def test_an_utterance_may_be_empty(k):
    model = TableModel(4, 30, 0)
    model.logits = lambda history, u: torch.tensor([9.0, 0.0, 1.0, 0.5, 0.2, 5.0, 5.0])
    (got,) = model.search([0], beam_size=k)
    assert got.tokens == [] and got.stop == "eos"
    assert got.score == pytest.approx(
        torch.tensor([9.0, 0.0, 1.0, 0.5, 0.2]).log_softmax(0)[0].item()
    )


@pytest.mark.parametrize(
    ("tokens", "limit", "want"),
    [
        ([], 4, False),
        ([7] * 15, 4, False),
        ([7] * 16, 4, True),
        ([1, 2, 3] + [7] * 16, 4, True),
        ([7] * 16 + [1], 4, False),
        ([1, 2] * 8, 4, True),
        ([1, 2] * 7 + [1], 4, False),
        ([1, 2, 3, 4, 5] * 4, 4, True),
        ([1, 2, 3, 4, 5] * 3, 4, False),
        ([1, 2, 3, 4, 5] * 4, 5, False),
        ([5, 1, 2, 3, 4] + [1, 2, 3, 4] * 4, 4, True),
        (list(range(100)), 2, False),
        (list(range(20)) * 2, 2, True),
        ([0] + list(range(20)) * 2, 2, True),
    ],
)
def test_repeats(tokens, limit, want):
    assert repeats(tokens, limit) is want


@pytest.mark.parametrize("k", [1, 3])
def test_a_loop_is_stopped_and_said(k):
    model = TableModel(4, 60, 0)

    def logits(history, u):
        if u == 1:
            return torch.tensor([-9.0, 0, 0, 0, 0, 5, 5]).index_fill(
                0, torch.tensor(len(history) % 2 + 1), 9.0
            )
        return torch.tensor([9.0 if len(history) == 20 else -9.0, 0, 0, 0, 0, 5, 5]).index_fill(
            0, torch.tensor((len(history) * len(history) // 3) % 4 + 1), 5.0
        )

    model.logits = logits
    hidden = torch.tensor([0.0, 1.0])[:, None, None]
    encoded = Encoded(hidden, torch.ones(2, dtype=torch.long))
    prompts = torch.full((2, 1), 9)
    options = SearchOptions(beam_size=k, repetition_limit=4)
    good, loop = search(model, encoded, prompts, options)
    assert (good.stop, len(good.tokens)) == ("eos", 20)
    assert (loop.stop, loop.tokens) == ("repetition", [1, 2] * 8)
    off = search(model, encoded, prompts, SearchOptions(beam_size=k, repetition_limit=0))
    assert (off[1].stop, len(off[1].tokens)) == ("length", 60)


def test_wrong_options_are_named_together():
    with pytest.raises(UserError) as error:
        SearchOptions(beam_size=0, max_tokens=-1, repetition_limit=1)
    for word in ("beam_size", "max_tokens", "repetition_limit"):
        assert word in str(error.value)


# -- with the small Whisper -----------------------------------------------------------------------


def raise_end(backbone, bias):
    """Make random models end now and then: push the end token's embedding along the final norm."""
    with torch.no_grad():
        decoder = backbone.hf.model.decoder
        decoder.embed_tokens.weight[backbone.tokens.end_id] += bias * decoder.layer_norm.bias
    return backbone


def encode(backbone, speech, lengths, gates=None):
    with torch.no_grad(), use_gates(gates):
        return backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)


def many(batch_of, count=16):
    return batch_of(*[0.25 + 0.11 * ((7 * i) % 11) for i in range(count)])


@pytest.mark.parametrize("context", ["padded", "variable"])
def test_greedy_equals_transformers_generate(make_backbone, batch_of, context):
    backbone = raise_end(make_backbone(context), 0.6 if context == "padded" else 2.0)
    speech, lengths = many(batch_of, 6)
    codes = ["hi", "it", "pa", "te", "en", "hi"]
    encoded, prompts = encode(backbone, speech, lengths), backbone.tokens.prompt(codes)
    options = SearchOptions(max_tokens=40, repetition_limit=0)
    found = search(backbone, encoded, prompts, options)
    for i, got in enumerate(found):
        frames = int(encoded.lengths[i])
        hidden = encoded.hidden[i : i + 1, :frames]
        out = GenerationMixin.generate(
            backbone.hf,
            encoder_outputs=(hidden,),
            decoder_input_ids=prompts[i : i + 1],
            suppress_tokens=list(backbone.tokens.suppressed),
            max_new_tokens=40,
            do_sample=False,
        )
        want = [t for t in out[0, 4:].tolist() if t != backbone.tokens.end_id]
        assert got.tokens == want
    assert {h.stop for h in found} >= {"eos"}, "some must end by themselves"
    assert len({tuple(h.tokens) for h in found}) > 2


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize(("count", "bias"), [(1, 0.9), (4, 1.5), (10, 3.5)])
def test_alone_equals_in_a_batch_of_16_with_mixed_experts(
    make_backbone, batch_of, beam, count, bias
):
    backbone = raise_end(make_backbone(), bias)
    experts = ExpertSet(backbone, LoRAOptions(rank=4), [f"e{i}" for i in range(count)])
    torch.manual_seed(2)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.2)
    speech, lengths = many(batch_of)
    names = [f"e{(5 * i) % count}" for i in range(16)]
    prompts = backbone.tokens.prompt([["hi", "it", "pa", "te"][i % 4] for i in range(16)])
    options = SearchOptions(beam_size=beam, max_tokens=24, repetition_limit=0)
    gates = experts.one_hot(names, backbone.device)
    together = search(backbone, encode(backbone, speech, lengths, gates), prompts, options, gates)
    for i, n in enumerate(lengths.tolist()):
        one = experts.one_hot([names[i]], backbone.device)
        encoded = encode(backbone, speech[i : i + 1, :n], lengths[i : i + 1], one)
        (alone,) = search(backbone, encoded, prompts[i : i + 1], options, one)
        assert together[i].tokens == alone.tokens and together[i].stop == alone.stop
        assert math.isclose(together[i].score, alone.score, abs_tol=1e-3)
    assert len({h.steps for h in together}) > 2, "rows must leave at different times"


@pytest.mark.parametrize("beam", [1, 3])
def test_experts_change_what_is_decoded(make_backbone, batch_of, beam):
    backbone = make_backbone()
    experts = ExpertSet(backbone, LoRAOptions(rank=4, where="decoder"), ["a", "b"])
    torch.manual_seed(2)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.3)
    speech, lengths = batch_of(0.5)
    encoded, prompts = encode(backbone, speech, lengths), backbone.tokens.prompt(["hi"])
    options = SearchOptions(beam_size=beam, max_tokens=20)
    found = [
        search(backbone, encoded, prompts, options, gates)[0].tokens
        for gates in (None, *(experts.one_hot([n], backbone.device) for n in "ab"))
    ]
    assert len({tuple(t) for t in found}) == 3


def test_beam_follows_teacher_forcing(make_backbone, batch_of):
    """The score of a hypothesis is what a forward pass over its tokens gives."""
    backbone = raise_end(make_backbone(), 2.0)
    speech, lengths = many(batch_of, 5)
    encoded = encode(backbone, speech, lengths)
    prompts = backbone.tokens.prompt(["hi", "it", "pa", "te", "en"])
    options = SearchOptions(beam_size=4, max_tokens=20, repetition_limit=0)
    for i, got in enumerate(search(backbone, encoded, prompts, options)):
        text = got.tokens + [backbone.tokens.end_id] * (got.stop == "eos")
        tokens = torch.cat([prompts[i], torch.tensor(text)])[None]
        one = Encoded(encoded.hidden[i : i + 1, : encoded.lengths[i]], encoded.lengths[i : i + 1])
        with torch.no_grad():
            logits = backbone.decode(tokens, one)[0, 3:-1]
        logits[:, list(backbone.tokens.suppressed)] = -torch.inf
        total = logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum().item()
        assert got.score == pytest.approx(total / len(text), abs=1e-3)


def test_the_longest_transcript_fits(make_backbone, batch_of):
    backbone = raise_end(make_backbone(), -4.0)
    encoded = encode(backbone, *batch_of(0.3))
    for beam in (1, 2):
        options = SearchOptions(beam_size=beam, repetition_limit=0)
        (got,) = search(backbone, encoded, backbone.tokens.prompt(["hi"]), options)
        if got.stop == "length":
            assert len(got.tokens) == backbone.max_target_length - 4
