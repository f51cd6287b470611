"""Annotate a video, and draw the expressions of its faces over time.

python examples/annotate_video.py out [clip.mp4]

Writes out.mp4, out.jpg (a frame) and out.png (the timeline). Without a clip, one is made of both
portraits. Needs the extras [video] and [viz].
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

import facezoo
from facezoo.plot.video import annotate_frame

PORTRAITS = sorted((Path(__file__).parent / "portraits").glob("*.jpg"))


def make_clip(path: Path) -> Path:
    """Write a clip in which one portrait becomes the other one, which also comes and goes."""
    import av

    crops = facezoo.crops(PORTRAITS, "ffhq", 240, faces="largest").permute(0, 2, 3, 1).cpu()
    first, second = (Image.fromarray(crop.numpy()) for crop in crops)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 560, 280, "yuv420p"
        for number in range(30):
            scene = Image.new("RGB", (560, 280), "#777")
            blend = Image.blend(first, second, min(max(number - 8, 0) / 14, 1))
            scene.paste(blend, (10 + number, 20))
            if 6 <= number < 22:
                scene.paste(second, (300, 5 + number))
            container.mux(stream.encode(av.VideoFrame.from_image(scene)))
        container.mux(stream.encode(None))
    return path


def main(output: Path, clip: Path | None = None, model="ipd-fer") -> None:
    clip = clip or make_clip(Path(tempfile.mkdtemp()) / "clip.mp4")
    frames = list(facezoo.video(clip, model, smooth=0.1))
    count = facezoo.plot.save_video(frames, output.with_suffix(".mp4"))
    most = max(frames, key=lambda frame: len(frame.faces))
    annotate_frame(most).save(output.with_suffix(".jpg"), quality=88)
    facezoo.plot.timeline(frames).savefig(output.with_suffix(".png"), dpi=80)
    print(f"{output}: {count} frames, {len(most.faces)} faces at most")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:3] or ["video"]))
