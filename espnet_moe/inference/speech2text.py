"""Speech to text with a mixture of experts: recordings in, transcripts out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.config import ConfigError
from espnet_moe.data.audio import SAMPLE_RATE, load_audio
from espnet_moe.decoding.decoder import Decoded, DecodeOptions, Decoder
from espnet_moe.decoding.loading import find_device
from espnet_moe.decoding.plans import build_plan
from espnet_moe.decoding.routing import RoutingOptions
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import load_experts, read_manifest
from espnet_moe.experts.expert_set import ExpertError
from espnet_moe.files import is_disk_error, whole_folder
from espnet_moe.inference.choices import Chooser, Run, Wish
from espnet_moe.inference.model_files import find_expert, find_model
from espnet_moe.inference.recordings import Samples, cut, read_blocks, samples_of
from espnet_moe.inference.replicas import Replicas, share
from espnet_moe.inference.results import Result, joined
from espnet_moe.inference.shelf import ExpertFacts, Shelf
from espnet_moe.routing.router_files import load_router

Audio = str | Path | np.ndarray | torch.Tensor

# Batches of windows that a stream gathers: alike in length, they are decoded together.
_BATCHES_AHEAD = 4


class Speech2Text:
    """A backbone, its experts and a router, ready to transcribe.

    Threads may share one: every call has modules of its own, and all have the weights in common.

    Example:
        >>> speech2text = Speech2Text.from_pretrained("model.zip")
        >>> speech2text("meeting.wav").text
        >>> [result.language for result in speech2text(["a.wav", "b.flac"], languages=["hi", "pa"])]

    Args:
        backbone: Whisper or OWSM: a folder, a file, an archive, or a hub name.
        experts: Folder (or an expert's archive) by name.
        router: Folder of the router that chooses among them.
        context: Encoder input, ``variable`` or ``padded``; what the experts were trained with if
            ``None``.
        strategy: How the router's decisions are used where a call says nothing; ``hard`` if empty.
        options: Of decoding: batch size, search, settings of the strategies.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:0`` …

    Raises:
        UserError: For parts that are missing, damaged, or not made for each other.
    """

    def __init__(
        self,
        backbone: str | Path,
        experts: Mapping[str, str | Path] | None = None,
        router: str | Path | None = None,
        *,
        context: str | None = None,
        strategy: str = "",
        options: DecodeOptions | None = None,
        device: str = "auto",
    ) -> None:
        place = find_device(device)
        self.options = options or DecodeOptions()
        folders = {name: find_expert(path) for name, path in (experts or {}).items()}
        self.base = load_backbone(str(backbone), context or _context(folders)).eval().to(place)
        self.base.network.requires_grad_(False)
        #: SHA-256 of the backbone's weights, by which experts and routers name it.
        self.digest = self.base.digest()
        self.router = None if router is None else load_router(router, self.digest).to(place)
        self._shelf = Shelf(self.base, self.digest)
        self._replicas = Replicas(self.base, self.digest)
        for name, folder in folders.items():
            self._shelf.add(name, folder)
        self._chooser = Chooser(self.base.tokens.languages, self._shelf, self.router, strategy)
        if missing := [name for name in self._chooser.routed if name not in folders]:
            raise ConfigError(
                f"the router chooses among {' '.join(self._chooser.routed)}, but "
                f"{', '.join(missing)} is not given: name a folder of each in experts"
            )
        if self.router is not None:
            self._require_plan(Run(self._chooser.strategy, self._chooser.routed))

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto") -> Speech2Text:
        """Load a packed model.

        Args:
            source: A ``.zip``, its unpacked folder (anywhere), or the name of a model on the hub or
                in espnet_model_zoo.
            device: See the class.

        Raises:
            UserError: Where there is none, or it is damaged; names the part.
        """
        files = find_model(source)
        said = files.description
        model = cls(
            files.base,
            files.experts,
            files.router,
            context=said.context,
            strategy=said.strategy,
            options=files.options,
            device=device,
        )
        if model.digest != said.base_digest:
            raise UserError(
                f"{files.base} is not the base that {files.folder} was packed with: its digest is "
                f"[{model.digest[:12]}], not [{said.base_digest[:12]}]: fetch or pack it again"
            )
        return model

    # -- transcribing -----------------------------------------------------------------------------

    @overload
    def __call__(
        self,
        audio: list[Any] | tuple[Any, ...],
        sampling_rate: int | None = None,
        language: str | Sequence[str | None] | None = None,
        languages: Sequence[str] | None = None,
        strategy: str | None = None,
        beam_size: int | None = None,
        expert: str | None = None,
    ) -> list[Result]: ...

    @overload
    def __call__(
        self,
        audio: Audio,
        sampling_rate: int | None = None,
        language: str | None = None,
        languages: Sequence[str] | None = None,
        strategy: str | None = None,
        beam_size: int | None = None,
        expert: str | None = None,
    ) -> Result: ...

    def __call__(
        self,
        audio: Audio | list[Any] | tuple[Any, ...],
        sampling_rate: int | None = None,
        language: str | Sequence[str | None] | None = None,
        languages: Sequence[str] | None = None,
        strategy: str | None = None,
        beam_size: int | None = None,
        expert: str | None = None,
    ) -> Result | list[Result]:
        """Transcribe recordings; a list is decoded in batches, whatever languages are in it.

        Args:
            audio: An array ``(samples,)`` or a path, or a list of these.
            sampling_rate: Of the arrays, Hz; 16000 if ``None``. Files know their own.
            language: What is spoken, where that is known; of each recording, where it is a list.
                Its expert is used, or the backbone alone where it has none.
            languages: Those that the router may choose among; all of its own if ``None``.
            strategy: How the router's decisions are used (:data:`.choices.STRATEGIES`); the model's
                own way if ``None``.
            beam_size: 1 is greedy; the model's own if ``None``.
            expert: Use this one, whatever the router says.

        Returns:
            A :class:`Result`, or a list of them for a list.

        Raises:
            UserError: For wishes that cannot be fulfilled, before any audio is read; for audio that
                cannot be read.
        """
        items = list(audio) if isinstance(audio, list | tuple) else [audio]
        wish = self._chooser.wish(languages, strategy, beam_size, expert)
        self._options(wish)
        known = _each(language, len(items))
        ways = {code: self._way(code, wish) for code in dict.fromkeys(known)}
        if sampling_rate is not None and items and all(isinstance(x, str | Path) for x in items):
            raise UserError("sampling_rate is for arrays: files know their own, leave it out")
        speech = [
            load_audio(x) if isinstance(x, str | Path) else samples_of(x, sampling_rate)
            for x in items
        ]
        found = self._decode(speech, [ways[code] for code in known], wish)
        results = [joined([(0, len(x), one)]) for x, one in zip(speech, found, strict=True)]
        return results if isinstance(audio, list | tuple) else results[0]

    def transcribe_long(
        self,
        path: str | Path,
        language: str | None = None,
        languages: Sequence[str] | None = None,
        strategy: str | None = None,
        beam_size: int | None = None,
        expert: str | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Result:
        """Transcribe a file of any length in bounded memory.

        It is read in blocks and cut at quiet points into windows that the encoder takes, each with
        a routing decision of its own.

        Args:
            path: The file.
            language: See :meth:`__call__`, as are the others.
            languages: Likewise.
            strategy: Likewise.
            beam_size: Likewise.
            expert: Likewise.
            progress: Told the seconds of audio that were decoded, each time some were.
        """
        wishes = (language, languages, strategy, beam_size, expert)
        return next(self.stream([path], *wishes, progress=progress))[1]

    def stream(
        self,
        files: Iterable[str | Path],
        language: str | None = None,
        languages: Sequence[str] | None = None,
        strategy: str | None = None,
        beam_size: int | None = None,
        expert: str | None = None,
        on_error: Callable[[Path, UserError], object] | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Iterator[tuple[Path, Result]]:
        """Transcribe any number of files of any length, batched across files, in bounded memory.

        Args:
            files: Paths; taken one by one as they are needed.
            language: See :meth:`__call__`, as are the next four.
            languages: Likewise.
            strategy: Likewise.
            beam_size: Likewise.
            expert: Likewise.
            on_error: Told of a file that cannot be read, which is then left out; without it, the
                error is raised.
            progress: Told the seconds of audio that were decoded, each time some were.

        Yields:
            Path and result, in the order of the files.

        Raises:
            UserError: For wishes that cannot be fulfilled, at once; for a file that cannot be read.
        """
        wish = self._chooser.wish(languages, strategy, beam_size, expert)
        self._options(wish)
        return self._stream(files, self._way(language, wish), wish, on_error, progress)

    def _stream(
        self,
        files: Iterable[str | Path],
        way: _Way,
        wish: Wish,
        on_error: Callable[[Path, UserError], object] | None,
        progress: Callable[[float], object] | None,
    ) -> Iterator[tuple[Path, Result]]:
        longest, margin = self.base.max_seconds, self.options.routing.window_margin
        ahead = _BATCHES_AHEAD * self.options.batch_size
        waiting: list[tuple[_File, int, Samples]] = []
        open_files: deque[_File] = deque()

        def finished() -> Iterator[tuple[Path, Result]]:
            speech = [x for _, _, x in waiting]
            for (file, start, x), decoded in zip(
                waiting, self._decode(speech, [way] * len(speech), wish), strict=True
            ):
                file.windows.append((start, len(x), decoded))
            waiting.clear()
            if progress is not None:
                progress(sum(map(len, speech)) / SAMPLE_RATE)
            while open_files and open_files[0].is_read:
                file = open_files.popleft()
                yield file.path, joined(file.windows)

        for path in map(Path, files):
            file = _File(path)
            open_files.append(file)
            found = cut(read_blocks(path), longest, margin)
            while True:
                try:
                    start, x = next(found)
                except StopIteration:
                    break
                except UserError as error:
                    if on_error is None:
                        raise
                    on_error(path, error)
                    open_files.remove(file)
                    waiting[:] = [one for one in waiting if one[0] is not file]
                    break
                waiting.append((file, start, x))
                if len(waiting) >= ahead:
                    yield from finished()
            file.is_read = True
        yield from finished()

    # -- experts ----------------------------------------------------------------------------------

    def load_expert(self, name: str, path: str | Path) -> None:
        """Take an expert in: its description is checked now, its weights are read when it is used.

        Args:
            name: What it is called here; the code of a language makes it that language's expert.
            path: Its folder or archive.

        Raises:
            UserError: For a name that is taken, a damaged expert, or one made for another base.
        """
        self._shelf.add(name, path)
        # A call that began before the last one of this name went may have brought that back.
        self._replicas.forget(name)

    def unload_expert(self, name: str) -> None:
        """Let an expert go; calls that use it right now go on.

        Raises:
            ExpertError: For one that is not here, or that the router chooses.
        """
        if name in self._chooser.routed:
            raise ExpertError(
                f"the router chooses '{name}': it cannot go without the router; to keep it from "
                "being chosen, name the others in languages"
            )
        self._shelf.remove(name)
        self._replicas.forget(name)

    def list_experts(self) -> list[ExpertFacts]:
        """All experts, in the order in which they came."""
        return self._shelf.facts(self._chooser.routed)

    def merge(self, name: str, out: str | Path) -> Path:
        """Write the backbone with one expert in its weights, which needs no expert any more.

        Args:
            name: The expert.
            out: A folder that is not there yet: a transformers folder of a Whisper, an ESPnet one
                (``config.yaml``, ``model.pth``) of an OWSM, in single precision.

        Raises:
            UserError: For an unknown expert, a folder that is there, or a full disk.
        """
        out = Path(out)
        if out.exists():
            raise UserError(f"{out} is there already: name a new folder")
        folders = self._shelf.folders([name])
        backbone = share(self.base, self.base)
        load_experts(backbone, folders, self.digest).merge(backbone, name)
        try:
            with whole_folder(out) as beside:
                backbone.save_pretrained(beside)
        except Exception as error:
            if not is_disk_error(error):
                raise
            raise UserError(f"could not write {out}: {error}") from error
        return out

    # -- decoding ---------------------------------------------------------------------------------

    def _decode(self, speech: Sequence[Samples], ways: Sequence[_Way], wish: Wish) -> list[Decoded]:
        """Decode recordings, those together that are decoded alike."""
        alike: dict[tuple[Run, tuple[tuple[str, Path], ...]], list[int]] = {}
        for i, way in enumerate(ways):
            alike.setdefault((way.run, way.experts), []).append(i)
        found: dict[int, Decoded] = {}
        for (run, folders), rows in alike.items():
            options = replace(self._options(wish), routing=self._routing(run))
            router = None if run.system in ("baseline", "oracle") else self.router
            with self._replicas.borrow(dict(folders)) as (backbone, experts):
                decoder = Decoder(backbone, experts, options, run.system, router)
                decoded = decoder([speech[i] for i in rows], [ways[i].prompt for i in rows])
            found.update(zip(rows, decoded, strict=True))
        return [found[i] for i in range(len(speech))]

    def _way(self, language: str | None, wish: Wish) -> _Way:
        """How recordings of a language are decoded, from the first to the last of a call.

        Experts that come or go meanwhile change nothing in it.
        """
        run, prompt = self._chooser.run_for(language, wish)
        self._require_plan(run)
        return _Way(run, prompt, tuple(self._shelf.folders(run.experts).items()))

    def _routing(self, run: Run) -> RoutingOptions:
        """The model's settings of decisions, with the languages that are wished for."""
        routing = self.options.routing
        return replace(routing, allowed=run.allowed or routing.allowed)

    def _require_plan(self, run: Run) -> None:
        """Refuse what the router cannot do (frames, a family tree) before anything is read."""
        if run.system in ("baseline", "oracle"):
            return
        known, step = self.base.tokens.languages, self.base.frame_samples
        build_plan(run.system, run.experts, self.router, self._routing(run), known, step)

    def _options(self, wish: Wish) -> DecodeOptions:
        """The model's options, with the beam that is wished for."""
        if wish.beam_size is None:
            return self.options
        return replace(self.options, beam_size=wish.beam_size)


@dataclass(frozen=True)
class _Way:
    """A run, its prompt's language (empty where the router finds it), and where its experts are."""

    run: Run
    prompt: str
    experts: tuple[tuple[str, Path], ...]


@dataclass
class _File:
    """A file of a stream: what was decoded of it so far."""

    path: Path
    windows: list[tuple[int, int, Decoded]] = field(default_factory=list)
    is_read: bool = False


def _context(folders: Mapping[str, Path]) -> str:
    """The context that experts were trained with, where they agree; else ``variable``."""
    told = {str(m["context"]) for m in map(read_manifest, folders.values()) if "context" in m}
    if len(told) > 1:
        raise ConfigError(
            f"the experts were trained with different contexts, {' and '.join(sorted(told))}: "
            "they cannot be used together"
        )
    return told.pop() if told else "variable"


def _each(language: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """The language of each recording, where it is known."""
    if language is None or isinstance(language, str):
        return [language] * count
    if len(language) != count:
        raise ConfigError(
            f"language names {len(language)} languages for {count} recordings: give one, or one "
            "each (None where it is not known)"
        )
    return list(language)
