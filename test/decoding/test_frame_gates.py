"""Gates that follow the decoder's attention, against a decoder without caches."""

import pytest
import torch
import torch.nn.functional as F

from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates

PROMPT = 4


@pytest.fixture
def mixed(backbone):
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    experts = ExpertSet(backbone, LoRAOptions(rank=4, targets=targets), ["hi", "it", "pa"])
    torch.manual_seed(1)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return backbone


def naive_step(backbone, tokens, memory, frame_gates, token_gates):
    """The last token's logits and where it looked, from the whole prefix of one utterance."""
    decoder = backbone.hf.model.decoder
    x = (decoder.embed_tokens(tokens) + decoder.embed_positions.weight[: len(tokens)])[None]
    own, far = Gates.of(token_gates[None]), Gates.of(frame_gates[None])
    looks = []
    for block in decoder.layers:
        for part, norm in (
            (block.self_attn, block.self_attn_layer_norm),
            (block.encoder_attn, block.encoder_attn_layer_norm),
        ):
            crosses = part is block.encoder_attn
            normed = norm(x)
            source = memory[None] if crosses else normed
            with use_gates(own):
                q = part.q_proj(normed)
            with use_gates(far if crosses else own):
                k, v = part.k_proj(source), part.v_proj(source)
            q, k, v = (y[0].unflatten(-1, (4, -1)).transpose(0, 1) for y in (q, k, v))
            scores = q @ k.transpose(1, 2) * part.head_dim**-0.5
            if not crosses:
                future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(future, -torch.inf)
            weights = scores.softmax(-1)
            if crosses:
                looks.append(weights[:, -1].mean(0))
            with use_gates(own):
                x = x + part.out_proj((weights @ v).transpose(0, 1).flatten(1)[None])
        with use_gates(own):
            x = x + block.fc2(F.gelu(block.fc1(block.final_layer_norm(x))))
    return backbone.hf.proj_out(decoder.layer_norm(x[0, -1])), torch.stack(looks).mean(0)


def naive_greedy(backbone, memory, frame_gates, first, prompt, steps):
    tokens, gates = prompt.tolist(), [first] * len(prompt)
    total, rows = 0.0, []
    for _ in range(steps):
        logits, looks = naive_step(
            backbone, torch.tensor(tokens), memory, frame_gates, torch.stack(gates)
        )
        logits[list(backbone.tokens.suppressed)] = -torch.inf
        best = logits.log_softmax(-1).max(-1)
        total += float(best.values)
        if int(best.indices) == backbone.tokens.end_id:
            return tokens[PROMPT:], total, rows
        tokens.append(int(best.indices))
        gates.append(looks @ frame_gates)
        rows.append(gates[-1])
    return tokens[PROMPT:], total, rows


def encoded_batch(backbone, batch_of, seconds, seed=3):
    speech, lengths = batch_of(*seconds)
    lower = backbone.encode_lower(speech, lengths, 0)
    draw = torch.Generator().manual_seed(seed)
    weights = (3 * torch.randn(len(seconds), lower.hidden.size(1), 3, generator=draw)).softmax(-1)
    with use_gates(Gates.of(weights)):
        return backbone.encode_upper(lower, 0), weights


@torch.inference_mode()
def test_greedy_equals_a_decoder_without_caches(mixed, batch_of):
    encoded, weights = encoded_batch(mixed, batch_of, (0.9, 0.3, 1.2))
    prompts = mixed.tokens.prompt(["hi", "it", "pa"])
    first = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    found = search(mixed, encoded, prompts, SearchOptions(max_tokens=10), Gates.of(weights), first)
    for i, got in enumerate(found):
        n = int(encoded.lengths[i])
        tokens, total, rows = naive_greedy(
            mixed, encoded.hidden[i, :n], weights[i, :n], first[i], prompts[i], 10
        )
        assert got.tokens == tokens
        count = len(tokens) + (got.stop == "eos")
        assert got.score == pytest.approx(total / count, abs=2e-3)
        assert torch.stack(rows).std(0).max() > 1e-3, "the gates must move for this to show it"


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 5])
def test_alone_equals_batched(mixed, batch_of, beams):
    seconds = (0.9, 0.3, 1.2)
    encoded, weights = encoded_batch(mixed, batch_of, seconds)
    prompts = mixed.tokens.prompt(["hi", "it", "pa"])
    options = SearchOptions(max_tokens=9, beam_size=beams)
    together = search(mixed, encoded, prompts, options, Gates.of(weights))
    speech, lengths = batch_of(*seconds)
    for i, n in enumerate(lengths.tolist()):
        lower = mixed.encode_lower(speech[i : i + 1, :n], lengths[i : i + 1], 0)
        gates = Gates.of(weights[i : i + 1, : lower.hidden.size(1)])
        with use_gates(gates):
            one = mixed.encode_upper(lower, 0)
        alone = search(mixed, one, prompts[i : i + 1], options, gates)[0]
        assert alone.tokens == together[i].tokens
        assert alone.score == pytest.approx(together[i].score, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 4])
def test_the_same_gates_in_all_frames_are_those_of_the_row(mixed, batch_of, beams):
    speech, lengths = batch_of(0.8, 0.4)
    rows = torch.tensor([[0.1, 0.6, 0.3], [1.0, 0.0, 0.0]])
    lower = mixed.encode_lower(speech, lengths, 0)
    options, prompts = SearchOptions(max_tokens=9, beam_size=beams), mixed.tokens.prompt(["hi"] * 2)
    found = []
    for weights in (rows, rows[:, None].expand(-1, lower.hidden.size(1), -1)):
        gates = Gates.of(weights)
        with use_gates(gates):
            encoded = mixed.encode_upper(lower, 0)
        found.append(search(mixed, encoded, prompts, options, gates))
    for one, other in zip(*found, strict=True):
        assert one.tokens == other.tokens and one.score == pytest.approx(other.score, abs=1e-3)


@torch.inference_mode()
def test_attention_is_recorded_where_asked_and_changes_nothing(backbone, batch_of):
    speech, lengths = batch_of(0.8, 0.4)
    encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
    tokens = backbone.tokens.prompt(["hi", "it"]).repeat_interleave(3, 0)
    plain, told = (backbone.start(encoded, 3, 8, record_attention=r) for r in (False, True))
    assert torch.equal(backbone.step(tokens, plain), backbone.step(tokens, told))
    assert plain.attention is None and told.attention.shape == (6, 40)
    torch.testing.assert_close(told.attention.sum(1), torch.ones(6))
    assert told.attention[3:, int(encoded.lengths[1]) :].max() == 0
    before = told.attention.clone()
    told.select_rows(torch.tensor([4, 0]))
    assert torch.equal(told.attention, before[[4, 0]])
