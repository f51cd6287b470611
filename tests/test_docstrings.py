"""The public names have an example in their docstring, and it prints what it shows."""

import doctest
import importlib
import shutil
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

import facezoo
from facezoo.models.base import FaceModel

PORTRAITS = Path(__file__).parent.parent / "examples" / "portraits"
NAMES = {
    **{
        name: getattr(facezoo, name)
        for name in sorted({*facezoo.__all__} - {"__version__", "plot"})
    },
    **{
        f"plot.{name}": getattr(facezoo.plot, name)
        for name in sorted({*facezoo.plot.__all__} - {"MOST", "Picture"})
    },
    "sklearn.FaceFeatures": importlib.import_module("facezoo.sklearn").FaceFeatures,
    "export.export": importlib.import_module("facezoo.export").export,
    "FaceModel.encode_expression": FaceModel.encode_expression,
    "FaceModel.predict_expression": FaceModel.predict_expression,
    "FaceModel.compact_expression": FaceModel.compact_expression,
    "Faces.to_frame": facezoo.Faces.to_frame,
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def model():
    return facezoo.load("ipd-fer", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The portraits, and a video of half a second with one of them."""
    folder = shutil.copytree(PORTRAITS, tmp_path_factory.mktemp("examples") / "portraits")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        portrait = Image.open(PORTRAITS / "eileen_collins.jpg").convert("RGB").resize((256, 256))
        for frame in [av.VideoFrame.from_image(portrait)] * 2:
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_a_docstring_prints_what_it_shows(
    name, model, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    names = {"facezoo": facezoo, "torch": torch, "model": model, "tmp": tmp_path}
    test = doctest.DocTestParser().get_doctest(NAMES[name].__doc__, names, name, None, None)
    assert test.examples, f"{name} has no example"
    messages = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=messages.append)
    assert not messages, "".join(messages)
