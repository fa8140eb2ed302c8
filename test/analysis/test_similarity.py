"""Similarities against products that are written out, and what must not change them."""

import json
from itertools import permutations

import numpy as np
import pytest
import scipy.linalg
import torch

from espnet_moe.analysis.distances import language_distances, mantel, uriel_distances
from espnet_moe.analysis.similarity import (
    cosines,
    principal_cosines,
    similarity,
    subspace_overlap,
)
from espnet_moe.analysis.updates import Place, Update, place_of, read_experts
from espnet_moe.errors import UserError


def random_update(seed: int, out: int = 12, width: int = 9, rank: int = 3) -> Update:
    draw = np.random.default_rng(seed)
    return Update(draw.normal(size=(out, rank)), draw.normal(size=(rank, width)))


def test_cosines_are_those_of_the_products_written_out(save_random):
    experts = read_experts(save_random("hi", "it", "pa"))
    flat = []
    for name in experts.names:
        updates = experts.updates[name].values()
        flat.append(np.concatenate([(u.up @ u.down).ravel() for u in updates]))
    norms = [np.linalg.norm(x) for x in flat]
    wanted = [[a @ b / (m * n) for b, n in zip(flat, norms)] for a, m in zip(flat, norms)]
    np.testing.assert_allclose(cosines(experts, experts.modules), wanted, atol=1e-9)


def test_the_scale_is_part_of_the_update(save_random):
    experts = read_experts(save_random("hi", "it", rank=4, alpha=10.0))
    layer = experts.updates["hi"][experts.modules[0]]
    again = read_experts(save_random("hi", "it", rank=4, alpha=20.0))
    other = again.updates["hi"][again.modules[0]]
    np.testing.assert_allclose(other.up @ other.down, 2 * layer.up @ layer.down)


def refactored(update: Update, seed: int) -> Update:
    """The same B·A as (B R)(R⁻¹ A)."""
    r = np.random.default_rng(seed).normal(size=(update.rank, update.rank)) + 2 * np.eye(
        update.rank
    )
    return Update(update.up @ r, np.linalg.solve(r, update.down))


def test_nothing_depends_on_how_the_product_is_factored():
    first, second = random_update(1), random_update(2)
    other = refactored(first, 5)
    # The factors themselves have become others …
    alike = (first.up * other.up).sum() / np.linalg.norm(first.up) / np.linalg.norm(other.up)
    assert alike < 0.99
    # … the update has not.
    assert first.inner(other) == pytest.approx(first.inner(first))
    assert other.inner(second) == pytest.approx(first.inner(second))
    np.testing.assert_allclose(first.singular_values, other.singular_values)
    for what in ("written", "read"):
        found, wanted = (subspace_overlap(x, second)[what] for x in (other, first))
        assert found == pytest.approx(wanted)
        assert subspace_overlap(first, other)[what]["overlap"] == pytest.approx(1)


def test_principal_angles_are_scipys():
    first, second = random_update(1), random_update(2, rank=5)
    for what, a, b in (
        ("written", first.up, second.up),
        ("read", first.down.T, second.down.T),
    ):
        angles = scipy.linalg.subspace_angles(a, b)
        found = subspace_overlap(first, second)[what]
        assert found["smallest_angle"] == pytest.approx(np.degrees(angles.min()), abs=1e-5)
        assert found["overlap"] == pytest.approx((np.cos(angles) ** 2).mean())


def test_chance_is_what_random_subspaces_have():
    drawn = []
    for seed in range(300):
        a, b = random_update(2 * seed, rank=3), random_update(2 * seed + 1, rank=4)
        drawn.append(subspace_overlap(a, b)["read"])
    assert np.mean([d["overlap"] for d in drawn]) == pytest.approx(drawn[0]["chance"], rel=0.05)


def test_only_directions_that_are_used_count():
    update = random_update(3)
    padded = Update(
        np.hstack([update.up, np.zeros((12, 2))]), np.vstack([update.down, np.ones((2, 9))])
    )
    assert subspace_overlap(update, padded)["read"]["overlap"] == pytest.approx(1)
    assert not len(principal_cosines(np.zeros((5, 0)), np.eye(5)))


def test_an_expert_that_has_learnt_nothing(save_random):
    def silence(experts):
        for layer in experts.layers.values():
            layer.B(1).zero_()

    found = similarity(read_experts(save_random("hi", "it", "pa", change=silence)))
    assert np.isnan(found.results["cosine"]["values"][0][1])
    assert "zero" in found.not_available["linkage of cosine"]
    json.dumps(found.content(), allow_nan=True)


def test_relatives_are_found_and_correlate_with_the_tree(save_random, tmp_path):
    tree = tmp_path / "families.yaml"
    tree.write_text("Indo-Aryan: [hi, pa]\nRomance: [it]\nDravidian: [te]\n")

    def relate(experts):
        for layer in experts.layers.values():
            hi, pa = experts.index("hi"), experts.index("pa")
            layer.A(pa).copy_(layer.A(hi) + 0.1 * layer.A(pa))
            layer.B(pa).copy_(layer.B(hi) + 0.1 * layer.B(pa))

    folders = save_random("hi", "it", "pa", "te", change=relate)
    content = similarity(read_experts(folders), tree).content()
    values = np.array(content["results"]["cosine"]["values"])
    assert values[0, 2] > 0.9 > 3 * abs(values[0, 1])
    found = content["results"]["language_correlation"]["cosine"]["families"]
    assert found["correlation"] > 0.95 and found["exact"] and found["permutations"] == 24
    # Four experts with one pair of relatives: 4 of 24 orders are as good.
    assert found["p"] == found["smallest_p"] == pytest.approx(4 / 24, abs=1e-5)
    assert "no backbone" in content["not_available"]["cka"]
    by_uriel = content["results"]["language_correlation"]["cosine"]
    assert by_uriel.keys() == {"families", "genetic", "syntactic", "inventory"}
    assert by_uriel["genetic"]["correlation"] > 0.5 and by_uriel["genetic"]["p"] <= 4 / 24 + 1e-5


def test_distances_of_languages_are_those_of_linguists():
    codes = ["hi", "pa", "ur", "it", "en", "te", "ta"]
    found = uriel_distances({code: (code,) for code in codes}, codes)
    assert found.keys() == {"genetic", "syntactic", "inventory"}
    for values in found.values():
        np.testing.assert_array_equal(values, values.T)
        assert not values.diagonal().any() and values.min() >= 0 and values.max() <= 1
    kin = {(a, b): found["genetic"][i, j] for i, a in enumerate(codes) for j, b in enumerate(codes)}
    # Glottolog (glottolog.org): hi and ur are one branch, pa is Indo-Aryan too, it and en are
    # Indo-European, te and ta are Dravidian and kin of no other.
    assert 0 == kin["hi", "ur"] < kin["hi", "pa"] < kin["hi", "it"] < kin["hi", "te"] == 1
    assert kin["te", "ta"] < 1 and kin["en", "ta"] == 1
    # Two of the 7 branches of Hindi (Indo-European … Hindustani) and 9 of Italian are common: one.
    assert kin["hi", "it"] == pytest.approx(1 - 1 / np.sqrt(7 * 9), abs=1e-3)
    twice = uriel_distances({"a": ("hi",), "b": ("hi",), "c": ("te",)}, ["a", "b", "c"])
    assert twice["genetic"].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    with pytest.raises(UserError, match=r"uriel.tsv lacks xx; it has as, bn"):
        uriel_distances({"xx": ("xx",), "hi": ("hi",)}, ["xx", "hi"])


def test_mantel_against_a_loop_over_all_orders():
    draw = np.random.default_rng(0)
    a, b = (np.abs(x + x.T) for x in draw.normal(size=(2, 5, 5)))
    upper = np.triu_indices(5, 1)
    want = np.corrcoef(a[upper], b[upper])[0, 1]
    orders = [np.ix_(o, o) for o in permutations(range(5))]
    drawn = [np.corrcoef(a[upper], b[o][upper])[0, 1] for o in orders]
    found = mantel(a, b)
    assert found["correlation"] == pytest.approx(want)
    assert found["p"] == pytest.approx(np.mean(np.array(drawn) >= want - 1e-12))
    sampled = mantel(a, b, draws=99)
    assert not sampled["exact"] and sampled["p"] == pytest.approx(found["p"], abs=0.15)


def test_what_has_no_language_distance(tmp_path):
    tree = tmp_path / "families.yaml"
    tree.write_text("Romance: [it]\n")
    with pytest.raises(UserError, match="cluster0 are not of one language"):
        language_distances({"cluster0": ("hi", "it"), "it": ("it",)}, tree, ["cluster0", "it"])
    with pytest.raises(UserError, match="lacks hi"):
        language_distances({"hi": ("hi",), "it": ("it",)}, tree, ["hi", "it"])
    with pytest.raises(UserError, match="at least 3"):
        mantel(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(UserError, match="all distances are the same"):
        mantel(1 - np.eye(3), np.ones((3, 3)))


def test_experts_that_cannot_be_compared(save_random, tmp_path):
    folders = save_random("hi", "it")
    with pytest.raises(UserError, match="at least 2"):
        read_experts({"hi": folders["hi"]}, at_least=2)
    manifest = tmp_path / "it" / "expert.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "base_digest": "other"}))
    with pytest.raises(UserError, match="different bases"):
        read_experts(folders)
    wide = save_random("pa", targets=("q_proj", "v_proj"))
    with pytest.raises(UserError, match="different layers"):
        read_experts({**save_random("hi", "it", targets=("fc1",)), "pa": wide["pa"]})


@pytest.mark.parametrize("make", ["make_backbone", "make_owsm"])
def test_places_by_name_are_the_backbones(make, request):
    backbone = request.getfixturevalue(make)()
    linear = [n for n, m in backbone.network.named_modules() if isinstance(m, torch.nn.Linear)]
    placed = [name for name in linear if backbone.layer_of(name) is not None]
    assert placed
    for name in placed:
        place = place_of(name)
        assert (place.part, place.layer) == backbone.layer_of(name)
        assert name.endswith(f"{place.layer}.{place.kind}")
    assert place_of("head") == Place("", 0, "head")
