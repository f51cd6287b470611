"""Options that commands share, and groups that import a command when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

EXIT_CODES = "Exit codes: 0 fine, 1 an error, 2 wrong usage, 130 interrupted."


class _Path(click.Path):
    """A path whose place in the help shows what it is."""

    def __init__(self, name: str) -> None:
        super().__init__(path_type=Path)
        self.name = name


DIR, FILE, PATH = _Path("dir"), _Path("file"), _Path("path")
OUT = ("-o", "--out", "--output")
"""Names of the option for the output, the same in every command."""
debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="show the traceback of an error"
)
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps  [default: the best available]"
)
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["torch", "onnxruntime", "openvino"]),
    default="torch",
    help="what computes the networks; others than torch use the CPU",
)

Command = TypeVar("Command", bound=Callable[..., Any])


def _degrees(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in value.split(",")) if value else None
    except ValueError:
        raise click.BadParameter(f"expected degrees such as 0,90,180,270, got {value!r}") from None


@contextmanager
def resumable(without: str = "") -> Iterator[None]:
    """If the user interrupts the block, add how to resume, without the option ``without``."""
    try:
        yield
    except KeyboardInterrupt as error:
        change = f" without {without}" if without else ""
        raise click.Abort(f"run the same command again{change} to continue") from error


def detection_options(command: Command) -> Command:
    """Add the settings of face detection to a command."""
    for option in (
        click.option(
            "--rotations",
            metavar="DEGREES",
            callback=_degrees,
            help="also search the rotated image, such as 0,90,180,270  [default: 0]",
        ),
        click.option(
            "--max-side",
            type=int,
            metavar="PIXELS",
            help="longest side of what the detector sees at once  [default: 640]",
        ),
        click.option("--score-threshold", type=float, help="least score of a face"),
        click.option(
            "--min-face",
            type=float,
            metavar="PIXELS",
            help="least side of a face; small values are slow in large images",
        ),
    ):
        command = option(command)
    return command


def resolve(address: str) -> Any:
    """Import the object at ``"package.module:name"``."""
    module, name = address.split(":")
    return getattr(import_module(module), name)


def command_at(name: str, address: str) -> click.Command:  # noqa: ARG001
    """Import a click command."""
    return resolve(address)


class LazyGroup(click.Group):
    """A group that imports a command when it runs; the help of the group imports none.

    Every command gets the option ``--debug``, and the exit codes at the end of its help.
    """

    table: Mapping[str, tuple[str, str]] = {}
    """Commands by name: the address of each, and one line of help."""
    load: Callable[[str, str], click.Command] = staticmethod(command_at)
    """Makes a command from its name and address."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """List the names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command at its first use."""
        if cmd_name in self.table and cmd_name not in self.commands:
            command = debug_option(self.load(cmd_name, self.table[cmd_name][0]))
            command.epilog = f"{command.epilog or ''} {EXIT_CODES}"
            self.add_command(command, cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write one line of help for each command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
