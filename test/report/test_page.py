"""The page of an experiment: what it says, what it survives, and what a browser makes of it."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from espnet_moe.bin.report import main
from espnet_moe.errors import UserError
from espnet_moe.report.page.analysis_tables import analysis_tables
from espnet_moe.report.page.charts import diagram
from espnet_moe.report.page.scripts import language_of, marked
from espnet_moe.report.page.tables import Column, PageTable, number, to_latex, words


def build(root: Path, *words_: str) -> tuple[str, int]:
    """Run the command line; return the page and the exit code."""
    code = 0
    try:
        main(["--exp", f"{root}/exp/tiny", "--data", f"{root}/dump/raw", *words_])
    except SystemExit as end:
        code = int(end.code or 0)
    return (root / "exp/tiny/report/index.html").read_text("utf-8"), code


class _Text(HTMLParser):
    """Text of a page by section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.section = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.handle_data(" ")
        if tag == "section":
            self.section = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        self.found[self.section] = self.found.get(self.section, "") + data


def section(page: str, name: str) -> str:
    return " ".join(_Text(page).found[name].split())


def table(root: Path, name: str) -> list[dict[str, str]]:
    path = root / f"exp/tiny/report/tables/{name}.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sections_tell_what_the_files_say(small: Path) -> None:
    page, code = build(small, "--require", "routing", "samples", "--analyses", "probe")
    assert code == 0
    results = json.loads((small / "exp/tiny/results.json").read_text("utf-8"))
    row = next(r for r in results["rows"] if (r["system"], r["set"]) == ("hard", "test_hi"))
    low, high = row["wer_ci"]
    assert f"{row['wer']:.2f}† [{low:.2f}, {high:.2f}]" in section(page, "summary")
    assert "test_hi hi Tones 1.0 6 0.00 6 0" in section(page, "data")
    assert "hi expert_hi/expert expert lora 4 both 64 10 0.10 3" in section(page, "experts")
    assert "hard all 12 100.00† [75.75, 100.00]" in section(page, "routing")
    assert "A probe <b>of</b> layers What do layers know?" in section(page, "analysis")
    assert "0.750 [0.500, 0.875]" in section(page, "analysis")
    assert "hard against baseline on test_" in section(page, "significance")
    assert "1,000 100 10.00 100 0.1667" in section(page, "cost")
    assert "✓ met" in section(page, "targets")
    missing = section(page, "missing")
    assert "Everything that was asked for is there." in missing
    assert "probe: cka no backbone was given" in missing
    assert "no code-switched set is scored" in missing
    assert section(page, "codeswitch").endswith("see what is missing.")


def test_every_number_has_an_interval_or_a_reason() -> None:
    row = ((words("a"), number(1.0)),)
    with pytest.raises(ValueError, match="rate has no interval, and no reason"):
        PageTable("t", "", (Column(""), Column("rate")), row)
    PageTable("t", "", (Column(""), Column("rate", "counted")), row)


def test_utterances_are_chosen_and_shown_with_their_errors(small: Path) -> None:
    page, _ = build(small)
    told = section(page, "samples")
    assert [told.count(role) for role in ("best s", "typical s", "worst s", "by lot s")] == [2] * 4
    # Every system has the first utterance wrong, none the last two.
    chosen = dict(re.findall(r'role">(\w+)</span> <span class="id">(s\d)-hi', page))
    assert chosen["worst"] == "s0" and chosen["best"] in ("s4", "s5")
    assert '>×</span><span lang="hi">पानी</span><small lang="hi">' in page
    tags = _Text(page).tags
    players = [attributes["src"] or "" for tag, attributes in tags if tag == "audio"]
    assert len(players) == 8 and all(p.startswith("data:audio/mpeg;base64,") for p in players)
    assert page.count("hard → hi") >= 1 and "hi 0.90 it 0.10" in told
    assert build(small)[0] == page
    other, _ = build(small, "--seed", "1")
    assert other != page


def test_the_page_is_all_there_is(small: Path) -> None:
    page, _ = build(small)
    for tag, attributes in _Text(page).tags:
        for name in ("src", "href", "data", "poster", "srcset"):
            address = attributes.get(name)
            if address is not None:
                assert address.startswith(("data:", "#", "tables/")), (tag, address)
    assert "url(" not in page and "@import" not in page
    assert "default-src &#39;none&#39;" in page
    assert len(page) < 1_000_000
    folder = small / "exp/tiny/report"
    linked = re.findall(r'href="(tables/[^"]+)"', page)
    assert linked and all((folder / name).is_file() for name in linked)
    assert {f"tables/{p.name}" for p in (folder / "tables").iterdir()} == set(linked)
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(name in ids for name in re.findall(r'href="#([^"]+)"', page))


def test_markup_is_shown_as_text(small: Path) -> None:
    hostile = "<script>alert(1)</script>"
    path = small / "dump/raw/test_it/text"
    path.write_text(path.read_text("utf-8").replace("oggi", hostile), "utf-8")
    analysis = small / "exp/tiny/analysis/probe.json"
    content = json.loads(analysis.read_text("utf-8"))
    content["what"] = content["not_available"]["x"] = f"{hostile} नदी"
    analysis.write_text(json.dumps(content), "utf-8")
    page, _ = build(small)
    assert page.count("<script>") == 1  # the page's own
    assert hostile not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert hostile in section(page, "analysis") and hostile in section(page, "missing")
    assert "<b>of" not in page


def test_a_hostile_transcript_is_text_in_a_sample() -> None:
    from jinja2 import Environment, PackageLoader

    from espnet_moe.report.page.samples import Hypothesis, Sample, SampleSet, Word

    hostile = '"><script>alert(1)</script>'
    word = Word("sub", hostile, hostile, hostile, hostile)
    sample = Sample(hostile, "best", 1.0, (), ((hostile, "it"),), (), "", [])
    sample.hypotheses.append(Hypothesis((word,), 1, [hostile]))
    environment = Environment(
        loader=PackageLoader("espnet_moe", "report/templates"), autoescape=True
    )
    environment.filters.update(marked=marked, colour=str)
    drawn = environment.get_template("blocks.html.j2").module.block(  # type: ignore[attr-defined]
        SampleSet(hostile, hostile, (sample,))
    )
    assert "<script" not in drawn and drawn.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda exp: (exp / "results.json").unlink(), "results.json does not exist"),
        (lambda exp: (exp / "analysis/probe.json").write_text("{"), "is not JSON"),
        (lambda exp: (exp / "analysis/probe.json").write_text("{}"), "it is no analysis"),
        (lambda exp: shutil.rmtree(exp.parents[1] / "audio"), "does not exist; unpack"),
        (lambda exp: shutil.rmtree(exp / "hard/greedy/test_hi"), "hard"),
        (lambda exp: shutil.rmtree(exp.parents[1] / "dump"), "there is no folder"),
        (lambda exp: (exp / "expert_hi/expert/expert.json").write_text("["), "is not JSON"),
        (lambda exp: _edit(exp / "results.json"), "it changed after scoring"),
    ],
)
def test_what_is_broken_is_told_and_fails(small: Path, break_it, told: str, capsys) -> None:
    break_it(small / "exp/tiny")
    page, code = build(small)
    assert code == 1
    assert told in section(page, "missing") and told in capsys.readouterr().err
    assert "missing</b> of what was asked for" in page


def _edit(path: Path) -> None:
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")


def test_results_of_another_layout_cost_their_section_alone(small: Path) -> None:
    path = small / "exp/tiny/results.json"
    results = json.loads(path.read_text("utf-8"))
    for row in results["routing"]:
        del row["confusion"]
    path.write_text(json.dumps(results), "utf-8")
    page, code = build(small)
    assert code == 1
    assert "its results are of another layout (KeyError: 'confusion')" in section(page, "missing")
    assert "hard" in section(page, "summary")


def test_what_was_never_made_fails_only_if_it_is_asked_for(make_experiment) -> None:
    root = make_experiment("baseline", analysis=False)
    page, code = build(root)
    assert code == 0
    missing = section(page, "missing")
    for told in ("no system with a router", "run bin.analyze", "none was trained"):
        assert told in missing
    for words_ in (("--require", "routing"), ("--require", "experts"), ("--analyses", "layers")):
        page, code = build(root, *words_)
        assert code == 1
        lacking = section(page, "missing").split("Not part of this experiment")[0]
        assert words_[1] in lacking and "Everything" not in lacking


def test_an_analysis_that_failed_says_why(small: Path) -> None:
    log = small / "exp/tiny/log/analyze_layers.log"
    log.parent.mkdir()
    log.write_text("# a command\npython -m x: error: --data is empty\n# ended with 2\n", "utf-8")
    page, code = build(small, "--analyses", "probe", "layers")
    assert code == 1
    assert "layers.json: python -m x: error: --data is empty (" in section(page, "missing")


def test_no_such_experiment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        main(["--exp", str(tmp_path / "none")])


def test_tables_are_written_as_csv_with_their_intervals(small: Path) -> None:
    build(small)
    results = json.loads((small / "exp/tiny/results.json").read_text("utf-8"))
    lines = {line["system"]: line for line in table(small, "wer")}
    for row in results["rows"]:
        column = f"{row['set']} ({row['language']})"
        line = lines[row["system"]]
        assert float(line[column]) == row["wer"]
        assert [float(line[f"{column} {end}"]) for end in ("low", "high")] == row["wer_ci"]
    (first,) = table(small, "analysis-probe-confusions")
    assert first["reference"] == "नदी" and first["hypothesis"] == "<script>alert(1)</script>"
    assert [line["accuracy high"] for line in table(small, "analysis-probe-layers")] == [
        "0.75",
        "0.875",
    ]
    assert table(small, "analysis-probe-cosine")[1] == {"name": "it", "hi": "0.125", "it": "1.0"}


def test_tables_of_an_earlier_run_go(small: Path) -> None:
    build(small)
    old = small / "exp/tiny/report/tables/old.csv"
    old.write_text("")
    build(small)
    assert not old.exists()


def test_latex_says_what_the_table_says() -> None:
    text = r"50 % of a_b & {c} #1 $2 ~x^y \d <e>"
    cells = (words(text), number(-1.5, 2, (-2.0, 1.0), note="−3.0 %*"))
    made = to_latex(PageTable("t", "A & B", (Column(""), Column("d ≤ 5 %")), (cells,)))
    body = made.split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    left, right = re.split(r"(?<!\\) & ", body.removesuffix(r" \\"))
    assert _read_latex(left) == text
    assert _read_latex(right) == "−1.50 [−2.00, 1.00] −3.0 %*"
    assert r"\caption{A \& B}" in made and r"d $\leq$ 5 \%" in made
    for rule in ("toprule", "midrule", "bottomrule"):
        assert made.count(f"\\{rule}") == 1
    assert made.count("{") - made.count(r"\{") == made.count("}") - made.count(r"\}")


def _read_latex(text: str) -> str:
    """What LaTeX would set."""
    text = re.sub(r"\{\\footnotesize ([^}]*)\}", r"\1", text)
    for command, sign in (
        *((r"\textbackslash{}", "\0"), (r"\textasciitilde{}", "~"), (r"\textasciicircum{}", "^")),
        *((r"\textless{}", "<"), (r"\textgreater{}", ">"), ("$-$", "−")),
    ):
        text = text.replace(command, sign)
    return re.sub(r"\\([&%$#_{}])", r"\1", text).replace("\0", "\\")


def test_results_of_analyses_become_tables() -> None:
    results = {
        "experts": {
            "hi": {"norm": 1.5, "means": {"all": {"rank": 2.0}, "encoder": {"rank": 3.0}}},
            "it": {"norm": 2.5, "means": {"all": {"rank": 4.0}}},
        },
        "pairs": [
            {
                "names": ["hi", "it"],
                "share": 9,
                "overlap": {"share": 0.5, "rate": 0.5, "interval": [0.25, 0.75], "total": 3.0},
                "parts": [{"part": "fc1", "angle": 30.0}],
            }
        ],
        "modules": 32,
    }
    tables = analysis_tables("x", results)
    found = {t.slug: [[c.text for c in row] for row in t.rows] for t in tables}
    assert found["analysis-x-numbers"] == [["value", "32"]]
    assert found["analysis-x-experts"] == [["hi", "1.500"], ["it", "2.500"]]
    assert found["analysis-x-experts-2"] == [
        ["hi · means · all", "2.000"],
        ["hi · means · encoder", "3.000"],
        ["it · means · all", "4.000"],
    ]
    (pair,) = next(t for t in tables if t.slug == "analysis-x-pairs").rows
    assert [cell.text for cell in pair] == ["1", "hi, it", "9", "0.500", "0.500", "3.000"]
    # An interval is of the number right before it.
    assert [cell.interval for cell in pair] == [*[None] * 4, (0.25, 0.75), None]
    assert found["analysis-x-pairs-2"] == [["hi, it · parts · 1", "fc1", "30.00"]]


def test_matrices_of_analyses_become_rows_with_their_intervals() -> None:
    results = {
        "cka": {
            "hi": {
                "names": ["base", "it"],
                "frames": 100,
                "layers": [
                    {"layer": 2, "values": [[1.0, 0.5], [0.5, 1.0]]},
                    {"layer": 4, "values": [[1.0, 0.5], [0.5, 1.0]],
                     "interval": [[[1, 1], [0.25, 0.75]], [[0.25, 0.75], [1, 1]]]},
                ],
            }
        },
        "tables": {
            "wer": {"rows": ["base"], "columns": ["hi", "it"], "utterances": [5, 6],
                    "rate": [[10.0, None]], "rate_interval": [[[5.0, 15.0], None]]},
        },
    }  # fmt: skip
    found = {table.slug: table for table in analysis_tables("x", results)}
    cka = found["analysis-x-cka-2"]
    assert [column.title for column in cka.columns] == ["", "base", "it"]
    assert [row[0].text for row in cka.rows] == [
        *("hi · layers · layer 2 · base", "hi · layers · layer 2 · it"),
        *("hi · layers · layer 4 · base", "hi · layers · layer 4 · it"),
    ]
    assert [row[2].interval for row in cka.rows] == [None, None, (0.25, 0.75), (1.0, 1.0)]
    (base,) = found["analysis-x-tables"].rows
    assert [cell.text for cell in base] == ["wer · rate · base", "10.00", "–"]
    assert base[1].interval == (5.0, 15.0)


def test_words_are_in_the_language_of_their_script() -> None:
    assert language_of("नदी", ["pa", "it"]) == "hi"
    assert language_of("casa", ["hi", "it"]) == "it"
    assert language_of("casa", ["hi"]) == "hi"
    assert marked("a < नदी घर b ఇల్లు") == (
        'a &lt; <span lang="hi">नदी घर</span> b <span lang="te">ఇల్లు</span>'
    )


def test_calibration_has_intervals_of_its_counts() -> None:
    drawn = diagram("r", {"count": [0, 10], "confidence": [0, 0.9], "accuracy": [0, 0.8]})
    (one,) = drawn.bins
    # Wilson's interval of 8 of 10 is 0.4902 to 0.9433.
    assert [round(1 - y / drawn.side, 2) for y in (one.low, one.high)] == [0.49, 0.94]


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium (chromium, chromium-browser, google-chrome) on PATH")


def _browse(tmp_path: Path, address: str, *flags: str) -> str:
    command = [_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *flags, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_browser_sorts_and_a_phone_does_not_overflow(small: Path, tmp_path: Path) -> None:
    page, _ = build(small)
    path = small / "exp/tiny/report/index.html"
    order = {}
    for direction in ("ascending", "descending"):
        dom = _browse(tmp_path, f"file://{path}#sort=wer.1.{direction}", "--dump-dom")
        assert f'aria-sort="{direction}"' in dom
        body = dom.split('id="table-wer"')[1].split("</tbody>")[0]
        order[direction] = re.findall(r'<th scope="row"[^>]*>(\w+)', body)
    wers = {line["system"]: float(line["test_hi (hi)"]) for line in table(small, "wer")}
    assert order["ascending"] == sorted(wers, key=lambda name: wers[name])
    assert order["descending"] == order["ascending"][::-1]
    # The policy would forbid this test's script; it is asked of a page without one.
    probe = (
        "<script>const b = document.querySelectorAll('#table-wer thead button')[1];"
        "b.click(); b.click(); document.body.dataset.sorted = b.parentElement.ariaSort;"
        "document.body.dataset.over = document.documentElement.scrollWidth -"
        "document.documentElement.clientWidth;</script>"
    )
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    path.with_name("probe.html").write_text(page.replace("</body>", f"{probe}</body>"), "utf-8")
    picture = tmp_path / "phone.png"
    flags = ("--dump-dom", "--window-size=390,844", f"--screenshot={picture}")
    dom = _browse(tmp_path, f"file://{path.with_name('probe.html')}", *flags)
    assert 'data-sorted="descending"' in dom and 'data-over="0"' in dom
