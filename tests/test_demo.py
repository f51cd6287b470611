"""The demo: what its page calls, and the page in a browser (marker ``browser``)."""

import io
import os
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


def test_a_prediction_is_a_picture_and_a_table_of_all_classes():
    picture, table = demo.predict(PORTRAITS[0], "bars")
    assert (np.asarray(picture).shape[2], min(picture.size) > 400) == (3, True)
    assert all(name in table for name in demo.model("ipd-fer").labels)


def test_two_portraits_are_different_persons():
    text, faces = demo.compare(*PORTRAITS)
    assert "Different persons" in text
    assert "The same person" in demo.compare(PORTRAITS[0], PORTRAITS[0])[0]
    assert [pixels.shape for pixels, _ in faces] == [(112, 112, 3)] * 2


@pytest.mark.parametrize("name", demo.EDITORS)
def test_a_face_is_decoded_and_gets_another_expression(name):
    titles = [title for _, title in demo.edit(name, *PORTRAITS)]
    assert titles == ["input", "reconstruct", "neutralize", "frontalize", "transferred expression"]


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


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_predicts_in_a_browser(width, tmp_path):
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, service = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not service:
        pytest.skip("needs chromium and chromedriver")
    port = str(7900 + os.getpid() % 90)
    command = [sys.executable, "-m", "facezoo", "demo", "--port", port]
    log = tmp_path / "log.txt"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=stderr
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    words = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    words += " disable-background-networking disable-component-update"
    for word in [*words.split(), f"window-size={width},1000", f"user-data-dir={tmp_path}"]:
        options.add_argument(f"--{word}")
    if width < 500:  # windows are not that narrow
        metrics = {"width": width, "height": 1300, "pixelRatio": 1}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    browser = None
    try:
        wait(lambda: urlopen(f"http://127.0.0.1:{port}/", timeout=5))
        browser = webdriver.Chrome(options, webdriver.ChromeService(service))
        browser.get(f"http://127.0.0.1:{port}/")
        files = wait(lambda: browser.find_elements("css selector", "input[type=file]"))
        browser.find_element("xpath", "//button[text()='Predict']").click()
        wait(lambda: "first choose a file" in browser.find_element("tag name", "body").text)
        browser.execute_script("document.querySelector('.toast-close').click()")
        files[0].send_keys(PORTRAITS[0])
        wait(lambda: browser.find_elements("css selector", "[role=tabpanel] img"))
        browser.find_element("xpath", "//button[text()='Predict']").click()
        table = wait(lambda: browser.find_elements("css selector", "table"))[0]
        assert "happiness" in table.text
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        if folder := os.environ.get("FACEZOO_SCREENSHOTS"):
            time.sleep(2)
            picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            picture.save(Path(folder) / f"demo_{width}.jpg", quality=85)
    finally:
        if browser:
            browser.quit()
        server.terminate()
        server.wait()
    assert "Traceback" not in log.read_text()


def wait(get, seconds=180):
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
