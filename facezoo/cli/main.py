"""The command line: ``facezoo list | info | predict | extract | download | train | ...``.

Every command imports what it needs when it runs, so that listing needs no torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from facezoo.cli.checkpoints import (
    _add_convert,
    _add_download,
    _add_export,
    _add_info,
    _add_list,
    _add_publish,
)
from facezoo.cli.common import CODES
from facezoo.cli.images import _add_extract, _add_join, _add_predict
from facezoo.cli.measure import _add_benchmark, _add_evaluate, _add_fit_directions
from facezoo.cli.train import _add_finetune, _add_reproduce, _add_train
from facezoo.errors import UnsupportedError
from facezoo.version import __version__

if TYPE_CHECKING:
    pass

FAULTS = (OSError, ValueError, RuntimeError, ImportError, UnsupportedError)
"""What callers and machines do wrong; anything else is a bug of ours, and shows its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0 fine, 1 an error, 130 interrupted. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not suit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = options.handler(options)
        print(end="", flush=True)  # there may be no output, and then nothing to flush
        return code
    except KeyboardInterrupt:
        hint = ""
        if options.command == "extract":
            without = " without --overwrite" if options.overwrite else ""
            hint = f"; run the same command again{without} to continue"
        print(f"facezoo: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FAULTS as error:
        if options.debug:
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(filter(None, lines)) or type(error).__name__
        print(f"facezoo: error: {reason}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facezoo", description="Disentangled face representations.", epilog=CODES
    )
    parser.add_argument("--version", action="version", version=f"facezoo {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_list, _add_info, _add_predict, _add_extract, _add_download):
        add(commands)
    for add in (_add_train, _add_finetune, _add_evaluate, _add_publish, _add_convert, _add_export):
        add(commands)
    for add in (_add_join, _add_reproduce, _add_fit_directions, _add_benchmark):
        add(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
