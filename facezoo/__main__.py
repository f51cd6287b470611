"""``python -m facezoo``: the command line."""

from facezoo.cli import main

raise SystemExit(main())
