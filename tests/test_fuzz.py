"""Whatever comes in as image, array or card, documented errors alone come out, soon."""

import copy
import io
import json
import tracemalloc
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from facezoo.errors import CardError, ImageError
from facezoo.hub.card import CHECKPOINTS, Card
from facezoo.preprocess.images import read_image

LIMIT = 200_000
"""Pixels that a file may claim to have in these tests."""
MEMORY = 64 * LIMIT + 2**22
"""Bytes that reading may take: some copies of the pixels in the widest mode, and change."""
soon = settings(
    deadline=timedelta(seconds=5),
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def encoded(kind, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


FILES = [encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")]
FILES += [encoded("PNG", mode) for mode in ("L", "LA", "P", "1")] + [encoded("JPEG", "CMYK")]


@st.composite
def damaged_files(draw):
    """A small image file with bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("set", "insert", "remove", "cut")))
        if kind == "set":
            data[place : place + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif kind == "remove":
            del data[place : place + draw(st.integers(1, 50))]
        else:
            del data[max(place, 4) :]
    return bytes(data)


def read_or_refused(source):
    """Pixels as promised, or the documented error, in bounded memory."""
    tracemalloc.start()
    try:
        pixels = read_image(source)
    except ImageError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.size


@pytest.fixture
def _small_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)


@pytest.mark.usefixtures("_small_limit")
@soon
@given(st.binary(max_size=300))
@example(b"")
def test_random_bytes_are_read_or_raise_an_error(data):
    read_or_refused(data)


@pytest.mark.usefixtures("_small_limit")
@soon
@given(damaged_files())
def test_damaged_files_are_read_or_raise_an_error(data):
    read_or_refused(data)


@soon
@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=2)),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
    )
)
def test_random_arrays_are_read_or_raise_an_error(array):
    read_or_refused(array)


@soon
@given(
    hnp.arrays(
        st.sampled_from((np.uint8, np.uint16, np.float16, np.float32, np.float64)),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from((1, 3, 4))),
    )
)
def test_arrays_of_images_are_read_or_raise_an_error(array):
    read_or_refused(array)


# --- cards -------------------------------------------------------------------------------------

CARDS = [json.loads(path.read_text()) for path in sorted(CHECKPOINTS.glob("*.json"))]
for mapping in CARDS:  # a few metrics do, and cards of many are slow to parse
    mapping["metrics"] = mapping["metrics"][:2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places_of(value, path=()):
    """Paths to every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in inside:
        yield (*path, key)
        if isinstance(entry, (dict, list)):
            yield from places_of(entry, (*path, key))


@st.composite
def altered_cards(draw):
    """A bundled card with values replaced, removed or added."""
    card = copy.deepcopy(draw(st.sampled_from(CARDS)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(places_of(card))))
        holder = card
        for key in path:
            holder = holder[key]
        kind = draw(st.sampled_from(("replace", "remove", "add")))
        if kind == "replace":
            holder[last] = draw(JSON)
        elif kind == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(JSON)
        else:
            holder.append(draw(JSON))
    return card


def parsed_or_refused(parse):
    try:
        card = parse()
    except CardError:
        return
    assert Card.parse(json.loads(card.to_json())) == card
    assert card.to_markdown()
    assert repr(card)


@soon
@given(altered_cards())
def test_altered_cards_are_parsed_or_raise_an_error(mapping):
    parsed_or_refused(lambda: Card.parse(mapping))


@soon
@given(JSON)
def test_random_json_is_not_a_card(value):
    with pytest.raises(CardError):
        Card.parse(value)


@soon
@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b"1" * 5000)
@example(b'{"schema": 1, "model": "\\ud800"}')
def test_random_bytes_are_not_a_card(tmp_path, data):
    path = tmp_path / "card.json"
    path.write_bytes(data)
    with pytest.raises(CardError):
        Card.load(path)
