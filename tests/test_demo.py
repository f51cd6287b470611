"""The demo: what its page calls, and the page in a browser (marker ``browser``)."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from facezoo import demo
from facezoo.cli.main import main
from facezoo.geometry.mesh_files import read_mesh

ROOT = Path(__file__).parent.parent
PORTRAITS = [str(path) for path in sorted((ROOT / "examples" / "portraits").glob("*.jpg"))]


def titles(html):
    return re.findall(r"<figcaption>(.*?)</figcaption>", html)


def test_a_prediction_is_a_picture_and_a_table_of_all_classes():
    picture, table = demo.predict(PORTRAITS[0], "bars")
    assert (np.asarray(picture).shape[2], min(picture.size) > 400) == (3, True)
    assert all(name in table for name in demo.model("ipd-fer").labels)


def test_several_faces_have_the_number_of_the_table_in_the_picture(tmp_path, monkeypatch):
    images = [Image.open(path).convert("RGB").resize((400, 470)) for path in PORTRAITS[:2]]
    pair = Image.new("RGB", (800, 470))
    for number, image in enumerate(images):
        pair.paste(image, (400 * number, 0))
    pair.save(tmp_path / "pair.png")
    names = []
    monkeypatch.setattr(demo, "annotate", lambda *_, **options: names.append(options["names"]))
    demo.predict(str(tmp_path / "pair.png"))
    demo.predict(PORTRAITS[0])
    assert [names[0] and [*names[0]], names[1]] == [[0, 1], None]


def test_two_portraits_are_different_persons():
    text, faces = demo.compare(*PORTRAITS)
    assert "Different persons" in text
    assert "The same person" in demo.compare(PORTRAITS[0], PORTRAITS[0])[0]
    assert titles(faces) == ["first image", "second image"]


@pytest.mark.parametrize("name", demo.EDITORS)
def test_a_face_is_decoded_and_gets_another_expression(name):
    expected = ["input", "reconstruct", "neutralize", "frontalize", "transferred expression"]
    assert titles(demo.edit(name, *PORTRAITS)) == expected


def test_meshes_are_sampled_and_edited():
    pytest.importorskip("trimesh")
    sampled = demo.sample_mesh(1, 2, 1.0)
    again, neutral = (read_mesh(file, "mm").vertices for file in demo.edit_mesh(sampled))
    strong, plain = (
        read_mesh(demo.sample_mesh(1, 2, strength), "mm").vertices for strength in (1.0, 0.0)
    )
    assert again.shape == plain.shape
    assert (neutral - plain).norm(dim=1).mean() < (neutral - strong).norm(dim=1).mean()


def test_a_face_becomes_a_textured_mesh():
    pytest.importorskip("trimesh")
    assert Path(demo.relief(PORTRAITS[1])).read_bytes()[:4] == b"glTF"


def test_the_limits_of_every_checkpoint_are_named():
    assert demo.about().count("Limits:") == 4


def test_without_gradio_the_command_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 1
    assert "pip install 'facezoo[demo]'" in capsys.readouterr().err


@pytest.fixture
def page(tmp_path):
    """Return the address of the page of a running demo, which prints no traceback."""
    pytest.importorskip("gradio")
    port = str(7900 + os.getpid() % 90)
    command = [sys.executable, "-m", "facezoo", "demo", "--port", port]
    log = tmp_path / "log.txt"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=stderr
        )
    try:
        wait(lambda: urlopen(f"http://127.0.0.1:{port}/", timeout=5))
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture(params=[1280, 390])
def browser(request, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, service = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not service:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    words = "headless no-sandbox use-angle=swiftshader enable-unsafe-swiftshader disable-quic"
    words += " no-first-run disable-sync disable-background-networking disable-component-update"
    for word in [*words.split(), f"user-data-dir={tmp_path}"]:
        options.add_argument(f"--{word}")
    metrics = {"width": request.param, "height": 1010, "pixelRatio": 1}
    if request.param < 500:
        metrics["height"] = 1300
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    browser = webdriver.Chrome(options, webdriver.ChromeService(service))
    browser.width = request.param
    yield browser
    browser.quit()


def shown(browser, selector):
    """Return the visible elements of the open tab, and its file inputs."""
    panels = browser.find_elements("css selector", "[role=tabpanel]")
    (panel,) = (panel for panel in panels if panel.is_displayed())
    elements = panel.find_elements("css selector", selector)
    return [e for e in elements if e.is_displayed() or "file" in selector]


def press(browser, name):
    (button,) = (b for b in shown(browser, "button") if b.text == name)
    button.click()


def take(browser, name, seconds=4, height=None):
    """Save a picture of the page, if it is wanted for the documentation."""
    if folder := os.environ.get("FACEZOO_SCREENSHOTS"):
        time.sleep(seconds)
        browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        picture = picture.crop((0, 0, picture.width, height or picture.height))
        picture.save(Path(folder) / f"demo_{name}.jpg", quality=85)


def check_width(browser):
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.width


@pytest.mark.browser
def test_the_page_predicts_in_a_browser(page, browser):
    browser.get(page)
    files = wait(lambda: browser.find_elements("css selector", "input[type=file]"))
    press(browser, "Predict")
    wait(lambda: "first choose a file" in browser.find_element("tag name", "body").text)
    browser.execute_script("document.querySelector('.toast-close').click()")
    files[0].send_keys(PORTRAITS[0])
    wait(lambda: shown(browser, "img"))
    press(browser, "Predict")
    table = wait(lambda: shown(browser, "table"))[0]
    assert "happiness" in table.text
    check_width(browser)
    take(browser, browser.width)


@pytest.mark.browser
def test_the_page_shows_all_edits_of_a_face_in_a_browser(page, browser):
    browser.get(page)
    wait(lambda: browser.find_elements("css selector", "input[type=file]"))
    browser.find_element("xpath", "//button[@role='tab'][normalize-space()='Edit']").click()
    for count, portrait in enumerate(PORTRAITS, 1):
        wait(lambda: shown(browser, "input[type=file]"))[-1 if count > 1 else 0].send_keys(portrait)
        wait(lambda count=count: len(shown(browser, "img")) == count)
    press(browser, "Decode")
    faces = wait(lambda: shown(browser, "figure"))
    assert len(faces) == 5
    for face in faces:
        box = face.rect
        assert box["width"] >= 120
        assert box["x"] + box["width"] <= browser.width
    check_width(browser)
    if browser.width > 1000:
        take(browser, "edit")
        browser.find_element("xpath", "//button[@role='tab'][normalize-space()='Meshes']").click()
        wait(lambda: shown(browser, "button.primary"))
        press(browser, "Sample a face")
        wait(lambda: shown(browser, "canvas"))
        take(browser, "meshes", seconds=30, height=600)  # the light comes late


def wait(get, seconds=400):
    """Return the first true value of a function."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := get():
                return value
        except OSError:
            pass
        assert time.monotonic() < deadline, "the page does not answer"
        time.sleep(0.5)
