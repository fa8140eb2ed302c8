"""What all command lines share: logging, booleans, and errors without a traceback."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from espnet_moe.errors import UserError


def boolean(value: str) -> bool:
    """Parse ``true`` or ``false`` as the recipes write them.

    Raises:
        argparse.ArgumentTypeError: For any other word.
    """
    if value.lower() in {"true", "1", "yes"}:
        return True
    if value.lower() in {"false", "0", "no"}:
        return False
    raise argparse.ArgumentTypeError(f"'{value}' is neither true nor false")


def parser(module_doc: str | None, prog: str) -> argparse.ArgumentParser:
    """Make a parser whose help shows the module's docstring and every default."""
    return argparse.ArgumentParser(
        prog=f"python -m espnet_moe.bin.{prog}",
        description=module_doc,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and the description as it was written."""


def words_of(argv: Sequence[str]) -> list[str]:
    """The words of a command line, with every ``@file`` replaced by the lines of that file.

    Raises:
        UserError: For a file that cannot be read.
    """
    found: list[str] = []
    for word in argv:
        if not word.startswith("@"):
            found.append(word)
            continue
        try:
            found += Path(word[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{word}: the options in it cannot be read ({error})") from error
    return found


def run(main: Callable[[Sequence[str] | None], None], level: int = logging.INFO) -> NoReturn:
    """Run a command line: a ``UserError`` becomes one line on stderr and exit code 2.

    A word ``@file`` stands for the lines of a file, a word each.

    Args:
        main: Of the command line.
        level: Of what is logged.
    """
    logging.basicConfig(
        level=level,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        main(words_of(sys.argv[1:]))
    except UserError as error:
        name = sys.modules["__main__"].__spec__
        prog = name.name if name is not None else Path(sys.argv[0]).name
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Who read the output has enough of it; closing stdout must not complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    raise SystemExit(0)
