"""A scan of the site: cubic spline, and enhanced by two models, with the same grey scale."""

from __future__ import annotations

import io
from dataclasses import replace

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.enhanced import make_scene
from iqtflow.reports.draw.slices import PlaneDrawer, Rung, planes_in_order
from iqtflow.reports.draw.volumes import load_volumes
from iqtflow.reports.record import Record

EDGE_PX = 360  #: pixels along the longer side of a slice


def draw_before_after(before: Record, after: Record, names: tuple[str, str]) -> bytes:
    """Draw the middle of a scan in the two planes across its slices.

    Parameters
    ----------
    before, after
        Records of the scan, enhanced by one and by the other model: ``input`` and ``output``.
    names
        Of the models.

    Returns
    -------
    bytes
        A PNG file, in radiological convention.
    """
    volumes, other = load_volumes(before), load_volumes(after)
    scene = make_scene(replace(volumes, std=None), "scan", "radiological")
    rows = []
    for plane in planes_in_order(volumes)[:2]:
        drawer = PlaneDrawer(scene, plane, {}, Rung(1, EDGE_PX))
        frames = [drawer.grey(volume)[0] for volume in (volumes.before, volumes.after, other.after)]
        note = f"{plane.name}, {drawer.places[0]}"
        sides = plane.sides("radiological")
        rows.append([pictures.mark(drawer.enlarged(frame), sides=sides, note=note) for frame in frames])
    page = pictures.titled_table(rows, ("cubic spline", *names))
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
