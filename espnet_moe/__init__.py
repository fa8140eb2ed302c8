"""Mixtures of experts for multilingual speech foundation models, in ESPnet's recipe style."""

__version__ = "0.1.0"
__all__ = ["Result", "Speech2Text", "__version__"]

# Imported when they are asked for: with them comes torch; `import espnet_moe` is to cost nothing.
_LAZY = {
    "Result": "espnet_moe.inference.results",
    "Speech2Text": "espnet_moe.inference.speech2text",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    """The public names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
