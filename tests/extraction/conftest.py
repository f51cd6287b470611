"""Fixtures of all tests of extraction."""

import pytest
from fake_faces import COUNTS, replace_detector, tiny_model, write_folder


@pytest.fixture
def _fake_faces(monkeypatch):
    replace_detector(monkeypatch)


@pytest.fixture(scope="session")
def tiny():
    return tiny_model()


@pytest.fixture
def folder(tmp_path):
    """13 images with 0, 1 or 2 faces."""
    return write_folder(tmp_path / "images", COUNTS)
