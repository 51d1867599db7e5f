"""The picture of a model's card: scan, cubic spline, enhanced volume and truth of an evaluation subject."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.enhanced import make_scene
from iqtflow.reports.draw.slices import PlaneDrawer, Rung, Scene, planes_in_order
from iqtflow.reports.draw.volumes import Plane, load_volumes
from iqtflow.reports.record import Record

MAX_BYTES = 150_000  #: of the file
#: Pixels along the longer side of a slice, the best first; the first that fits `MAX_BYTES` is used.
EDGES_PX = (320, 280, 240, 200, 160, 120)
GREYS = 64  #: steps of the grey scale: more would only store noise


def draw_model_picture(record: Record, *, spline_db: float, enhanced_db: float) -> bytes:
    """Draw an evaluation subject in the two planes across the slices, with the same grey scale.

    Parameters
    ----------
    record
        With ``input``, ``spline``, ``output``, ``truth`` and ``mask``.
    spline_db, enhanced_db
        PSNR of the cubic spline and of the enhanced volume (dB).

    Returns
    -------
    bytes
        A PNG file, in radiological convention; the same volumes give the same bytes.
    """
    volumes = load_volumes(record)
    scene = make_scene(volumes, "model", "radiological")
    titles = (
        "simulated scan",
        f"cubic spline, {spline_db:.2f} dB",
        f"enhanced, {enhanced_db:.2f} dB",
        "truth",
    )
    for edge_px in EDGES_PX:
        rows = [_draw_row(scene, plane, edge_px) for plane in planes_in_order(volumes)[:2]]
        content = _encode(pictures.titled_table(rows, titles))
        if len(content) <= MAX_BYTES:
            break
    return content


def _draw_row(scene: Scene, plane: Plane, edge_px: int) -> list[Image.Image]:
    volumes = scene.volumes
    drawer = PlaneDrawer(scene, plane, {}, Rung(1, edge_px))
    frames = [drawer.grey(volume)[0] for volume in (volumes.before, volumes.after, volumes.truth)]
    images = [*drawer.acquired(), *map(drawer.enlarged, frames)]
    note = f"{plane.name}, {drawer.places[0]}"
    return [pictures.mark(image, sides=plane.sides(scene.convention), note=note) for image in images]


def _encode(image: Image.Image) -> bytes:
    step = 256 // GREYS
    coarse = Image.fromarray((np.asarray(image) // step * step).astype(np.uint8))
    buffer = io.BytesIO()
    coarse.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
