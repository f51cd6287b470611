"""Command lines for tests: parsed only, or run in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import click

import facezoo
from facezoo.cli.main import cli


def parse(words):
    """Parse a command line without running it; return its options by name."""
    command, words, name = cli, list(words), "facezoo"
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)
    return command.make_context(name, words).params


def run_python(*arguments):
    """Run Python in its own process, with this checkout first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(Path(facezoo.__file__).parent.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)
