"""OWSM as a backbone against ESPnet's own model, alone and in batches."""

import pytest
import torch
from torch import nn

from espnet_moe.errors import UserError
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions, find_targets
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.linear import FewRowsLinear
from samples import TEXTS

SECONDS = [2.9, 1.3, 0.05]
SPLIT = 1


@pytest.fixture(scope="module")
def speech():
    draw = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(3, 480000, generator=draw)


def encode(backbone, speech, lengths, layer=SPLIT):
    lower = backbone.encode_lower(speech, lengths, layer)
    return backbone.encode_upper(lower, layer)


def batch(backbone):
    """Text, with OWSM's symbols, ``<na>`` before it, and what CTC is to hear."""
    tokens = backbone.tokens
    texts = [TEXTS["hi"][0], TEXTS["it"][2], TEXTS["pa"][1]]
    prompts = tokens.prompt(["hi", "it", "pa"])
    rows = [
        torch.cat([p[1:], torch.tensor(tokens.encode(t))])
        for p, t in zip(prompts, texts, strict=True)
    ]
    spoken = [row[3:] for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    sizes = torch.tensor([len(r) for r in rows])
    text, ctc = (pad(r, batch_first=True, padding_value=-1) for r in (rows, spoken))
    none = torch.full((3, 1), tokens.na_id)
    return prompts, text, sizes, none, ctc, sizes - 3


@pytest.mark.parametrize("ctc_weight", [0.3, 0.0])
def test_espnets_logits_and_loss_to_the_bit(make_owsm, speech, ctc_weight):
    """Given ESPnet's own input, padded to 30 s: encoder, decoder, loss."""
    backbone = make_owsm("padded")
    s2t = backbone.s2t
    s2t.ctc_weight = ctc_weight
    prompts, text, sizes, none, ctc, ctc_sizes = batch(backbone)
    lengths = (torch.tensor(SECONDS) * 16000).long()
    inside = torch.arange(480000) < lengths[:, None]
    padded, full = speech * inside, torch.full((3,), 480000)
    with torch.no_grad():
        hidden, frames = s2t.encode(padded, full)
        loss, stats, _ = s2t(
            padded, full, text.clone(), sizes, none, torch.ones(3).long(), ctc, ctc_sizes
        )
        ours = encode(backbone, speech, lengths)
        assert torch.equal(ours.hidden, hidden)
        assert torch.equal(ours.lengths, frames)

        spoken = text.masked_fill(text < 0, backbone.tokens.end_id)
        given = torch.cat([torch.full((3, 1), backbone.tokens.start_id), spoken], dim=1)
        logits, _ = s2t.decoder(hidden, frames, given, sizes + 1)
        valid = torch.arange(given.size(1)) < (sizes + 1)[:, None]
        found = backbone.decode(given, ours)
        assert torch.equal(found[valid], logits[valid])
        target = torch.cat([text, torch.full((3, 1), -1)], dim=1).masked_fill(~valid, -100)
        target.scatter_(1, sizes.unsqueeze(1), backbone.tokens.end_id)
        attention = backbone.attention_loss(found, target)
        assert attention.item() == stats["loss_att"].item()
        whole = attention
        if ctc_weight:
            of_ctc = backbone.ctc_loss(ours, ctc, ctc_sizes)
            assert of_ctc.item() == stats["loss_ctc"].item()
            whole = ctc_weight * of_ctc + (1 - ctc_weight) * attention
        assert whole.item() == loss.item()
        assert torch.equal(prompts[:, 1:], text[:, :3])


def test_weighted_rows_and_smoothing(make_owsm, speech):
    """Rows of one weight give the unweighted loss; a row of none is as if it were not there."""
    backbone = make_owsm()
    _, text, _, _, ctc, ctc_sizes = batch(backbone)
    encoded = encode(backbone, speech[:, :40000], torch.tensor([40000, 30000, 20000]))
    target = text.masked_fill(text < 0, -100)
    given = text.clamp(min=0)
    logits = backbone.decode(given, encoded)
    ones = torch.ones(3, 1)
    for smoothing in (None, 0.0, 0.2):
        plain = backbone.attention_loss(logits, target, smoothing)
        torch.testing.assert_close(backbone.attention_loss(logits, target, smoothing, ones), plain)
        drop = torch.tensor([[1.0], [0.0], [1.0]])
        some = backbone.attention_loss(logits, target, smoothing, drop) * 3
        kept = backbone.attention_loss(logits[[0, 2]], target[[0, 2]], smoothing) * 2
        torch.testing.assert_close(some, kept)
    assert backbone.attention_loss(logits, target) != backbone.attention_loss(logits, target, 0.0)
    cross = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum"
    )
    torch.testing.assert_close(backbone.attention_loss(logits, target, 0.0), cross / 3)
    whole = backbone.ctc_loss(encoded, ctc, ctc_sizes)
    torch.testing.assert_close(backbone.ctc_loss(encoded, ctc, ctc_sizes, ones), whole)


def test_rows_without_a_ctc_transcript_are_left_out(make_owsm, speech):
    backbone = make_owsm()
    _, _, _, _, ctc, sizes = batch(backbone)
    encoded = encode(backbone, speech[:, :40000], torch.tensor([40000, 30000, 20000]))
    one = encode(backbone, speech[:1, :40000], torch.tensor([40000]))
    dropped = torch.tensor([int(sizes[0]), 0, 0])
    torch.testing.assert_close(
        backbone.ctc_loss(encoded, ctc, dropped), backbone.ctc_loss(one, ctc[:1], sizes[:1])
    )
    encoded.hidden.retain_grad()
    nothing = backbone.ctc_loss(encoded, ctc, torch.zeros(3).long())
    nothing.backward()
    assert nothing.item() == 0.0
    assert encoded.hidden.grad is not None, "processes wait for this gradient"


@pytest.mark.parametrize("context", ["variable", "padded"])
def test_alone_as_in_a_batch(make_owsm, speech, context):
    """ESPnet's convolutions reach into the padding; a row must not know its neighbours."""
    backbone = make_owsm(context)
    lengths = (torch.tensor(SECONDS) * 16000).long()
    with torch.no_grad():
        whole = encode(backbone, speech[:, : lengths[0]], lengths)
        for row, samples in enumerate(lengths.tolist()):
            alone = encode(backbone, speech[row : row + 1, :samples], lengths[row : row + 1])
            n = int(alone.lengths[0])
            assert n == int(whole.lengths[row]) == alone.hidden.size(1)
            assert int(alone.spoken[0]) == int(whole.spoken[row]) <= n
            torch.testing.assert_close(alone.hidden[0], whole.hidden[row, :n], atol=2e-5, rtol=1e-5)
    seconds = backbone.frame_samples / 16000
    assert abs(int(whole.spoken[0]) * seconds - SECONDS[0]) < 3 * seconds


def test_a_row_that_fills_the_batch_is_espnets(make_owsm, speech):
    """Without padding, at any length: but for the last windows, which see silence here."""
    backbone = make_owsm()
    samples = torch.full((2,), 46000)
    with torch.no_grad():
        padded = torch.nn.functional.pad(speech[:2, :46000], (0, 256))
        features, sizes = backbone.s2t.frontend(padded, samples)
        features, sizes = backbone.s2t.normalize(features[:, : int(sizes.max())], sizes)
        theirs, frames, _ = backbone.s2t.encoder(features, sizes)
        ours = encode(backbone, speech[:2, :46000], samples)
    assert torch.equal(ours.hidden, theirs)
    assert torch.equal(ours.lengths, frames)


def test_every_split_gives_the_same(make_owsm, speech):
    backbone = make_owsm()
    lengths = torch.tensor([30000, 20000])
    with torch.no_grad():
        first, *others = (
            encode(backbone, speech[:2, :30000], lengths, k).hidden
            for k in range(backbone.num_encoder_layers + 1)
        )
    for other in others:
        assert torch.equal(first, other)
    with pytest.raises(UserError, match=r"layer 3 is not in 0\.\.2"):
        backbone.encode_lower(speech, lengths, 3)


@pytest.mark.parametrize("beams", [1, 3])
def test_cached_steps_equal_forward_one_step(make_owsm, speech, beams):
    """Log-probabilities at every step, rows of different lengths, against ESPnet a row."""
    backbone = make_owsm()
    lengths = torch.tensor([40000, 23000])
    tokens = torch.randint(20, 1540, (2 * beams, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = encode(backbone, speech[:2, :40000], lengths)
        state = backbone.start(encoded, beams, 16)
        found = [backbone.step(tokens[:, :4], state)]
        found += [backbone.step(tokens[:, n : n + 1], state) for n in range(4, 12)]
        for row in range(2 * beams):
            u = row // beams
            memory = encoded.hidden[u : u + 1, : int(encoded.lengths[u])]
            cache = None
            for n in range(1, 13):
                mask = torch.ones(1, n, n).tril().bool()
                theirs, cache = backbone.s2t.decoder.forward_one_step(
                    tokens[row : row + 1, :n], mask, memory, cache=cache
                )
                if n >= 4:
                    ours = found[n - 4][row].log_softmax(-1)
                    torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=0)


def test_the_decoder_has_quick_products_and_the_encoder_its_own(make_owsm):
    backbone = make_owsm()
    for part, kind in ((backbone.s2t.decoder, FewRowsLinear), (backbone.s2t.encoder, nn.Linear)):
        linear = [m for m in part.modules() if isinstance(m, nn.Linear)]
        assert linear and {type(m) for m in linear} == {kind}


def test_rows_reordered_as_beams(make_owsm, speech):
    """After ``select_rows`` a row goes on with the caches of the row that it was made of."""
    backbone = make_owsm()
    encoded = encode(backbone, speech[:1, :30000], torch.tensor([30000]))
    tokens = torch.tensor([[1530, 10, 14, 16, 1525], [1530, 10, 14, 16, 1522]])
    with torch.no_grad():
        state = backbone.start(encoded, 2, 8)
        backbone.step(tokens, state)
        state.select_rows(torch.tensor([1, 1]))
        found = backbone.step(torch.tensor([[1519], [1518]]), state)
        for row, last in enumerate((1519, 1518)):
            given = torch.cat([tokens[1:], torch.tensor([[last]])], dim=1)
            torch.testing.assert_close(
                found[row], backbone.decode(given, encoded)[0, -1], atol=1e-4, rtol=1e-4
            )


def test_experts_of_zero_change_nothing_and_trained_ones_reach_all(make_owsm, speech):
    """B = 0 is OWSM to the bit; gradients reach every expert parameter, with and without
    checkpointing, the same."""
    plain, backbone = make_owsm(), make_owsm()
    experts = ExpertSet(backbone, LoRAOptions(("all-linear",), rank=4), ["hi", "it"])
    lengths = torch.tensor([30000, 20000])
    gates = Gates.of(torch.eye(2))
    tokens = torch.cat([backbone.tokens.prompt(["hi", "it"]), torch.tensor([[1525]] * 2)], dim=1)

    def logits(of):
        lower = of.encode_lower(speech[:2, :30000], lengths, 0)
        with use_gates(gates if of is backbone else None):
            return of.decode(tokens, of.encode_upper(lower, 0))

    with torch.no_grad():
        assert torch.equal(logits(plain), logits(backbone))
    draw = torch.Generator().manual_seed(2)
    for parameter in experts.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
    found = []
    for checkpointing in (False, True):
        backbone.gradient_checkpointing = checkpointing
        backbone.train()
        torch.manual_seed(0)
        logits(backbone).square().mean().backward()
        gradients = [p.grad.clone() for p in experts.parameters()]
        assert all(g.abs().max() > 0 for g in gradients)
        assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)
        backbone.zero_grad()
        found.append(gradients)
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right)
    backbone.eval()
    with torch.no_grad():
        assert not torch.allclose(logits(plain), logits(backbone))


def test_targets(make_owsm):
    backbone = make_owsm()

    def leaves(*targets):
        return {n.split(".", 3)[-1] for n in find_targets(backbone, LoRAOptions(targets))}

    attention = {"attn.linear_q", "attn.linear_v"}
    decoder = {f"{kind}.linear_{p}" for kind in ("self_attn", "src_attn") for p in "qv"}
    assert leaves() == attention | decoder
    assert leaves("cgmlp.channel_proj1.0", "channel_proj2", "merge_proj") == {
        "cgmlp.channel_proj1.0",
        "cgmlp.channel_proj2",
        "merge_proj",
    }
    assert leaves("feed_forward_macaron.w_1", "feed_forward.w_2") == {
        "feed_forward_macaron.w_1",
        "feed_forward.w_2",
    }
    assert leaves("w_1") == {"feed_forward.w_1", "feed_forward_macaron.w_1"}
    assert len(leaves("all-linear")) == 4 + 4 + 2 + 1 + 8
    with pytest.raises(UserError, match=r"channel_proj1\.0|0 channel_proj2"):
        leaves("q_proj")


def test_frames_are_40_ms_apart(make_owsm):
    backbone = make_owsm()
    assert backbone.frame_samples == 640
    assert backbone.layer_of("encoder.encoders.1.attn.linear_q") == ("encoder", 1)
    assert backbone.layer_of("decoder.decoders.0.feed_forward.w_1") == ("decoder", 0)
    assert backbone.layer_of("ctc.ctc_lo") is None
    assert backbone.layer_of("encoder.embed.out.0") is None


def test_too_long(make_owsm):
    with pytest.raises(UserError, match=r"30\.01 s is longer than the 30 s"):
        make_owsm().encode_lower(torch.zeros(1, 480160), torch.tensor([480160]), 0)


def test_no_attention_weights_are_kept(make_owsm, speech):
    """(batch, heads, frames, frames) a layer would be gigabytes in a batch of a real model."""
    backbone = make_owsm()
    encoded = encode(backbone, speech[:2, :30000], torch.tensor([30000, 20000]))
    backbone.decode(backbone.tokens.prompt(["hi", "it"]), encoded)
    kept = [m for m in backbone.modules() if getattr(m, "attn", None) is not None]
    assert not [m for m in kept if isinstance(m.attn, torch.Tensor)]


def test_frames_of_80_ms(tmp_path, speech):
    """``conv2d8``, as OWSM v4 has it, with 128 mels: alone as in a batch, ESPnet's when padded."""
    from espnet_moe.backbones.owsm_loading import load_owsm
    from owsm_files import write_owsm

    texts = [text for rows in TEXTS.values() for text in rows]
    changes = {"encoder_conf": {"input_layer": "conv2d8"}, "frontend_conf": {"n_mels": 128}}
    folder = write_owsm(tmp_path / "owsm", texts, **changes)
    backbone = load_owsm(str(folder)).eval()
    assert backbone.frame_samples == 1280
    lengths = torch.tensor([46000, 20000, 700])
    with torch.no_grad():
        whole = encode(backbone, speech[:, :46000], lengths)
        for row, samples in enumerate(lengths.tolist()):
            alone = encode(backbone, speech[row : row + 1, :samples], lengths[row : row + 1])
            n = int(alone.lengths[0])
            assert n == int(whole.lengths[row]) == alone.hidden.size(1)
            torch.testing.assert_close(alone.hidden[0], whole.hidden[row, :n], atol=2e-5, rtol=1e-5)
        padded = load_owsm(str(folder), "padded").eval()
        inside = torch.arange(480000) < lengths[:2, None]
        theirs, _ = padded.s2t.encode(speech[:2] * inside, torch.full((2,), 480000))
        assert torch.equal(encode(padded, speech[:2, :46000], lengths[:2]).hidden, theirs)


def test_position_tables_go_where_the_weights_go(make_owsm):
    backbone = make_owsm()
    tables = lambda: [m.pe for m in backbone.modules() if hasattr(m, "pe")]  # noqa: E731
    assert len(tables()) == 2
    assert {t.dtype for t in tables()} == {torch.float32}
    assert backbone.double() is backbone
    assert {t.dtype for t in tables()} == {torch.float64}
