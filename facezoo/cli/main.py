"""The command line: ``facezoo list | info | predict | extract | download | train | ...``.

Every command imports what it needs when it runs, so that listing needs no torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from facezoo.cli.common import EXIT_CODES, LazyGroup, debug_option
from facezoo.errors import UnsupportedError
from facezoo.hub.families import COMMANDS as FAMILY_COMMANDS
from facezoo.version import __version__

COMMANDS = {
    "list": ("facezoo.cli.checkpoints:list_names", "List models or checkpoints."),
    "info": ("facezoo.cli.checkpoints:info", "Show the card of a checkpoint."),
    "predict": ("facezoo.cli.images:predict", "Predict the expression of each face."),
    "verify": ("facezoo.cli.images:verify", "Decide if two images show the same identity."),
    "extract": ("facezoo.cli.images:extract", "Write the features of all faces to a file."),
    "join": ("facezoo.cli.images:join", "Join feature files."),
    "live": ("facezoo.cli.live:live", "Show the expressions of a camera in a window."),
    "demo": ("facezoo.cli.live:demo", "Open a page to try the models in a browser."),
    "download": ("facezoo.cli.checkpoints:download", "Download weights for use without network."),
    "finetune": ("facezoo.cli.train:finetune", "Fine-tune a checkpoint on your own images."),
    "register": ("facezoo.cli.meshes:register", "Fit the template of a mesh model to a mesh."),
    "evaluate": ("facezoo.cli.measure:evaluate", "Measure a checkpoint by the papers' protocols."),
    "benchmark": ("facezoo.cli.measure:benchmark", "Compare checkpoints and two baselines."),
    "train": ("facezoo.cli.train:train", "Train a model by its recipe."),
    "reproduce": ("facezoo.cli.train:reproduce", "Train a checkpoint again."),
    "convert": ("facezoo.cli.checkpoints:convert", "Convert a pickled checkpoint."),
    "export": ("facezoo.cli.checkpoints:export", "Export a model to ONNX, torch.export or timm."),
    "publish": ("facezoo.cli.checkpoints:publish", "Upload checkpoints to the Hugging Face Hub."),
}
"""Commands by name: the address of each, and one line of help."""
FAULTS = (OSError, ValueError, RuntimeError, ImportError, UnsupportedError)
"""Expected errors, reported in one line; all others show a traceback."""


@click.group(
    cls=LazyGroup,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="facezoo %(version)s")
@debug_option
def cli() -> None:
    """Disentangled face representations."""


cli.table = COMMANDS | {name: entry for name, entry in FAMILY_COMMANDS.items() if " " not in name}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0 fine, 1 an error, 2 wrong usage, 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not fit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int | None = cli.main(words, "facezoo", standalone_mode=False)
        print(end="", flush=True)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        print("; ".join(["facezoo: interrupted", *abort.args]), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FAULTS as error:
        if "--debug" in words:
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(filter(None, lines)) or type(error).__name__
        print(f"facezoo: error: {reason}", file=sys.stderr)
        return 1
    return code or 0


if __name__ == "__main__":
    raise SystemExit(main())
