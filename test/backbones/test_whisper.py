"""The backbone's forward passes against transformers' own, and against themselves in pieces."""

import copy
import pickle

import pytest
import torch
from transformers import WhisperFeatureExtractor

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.loading import BackboneOptions
from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.errors import UserError

SECONDS = (1.1, 0.43, 1.7)


def tokens_for(backbone, rows, length, seed=0):
    text = torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(seed))
    prompt = backbone.tokens.prompt((["hi", "it", "pa"] * rows)[:rows])
    return torch.cat([prompt, text], dim=1)


def encode(backbone, speech, lengths, k=0):
    return backbone.encode_upper(backbone.encode_lower(speech, lengths, k), k)


@torch.no_grad()
def test_padded_logits_equal_transformers(make_backbone, batch_of):
    backbone = make_backbone("padded")
    speech, lengths = batch_of(*SECONDS)
    waves = [x[:n].numpy() for x, n in zip(speech, lengths)]
    features = WhisperFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt")
    tokens = tokens_for(backbone, 3, 20)
    want = backbone.hf(input_features=features.input_features, decoder_input_ids=tokens).logits
    got = backbone.decode(tokens, encode(backbone, speech, lengths))
    assert want.std() > 0.5, "the random weights must make logits differ"
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3 * float(want.std()))


@torch.no_grad()
def test_same_features_give_transformers_logits(make_backbone):
    # The bound of 1e-4 without the features' own rounding in between.
    backbone = make_backbone("padded")
    mel = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    tokens = tokens_for(backbone, 2, 20)
    want = backbone.hf(input_features=mel, decoder_input_ids=tokens)
    lower = backbone.encode_features(mel, torch.tensor([3000, 3000]))
    encoded = backbone.encode_upper(lower, backbone.num_encoder_layers)
    torch.testing.assert_close(encoded.hidden, want.encoder_last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(backbone.decode(tokens, encoded), want.logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_alone_equals_batched_at_variable_length(backbone, batch_of):
    speech, lengths = batch_of(*SECONDS)
    tokens = tokens_for(backbone, 3, 15)
    encoded = encode(backbone, speech, lengths)
    together = backbone.decode(tokens, encoded)
    assert encoded.lengths.tolist() == [55, 22, 85]
    for i, n in enumerate(lengths.tolist()):
        one = encode(backbone, speech[i : i + 1, :n], lengths[i : i + 1])
        assert one.mask() is None
        frames = int(encoded.lengths[i])
        torch.testing.assert_close(encoded.hidden[i, :frames], one.hidden[0], rtol=0, atol=1e-4)
        alone = backbone.decode(tokens[i : i + 1], one)
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("context", ["variable", "padded"])
def test_every_split_gives_the_same(make_backbone, batch_of, context):
    backbone = make_backbone(context)
    speech, lengths = batch_of(*SECONDS)
    want = encode(backbone, speech, lengths, 0)
    for k in range(1, backbone.num_encoder_layers + 1):
        got = encode(backbone, speech, lengths, k)
        assert torch.equal(got.hidden, want.hidden) and torch.equal(got.lengths, want.lengths)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_steps_with_caches_equal_teacher_forcing(backbone, batch_of, beams):
    speech, lengths = batch_of(*SECONDS)
    encoded = encode(backbone, speech, lengths)
    rows = torch.arange(3).repeat_interleave(beams)
    tokens = tokens_for(backbone, 3, 12).repeat_interleave(beams, 0)
    tokens[:, 4:] = torch.randint(0, 250, (3 * beams, 12))
    want = backbone.decode(tokens, Encoded(encoded.hidden[rows], encoded.lengths[rows]))
    state = backbone.start(encoded, beams, 16)
    got = [backbone.step(tokens[:, :4], state)]
    got += [backbone.step(tokens[:, i : i + 1], state) for i in range(4, 16)]
    torch.testing.assert_close(torch.stack(got, 1), want[:, 3:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_caches_follow_rows_and_utterances(backbone, batch_of):
    speech, lengths = batch_of(*SECONDS)
    encoded = encode(backbone, speech, lengths)
    tokens = tokens_for(backbone, 3, 6)
    state = backbone.start(encoded, 1, 10)
    backbone.step(tokens[:, :8], state)
    kept = torch.tensor([2, 0])
    state.select_rows(kept)
    state.select_utterances(kept)
    got = backbone.step(tokens[kept, 8:9], state)
    want = backbone.decode(tokens[:, :9], encoded)[kept, -1]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@torch.no_grad()
def test_only_what_is_filled_is_read_or_copied(backbone, batch_of):
    """Room for a long transcript costs nothing at every step of a beam search."""
    speech, lengths = batch_of(*SECONDS)
    encoded = encode(backbone, speech, lengths)
    tokens = tokens_for(backbone, 3, 6)
    state = backbone.start(encoded, 2, 90)
    rooms = [*state.self_keys, *state.self_values]
    for room in rooms:
        room.fill_(torch.nan)
    rows = torch.arange(3).repeat_interleave(2)
    history = tokens[rows, :4]
    backbone.step(history, state)
    for order in ([1, 1, 2, 3, 5, 4], [1, 0, 3, 3, 4, 5]):
        state.select_rows(torch.tensor(order))
        history = torch.cat([history[order], torch.randint(0, 250, (6, 1))], 1)
        got = backbone.step(history[:, -1:], state)
        want = backbone.decode(history, Encoded(encoded.hidden[rows], encoded.lengths[rows]))
        torch.testing.assert_close(got, want[:, -1], rtol=0, atol=1e-4)
    assert all(x.is_contiguous() for x in [*state.cross_keys, *state.cross_values])
    kept = [*state.self_keys, *state.self_values]
    assert [k.data_ptr() for k in kept] == [r.data_ptr() for r in rooms]
    assert all(room[:, :, 6:].isnan().all() for room in rooms)


@torch.no_grad()
def test_spoken_frames_leave_out_the_padding_to_30_s(make_backbone, batch_of):
    speech, lengths = batch_of(*SECONDS)
    padded, variable = (
        encode(make_backbone(context), speech, lengths) for context in ("padded", "variable")
    )
    assert padded.lengths.tolist() == [1500] * 3
    assert padded.spoken.tolist() == variable.spoken.tolist() == variable.lengths.tolist()


@torch.no_grad()
def test_layers_in_any_pieces_are_the_same_layers(backbone, batch_of):
    speech, lengths = batch_of(*SECONDS)
    for layer in range(backbone.num_encoder_layers + 1):
        want = backbone.encode_lower(speech, lengths, layer)
        got = backbone.encode_layers(backbone.encode_lower(speech, lengths, 0), 0, layer)
        assert torch.equal(got.hidden, want.hidden) and torch.equal(got.spoken, want.spoken)


def test_too_long_an_utterance(make_backbone):
    speech = torch.zeros(1, 31 * 16000)
    for context in ("variable", "padded"):
        with pytest.raises(UserError, match=r"31\.00 s is longer than the 30 s"):
            make_backbone(context).encode_lower(speech, torch.tensor([31 * 16000]), 0)


def test_split_outside_the_encoder(backbone, batch_of):
    for k in (-1, 3):
        with pytest.raises(UserError, match=r"layer -?\d is not in 0\.\.2"):
            backbone.encode_lower(*batch_of(0.3), k)


def test_unknown_context_and_missing_path(make_backbone):
    with pytest.raises(UserError, match="'short' is unknown: choose one of variable, padded"):
        make_backbone("short")
    with pytest.raises(UserError, match="needs path"):
        BackboneOptions().build()


@torch.no_grad()
def test_dropout_is_off_in_evaluation_and_on_in_training(backbone, batch_of):
    backbone.config.dropout = 0.5
    speech, lengths = batch_of(0.4)
    a, b = (encode(backbone, speech, lengths).hidden for _ in range(2))
    assert torch.equal(a, b)
    backbone.train()
    a, b = (encode(backbone, speech, lengths).hidden for _ in range(2))
    assert not torch.equal(a, b)


@torch.no_grad()
def test_copies_are_whole_and_digests_tell_bases_apart(backbone, batch_of):
    speech, lengths = batch_of(0.4)
    want = encode(backbone, speech, lengths).hidden
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(encode(twin, speech, lengths).hidden, want)
        assert twin.digest() == backbone.digest()
    backbone.hf.model.decoder.layers[1].fc2.bias[3] += 1e-3
    assert backbone.digest() != twin.digest()


def test_saved_and_loaded_again(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "saved")
    again = WhisperBackbone.from_pretrained(str(tmp_path / "saved"))
    assert again.digest() == backbone.digest()
    assert again.tokens.languages == backbone.tokens.languages
    assert again.tokens.encode("ciao") == backbone.tokens.encode("ciao")


@torch.no_grad()
def test_bf16_autocast_is_near_fp32(backbone, batch_of):
    speech, lengths = batch_of(*SECONDS)
    tokens = tokens_for(backbone, 3, 10)
    want = backbone.decode(tokens, encode(backbone, speech, lengths))
    with torch.autocast("cpu", torch.bfloat16):
        got = backbone.decode(tokens, encode(backbone, speech, lengths)).float()
    assert (got - want).abs().mean() < 0.1 * want.std()


@torch.no_grad()
def test_zeros_that_time_warping_leaves_are_silence(make_backbone, batch_of):
    """In 30 s of context nothing masks what stands behind a shorter row."""
    backbone = make_backbone("padded")
    speech, lengths = batch_of(*SECONDS)

    def warped(mel, mel_lengths):
        behind = torch.arange(mel.size(1)) >= mel_lengths.unsqueeze(1)
        return mel.masked_fill(behind.unsqueeze(2), 0.0), mel_lengths

    together = backbone.encode_lower(speech, lengths, 1, warped).hidden
    for row, n in enumerate(lengths.tolist()):
        alone = backbone.encode_lower(speech[row : row + 1, :n], lengths[row : row + 1], 1, warped)
        torch.testing.assert_close(together[row], alone.hidden[0], atol=1e-4, rtol=1e-4)
