"""AI4Bharat's corpora from disk to formatted sets: the same speech as the mini corpus it is of."""

from pathlib import Path

import numpy as np
import pytest

from espnet_moe.data.audio import load_audio
from espnet_moe.data.corpora.kathbath import LANGUAGES, read_kathbath
from espnet_moe.data.corpora.prepare import PrepareOptions, prepare_corpus
from espnet_moe.data.datadir import load_datadir, validate_datadir
from espnet_moe.data.formatting import FormatOptions, format_datadir
from espnet_moe.data.mini_corpus import MiniCorpusOptions, make_mini_corpus
from espnet_moe.data.normalize import normalize
from layouts import LAYOUTS

NAMES = {
    "kathbath": "Kathbath of the hub",
    "indicvoices": "IndicVoices",
    "shrutilipi": "Shrutilipi",
}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    options = MiniCorpusOptions("kathbath", "pa", size=24, dev_size=3, test_size=2)
    make_mini_corpus(options, out, num_jobs=1)
    return out


@pytest.mark.parametrize("corpus", LAYOUTS)
def test_from_disk_to_formatted_sets(
    corpus: str, mini: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        LAYOUTS[corpus](mini, tmp_path / "corpus", "pa")
        options = PrepareOptions(corpus, str(tmp_path / "corpus"), "pa", probe_audio=True)
        checks = prepare_corpus(options, tmp_path / "data/x")
    assert not checks.bad_audio and set(checks.utterances) == {"train", "dev", "test"}
    assert checks.speaker_overlap["train/test"] == checks.speaker_overlap["dev/test"] == 0
    assert corpus != "indicvoices" or "without text" in caplog.text
    # Every utterance has the transcript and the sound that it had in the mini corpus.
    wanted = {
        normalize(utt.text, "pa"): load_audio(utt.audio)
        for utt in read_kathbath(mini, "pa", ["train", "dev"])
    }
    found = []
    for split in ("train", "dev", "test"):
        validate_datadir(tmp_path / f"data/x_{split}", check_audio=True)
        format_datadir(
            tmp_path / f"data/x_{split}", tmp_path / f"dump/x_{split}", FormatOptions(trim=False)
        )
        validate_datadir(tmp_path / f"dump/x_{split}", check_audio=True)
        data = load_datadir(tmp_path / f"dump/x_{split}")
        assert not data.skipped and len(data.timings) == len(data.utterances)
        assert data.corpora == (NAMES[corpus],)
        for utt in data.utterances:
            samples = load_audio(utt.audio)
            np.testing.assert_allclose(samples, wanted[utt.text], atol=1e-4)
            words = data.timings[utt.utt_id]
            assert " ".join(word.word for word in words) == utt.text
            assert 0 <= words[0].start < words[-1].end <= len(samples) / 16000 + 0.01
            found.append(utt.text)
    lost = {"kathbath": 0, "indicvoices": 0, "shrutilipi": 3}[corpus]  # the latter has no valid
    assert len(found) == len(set(found)) == len(wanted) - lost


def test_noisy_recordings_are_splits(mini: Path, tmp_path: Path) -> None:
    splits = ("train", "dev", "test", "test_noisy", "test_known_noisy")
    prepare_corpus(PrepareOptions("kathbath", str(mini), "pa", splits), tmp_path / "data/kb")
    for split in splits:
        validate_datadir(tmp_path / f"data/kb_{split}")
    clean, noisy = (load_datadir(tmp_path / f"data/kb_{s}") for s in ("test", "test_noisy"))
    assert [u.text for u in clean.utterances] == [u.text for u in noisy.utterances]
    assert [f"{u.utt_id}_noisy" for u in clean.utterances] == [u.utt_id for u in noisy.utterances]
    assert not (tmp_path / "data/kb_test_known").exists()
    for utt in noisy.utterances:
        assert f"kb_data_noisy_m4a/{LANGUAGES['pa']}/test/" in utt.audio


@pytest.mark.parametrize("corpus", LAYOUTS)
def test_splits_of_two_calls_share_no_test_speaker(corpus: str, mini: Path, tmp_path: Path) -> None:
    """Who prepares train today and test tomorrow gets what a call for both gives."""
    LAYOUTS[corpus](mini, tmp_path / "corpus", "pa")
    together = tmp_path / "both"
    prepare_corpus(PrepareOptions(corpus, str(tmp_path / "corpus"), "pa"), together)
    for split in ("train", "dev", "test"):
        options = PrepareOptions(corpus, str(tmp_path / "corpus"), "pa", [split])
        prepare_corpus(options, tmp_path / "alone")
        for name in ("wav.scp", "text", "utt2spk"):
            alone = (tmp_path / f"alone_{split}" / name).read_text()
            assert alone == (tmp_path / f"both_{split}" / name).read_text()
