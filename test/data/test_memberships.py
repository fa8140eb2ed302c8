"""utt2experts: what is written is read again, and every mistake is named with its line."""

from pathlib import Path

import pytest

from espnet_moe.data.files import DataDirError, write_table
from espnet_moe.data.memberships import format_memberships, parse_memberships, read_utt2experts


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    table = {"b-1": {"c0": 0.25, "noise": 0.75}, "a-1": {"c0": 1.0}}
    write_table(tmp_path / "x", {key: format_memberships(row) for key, row in table.items()})
    assert (tmp_path / "x").read_text() == "a-1 c0:1\nb-1 noise:0.75 c0:0.25\n"
    assert read_utt2experts(tmp_path / "x", ["c0", "noise"], {"a-1", "b-1", "c-1"}) == table
    assert format_memberships({"a": 0.0, "b": 1.0}) == "b:1"


def test_all_mistakes_are_named_with_their_lines(tmp_path: Path) -> None:
    lines = ["a-1 c0:1", "a-1 c0:1", "a-2 c7:0.5 c0", "zz c0:1", "a-3", "a-4 c0:0 c1:nan c1:x"]
    (tmp_path / "x").write_text("\n".join(lines))
    with pytest.raises(DataDirError) as error:
        read_utt2experts(tmp_path / "x", ["c0", "c1"], ["a-1", "a-2", "a-3", "a-4"])
    message = str(error.value)
    for said in (
        "legal experts: c0 c1",
        "line 2: a-1 is there more than once",
        "line 3: a-2: unknown expert 'c7'; 'c0' is not expert:weight",
        "line 4: zz is no utterance of the data",
        "line 5: a-3: no expert is named",
        "weight '0' of c0 is not a number above 0",
        "weight 'nan' of c1",
        "weight 'x' of c1",
        "expert 'c1' is there more than once",
    ):
        assert said in message


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="does not exist"):
        read_utt2experts(tmp_path / "x", ["c0"])
    (tmp_path / "x").write_text("\n")
    with pytest.raises(DataDirError, match="empty"):
        read_utt2experts(tmp_path / "x", ["c0"])


@pytest.mark.parametrize("weight", ["-1", "inf", "0", ""])
def test_weights_that_are_none(weight: str) -> None:
    with pytest.raises(ValueError, match="not a number above 0"):
        parse_memberships(f"c0:{weight}", ["c0"])
