"""From a data directory's strings and samples to the numbers of a batch."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import soxr
from espnet2.samplers.abs_sampler import AbsSampler
from espnet2.train.preprocessor import AbsPreprocessor

from espnet_moe.backbones.features import MAX_SAMPLES, SAMPLE_RATE
from espnet_moe.backbones.protocol import Tokens
from espnet_moe.config import ConfigError
from espnet_moe.data.extras import NOTHING
from espnet_moe.interruption import ignore_in_loaders
from espnet_moe.training_data import Labels, balanced_batches


class Preprocessor(AbsPreprocessor):
    """Text to ids, language to its index; in training a random speed and a random transcript.

    Args:
        train: Whether for training.
        tokens: The backbone's tokens.
        speeds: Factors to draw from with equal chances (Ko et al., Interspeech 2015); pitch and
            tempo change together. Empty: none.
        labels: Memberships, weights and further transcripts of the set, where it has them.
        room: Tokens that a transcript may have: longer alternatives are not drawn.
    """

    def __init__(
        self,
        train: bool,
        tokens: Tokens,
        speeds: Sequence[float] = (),
        labels: Labels | None = None,
        room: int | None = None,
    ) -> None:
        super().__init__(train)
        if wrong := [s for s in speeds if not 0.5 <= s <= 2.0]:
            raise ConfigError(f"--speed_perturb {wrong}: factors are between 0.5 and 2.0")
        self.tokens = tokens
        self.speeds = tuple(speeds) if train else ()
        self.labels = Labels() if labels is None else labels
        self.room = room
        self.indices = {code: i for i, code in enumerate(tokens.languages)}

    def __call__(self, uid: str, data: dict[str, str | np.ndarray]) -> dict[str, np.ndarray]:
        """Prepare an utterance.

        Args:
            uid: Utterance id, for messages.
            data: ``speech (samples,)``, ``text`` and ``language`` as read.

        Returns:
            ``speech (samples,)`` float32, ``text (tokens,)`` ids, ``language (1,)`` index; where
            the set has them ``memberships (experts,)`` and ``weight (1,)``, float32, and
            ``text_ctc (tokens,)`` ids, none for an utterance without a part in the CTC loss.
        """
        ignore_in_loaders()
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
        made = {
            "speech": speech,
            "text": np.array(self._ids(uid, text), dtype=np.int64),
            "language": np.array([self.indices[language]], dtype=np.int64),
        }
        if self.labels.memberships:
            made["memberships"] = np.array(self.labels.memberships[uid], dtype=np.float32)
        if self.labels.ctc:
            heard = self.labels.ctc.get(uid)
            ids = made["text"] if heard is None else self._heard(heard)
            made["text_ctc"] = ids
        if self.labels.weights:
            made["weight"] = np.array([self.labels.weights[uid]], dtype=np.float32)
        return made

    def _heard(self, text: str) -> np.ndarray:
        return np.array([] if text == NOTHING else self.tokens.encode(text), dtype=np.int64)

    def _ids(self, uid: str, text: str) -> list[int]:
        """Tokens of the transcript; in training of any of those that are right."""
        ids = self.tokens.encode(text)
        others = self.labels.alternatives.get(uid, ()) if self.train else ()
        if others and (drawn := np.random.randint(len(others) + 1)):
            other = self.tokens.encode(others[drawn - 1])
            if self.room is None or len(other) <= self.room:
                return other
        return ids


class BalancedSampler(AbsSampler):
    """Batches in which all classes are equally frequent, for ESPnet's iterator.

    Args:
        lengths: Samples by utterance id.
        classes: Class by utterance id.
        batch_size: Utterances of all processes together.
        seed: Of the pass in :meth:`__iter__`; ESPnet seeds every pass over the data.
        rank: Of this process.
        world_size: Number of processes, which share the rows of a batch.
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        classes: Mapping[str, str],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.lengths, self.classes = lengths, classes
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        smallest = min(map(len, balanced_batches(lengths, classes, batch_size, seed)))
        if smallest < world_size:
            raise ConfigError(
                f"--batch_size {batch_size} is too small for {world_size} processes: "
                f"a batch has {smallest} utterances"
            )

    def __len__(self) -> int:
        return len(balanced_batches(self.lengths, self.classes, self.batch_size, self.seed))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.generate(self.seed))

    def generate(self, seed: int) -> list[tuple[str, ...]]:
        """The batches of a pass over the data, this process's rows of each."""
        batches = balanced_batches(self.lengths, self.classes, self.batch_size, seed % 2**32)
        return [tuple(batch[self.rank :: self.world_size]) for batch in batches]
