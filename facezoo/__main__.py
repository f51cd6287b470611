"""``python -m facezoo``: the command line."""

from facezoo.cli.main import main

raise SystemExit(main())
