"""From a data directory's strings and samples to the numbers of a batch."""

from collections.abc import Sequence

import numpy as np
import soxr
from espnet2.train.preprocessor import AbsPreprocessor

from espnet_moe.backbones.features import MAX_SAMPLES, SAMPLE_RATE
from espnet_moe.backbones.whisper_tokens import WhisperTokens
from espnet_moe.config import ConfigError


class Preprocessor(AbsPreprocessor):
    """Text to ids, language to its index; in training a random speed.

    Args:
        train: Whether for training.
        tokens: The backbone's tokens.
        speeds: Factors to draw from with equal chances (Ko et al., Interspeech 2015); pitch and
            tempo change together. Empty: none.
    """

    def __init__(self, train: bool, tokens: WhisperTokens, speeds: Sequence[float] = ()) -> None:
        super().__init__(train)
        if wrong := [s for s in speeds if not 0.5 <= s <= 2.0]:
            raise ConfigError(f"--speed_perturb {wrong}: factors are between 0.5 and 2.0")
        self.tokens = tokens
        self.speeds = tuple(speeds) if train else ()
        self.indices = {code: i for i, code in enumerate(tokens.languages)}

    def __call__(self, uid: str, data: dict[str, str | np.ndarray]) -> dict[str, np.ndarray]:
        """Prepare an utterance.

        Args:
            uid: Utterance id, for messages.
            data: ``speech (samples,)``, ``text`` and ``language`` as read.

        Returns:
            ``speech (samples,)`` float32, ``text (tokens,)`` ids, ``language (1,)`` index.
        """
        speech, text, language = data["speech"], str(data["text"]), str(data["language"])
        if language not in self.indices:
            raise ConfigError(
                f"utterance {uid} has the language '{language}', which the backbone has no token "
                f"for; it has: {' '.join(self.indices)}"
            )
        speech = np.asarray(speech, dtype=np.float32)
        if self.speeds:
            factor = self.speeds[np.random.randint(len(self.speeds))]
            # Slower means longer: an utterance that would not fit the encoder stays as it is.
            if factor != 1.0 and len(speech) / factor <= MAX_SAMPLES - SAMPLE_RATE // 10:
                speech = soxr.resample(speech, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
        return {
            "speech": speech,
            "text": np.array(self.tokens.encode(text), dtype=np.int64),
            "language": np.array([self.indices[language]], dtype=np.int64),
        }
