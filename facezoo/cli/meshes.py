"""``facezoo register``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from facezoo.cli.common import OUT, PATH, device_option


@click.command()
@click.argument("mesh", type=PATH)
@click.option(
    *OUT, "out", type=PATH, required=True, metavar="FILE", help="registered mesh, .ply or .obj"
)
@click.option(
    "--units",
    type=click.Choice(["mm", "cm", "m", "dm", "inch"]),
    help="unit of MESH  [default: find it]",
)
@click.option("--model", default="adv3d", show_default=True, help="name of a mesh model")
@device_option
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def register(
    mesh: Path, out: Path, units: str | None, model: str, device: str | None, as_json: bool
) -> None:
    """Fit the template to MESH, an .obj, .ply, .stl, .glb or .gltf file of a face or a head.

    The registered mesh has the vertices and triangles of the template, in millimeters.
    """
    from facezoo.geometry.mesh_files import write_mesh
    from facezoo.registration import register as register_mesh

    if out.resolve() == mesh.resolve():
        raise click.UsageError(f"{out} is MESH itself; name another file for the result")
    result = register_mesh(mesh, units=units, model=model, device=device)
    write_mesh(out, result.mesh)
    if as_json:
        content = {
            "units": result.units,
            "residuals_mm": result.residuals_mm,
            "coverage": result.coverage,
            "scale": result.pose.scale,
            "rotation": result.pose.rotation.tolist(),
            "translation": result.pose.translation.tolist(),
        }
        click.echo(json.dumps(content))
        return
    steps = ", ".join(f"{name} {value:.1f}" for name, value in result.residuals_mm.items())
    click.echo(f"{out}: units {result.units}, coverage {100 * result.coverage:.0f} %")
    click.echo(f"distance after each step, mm: {steps}")
