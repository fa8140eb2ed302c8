"""Transfer on planted rates, curves and families."""

import math

import numpy as np
import pytest

from espnet_moe.analysis.curves import data_needed, data_saved, read_curves
from espnet_moe.analysis.decodings import DecodedSets
from espnet_moe.analysis.passes import BASE, draw_utterances, load_subject
from espnet_moe.analysis.transfer import (
    LOSS,
    WER,
    Cell,
    family_contrast,
    read_all,
    run_all,
    transfer,
    transfer_table,
)
from espnet_moe.errors import UserError
from espnet_moe.report.analysis_figures import write_analysis_figures
from espnet_moe.report.page.analysis_tables import analysis_tables


def cell(rate: float, count: int = 50) -> Cell:
    """Utterances of 10 words, all of the same rate in percent."""
    return Cell(np.full(count, rate / 10), np.full(count, 10))


@pytest.fixture
def planted() -> dict:
    """Hindi and Punjabi help each other by half; Italian helps nobody and is helped by none."""
    rates = {
        (BASE, "hi"): 40,
        (BASE, "pa"): 80,
        (BASE, "it"): 20,
        ("hi", "hi"): 10,
        ("hi", "pa"): 40,
        ("hi", "it"): 30,
        ("pa", "hi"): 20,
        ("pa", "pa"): 20,
        ("pa", "it"): 20,
        ("it", "hi"): 40,
        ("it", "pa"): 80,
        ("it", "it"): 5,
    }
    return {key: cell(rate) for key, rate in rates.items()}


def test_gains_that_were_planted(planted):
    table = transfer_table(planted, WER, {c: c for c in ("hi", "pa", "it")}, 1000, 0)
    assert table["rows"] == [BASE, "hi", "pa", "it"] and table["columns"] == ["hi", "pa", "it"]
    assert table["utterances"] == [50, 50, 50]
    want = [[0, 0, 0], [75, 50, -50], [50, 75, 0], [0, 0, 75]]
    np.testing.assert_allclose(table["gain"], want, atol=1e-9)
    recovered = [[0, 0, 0], [100, 40 / 60 * 100, -10 / 15 * 100]]
    np.testing.assert_allclose(table["recovered"][:2], recovered, atol=1e-9)
    # No spread over utterances: the intervals close on the values.
    np.testing.assert_allclose(np.array(table["gain_interval"])[..., 0], want, atol=1e-6)


def test_a_gain_has_an_interval_over_utterances():
    draw = np.random.default_rng(0)
    words = np.full(400, 10)
    base, other = (Cell(draw.binomial(10, p, 400), words) for p in (0.4, 0.2))
    table = transfer_table({(BASE, "hi"): base, ("hi", "hi"): other}, WER, {"hi": "hi"}, 2000, 0)
    (low, high), gain = table["gain_interval"][1][0], table["gain"][1][0]
    assert low < gain < high and low < 50 < high and high - low < 10


def test_what_is_missing_is_none(planted):
    del planted["hi", "it"], planted["it", "it"]
    planted[BASE, "te"] = cell(0)
    planted["hi", "te"] = cell(10)
    table = transfer_table(planted, WER, {"hi": "hi", "it": "it"}, 1000, 0)
    rows, columns = table["rows"], table["columns"]
    assert table["rate"][rows.index("hi")][columns.index("it")] is None
    assert table["recovered"][rows.index("pa")][columns.index("it")] is None  # no expert of its own
    assert table["gain"][rows.index("hi")][columns.index("te")] is None  # a base without errors


def test_kinship():
    gains = np.array([[75, 50, -50], [50, 75, 0], [0, 0, 75]])
    found = family_contrast(
        gains, ["hi", "pa", "it"], ["hi", "pa", "it"], {"hi": 0, "pa": 0, "it": 1}
    )
    assert (found["within"], found["across"]) == (50, -12.5)
    assert found["pairs"] == {"within": 2, "across": 4}
    # Each of three pairs may be the relatives: one of them is the best.
    assert found["p"] == found["smallest_p"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="both within a family and across"):
        family_contrast(gains, ["hi", "pa", "it"], ["hi", "pa", "it"], {"hi": 0, "pa": 1, "it": 2})
    many = [str(i) for i in range(9)]
    with pytest.raises(UserError, match="at most 8"):
        family_contrast(np.zeros((9, 9)), many, many, dict.fromkeys(many, 0))


def test_data_needed():
    curve = [(1.0, 40.0), (10.0, 20.0), (100.0, 10.0)]
    assert data_needed(curve, 30) == pytest.approx(math.sqrt(10))  # half of the way, in the log
    assert data_needed(curve, 20) == pytest.approx(10)
    assert data_needed(curve, 50) == 1.0 and data_needed(curve, 5) is None
    saved = data_saved(curve, [(0.1, 40.0), (1.0, 20.0)])
    assert [row["factor"] for row in saved] == [None, pytest.approx(10), None]
    assert [row["needed"] for row in saved] == [None, 1.0, None]
    # Whether less than the smallest training would have done, nobody has tried.
    assert [row["factor_at_least"] for row in saved] == [10, None, None]
    assert [row["needed_at_most"] for row in saved] == [0.1, None, None]
    assert [row["gain"] for row in saved] == [50, None, None]  # 40 % becomes 20 % with an hour
    # From scratch an hour more has brought nothing: it is not transfer that saves it.
    flat = data_saved([(0.5, 60.0), (1.0, 43.6), (2.0, 43.6)], [(0.5, 50.0), (1.0, 40.0)])
    assert [row["factor_at_least"] for row in flat] == [1, None, None]
    assert flat[1]["factor"] == pytest.approx(1 / flat[1]["needed"]) and flat[2]["factor"] is None
    assert flat[2]["needed"] == flat[1]["needed"]
    with pytest.raises(UserError, match="different hours above 0"):
        data_needed([(1.0, 3.0), (1.0, 2.0)], 1)


def test_analysis_of_planted_results(planted, tmp_path):
    tree = tmp_path / "families.yaml"
    tree.write_text("Indo-Aryan: [hi, pa]\nRomance: [it]\n")
    curves = tmp_path / "curves.tsv"
    curves.write_text(
        "language\tstart\thours\twer\npa\tscratch\t10\t30\npa\thi\t1\t30\nit\thi\t1\t9\n"
    )
    languages = {code: (code,) for code in ("hi", "pa", "it")}
    content = transfer({WER: planted}, languages, tree, read_curves(curves)).content()
    assert content["results"]["families"]["wer"]["difference"] == 62.5
    assert content["results"]["few_shot"]["pa"]["hi"][0]["factor_at_least"] == 10
    (table,) = (t for t in analysis_tables("transfer", content["results"]) if "few-shot" in t.slug)
    titles = [column.title for column in table.columns]
    assert table.rows[0][titles.index("factor ≥")].text == "10.00"
    assert table.rows[0][titles.index("needed ≤")].text == "1.000"
    assert table.rows[0][titles.index("factor")].text == "–"
    assert "no curve from scratch" in content["not_available"]["few_shot of it"]
    clusters = transfer({WER: planted}, {**languages, "it": ("it", "hi")}, tree)
    assert "it are not of one language" in clusters.not_available["families of wer"]
    assert content["results"]["curves"]["pa"] == {
        "scratch": [{"hours": 10, "wer": 30}],
        "hi": [{"hours": 1, "wer": 30}],
    }
    pictures = write_analysis_figures(tmp_path, content, {})
    assert any(picture.name == "transfer_curves.png" for picture in pictures)
    told = transfer({WER: planted}, languages, tree).content()["not_available"]["few_shot"]
    assert "./grid.sh --grid transfer" in told
    curves.write_text("language\tstart\thours\twer\tlow\thigh\npa\tscratch\t1\t3\t2\n")
    with pytest.raises(UserError, match=r"curves.tsv:2 is not language, .*, low, high"):
        read_curves(curves)
    curves.write_text("nonsense")
    with pytest.raises(UserError, match="the first line is"):
        read_curves(curves)


def test_decodings_with_fixed_experts(tmp_path, make_datadir):
    data = make_datadir(tmp_path / "raw" / "test_it", {"it": 4})
    lines = (data / "text").read_text().splitlines()
    for system, right in (("baseline", 1), ("fixed_it", 4)):
        folder = tmp_path / "exp" / system / "greedy" / "test_it"
        folder.mkdir(parents=True)
        texts = [line if i < right else line.split()[0] for i, line in enumerate(lines)]
        (folder / "text").write_text("".join(f"{text}\n" for text in texts))
    which = DecodedSets(tmp_path / "exp", tmp_path / "raw", "greedy", (), ("test_it",))
    cells, missing = read_all(which, {"it": "fixed_it", "hi": "fixed_hi"}, "baseline")
    table = transfer_table(cells[WER], WER, {"it": "it"}, 1000, 0)
    assert table["gain"][table["rows"].index("it")] == [100]
    assert "decode the set first" in missing["fixed_hi on test_it"]


def test_passes(tiny_folder, save_random, make_datadir, tmp_path):
    subject = load_subject(str(tiny_folder), "variable", save_random("hi", "it"), "cpu")
    data = make_datadir(tmp_path / "test_hi", {"hi": 3, "it": 2})
    cells = run_all(subject, draw_utterances([data], 0, 30.0), 2, with_wer=True)
    assert set(cells) == {LOSS, WER} and len(cells[LOSS]) == 6
    assert cells[LOSS]["it", "hi"].errors.shape == (3,)
    rates = {key: own.rate(LOSS) for key, own in cells[LOSS].items()}
    assert len(set(rates.values())) == 6, "every expert acts"
