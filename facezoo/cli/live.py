"""``facezoo live`` and ``facezoo demo``."""

from __future__ import annotations

from typing import Any, get_args

import click
import numpy as np
from PIL import Image

from facezoo.cli.common import device_option, runtime_option
from facezoo.plot.annotation import Style

QUIT = (27, ord("q"))
"""Keys that close the window: Esc and q."""
VISIBLE = 4
"""cv2.WND_PROP_VISIBLE."""


@click.command(epilog="Esc or q closes the window.")
@click.option("--camera", type=int, default=0, help="number of the camera")
@click.option("--model", default="ipd-fer", help="any name that load takes")
@click.option("--style", type=click.Choice(get_args(Style)), help="how to draw faces")
@click.option("--smooth", type=float, default=0.3, help="average probabilities, seconds")
@device_option
@runtime_option
def live(
    camera: int, model: str, style: Any, smooth: float, device: str | None, runtime: Any
) -> None:
    """Show the faces and expressions of a camera in a window (extra [live])."""
    from facezoo.extraction.frames import video
    from facezoo.plot.video import annotate_frame
    from facezoo.registry import load

    network = load(model, device=device, runtime=runtime)
    frames = video(camera, network, smooth=smooth or None)
    for frame in frames:
        if not show(annotate_frame(frame, style=style)):
            break


def show(picture: Image.Image) -> bool:
    """Show an image in a window; return False if the user closed it.

    Raises:
        RuntimeError: if there is no display, or OpenCV was built without windows.
    """
    import cv2

    try:
        cv2.imshow("facezoo", np.asarray(picture)[..., ::-1])
        closed = cv2.waitKey(1) in QUIT or cv2.getWindowProperty("facezoo", VISIBLE) < 1
    except cv2.error as error:
        raise RuntimeError(
            "OpenCV cannot open a window: it needs a display, and the package opencv-python, not "
            f"opencv-python-headless ({str(error).splitlines()[0]})"
        ) from error
    return not closed


@click.command()
@click.option("--host", default="127.0.0.1", help="0.0.0.0 for all machines of the network")
@click.option("--port", type=int, default=7860, help="port of the page on this machine")
def demo(host: str, port: int) -> None:
    """Open a page to try the models in a browser (extra [demo])."""
    from facezoo.demo import launch

    launch(server_name=host, server_port=port)
