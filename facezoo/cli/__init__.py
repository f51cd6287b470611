"""Command line: ``facezoo COMMAND``."""

from facezoo.cli.main import main as main
