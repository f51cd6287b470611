"""Common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


CODES = "Exit codes: 0 fine, 1 an error, 2 wrong usage, 130 interrupted."


Handler = Callable[[argparse.Namespace], int]


def _command(commands: Any, name: str, handler: Handler, text: str, more: str = "") -> Any:
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"{more} {CODES}"
    )
    # Given here or before the command; SUPPRESS keeps this one from undoing that one.
    command.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    command.set_defaults(handler=handler)
    return command


def _add_device(command: Any) -> None:
    command.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the best there is)"
    )


def _say(text: str) -> None:
    """Print a text that may hold file names that are not UTF-8."""
    print(text.encode("utf-8", "backslashreplace").decode())


def _refuse_given(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that mean nothing to the model, rather than leave them unheeded."""
    given = [name for name in names if getattr(options, name) not in (None, [])]
    if given:
        who = options.model or "a plain state dict"
        raise ValueError(f"{who} knows no --{given[0]}; leave out --{given[0]}")
