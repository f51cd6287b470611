"""A page to try the models in a browser: ``facezoo demo``, and the Space in ``examples/space``.

The functions that the page calls need no Gradio. Images are paths.
"""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from facezoo.comparison import verify
from facezoo.display import table
from facezoo.errors import explained_import
from facezoo.faces import crops
from facezoo.plot.annotation import Style, annotate, numbers_of
from facezoo.registry import info, list_models, load

DECODED = ("reconstruct", "neutralize", "frontalize")
EDITORS = ("ipd-fer", "latentface")
"""Models that decode faces."""
COLUMNS = 4
"""Faces in the table of probabilities."""
CSS = """
footer {display: none !important}
table {font-size: 0.9em}
.about {max-width: 50em}
.tiles {display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr))}
.tiles figure {margin: 0; max-width: 240px}
.tiles img {width: 100%; border-radius: 6px}
.tiles figcaption {text-align: center}
@media (max-width: 600px) {.tab-container button {padding: 0 6px !important}}
"""
NOTE = """
Expressions are what a face shows, not what a person feels. Images stay on the machine that runs
this page. For research only: the last tab lists the limits of each checkpoint.
"""
DETAIL = """
Decoded faces are blurred: they show only what the features hold. `neutralize` and the transfer of
`ipd-fer` change the input and keep its detail.
"""


@cache
def model(name: str) -> Any:
    """Load a model once."""
    return load(name)


def predict(image: str, style: Style | None = None) -> tuple[Image.Image, str]:
    """Predict the expressions of all faces: the image with them, and probabilities as HTML."""
    prediction = model("ipd-fer").predict_expression(image, faces="all")
    columns = prediction.probabilities[:COLUMNS].T.tolist()
    rows = ([name, *shares] for name, shares in zip(prediction.classes, columns, strict=True))
    header = ["", *(f"{n}: {label}" for n, label in enumerate(prediction.labels[:COLUMNS]))]
    picture = annotate(image, prediction, style=style, names=numbers_of(prediction))
    return picture, table(header, rows)


def compare(first: str, second: str) -> tuple[str, str]:
    """Decide if the largest faces show one person, as Markdown; and both faces as HTML."""
    match = verify(first, second, model("ipd-fer"))
    words = "The same person" if match.same else "Different persons"
    text = (
        f"### {words}\nSimilarity {match.similarity:.2f}, threshold {match.threshold:.2f}. On the "
        f"validation pairs, {match.false_match_rate:.1%} of the pairs of two persons are above it."
    )
    faces = [crops(image, faces="largest")[0] for image in (first, second)]
    return text, _tiles({"first image": faces[0], "second image": faces[1]})


def edit(name: str, image: str, source: str | None = None) -> str:
    """Decode the largest face of an image: as it is, without expression, and in front view.

    Args:
        name: a model, one of ``EDITORS``.
        image: the face.
        source: a face whose expression is transferred to it, if given.

    Returns:
        The faces with their titles, as HTML.
    """
    decoder = model(name)
    prepared = decoder.preprocessing
    tiles = {"input": crops(image, prepared.template, prepared.size, faces="largest")[0]}
    for method in DECODED:
        if method in decoder.capabilities():
            tiles[method] = getattr(decoder, method)(image, faces="largest")[0] * 255
    if source:
        moved = decoder.transfer_expression(source, image, faces="largest")
        tiles["transferred expression"] = moved[0] * 255
    return _tiles(tiles)


def relief(image: str) -> str:
    """Compute the textured mesh of the largest face of an image; return a ``.glb`` file."""
    mesh = model("latentface").to_mesh(image, faces="largest")[0]
    column, row = mesh.pixels.long().unbind(1)
    return _glb(mesh.vertices, mesh.triangles, _pixels(mesh.texture * 255)[row, column])


def sample_mesh(identity: int, expression: int, strength: float) -> str:
    """Decode a random face mesh from two seeds as a ``.glb`` file; strength 0 is neutral."""
    sampler = model("adv3d")
    dims = sampler.architecture["identity_dim"], sampler.architecture["expression_dim"]
    generators = [torch.Generator().manual_seed(int(seed)) for seed in (identity, expression)]
    codes = [
        torch.randn(1, dim, generator=generator, dtype=torch.float32, device="cpu")
        for dim, generator in zip(dims, generators, strict=True)
    ]
    neutral = sampler.synthesize(codes[0])[0].vertices
    full = sampler.synthesize(*codes)[0]
    return _glb(torch.lerp(neutral, full.vertices, float(strength)), full.triangles)


def edit_mesh(file: str, source: str | None = None, units: str = "mm") -> tuple[str, str]:
    """Neutralize a mesh, or transfer the expression of another mesh to it.

    Args:
        file: ``.obj``, ``.ply``, ``.stl`` or ``.glb``, in any topology.
        source: mesh whose expression is transferred.
        units: of both, ``"mm"``, ``"cm"`` or ``"m"``.

    Returns:
        The reconstruction and the result, ``.glb`` files.
    """
    editor = model("adv3d")
    again = editor.reconstruct(file, units=units)[0]
    if source:
        result = editor.transfer_expression(source, file, units=units)[0]
    else:
        result = editor.neutralize(file, units=units)[0]
    return _glb(again.vertices, again.triangles), _glb(result.vertices, result.triangles)


def about() -> str:
    """Describe the default checkpoints and their limits, as Markdown."""
    parts = []
    for name in list_models():
        card = info(name)
        size = f"{card.weights.parameters / 1e6:.1f} M parameters"
        limits = "\n".join(f"- {limit}" for limit in card.limits)
        facts = f"{size}, license of the weights: {card.licenses.weights}. {card.intended_use}"
        parts.append(f"### {card.name}\n{facts}\n\nLimits:\n\n{limits}")
    return "\n\n".join(parts)


def build() -> Any:
    """Build the page, a ``gradio.Blocks``.

    Raises:
        ImportError: if Gradio is missing.
    """
    with explained_import("the demo needs Gradio: pip install 'facezoo[demo]'"):
        import gradio as gr

    def shown(function: Callable[..., Any], files: Sequence[int] = (0,)) -> Callable[..., Any]:
        """Show expected errors in the page, such as missing files."""

        @wraps(function)
        def run(*values: Any) -> Any:
            if not all(values[place] for place in files):
                raise gr.Error("first choose a file, or take a picture", print_exception=False)
            try:
                return function(*values)
            except (ValueError, TypeError, OSError) as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from error

        return run

    def image(label: str) -> Any:
        sources = ["upload", "webcam", "clipboard"]
        return gr.Image(type="filepath", label=label, sources=sources, height=320)

    with gr.Blocks(title="facezoo", analytics_enabled=False) as page:
        gr.Markdown(f"# facezoo\n{NOTE}")
        with gr.Tab("Expressions"), gr.Row():
            with gr.Column():
                photo = image("image")
                style = gr.Radio(["label", "bars", "box"], value="bars", label="style")
                button = gr.Button("Predict", variant="primary")
            with gr.Column():
                drawn = gr.Image(label="faces", interactive=False)
                shares = gr.HTML()
            button.click(shown(predict), [photo, style], [drawn, shares])
        with gr.Tab("Compare"):
            with gr.Row():
                pair = [image("first image"), image("second image")]
            button = gr.Button("Compare", variant="primary")
            button.click(shown(compare, (0, 1)), pair, [gr.Markdown(), gr.HTML()])
        with gr.Tab("Edit"):
            name = gr.Radio(list(EDITORS), value=EDITORS[0], label="model")
            with gr.Row():
                pair = [image("face"), image("expression to transfer (optional)")]
            button = gr.Button("Decode", variant="primary")
            button.click(shown(edit, (1,)), [name, *pair], gr.HTML())
            gr.Markdown(DETAIL)
        with gr.Tab("3D"), gr.Row():
            with gr.Column():
                photo = image("image")
                button = gr.Button("Compute", variant="primary")
            button.click(shown(relief), photo, gr.Model3D(label="latentface", height=420))
        with gr.Tab("Meshes"):
            with gr.Row():
                with gr.Column():
                    controls = [
                        gr.Slider(0, 99, 1, step=1, label="identity"),
                        gr.Slider(0, 99, 1, step=1, label="expression"),
                        gr.Slider(0, 2, 1, step=0.1, label="strength of the expression"),
                    ]
                    button = gr.Button("Sample a face", variant="primary")
                button.click(
                    shown(sample_mesh, ()), controls, gr.Model3D(label="adv3d", height=420)
                )
            with gr.Row():
                files = [
                    gr.Model3D(label="your mesh", height=300),
                    gr.Model3D(label="expression to transfer (optional)", height=300),
                ]
            units = gr.Radio(["mm", "cm", "m"], value="mm", label="units")
            button = gr.Button("Neutralize or transfer")
            with gr.Row():
                results = [gr.Model3D(label=label) for label in ("reconstruction", "result")]
            button.click(shown(edit_mesh), [*files, units], results)
        with gr.Tab("About"):
            gr.Markdown(about(), elem_classes="about")
    return page


def launch(**options: Any) -> None:
    """Open the page; options are those of ``gradio.Blocks.launch``, such as ``server_name``."""
    page = build()
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(theme=theme, css=CSS, **options)


def _pixels(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Convert RGB in 0..255, (3, S, S), to an image (S, S, 3)."""
    return picture.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _tiles(pictures: dict[str, torch.Tensor]) -> str:
    """Return HTML of pictures below each other or in a row; RGB in 0..255, (3, S, S), by title."""
    parts = []
    for title, picture in pictures.items():
        buffer = BytesIO()
        Image.fromarray(_pixels(picture)).save(buffer, "png")
        source = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
        parts.append(
            f'<figure><img src="{source}" alt="{title}"><figcaption>{title}</figcaption></figure>'
        )
    return f'<div class="tiles">{"".join(parts)}</div>'


def _glb(
    vertices: torch.Tensor, triangles: torch.Tensor, colors: NDArray[np.uint8] | None = None
) -> str:
    """Write a mesh with smooth normals and colors of its vertices; return the file."""
    import trimesh

    if colors is None:
        colors = np.full((len(vertices), 3), (200, 195, 190), np.uint8)
    arrays = vertices.cpu().numpy(), triangles.cpu().numpy()
    mesh = trimesh.Trimesh(*arrays, process=False, vertex_colors=colors)
    path = str(Path(tempfile.mkdtemp(prefix="facezoo-")) / "face.glb")
    mesh.export(path, include_normals=True)
    return path
