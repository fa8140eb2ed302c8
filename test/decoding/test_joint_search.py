"""CTC prefix scores and the joint search against ESPnet's, on random weights."""

import pytest
import torch

from espnet_moe.decoding.ctc_prefix import CtcPrefixScorer
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.errors import UserError

LENGTHS = [60, 41]
VOCABULARY, BEAMS, PRE = 30, 3, 7
BLANK, END = 0, VOCABULARY - 1


@pytest.fixture(scope="module")
def log_probs():
    draw = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, max(LENGTHS), VOCABULARY, generator=draw)).log_softmax(-1)


@pytest.mark.parametrize("lead", [0, 3])
def test_prefix_scores_are_espnets(log_probs, lead):
    """Six steps of random continuations, doubled tokens among them; two utterances, three rows."""
    from espnet.nets.ctc_prefix_score import CTCPrefixScoreTH

    lengths = torch.tensor(LENGTHS)
    ours = CtcPrefixScorer(log_probs, lengths, BEAMS, BLANK, lead)
    theirs = CTCPrefixScoreTH(log_probs.double().clone(), lengths, BLANK, END)
    # ESPnet counts what stands before the text, but for one token, as spoken.
    texts, state = [[END] * (lead + 1) for _ in range(2 * BEAMS)], None
    draw = torch.Generator().manual_seed(1)
    first = torch.arange(2).repeat_interleave(BEAMS) * BEAMS
    for _ in range(6):
        ids = torch.stack([1 + torch.randperm(VOCABULARY - 2, generator=draw)[:PRE] for _ in texts])
        ids[0, 0] = texts[0][-1] if texts[0][-1] != END else 1
        ids[0, 1:] = torch.tensor(
            [i for i in range(1, VOCABULARY - 1) if i != ids[0, 0]][: PRE - 1]
        )
        wanted, made = theirs([torch.tensor(t) for t in texts], state, ids)
        found, extended = ours.extend(ids)
        torch.testing.assert_close(found.double(), wanted.gather(1, ids), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(ours.ending().double(), wanted[:, END], atol=1e-4, rtol=1e-5)
        rows = first + torch.randint(0, BEAMS, (2 * BEAMS,), generator=draw)
        rows[0] = 0
        tokens = ids[rows, torch.randint(0, PRE, (2 * BEAMS,), generator=draw)]
        tokens[0] = ids[0, 0]
        state = theirs.index_select_state(made, ((rows - first) * VOCABULARY + tokens).view(2, -1))
        texts = [[*texts[r], t] for r, t in zip(rows.tolist(), tokens.tolist(), strict=True)]
        ours.select(extended, rows, tokens)


def test_prefix_score_is_the_sum_over_all_alignments():
    """By enumeration: P(prefix) of every prefix of up to two tokens, three symbols, four frames."""
    import itertools

    probs = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(2)).softmax(-1)

    def said(path):
        return [k for k, _ in itertools.groupby(path) if k != 0]

    def total(prefix, whole):
        found = 0.0
        for path in itertools.product(range(3), repeat=4):
            text = said(path)
            if text == prefix if whole else text[: len(prefix)] == prefix:
                found += float(torch.stack([probs[0, t, k] for t, k in enumerate(path)]).prod())
        return found

    for one, two in itertools.product((1, 2), repeat=2):
        scorer = CtcPrefixScorer(probs.log(), torch.tensor([4]), 1, 0)
        assert float(scorer.ending().exp()) == pytest.approx(total([], True), rel=1e-5)
        score, made = scorer.extend(torch.tensor([[1, 2]]))
        assert float(score[0, one - 1].exp()) == pytest.approx(total([one], False), rel=1e-5)
        scorer.select(made, torch.tensor([0]), torch.tensor([one]))
        again, _ = scorer.extend(torch.tensor([[1, 2]]))
        both = float((score[0, one - 1] + again[0, two - 1]).exp())
        assert both == pytest.approx(total([one, two], False), rel=1e-5)
        ending = float((score[0, one - 1] + scorer.ending()).exp())
        assert ending == pytest.approx(total([one], True), rel=1e-5)


@pytest.fixture(scope="module")
def encoded_and_backbone(owsm_folder):
    from espnet_moe.backbones.owsm_loading import load_owsm

    backbone = load_owsm(str(owsm_folder)).eval()
    draw = torch.Generator().manual_seed(3)
    speech = 0.1 * torch.randn(4, 24000, generator=draw)
    lengths = torch.tensor([24000, 20000, 18000, 15000])
    with torch.no_grad():
        backbone.s2t.decoder.output_layer.bias[backbone.tokens.end_id] += 12.0
        encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
    return encoded, backbone


def espnet_search(backbone, memory, prompt, beam, ctc_weight):
    """``s2t_inference``'s search of one utterance (its settings, its classes)."""
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorers.ctc import CTCPrefixScorer
    from espnet.nets.scorers.length_bonus import LengthBonus

    s2t, tokens = backbone.s2t, backbone.tokens
    run = BatchBeamSearch(
        beam_size=beam,
        weights={"decoder": 1.0 - ctc_weight, "ctc": ctc_weight, "length_bonus": 0.0},
        scorers={
            "decoder": s2t.decoder,
            "ctc": CTCPrefixScorer(ctc=s2t.ctc, eos=tokens.end_id),
            "length_bonus": LengthBonus(len(tokens.token_list)),
        },
        sos=tokens.start_id,
        eos=tokens.end_id,
        vocab_size=len(tokens.token_list),
        token_list=list(tokens.token_list),
        pre_beam_score_key="full",
    )
    run.set_hyp_primer(prompt.tolist())
    best = run(x=memory, maxlenratio=-16.0)[0]  # longer than the frames, it would break
    return best.yseq[len(prompt) : -1].tolist(), float(best.score)


@pytest.mark.parametrize("beam", [2, 5])
def test_joint_search_is_espnets(encoded_and_backbone, beam, monkeypatch):
    """Tokens and scores of four utterances, in one batch here, alone there."""
    from espnet_moe.decoding import search as module

    encoded, backbone = encoded_and_backbone
    # ESPnet's way of counting the prompt, and its freedom to say symbols, for the comparison.
    monkeypatch.setattr(module, "CtcPrefixScorer", lambda *args: CtcPrefixScorer(*args, lead=3))
    monkeypatch.setitem(backbone.tokens.__dict__, "suppressed", (backbone.tokens.blank_id,))
    prompts = backbone.tokens.prompt(["hi", "it", "pa", "hi"])
    options = SearchOptions(beam, max_tokens=16, repetition_limit=0, ctc_weight=0.3)
    found = search(backbone, encoded, prompts, options)
    for row, hypothesis in enumerate(found):
        memory = encoded.hidden[row, : int(encoded.lengths[row])]
        with torch.no_grad():
            tokens, score = espnet_search(backbone, memory, prompts[row], beam, 0.3)
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, abs=1e-2)
    assert {h.stop for h in found} >= {"eos"}


def test_alone_as_in_a_batch(encoded_and_backbone):
    encoded, backbone = encoded_and_backbone
    prompts = backbone.tokens.prompt(["hi", "it", "pa", "hi"])
    options = SearchOptions(4, max_tokens=20, ctc_weight=0.3)
    together = search(backbone, encoded, prompts, options)
    for row, hypothesis in enumerate(together):
        n = int(encoded.lengths[row])
        alone = type(encoded)(encoded.hidden[row : row + 1, :n], encoded.lengths[row : row + 1])
        found = search(backbone, alone, prompts[row : row + 1], options)[0]
        assert found.tokens == hypothesis.tokens
        assert found.score == pytest.approx(hypothesis.score, abs=1e-3)


def test_ctc_where_there_is_none(make_backbone):
    from espnet_moe.decoding.decoder import DecodeOptions, Decoder

    with pytest.raises(UserError, match="no CTC branch"):
        Decoder(make_backbone(), None, DecodeOptions(beam_size=5, ctc_weight=0.3))
    with pytest.raises(UserError, match=r"ctc_weight is in \[0, 1\)"):
        SearchOptions(ctc_weight=1.0)


def test_a_loop_that_is_cut_does_not_end_the_search():
    """The looping beam has the best sum when it is cut; the other one still comes to its end."""
    from espnet_moe.decoding.search import Hypothesis, _JointBeams

    run = object.__new__(_JointBeams)
    run.limit, run.options = 100, SearchOptions(2, ctc_weight=0.3)
    run.ended = [[Hypothesis([5] * 16, -1.0, "repetition", 16)]]
    assert not run._is_done(0, [-4.0], 16)
    run.ended[0].append(Hypothesis([5, 6], -3.5, "eos", 3))
    assert run._is_done(0, [-4.0], 16)
    assert not run._is_done(0, [-3.0], 16)
    assert run._best(0).stop == "eos"


def test_the_vocabulary_is_not_copied(log_probs):
    """Large models have 50,000 tokens: scores stay in the encoder's precision and place."""
    scorer = CtcPrefixScorer(log_probs, torch.tensor(LENGTHS), BEAMS, BLANK)
    assert scorer.log_probs is log_probs
    ids = torch.arange(1, 8).expand(2 * BEAMS, -1)
    both, _ = scorer.extend(ids)
    _, made = scorer.extend(ids)
    # The first utterance leaves: the second one's rows go on with its own scores.
    scorer.select(made, torch.arange(BEAMS, 2 * BEAMS), torch.tensor([1, 2, 3]))
    scorer.keep(torch.tensor([1]))
    alone = CtcPrefixScorer(log_probs[1:], torch.tensor(LENGTHS[1:]), BEAMS, BLANK)
    first, made = alone.extend(ids[:BEAMS])
    torch.testing.assert_close(first, both[BEAMS:])
    alone.select(made, torch.arange(BEAMS), torch.tensor([1, 2, 3]))
    torch.testing.assert_close(scorer.extend(ids[:BEAMS])[0], alone.extend(ids[:BEAMS])[0])
    torch.testing.assert_close(scorer.ending(), alone.ending())
    assert scorer.log_probs is log_probs


def test_timestamps_are_one_decoders_own(make_owsm):
    """``predict_time`` of a decode does not reach the next one on the same backbone."""
    from espnet_moe.decoding.decoder import DecodeOptions, Decoder

    backbone = make_owsm()
    timed = Decoder(backbone, None, DecodeOptions(predict_time=True))
    plain = Decoder(backbone, None, DecodeOptions())
    assert timed.tokens.prompt(["hi"]).size(1) == 3
    assert plain.tokens.prompt(["hi"]).size(1) == backbone.tokens.prompt(["hi"]).size(1) == 4
