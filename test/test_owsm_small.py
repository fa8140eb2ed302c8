"""OWSM v4 small's real shape with random weights: load, train a step with experts, decode."""

import pytest
import torch

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates
from owsm_files import V4_SMALL, write_owsm
from samples import TEXTS


@pytest.mark.slow
def test_370_million_parameters(tmp_path):
    """What a laptop can hold: 1.5 GB of weights; a step reaches every expert in 18 layers."""
    texts = [text for rows in TEXTS.values() for text in rows]
    folder = write_owsm(tmp_path / "owsm", texts, vocabulary=50002, **V4_SMALL)
    backbone = load_backbone(str(folder))
    size = sum(p.numel() for p in backbone.parameters())
    assert 360e6 < size < 380e6
    assert backbone.num_encoder_layers == 9
    assert backbone.frame_samples == 1280
    experts = ExpertSet(backbone, LoRAOptions(rank=16), ["hi", "it"])
    assert len(experts.layers) == 9 * 2 + 9 * 4
    draw = torch.Generator().manual_seed(0)
    speech = 0.1 * torch.randn(2, 80000, generator=draw)
    lengths = torch.tensor([80000, 60000])
    prompt = backbone.tokens.prompt(["hi", "it"])
    text = torch.randint(1600, 40000, (2, 12), generator=draw)
    for name, parameter in zip("ab" * len(experts.layers), experts.parameters(), strict=True):
        torch.nn.init.normal_(parameter, std=0.02 if name == "b" else 0.1)
    backbone.train()
    with torch.autocast("cpu", torch.bfloat16):
        lower = backbone.encode_lower(speech, lengths, 0)
        with use_gates(Gates.of(torch.eye(2))):
            encoded = backbone.encode_upper(lower, 0)
            logits = backbone.decode(torch.cat([prompt, text], dim=1), encoded)[:, 3:-1].float()
        attention = backbone.attention_loss(logits, text)
        ctc = backbone.ctc_loss(encoded, text, torch.full((2,), 12))
    (0.7 * attention + 0.3 * ctc).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in experts.parameters())
    backbone.eval()
    gates = Gates.of(torch.eye(2))
    with torch.inference_mode():
        with use_gates(gates):
            encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
        options = SearchOptions(5, max_tokens=6, ctc_weight=0.3)
        found = search(backbone, encoded, prompt, options, gates)
        row = type(encoded)(encoded.hidden[1:], encoded.lengths[1:])
        alone = search(backbone, row, prompt[1:], options, Gates.of(torch.eye(2)[1:]))
    assert [h.tokens for h in alone] == [found[1].tokens]
