"""Recordings of the mini corpus: each follows from its key alone."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

from espnet_moe.data.mini_recording import Job, perform
from espnet_moe.data.mini_voices import voices
from espnet_moe.errors import UserError


def test_a_recording_does_not_depend_on_what_was_spoken_before():
    jobs = [
        Job(text, "it", voice, f"key {text}", 16000, False, "")
        for text in ("apri la porta", "chiudi la finestra")
        for voice in voices("dev")[:2]
    ]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        forth, back = list(pool.map(perform, jobs)), list(pool.map(perform, jobs[::-1]))[::-1]
        for a, b in zip(forth, back):
            np.testing.assert_array_equal(a.samples, b.samples)
            assert a.words == b.words
        again = pool.submit(perform, replace(jobs[0], key="other")).result().samples
        first = forth[0].samples
        assert len(again) != len(first) or not np.array_equal(again, first)
        with pytest.raises(UserError, match="could not speak"):
            pool.submit(perform, replace(jobs[0], text="")).result()
