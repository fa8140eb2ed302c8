"""Greedy search with the pre-trained base, on utterances of the mini test split."""

import json

import numpy as np
import pytest
import torch
from transformers import GenerationMixin

from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.data.mini_text import sentences
from espnet_moe.data.mini_voices import Synthesizer, voices
from espnet_moe.decoding.search import SearchOptions, search

CODES = ("hi", "it", "pa", "te")
COUNT = 40


@pytest.fixture(scope="module")
def utterances():
    """40 utterances: waveform, language, text; the languages take turns."""
    speak, people, found = Synthesizer(), voices("test"), []
    for i, sentence in enumerate(sentences("test", COUNT)):
        code = CODES[i % 4]
        wave = speak.at(16000, sentence.texts[code], code, people[i % len(people)])
        found.append((wave.astype(np.float32), code, sentence.texts[code]))
    return found


@pytest.fixture(scope="module")
def base(whisper_mini):
    return WhisperBackbone.from_pretrained(str(whisper_mini)).eval()


@torch.inference_mode()
def encode(base, context, items):
    base.context = context
    lengths = torch.tensor([len(x) for x, _, _ in items])
    speech = torch.zeros(len(items), int(lengths.max()))
    for row, (x, _, _) in zip(speech, items, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    return base.encode_upper(base.encode_lower(speech, lengths, 0), 0)


def decode(base, context, items, beam=1, limit=0):
    encoded = encode(base, context, items)
    prompts = base.tokens.prompt([code for _, code, _ in items])
    options = SearchOptions(beam_size=beam, max_tokens=100, repetition_limit=limit)
    return search(base, encoded, prompts, options)


def generate(base, codes, **inputs):
    """Transcripts by transformers: ids of each row without prompt and end."""
    out = GenerationMixin.generate(
        base.hf,
        decoder_input_ids=base.tokens.prompt(codes),
        # Without its timestamp rules, the only thing to tell it is what is no transcript.
        suppress_tokens=list(base.tokens.suppressed),
        max_new_tokens=100,
        do_sample=False,
        num_beams=1,
        **inputs,
    )
    return [[t for t in row if t != base.tokens.end_id] for row in out[:, 4:].tolist()]


def test_padded_greedy_equals_transformers_from_the_waveform(base, utterances):
    from transformers import WhisperFeatureExtractor

    extractor, different, ours, theirs = WhisperFeatureExtractor(), [], [], []
    for start in range(0, COUNT, 20):
        items = utterances[start : start + 20]
        waves = [x for x, _, _ in items]
        features = extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
        ours += [h.tokens for h in decode(base, "padded", items)]
        theirs += generate(base, [c for _, c, _ in items], input_features=features)
    different = [i for i in range(COUNT) if ours[i] != theirs[i]]
    assert not different
    assert len(ours) == COUNT and len({tuple(t) for t in ours}) > 20


def test_variable_greedy_equals_transformers_and_the_batch_does_not_matter(base, utterances):
    together = []
    for start in range(0, COUNT, 16):
        together += decode(base, "variable", utterances[start : start + 16])
    for i, (item, got) in enumerate(zip(utterances, together, strict=True)):
        encoded = encode(base, "variable", [item])
        (want,) = generate(base, [item[1]], encoder_outputs=(encoded.hidden,))
        assert got.tokens == want, f"utterance {i}"
        if i % 2 == 0:
            (alone,) = decode(base, "variable", [item])
            assert alone.tokens == got.tokens and alone.stop == got.stop


def test_beam_search_does_not_depend_on_the_batch(base, utterances):
    items = utterances[:16]
    together = decode(base, "variable", items, beam=5, limit=4)
    for item, got in zip(items, together, strict=True):
        (alone,) = decode(base, "variable", [item], beam=5, limit=4)
        assert alone.tokens == got.tokens and alone.stop == got.stop
    greedy = decode(base, "variable", items, limit=4)
    better = sum(b.score >= g.score - 1e-4 for b, g in zip(together, greedy))
    assert better >= 12, "a beam finds likelier transcripts"


def test_the_base_reads_what_it_was_trained_on(base, utterances):
    import jiwer

    error = {}
    for code in ("hi", "it"):
        items = [u for u in utterances if u[1] == code]
        said = [base.tokens.decode(h.tokens) for h in decode(base, "variable", items)]
        error[code] = jiwer.wer([t for _, _, t in items], said)
    # The whole test sets have at most 35 %; ten utterances of each scatter.
    assert max(error.values()) <= 0.5, json.dumps(error)
