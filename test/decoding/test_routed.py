"""Decoding with a router: against naive computations, alone against batched, and wrong input."""

import itertools
import json

import numpy as np
import pytest
import torch

from espnet_moe.bin import decode as command
from espnet_moe.config import ConfigError
from espnet_moe.decoding.decoder import DecodeOptions, Decoder
from espnet_moe.decoding.parts import Part, join_hypotheses, join_records
from espnet_moe.decoding.plans import PausePlan
from espnet_moe.decoding.routing import Route, RoutingOptions
from espnet_moe.decoding.search import Hypothesis, SearchOptions, search
from espnet_moe.decoding.windows import stretches
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import save_expert
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.routing.networks import LinearOptions
from espnet_moe.routing.pooling import frames_of
from espnet_moe.routing.router_files import save_router
from espnet_moe.routing.routers import Router

NAMES = ("hi", "it", "pa")
SECONDS = (0.9, 0.35, 1.4, 0.1)
UTTERANCE = ("hard", "soft", "threshold", "topk")


def make_experts(backbone, names=NAMES, first_layer=1):
    experts = ExpertSet(backbone, LoRAOptions(rank=4, first_layer=first_layer), names)
    torch.manual_seed(1)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return experts


def make_router(layer=1, level="utterance", experts=NAMES, languages=NAMES):
    torch.manual_seed(4)
    router = Router(LinearOptions(layer=layer, level=level), 32, experts, languages).eval()
    with torch.no_grad():
        for p in router.parameters():
            p.copy_(0.6 * torch.randn(p.shape))
    return router


@torch.no_grad()
def spread(router, backbone, waves):
    """Scale and shift the heads so that every name is the best one somewhere."""
    seen = [backbone.encode_lower(*wave(x), router.layer) for x in waves]
    for head in (router.expert_head, router.language_head):
        if head is not None:
            values = [head(router.trunk(e.hidden, e.lengths)).flatten(0, -2) for e in seen]
            logits = torch.cat(values)
            head.weight.mul_(1.5 / logits.std(0)[:, None])
            head.bias.copy_(1.5 / logits.std(0) * (head.bias - logits.mean(0)))


def make(backbone, system, layer=1, level="utterance", beams=1, router=None, first=1, **routing):
    options = DecodeOptions(
        batch_size=4, beam_size=beams, max_tokens=8, routing=RoutingOptions(**routing)
    )
    router = router or make_router(layer, level)
    spread(router, backbone, WAVES)
    return Decoder(backbone, make_experts(backbone, router.experts, first), options, system, router)


def tones(seconds, seed):
    """Gliding tones whose range changes every 0.5 s."""
    draw, t = np.random.default_rng(seed), np.arange(int(seconds * 16000)) / 16000
    x = 0.01 * draw.standard_normal(len(t))
    for a in range(0, len(t), 8000):
        low, n = draw.uniform(100, 5000), len(t[a : a + 8000])
        x[a : a + n] += draw.uniform(0.02, 0.5) * np.sin(6.28 * (low + 300 * t[a : a + n]) * t[:n])
    return x.astype(np.float32)


def rows(speak):
    return [speak(s, i) for i, s in enumerate(SECONDS)]


@pytest.fixture
def speak():
    return tones


WAVES = [tones(s, i) for i, s in enumerate(SECONDS)]


def wave(x):
    return torch.from_numpy(x)[None], torch.tensor([len(x)])


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.inference_mode()
def test_routes_equal_two_plain_passes(backbone, speak, layer, first):
    decoder = make(backbone, "soft", layer, first=first)
    for x, got in zip(rows(speak), decoder(rows(speak), ["hi"] * 4), strict=True):
        speech, lengths = wave(x)
        read = backbone.encode_lower(speech, lengths, layer)  # no gates: no expert
        logits = decoder.plan.router(read.hidden, frames_of(lengths)).experts
        weights = logits.softmax(-1)
        with use_gates(Gates.of(weights)):
            encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
        language = NAMES[int(logits.argmax())]
        prompt = backbone.tokens.prompt([language])
        want = search(backbone, encoded, prompt, SearchOptions(max_tokens=8), Gates.of(weights))[0]
        assert got.hypothesis.tokens == want.tokens and got.language == language
        for name, p in zip(NAMES, weights[0].tolist(), strict=True):
            assert got.route["gates"][name] == pytest.approx(p, abs=2e-4)


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize(
    ("system", "level"), [*((s, "utterance") for s in UTTERANCE), ("soft", "frame"),
                          ("frame", "frame"), ("segment", "frame")]
)  # fmt: skip
def test_alone_equals_batched(backbone, speak, system, level, beams):
    decoder = make(backbone, system, level=level, beams=beams, switch_penalty=0.5)
    together = decoder(rows(speak), ["hi", "it", "pa", "hi"])
    assert len({d.language for d in together}) > 1, "the batch must mix languages"
    for x, got in zip(rows(speak), together, strict=True):
        alone = decoder([x], ["te"])[0]  # the true language does not matter
        assert (alone.text, alone.language) == (got.text, got.language)
        assert alone.route.get("segments") == got.route.get("segments")
        for what in ("languages", "experts", "gates"):
            assert alone.route[what] == pytest.approx(got.route[what], abs=3e-4)


def test_threshold_decides_row_by_row(make_backbone, speak):
    found = make(make_backbone(), "soft")(rows(speak), ["hi"] * 4)
    highest = sorted(max(d.route["experts"].values()) for d in found)
    assert highest[1] < highest[2] - 1e-3
    decoder = make(make_backbone(), "threshold", threshold=(highest[1] + highest[2]) / 2)
    used = [sum(w > 0 for w in d.route["gates"].values()) for d in decoder(rows(speak), ["hi"] * 4)]
    assert sorted(used) == [1, 1, 2, 2]


@pytest.mark.parametrize("system", ["hard", "soft", "frame", "segment"])
def test_allowed_languages(backbone, speak, system):
    level = "frame" if system in ("frame", "segment") else "utterance"
    decoder = make(backbone, system, level=level, allowed=("it", "pa"), switch_penalty=0.1)
    for one in decoder(rows(speak), ["hi"] * 4):
        assert one.language in ("it", "pa")
        assert one.route["languages"]["hi"] == one.route["gates"]["hi"] == 0
        assert all(label != "hi" for *_, label in one.route.get("segments", []))
        assert np.isfinite(one.hypothesis.score)


def test_experts_that_are_clusters(backbone, speak):
    router = make_router(experts=("c0", "c1"), languages=("hi", "it", "pa", "te"))
    decoder = make(backbone, "hard", router=router, allowed=("te", "hi"))
    for one in decoder(rows(speak), ["pa"] * 4):
        assert one.language in ("te", "hi") and one.route["gates"].keys() == {"c0", "c1"}
        assert one.language == max(one.route["languages"], key=one.route["languages"].get)


def test_hierarchical_prompts_with_its_own_choice(backbone, speak, tmp_path):
    (tmp_path / "tree.yaml").write_text("A: [hi, pa]\nB: [it]\n")
    decoder = make(backbone, "hierarchical", tree=str(tmp_path / "tree.yaml"))
    for one in decoder(rows(speak), ["hi"] * 4):
        p = one.route["languages"]
        want = max("hi", "pa", key=p.get) if p["hi"] + p["pa"] > p["it"] else "it"
        assert one.language == want and one.route["gates"][want] == 1


def test_a_tree_of_languages_prompts_where_experts_are_clusters(make_backbone, speak, tmp_path):
    (tmp_path / "tree.yaml").write_text("A: [hi, pa]\nB: [it]\n")
    router = make_router(experts=("c0", "c1"), languages=("hi", "it", "pa"))
    tree = str(tmp_path / "tree.yaml")
    decoder = make(make_backbone(), "hierarchical", router=router, tree=tree)
    hard = make(make_backbone(), "hard", router=router)
    for one, other in zip(decoder(rows(speak), ["hi"] * 4), hard(rows(speak), ["hi"] * 4)):
        p = one.route["languages"]
        want = max("hi", "pa", key=p.get) if p["hi"] + p["pa"] > p["it"] else "it"
        assert one.language == want and one.route["gates"] == other.route["gates"]
    (tmp_path / "tree.yaml").write_text("A: [hi, c0]\nB: [it]\n")
    with pytest.raises(UserError, match="tree lacks pa"):
        make(make_backbone(), "hierarchical", router=router, tree=tree)


def test_fixed_needs_no_router_where_the_expert_is_a_language(backbone, speak):
    options = DecodeOptions(max_tokens=8, routing=RoutingOptions(expert="pa"))
    decoder = Decoder(backbone, make_experts(backbone), options, "fixed")
    oracle = Decoder(backbone, decoder.experts, DecodeOptions(max_tokens=8))
    fixed = decoder(rows(speak), ["hi"] * 4)
    assert [d.text for d in fixed] == [d.text for d in oracle(rows(speak), ["pa"] * 4)]
    assert {d.language for d in fixed} == {"pa"}


def test_oracle_by_memberships(backbone, speak):
    decoder = Decoder(backbone, make_experts(backbone), DecodeOptions(max_tokens=8))
    known = [{"it": 2.0, "hi": 6.0}, {"pa": 1.0}]
    found = decoder(rows(speak)[:2], ["hi", "it"], known)
    assert found[0].route["gates"] == {"hi": 0.75, "it": 0.25, "pa": 0}
    assert found[1].route["gates"] == {"hi": 0, "it": 0, "pa": 1}
    with pytest.raises(UserError, match="no expert is called te"):
        decoder(rows(speak)[:1], ["hi"], [{"te": 1.0}])


@pytest.mark.parametrize("system", ["hard", "frame", "segment"])
def test_silence_and_very_short_audio(backbone, speak, system):
    level = "utterance" if system == "hard" else "frame"
    decoder = make(backbone, system, level=level)
    odd = [np.zeros(8000, np.float32), np.zeros(1, np.float32), speak(0.1, 3)[:200]]
    for one in decoder(odd, ["hi"] * 3):
        assert np.isfinite(one.hypothesis.score) and one.language in NAMES


def test_the_padding_to_30_s_has_no_say(make_backbone, speak):
    decoder = make(make_backbone("padded"), "frame", level="frame", switch_penalty=0.5)
    for x, one in zip(rows(speak), decoder(rows(speak), ["hi"] * 4), strict=True):
        assert one.route["segments"][-1][1] == pytest.approx(len(x) / 16000, abs=0.02)
        assert sum(one.route["gates"].values()) == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize(("system", "level"), [("hard", "utterance"), ("frame", "frame")])
def test_long_recordings_are_decoded_in_windows(backbone, speak, system, level):
    decoder = make(backbone, system, level=level, layer=0)
    parts = [speak(s, seed) for seed, s in ((7, 20.0), (8, 14.0))]
    pause = np.zeros(8000, np.float32)
    long = np.concatenate([parts[0], pause, parts[1]])
    short = speak(0.4, 1)
    found = decoder([long, short], ["hi", "it"])
    assert found[1].text == decoder([short], ["it"])[0].text
    runs = found[0].route["segments"]
    assert runs[0][0] == 0 and runs[-1][1] == pytest.approx(34.5, abs=0.03)
    assert all(a[1] == pytest.approx(b[0], abs=0.03) for a, b in itertools.pairwise(runs))
    if system == "hard":
        assert len(found[0].hypothesis.tokens) <= 16  # two windows of at most eight


def test_segments_are_decoded_with_their_own_language_and_expert(backbone, speak):
    decoder = make(backbone, "segment", level="frame", smoothing="none", snap=0.0)
    x = np.concatenate(WAVES)
    found = decoder([x], ["te"])[0]
    cuts = found.route["segments"]
    assert len(cuts) > 1 and min(b - a for a, b, _ in cuts) >= 0.39
    oracle = Decoder(backbone, decoder.experts, DecodeOptions(max_tokens=8))
    edges = [round(a * 16000) for a, *_ in cuts] + [len(x)]
    alone = oracle([x[a:b] for a, b in itertools.pairwise(edges)], [c[2] for c in cuts])
    assert found.text == " ".join(d.text for d in alone if d.text)
    for name in NAMES:
        share = sum(b - a for a, b, label in cuts if label == name) / (len(x) / 16000)
        assert found.route["gates"][name] == pytest.approx(share, abs=2e-3)


def steady(seconds, frequency):
    t = np.arange(int(seconds * 16000)) / 16000
    noise = 0.01 * np.random.default_rng(frequency).standard_normal(len(t))
    return (0.2 * np.sin(6.28 * frequency * t) + noise).astype(np.float32)


@pytest.mark.parametrize("beams", [1, 3])
def test_pauses_are_where_an_utterance_router_cuts(backbone, speak, beams):
    quiet = np.zeros(4000, np.float32)
    waves = [steady(1.2 + 0.3 * i, f) for i, f in enumerate((300, 1500, 400, 3000))]
    whole = np.concatenate([x for w in waves for x in (w, quiet)][:-1])
    decoder = make(backbone, "segment", beams=beams, pause_penalty=0.0)
    spread(decoder.plan.router, backbone, [whole[a:b] for a, b in stretches(whole)])
    found, alone = decoder([whole, waves[0]], ["te", "te"])
    cuts = found.route["segments"]
    assert cuts[0][0] == 0 and cuts[-1][1] == pytest.approx(len(whole) / 16000, abs=0.02)
    # Every cut is inside one of the pauses …
    ends = np.cumsum([len(w) + 4000 for w in waves]) / 16000
    assert all(any(e - 0.3 <= a <= e + 0.05 for e in ends) for a, *_ in cuts[1:])
    # … and each piece is decoded as it would be alone, by its language's expert.
    edges = [round(a * 16000) for a, *_ in cuts] + [len(whole)]
    oracle = Decoder(backbone, decoder.experts, decoder.options)
    parts = oracle([whole[a:b] for a, b in itertools.pairwise(edges)], [c[2] for c in cuts])
    assert found.text == " ".join(d.text for d in parts if d.text)
    assert len({c[2] for c in cuts}) > 1
    assert all(a[2] != b[2] for a, b in itertools.pairwise(cuts))
    assert len(alone.route["segments"]) == 1
    assert decoder([waves[0]], ["te"])[0].text == alone.text


def test_a_change_at_a_pause_has_its_price(make_backbone, speak):
    waves = [steady(1.5, f) for f in (300, 1500, 400, 3000)]
    whole = np.concatenate([x for w in waves for x in (w, np.zeros(4000, np.float32))])
    pieces = []
    for price in (0.0, 50.0):
        decoder = make(make_backbone(), "segment", pause_penalty=price)
        spread(decoder.plan.router, decoder.backbone, [whole[a:b] for a, b in stretches(whole)])
        pieces.append(decoder([whole], ["te"])[0].route["segments"])
    assert len(pieces[0]) > 1 and len(pieces[1]) == 1


def test_joining_of_parts():
    found = [Hypothesis([1, 2, 3], -0.5, "eos", 4), Hypothesis([4], -1.0, "repetition", 2)]
    one = join_hypotheses(found)
    assert one.tokens == [1, 2, 3, 4] and one.stop == "repetition"
    assert one.score == pytest.approx((-0.5 * 4 - 1.0 * 2) / 6)
    parts = [
        Part(0, 0, np.zeros(48000, np.float32), "hi", record={"gates": {"hi": 1.0, "it": 0.0}}),
        Part(0, 48000, np.zeros(16000, np.float32), "it", record={"gates": {"hi": 0.0, "it": 1.0}}),
    ]
    joined = join_records(parts)
    assert joined["gates"] == {"hi": 0.75, "it": 0.25}
    assert joined["segments"] == [[0, 3.0, "hi"], [3.0, 4.0, "it"]]


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def trained(make_backbone, make_datadir, tmp_path):
    backbone = make_backbone()
    experts = make_experts(backbone)
    for name in NAMES:
        save_expert(tmp_path / name, experts, name, backbone.digest(), {})
    for level in ("utterance", "frame"):
        save_router(tmp_path / level, make_router(level=level), backbone.digest(), {})
    make_datadir(tmp_path / "test_x", {"hi": 3, "it": 2})
    return tmp_path


def run(tiny_folder, trained, system, *more, conf="max_tokens: 6\n", names=("pa", "hi", "it")):
    (trained / "c.yaml").write_text(conf)
    experts = [f"{n}={trained / n}" for n in names]
    common = ["--backbone", str(tiny_folder), "--data", str(trained / "test_x"), "--device", "cpu"]
    more = [*common, "--config", str(trained / "c.yaml"), "--out", str(trained / "out"), *more]
    command.main(["--system", system, "--experts", *experts, *more])
    stats = (trained / "out" / "test_x" / "logdir" / "output.1" / "stats.jsonl").open()
    report = json.loads((trained / "out" / "logdir" / "output.1.json").read_text())
    return [json.loads(line) for line in stats], report


def test_what_is_written(tiny_folder, trained):
    stats, report = run(tiny_folder, trained, "hard", "--router", str(trained / "utterance"))
    assert report["strategy"] == "hard" and report["router"] == str(trained / "utterance")
    assert report["route_seconds"] > 0 and 0 < report["encode_seconds"] < report["wall_seconds"]
    assert report["experts_by"] == "language"
    for row in stats:
        assert row["language"] in NAMES and row["encode_ms"] > 0 and row["route_ms"] > 0
        assert row["route"].keys() == {"languages", "experts", "gates"}
        assert sum(row["route"]["languages"].values()) == pytest.approx(1, abs=2e-4)
    stats, _ = run(tiny_folder, trained, "frame", "--router", str(trained / "frame"))
    assert all(row["route"]["segments"][0][0] == 0 for row in stats)


def test_oracle_from_a_file(tiny_folder, trained):
    ids = [line.split()[0] for line in (trained / "test_x" / "text").open()]
    path = trained / "utt2experts"
    path.write_text("".join(f"{u} pa:0.5 it:0.5\n" for u in ids))
    stats, _ = run(tiny_folder, trained, "oracle", "--utt2experts", str(path))
    assert all(r["route"]["gates"] == {"pa": 0.5, "hi": 0, "it": 0.5} for r in stats)
    for text, message in (
        ("".join(f"{u} pa:1\n" for u in ids[1:]), f"no line for 1 of 5 utterances .{ids[0]}"),
        (f"{ids[0]} c9:1\n", "unknown expert 'c9'"),
        (f"{ids[0]} pa\n", f"line 1: {ids[0]}: 'pa' is not expert:weight"),
        (f"{ids[0]}\n", "no expert is named"),
        (f"{ids[0]} pa:-1\n", "is not a number above 0"),
        (f"{ids[0]} pa:1\n" * 2, "is there more than once"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            run(tiny_folder, trained, "oracle", "--utt2experts", str(path))


@pytest.mark.parametrize(
    ("system", "router", "conf", "message"),
    [
        ("topk", "utterance", "routing: {k: 4}", "k is 4, but it has 3 experts"),
        ("threshold", "utterance", "routing: {threshold: 1.2}", r"in \[0, 1\], not 1.2"),
        ("hierarchical", "utterance", "", "tree is needed"),
        ("hierarchical", "utterance", "routing: {tree: TREE}", "tree lacks pa"),
        ("fixed", "utterance", "routing: {expert: te}", "'te' is none of its experts"),
        ("hard", "utterance", "routing: {allowed: [hi, xx]}", "xx are unknown"),
        ("hard", "utterance", "routing: {taus: 1}", r"routing: unknown key\(s\) taus"),
        ("hard", "utterance", "routing: 3", "routing is a mapping"),
        ("hard", "utterance", "routing: {smoothing: mean}", "'mean' is unknown"),
        ("hard", "utterance", "beam: 2\nrouting: {taus: 1}", r"(?s)taus.*unknown key\(s\) beam"),
        ("frame", "utterance", "", "needs a frame-level router"),
        ("hard", "nowhere", "", "holds no whole router"),
        ("fixed", None, "", "routing: expert names an expert"),
    ],
)
def test_wrong_settings_end_before_any_audio(tiny_folder, trained, system, router, conf, message):
    (trained / "tree").write_text("A: [hi]\nB: [it]\n")
    conf = conf.replace("TREE", str(trained / "tree"))
    (trained / "test_x" / "wavs").rename(trained / "gone")
    more = ["--router", str(trained / router)] if router else []
    with pytest.raises(UserError, match=message):
        run(tiny_folder, trained, system, *more, conf=conf)
    assert not (trained / "out").exists()


def test_router_of_another_base_or_layer_or_with_other_experts(tiny_folder, trained):
    hard = ("hard", "--router", str(trained / "other"))
    save_router(trained / "other", make_router(), "0" * 64, {})
    with pytest.raises(UserError, match="was trained on another backbone"):
        run(tiny_folder, trained, *hard)
    with pytest.raises(UserError, match="--experts lacks pa, which the router chooses"):
        run(tiny_folder, trained, *hard, names=("hi", "it"))
    digest = json.loads((trained / "utterance" / "router.json").read_text())["base_digest"]
    save_router(trained / "other", make_router(layer=3), digest, {})
    with pytest.raises(ConfigError, match=r"reads encoder layer 3, but the layers are 0\.\.2"):
        run(tiny_folder, trained, *hard)
    two = make_router(experts=("hi", "it"), languages=("hi", "it"))
    save_router(trained / "other", two, digest, {})
    with pytest.raises(UserError, match="does not know --experts pa"):
        run(tiny_folder, trained, *hard)
    mute = make_router(languages=("hi", "it", "zz"))
    save_router(trained / "other", mute, digest, {})
    with pytest.raises(UserError, match=r"no token for language\(s\) zz"):
        run(tiny_folder, trained, *hard)


def test_a_second_of_speech_counts_once():
    """A long sentence between two of another language is a piece, a word as sure of it is not."""
    options = RoutingOptions(pause_penalty=4.0)
    plan = PausePlan(make_router(), options, NAMES, frame_samples=640)
    sure = torch.tensor([[0.05, 0.9, 0.05]]).log().softmax(-1)

    def stretch(code, seconds):
        posteriors = sure.roll(NAMES.index(code) - 1, dims=1)
        frames = torch.tensor([round(seconds * 16000 / 640)])
        return Route(None, [code], experts=posteriors, posteriors=posteriors, lengths=frames), 0

    def pieces(middle):
        found = plan.runs([stretch("hi", 3.0), stretch("it", middle), stretch("hi", 3.0)])
        return [(first, last, language) for first, last, language, _ in found]

    assert pieces(4.0) == [(0, 1, "hi"), (1, 2, "it"), (2, 3, "hi")]
    assert pieces(0.5) == [(0, 3, "hi")]
