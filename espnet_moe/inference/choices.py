"""What a caller wishes, and how each recording is decoded for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from espnet_moe.config import ConfigError
from espnet_moe.decoding.decoder import SYSTEMS
from espnet_moe.inference.shelf import Shelf
from espnet_moe.routing.routers import Router

# The oracle is a language that the caller knows, `fixed` an expert that the caller names.
STRATEGIES = tuple(system for system in SYSTEMS if system not in ("oracle", "fixed"))


@dataclass(frozen=True)
class Wish:
    """What a caller asks for, beside the recordings and what is spoken in each.

    Attributes:
        languages: Those that may be chosen; all where empty.
        strategy: One of :data:`STRATEGIES`; empty where there is no router.
        beam_size: ``None`` for the model's own.
        expert: The one that takes everything, whatever the router says.
    """

    languages: tuple[str, ...]
    strategy: str
    beam_size: int | None
    expert: str | None


@dataclass(frozen=True)
class Run:
    """How recordings are decoded that can be decoded together.

    Attributes:
        system: Of the decoder.
        experts: That it has, in the order of the gates.
        allowed: Languages that it may choose; all where empty.
    """

    system: str
    experts: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


class Chooser:
    """Turns wishes into runs.

    Args:
        known: Languages that the backbone can be prompted with.
        shelf: The experts.
        router: ``None`` where the model has none.
        strategy: Where a caller says nothing; ``hard`` if empty and there is a router.

    Raises:
        ConfigError: For a strategy that is unknown or needs a router.
    """

    def __init__(
        self, known: Sequence[str], shelf: Shelf, router: Router | None, strategy: str = ""
    ) -> None:
        self._known, self._shelf, self._router = tuple(known), shelf, router
        self.strategy = strategy or ("" if router is None else "hard")
        if self.strategy:
            self._require_strategy(self.strategy)

    @property
    def routed(self) -> tuple[str, ...]:
        """Experts that the router chooses among."""
        return () if self._router is None else self._router.experts

    def wish(
        self,
        languages: Sequence[str] | None,
        strategy: str | None,
        beam_size: int | None,
        expert: str | None,
    ) -> Wish:
        """The wishes of a call, checked as far as they concern every recording.

        Raises:
            UserError: For what is unknown or does not go together.
        """
        if isinstance(languages, str):
            raise ConfigError(f"languages is a list of codes, e.g. ['{languages}']")
        if languages is not None and not languages:
            raise ConfigError("languages is empty: name some, or leave it out")
        if strategy is not None:
            self._require_strategy(strategy)
        if expert is not None:
            self._shelf.folders([expert])
            if strategy is not None:
                raise ConfigError("expert and strategy exclude each other: leave one out")
        return Wish(tuple(languages or ()), strategy or self.strategy, beam_size, expert)

    def _require_strategy(self, strategy: str) -> None:
        if strategy not in STRATEGIES:
            raise ConfigError(
                f"strategy '{strategy}' is unknown: choose one of {', '.join(STRATEGIES)} "
                "(language= uses the expert of a language, expert= a named one)"
            )
        if strategy != "baseline" and self._router is None:
            raise ConfigError(
                f"strategy '{strategy}' needs a router, which this model has not: say language=, "
                "or expert="
            )

    def run_for(self, language: str | None, wish: Wish) -> tuple[Run, str]:
        """How a recording is decoded, and its prompt's language (empty where the router finds it).

        Args:
            language: What is spoken, where that is known.
            wish: What the caller asks for.

        Raises:
            UserError: Where the wishes do not fit together, or to this model.
        """
        if language is None and len(wish.languages) == 1:
            language = wish.languages[0]
        if language is not None:
            self._require_language(language, wish)
        if wish.expert is not None:
            return Run("oracle", (wish.expert,)), language or self._language_of(wish.expert)
        if language is None:
            return self._routed_run(wish), ""
        if wish.strategy == "baseline":
            return Run("baseline"), language
        router, routed = self._router, self.routed
        if router is not None and routed != router.languages and language in router.languages:
            # Experts are clusters: the router chooses among them, only the prompt is known.
            return Run(wish.strategy, routed, (language,)), language
        if language not in self._shelf:
            return Run("baseline"), language
        return Run("oracle", routed if language in routed else (language,)), language

    def _require_language(self, language: str, wish: Wish) -> None:
        if language not in self._known:
            few = " ".join(self._known[:20]) + (" …" if len(self._known) > 20 else "")
            raise ConfigError(f"this model has no language '{language}'; it has {few}")
        if wish.languages and language not in wish.languages:
            raise ConfigError(
                f"language is {language}, but languages are {' '.join(wish.languages)}"
            )

    def _routed_run(self, wish: Wish) -> Run:
        """The run of recordings whose language the router finds out."""
        if self._router is None or wish.strategy == "baseline":
            why = "its router is not asked" if self._router is not None else "it has no router"
            raise ConfigError(
                f"the language is not known, and {why}: say language=, one of those of the model"
            )
        if unknown := sorted(set(wish.languages) - set(self._router.languages)):
            raise ConfigError(
                f"the router does not know {', '.join(unknown)}; its languages: "
                f"{' '.join(self._router.languages)}"
            )
        return Run(wish.strategy, self.routed, wish.languages)

    def _language_of(self, expert: str) -> str:
        """The prompt's language for a named expert: its own name, or the only one it has learnt."""
        if expert in self._known:
            return expert
        own = self._shelf.languages(expert)
        if len(own) == 1 and own[0] in self._known:
            return own[0]
        raise ConfigError(
            f"expert '{expert}' is of the languages {' '.join(own) or 'unknown'}: say language="
        )
