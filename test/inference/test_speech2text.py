"""Transcribing: as the recipes decode, alone as in a list, in threads; wrong wishes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from espnet_moe.config import ConfigError
from espnet_moe.decoding.decoder import Decoder
from espnet_moe.decoding.loading import load_decoder
from espnet_moe.errors import UserError

NAMES = ("hi", "it", "pa")


@pytest.fixture
def reference(mixture, tmp_path):
    """What a recipe's stage 10 has: the texts of one system."""

    def texts(system, speech, languages=("hi",) * 8, beams=1, **routing):
        nested = "".join(f"  {key}: {value}\n" for key, value in routing.items()) or "  k: 2\n"
        config = tmp_path / "decode.yaml"
        config.write_text(
            f"batch_size: 4\nmax_tokens: 8\nbeam_size: {beams}\nrouting:\n{nested}", "utf-8"
        )
        router = None if system in ("baseline", "oracle") else str(mixture.router)
        experts = {} if system == "baseline" else {n: str(p) for n, p in mixture.experts.items()}
        decoder = load_decoder(
            mixture.backbone, "variable", experts, str(config), "cpu", system, router
        )
        return decoder(speech, list(languages))

    return texts


@pytest.mark.parametrize("system", ["hard", "soft", "topk", "threshold", "segment"])
def test_a_list_is_decoded_as_the_recipes_decode(make_model, reference, recordings, system):
    model = make_model()
    want = reference(system, recordings)
    got = model(recordings, strategy=system)
    assert [r.tokens for r in got] == [tuple(d.hypothesis.tokens) for d in want]
    assert [r.text for r in got] == [d.text for d in want]
    assert [r.gates for r in got] == [d.route["gates"] for d in want]
    if system == "hard":
        assert {r.language for r in got} == set(NAMES)
        assert [r.text for r in model(recordings)] == [r.text for r in got]
    for x, result in zip(recordings, got):
        assert result.timings.audio == len(x) / 16000 and result.timings.decoding > 0
        assert result.segments[0].start == 0
        assert result.segments[-1].end == pytest.approx(len(x) / 16000, abs=0.006)


def test_alone_as_in_a_list(make_model, recordings):
    model = make_model()
    for x, want in zip(recordings, model(recordings)):
        got = model(x)
        assert (got.tokens, got.language) == (want.tokens, want.language)
        assert got.score == pytest.approx(want.score, abs=1e-4)
    assert model([]) == []


def test_beams_and_allowed_languages(make_model, reference, recordings):
    model = make_model()
    want = reference("hard", recordings, beams=3, allowed="[hi, pa]")
    got = model(recordings, languages=["hi", "pa"], beam_size=3)
    assert [r.tokens for r in got] == [tuple(d.hypothesis.tokens) for d in want]
    assert {r.language for r in got} == {"hi", "pa"}


def test_known_and_unknown_languages_in_one_list(make_model, reference, recordings):
    model = make_model()
    known = ["it", None, "pa", None, "hi", "en", "it", None]
    got = model(recordings, language=known)
    hard = reference("hard", recordings)
    oracle = reference("oracle", recordings, [k if k in NAMES else "hi" for k in known])
    plain = reference("baseline", recordings, ["en"] * 8)
    for i, code in enumerate(known):
        want = (hard if code is None else plain if code == "en" else oracle)[i]
        assert got[i].tokens == tuple(want.hypothesis.tokens)
        assert code is None or got[i].language == code
    # English has no expert here: the backbone alone.
    assert got[5].gates == {} and got[0].gates == {"hi": 0.0, "it": 1.0, "pa": 0.0}


def test_a_router_over_clusters_hears_the_language_that_is_said(make_model, mixture, recordings):
    model = make_model(router=mixture.clusters)
    free, said = model(recordings), model(recordings, language="en")
    assert {r.language for r in free} == {"en", "hi"} and {r.language for r in said} == {"en"}
    assert [r.gates for r in free] == [r.gates for r in said]


def test_arrays_and_files_are_the_same(make_model, recordings, tmp_path):
    model = make_model()
    x = recordings[2]
    want = model(x)
    soundfile.write(tmp_path / "a.wav", x, 16000, subtype="FLOAT")
    whole = np.round(x * 32768).clip(-32768, 32767).astype(np.int16)
    for audio in (tmp_path / "a.wav", str(tmp_path / "a.wav"), torch.from_numpy(x), whole):
        assert model(audio).tokens == want.tokens
    fast = np.repeat(x, 3)
    soundfile.write(tmp_path / "fast.wav", fast, 48000, subtype="FLOAT")
    got = model(fast, sampling_rate=48000)
    assert got.tokens == model(tmp_path / "fast.wav").tokens
    assert got.timings.audio == want.timings.audio
    with pytest.raises(UserError, match="files know their own"):
        model(tmp_path / "fast.wav", sampling_rate=48000)


def test_without_a_router(make_model, reference, recordings):
    model = make_model(router=None)
    want = reference("oracle", recordings, ["it"] * 8)
    assert [r.tokens for r in model(recordings, language="it")] == [
        tuple(d.hypothesis.tokens) for d in want
    ]
    assert model(recordings[0], languages=["it"]).tokens == tuple(want[0].hypothesis.tokens)
    with pytest.raises(ConfigError, match="it has no router: say language="):
        model(recordings[0])
    with pytest.raises(ConfigError, match="strategy 'soft' needs a router"):
        model(recordings[0], strategy="soft")


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"language": "xx"}, "has no language 'xx'; it has en hi it pa te"),
        ({"language": ["hi"]}, "names 1 languages for 8 recordings"),
        ({"languages": "hi"}, r"languages is a list of codes, e.g. \['hi'\]"),
        ({"languages": []}, "languages is empty"),
        ({"languages": ["te", "hi"]}, "router does not know te; its languages: hi it pa"),
        ({"language": "it", "languages": ["hi", "pa"]}, "language is it, but languages are hi pa"),
        ({"strategy": "oracle"}, "'oracle' is unknown: choose one of baseline, hard, soft"),
        ({"strategy": "best"}, "'best' is unknown"),
        ({"strategy": "baseline"}, "its router is not asked: say language="),
        ({"strategy": "frame"}, "needs a frame-level router"),
        ({"strategy": "hierarchical"}, "tree is needed"),
        ({"expert": "xx"}, "no expert 'xx'; experts: hi it pa"),
        ({"expert": "hi", "strategy": "soft"}, "exclude each other"),
        ({"beam_size": 0}, "beam_size is at least 1, not 0"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(make_model, recordings, wishes, message):
    model = make_model()
    with pytest.raises(UserError, match=message):
        model(recordings, **wishes)
    if not isinstance(wishes.get("language"), list):
        with pytest.raises(UserError, match=message):
            model.stream(["never-read.wav"], **wishes)


def test_parts_that_do_not_fit(make_model, mixture, tiny_folder):
    with pytest.raises(ConfigError, match="router chooses among hi it pa, but pa is not given"):
        make_model(experts={n: mixture.experts[n] for n in ("hi", "it")})
    with pytest.raises(ConfigError, match="trained with --context variable"):
        make_model(context="padded")
    with pytest.raises(ConfigError, match="strategy 'softly' is unknown"):
        make_model(strategy="softly")


@pytest.mark.parametrize("base", ["mixture", "owsm_mixture"])
def test_eight_threads_get_what_one_gets(make_model, recordings, request, base):
    """Different strategies, experts and beams at the same time, each in its own thread."""
    parts = request.getfixturevalue(base)
    model = make_model(parts)
    model.load_expert("en", parts.extra)
    wishes = [
        {"strategy": "hard"},
        {"strategy": "soft"},
        {"language": "it"},
        {"language": "en"},
        {"strategy": "soft", "languages": ["hi", "pa"]},
        {"beam_size": 2},
        {"strategy": "segment"},
        {"expert": "en", "language": "hi"},
    ]
    want = [model(recordings, **wish) for wish in wishes]
    begin = threading.Barrier(len(wishes))

    def ask(wish):
        begin.wait()
        return [model(recordings, **wish) for _ in range(3)]

    with ThreadPoolExecutor(len(wishes)) as pool:
        for expected, rounds in zip(want, pool.map(ask, wishes)):
            for got in rounds:
                assert [r.tokens for r in got] == [r.tokens for r in expected]
                # Threads that a process begins later may add up in another order.
                scores = [r.score for r in expected]
                assert [r.score for r in got] == pytest.approx(scores, rel=1e-5)
    assert len({tuple(r.tokens for r in results) for results in want}) > 4, "wishes must matter"


def test_base_and_router_are_as_before(make_model, recordings):
    model = make_model()
    for strategy in ("hard", "soft"):
        model(recordings, strategy=strategy)
    assert model.base.digest() == model.digest
    assert not any("lora" in name for name, _ in model.base.named_parameters())
    # The decoder that stage 10 uses is what decodes: it is built on the shared weights.
    with model._replicas.borrow({}) as (backbone, experts):
        assert experts is None and isinstance(Decoder(backbone, None, model.options), Decoder)
        ours = dict(model.base.named_parameters())
        assert all(p is ours[name] for name, p in backbone.named_parameters())
