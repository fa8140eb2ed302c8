"""Whether a package does what its parts did: loaded in a process that has seen nothing of them.

Run as a module, it loads what the JSON on its command line names and prints what that decodes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.data.audio import SAMPLE_RATE, load_audio
from espnet_moe.errors import UserError
from espnet_moe.inference.speech2text import Speech2Text

Told = list[tuple[list[int], float]]

# Of a score, a sum of logarithms: another number of threads adds up in another order.
TOLERANCE = 1e-3


def sample_of(path: Path | None) -> np.ndarray:
    """The sample that is decoded; without a file two seconds of gliding tones, always the same."""
    if path is not None:
        return load_audio(path)
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    waves = [np.sin(2 * np.pi * (f + 40 * t) * t) for f in (180.0, 700.0, 1500.0)]
    return np.asarray(0.1 * sum(waves), dtype=np.float32)


def decode(model: Speech2Text, sample: np.ndarray) -> Told:
    """Tokens and score of a sample: by the router, where there is one, and by every expert."""
    results = [model(sample)] if model.router is not None else []
    known = model.base.tokens.languages
    for facts in model.list_experts():
        own = [code for code in (facts.name, *facts.languages) if code in known]
        results.append(model(sample, expert=facts.name, language=(own or known)[0]))
    return [(list(result.tokens), result.score) for result in results]


def require_same(source: Mapping[str, Any], want: Told, sample: Path | None, device: str) -> None:
    """Decode the sample again with a package, in a fresh process.

    Args:
        source: What to load: ``{"model": package}``, or arguments of :class:`Speech2Text`.
        want: What :func:`decode` said with the parts.
        sample: The sample's file.
        device: That ``want`` comes from.

    Raises:
        UserError: Where it cannot be loaded, or says anything else.
    """
    question = {**source, "sample": None if sample is None else str(sample), "device": device}
    with tempfile.TemporaryDirectory(prefix="espnet_moe.check.") as cache:
        home = Path(__file__).parents[2]
        path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "espnet_moe.packing.check", json.dumps(question)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": cache},
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise UserError(f"the package cannot be loaded again: {done.stderr.strip()[-2000:]}")
    got = [(tokens, score) for tokens, score in json.loads(lines[-1])]
    alike = [_alike(*pair) for pair in zip(got, want, strict=False)]
    if len(got) != len(want) or not all(alike):
        differ = alike.count(False) or "all"
        raise UserError(
            f"the package decodes the sample otherwise than its parts ({differ} of {len(want)} "
            "hypotheses differ)"
        )


def _alike(got: tuple[list[int], float], want: tuple[list[int], float]) -> bool:
    return got[0] == want[0] and abs(got[1] - want[1]) <= TOLERANCE * max(1.0, abs(want[1]))


def main(question: Mapping[str, Any]) -> None:
    """Load, decode, print."""
    given = dict(question)
    sample, device = given.pop("sample"), given.pop("device")
    if "model" in given:
        model = Speech2Text.from_pretrained(given["model"], device)
    else:
        model = Speech2Text(**given, device=device)
    print(json.dumps(decode(model, sample_of(None if sample is None else Path(sample)))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
