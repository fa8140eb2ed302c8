"""TextGrids in the forms that Praat and aligners write, and timings that a user gives."""

from pathlib import Path

import pytest

from espnet_moe.analysis.phones import read_features
from espnet_moe.analysis.textgrid import read_textgrid
from espnet_moe.analysis.timings import read_given
from espnet_moe.data.extras import Word
from espnet_moe.errors import UserError

# As Praat writes them: "Save as text file" and "Save as short text file".
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0 
xmax = 1.5 
tiers? <exists> 
size = 3 
item []: 
    item [1]:
        class = "IntervalTier" 
        name = "words" 
        xmin = 0 
        xmax = 1.5 
        intervals: size = 3 
        intervals [1]:
            xmin = 0 
            xmax = 0.25 
            text = "" 
        intervals [2]:
            xmin = 0.25 
            xmax = 0.75 
            text = "é ""vero""! 3" 
        intervals [3]:
            xmin = 0.75 
            xmax = 1.5 
            text = "कल" 
    item [2]:
        class = "TextTier" 
        name = "clicks" 
        xmin = 0 
        xmax = 1.5 
        points: size = 1 
        points [1]:
            number = 0.5 
            mark = "x" 
    item [3]:
        class = "IntervalTier" 
        name = "anna - phones" 
        xmin = 0 
        xmax = 1.5 
        intervals: size = 1 
        intervals [1]:
            xmin = 0.25 
            xmax = 0.75 
            text = "e" 
"""  # noqa: W291
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
3
"IntervalTier"
"words"
0
1.5
3
0
0.25
""
0.25
0.75
"é ""vero""! 3"
0.75
1.5
"कल"
"TextTier"
"clicks"
0
1.5
1
0.5
"x"
"IntervalTier"
"anna - phones"
0
1.5
1
0.25
0.75
"e"
"""
TIERS = {
    "words": (Word(0.25, 0.5, 'é "vero"! 3'), Word(0.75, 0.75, "कल")),
    "anna - phones": (Word(0.25, 0.5, "e"),),
}


# The head that P2FA's scripts and Praat's older manuals have.
P2FA = SHORT.replace('"ooTextFile"\nObject class = ', '"ooTextFile short"\n', 1)


@pytest.mark.parametrize("text", [LONG, SHORT, P2FA], ids=["long", "short", "P2FA"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", ""), ("utf-8-sig", ""), ("utf-16-be", "\ufeff"), ("utf-16-le", "\ufeff")],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_both_forms_in_every_encoding(tmp_path: Path, text, encoding, mark, newline):
    path = tmp_path / "u.TextGrid"
    path.write_bytes((mark + text.replace("\n", newline)).encode(encoding))
    assert read_textgrid(path) == TIERS


def test_old_files_are_latin(tmp_path: Path):
    path = tmp_path / "u.TextGrid"
    path.write_bytes(SHORT.replace("कल", "più").encode("latin-1"))
    assert [word.word for word in read_textgrid(path)["words"]] == ['é "vero"! 3', "più"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ooBinaryFile\bTextGrid\x00", "ends too early"),
        (SHORT[: SHORT.index("0.75")], "u.TextGrid: it ends too early"),
        (SHORT.replace('"TextGrid"', '"Pitch"', 1), "does not begin as a TextGrid"),
        (SHORT.replace('"anna - phones"', '"words"'), "several tiers called 'words'"),
        (SHORT.replace("1.5\n\"कल\"", '0.5\n"कल"'), "'कल' ends at 0.5 s, before it starts at 0.75"),
        (SHORT.replace('"TextTier"', '"Matrix"'), "'Matrix' in place of a tier"),
    ],
)  # fmt: skip
def test_each_damage_is_named(tmp_path: Path, text: str, told: str):
    path = tmp_path / "u.TextGrid"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_textgrid(path)


def test_timings_are_taken_from_folders_and_files(tmp_path: Path):
    (tmp_path / "aligned" / "anna").mkdir(parents=True)
    grid = tmp_path / "aligned" / "anna" / "a-1.TextGrid"
    grid.write_text(SHORT, encoding="utf-8")
    (tmp_path / "aligned" / "other.TextGrid").write_text("of another corpus")
    ctm = tmp_path / "given.ctm"
    ctm.write_text("a-2 1 0.1 0.2 p\nzz-9 1 0.1 0.2 p\n")
    phones = read_given([tmp_path / "aligned", ctm], ("phones", "phone"), {"a-1", "a-2"})
    assert phones == {"a-1": TIERS["anna - phones"], "a-2": (Word(0.1, 0.2, "p"),)}
    with pytest.raises(UserError, match="given.ctm has no times.*such as b-1"):
        read_given([ctm], ("phones",), {"b-1"})
    with pytest.raises(UserError, match="no times of the data's"):
        read_given([tmp_path / "aligned"], ("phones",), {"b-1"})
    grid.write_text(SHORT.replace("anna - phones", "segments"), encoding="utf-8")
    with pytest.raises(UserError, match="0 tiers called phones.*are words, segments"):
        read_given([tmp_path / "aligned"], ("phones",), {"a-1"})


def test_tables_of_features(tmp_path: Path):
    path = tmp_path / "arpabet.tsv"
    path.write_text("phone\tkind\tplace\nAA1\tvowel\t\nP\tconsonant\tlips\n")
    assert read_features(path) == {
        "AA1": {"kind": "vowel"},
        "P": {"kind": "consonant", "place": "lips"},
    }
    for content, told in (
        ("kind\tphone\n", "first line"),
        ("phone\tkind\nP\n", "arpabet.tsv:2 has not the header's 2"),
        ("phone\tkind\nP\ta\nP\tb\n", "arpabet.tsv:3: P is there a second"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=told):
            read_features(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_features(tmp_path / "none.tsv")
