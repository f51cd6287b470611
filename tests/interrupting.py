"""Ctrl-C at a chosen call."""

from contextlib import contextmanager
from functools import partial

import pytest


@contextmanager
def interrupted(monkeypatch, name, *owners, after=0):
    """Expect Ctrl-C at a call of the function ``name`` of modules, after that many calls."""
    calls = []

    def stop(real, *arguments, **options):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        for owner in owners:
            patch.setattr(owner, name, partial(stop, getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            yield
