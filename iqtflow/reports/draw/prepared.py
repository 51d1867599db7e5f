"""The figures of a scan that was prepared for training: contours of its tissue maps, the low-field scans that
were simulated from it, and the values that were drawn for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from iqtflow.image.geometry import slice_axis
from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.pictures import Picture, PictureRow
from iqtflow.reports.draw.slices import Comparison, Layer, PlaneDrawer, Rung, Scene, draw_within
from iqtflow.reports.draw.volumes import PLANES, Plane, Volumes, load_array, load_prepared, on_grid
from iqtflow.reports.record import Draw, Record

#: Choices of size and quality, the best first; the first that fits the budget is used.
LADDER = (Rung(9, 560, 84), Rung(9, 420, 72), Rung(4, 380, 62))
#: Contours, at the probability of one half (Okabe & Ito, doi:10.1038/nmeth.1618).
CONTOURS = (("wm", "white matter", "#f0a020"), ("gm", "grey matter", "#40b8f0"), ("mask", "brain", "#b8b8b8"))
SHOWN_DRAWS = 6  #: draws with pictures; the table has all of them

Maps = Mapping[str, np.ndarray]


@dataclass
class PreparedFigures:
    """All figures of one prepared scan.

    Attributes
    ----------
    thumbnail
        For the index.
    contours
        (tissue, colour) of each contour.
    draws
        Pictures of the first draws.
    n_draws
        Number of all draws.
    table
        Header and one row for each draw.
    planes
        Comparisons of the image without and with contours.
    ellipse, tissues
        Drawn SNRs on their prior; intensities of both tissues before and after.
    prior
        Name of the prior.
    files
        Bytes by file name.
    """

    thumbnail: Picture
    contours: list[tuple[str, str]]
    draws: list[PictureRow]
    n_draws: int
    table: tuple[Sequence[str], Sequence[list[str]]]
    planes: list[Comparison] = field(default_factory=list)
    ellipse: Picture | None = None
    tissues: Picture | None = None
    prior: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


def draw_prepared(record: Record, stem: str, *, convention: str, max_bytes: int) -> PreparedFigures:
    """Draw the figures of a prepared scan within a budget.

    Parameters
    ----------
    record
        With ``input`` (the high-field scan), and ``wm``, ``gm``, ``mask`` and ``draws`` as far as they are
        there.
    stem
        Beginning of every file name.
    convention
        ``radiological`` or ``neurological``.
    max_bytes
        Most bytes of all files.

    Raises
    ------
    InputError
        The scan is missing, or a volume is not three-dimensional.
    """
    volumes, maps = load_prepared(record)
    scene = Scene(volumes, stem, convention)
    sidecars = [draw.sidecar for draw in record.draws]
    files: dict[str, bytes] = {}
    figures = PreparedFigures(
        thumbnail=_draw_thumbnail(scene, maps, files),
        contours=[(words, colour) for key, words, colour in CONTOURS if key in maps],
        draws=[
            _draw_pictures(scene, draw, number, files)
            for number, draw in enumerate(record.draws[:SHOWN_DRAWS], start=1)
        ],
        n_draws=len(record.draws),
        table=draw_table(sidecars),
        files=files,
    )
    drawn = [(float(s["SNR"]["WM"]), float(s["SNR"]["GM"])) for s in sidecars if s.get("SNR")]
    if drawn:
        prior = next((s["SNRPrior"] for s in sidecars if s.get("SNRPrior")), None)
        figures.prior = str((prior or {}).get("name", ""))
        figures.ellipse = pictures.keep(files, f"{stem}_snr.svg", *plots.snr_ellipse(drawn, prior))
    if record.draws and {"wm", "gm"} <= set(maps):
        values = _tissue_values(volumes, maps, record.draws[0])
        if values:
            plot = plots.tissue_histograms(values)
            figures.tissues = pictures.keep(files, f"{stem}_tissues.svg", *plot)
    figures.planes, sheets = draw_within(
        max_bytes - sum(map(len, files.values())),
        LADDER,
        lambda rung, into: [_draw_plane(scene, plane, maps, rung, into) for plane in PLANES.values()],
    )
    files |= sheets
    return figures


def draw_table(sidecars: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the values that were drawn, from the sidecars of simulated scans."""
    columns = (
        ("slices along", lambda s: str(s.get("SliceAxis", ""))),
        ("spacing (mm)", lambda s: _number(s.get("SpacingBetweenSlices"), 2)),
        ("thickness (mm)", lambda s: _number(s.get("SliceThickness"), 2)),
        ("gap (mm)", lambda s: _number(s.get("SliceGap"), 2)),
        ("SNR of WM", lambda s: _number((s.get("SNR") or {}).get("WM"), 1)),
        ("SNR of GM", lambda s: _number((s.get("SNR") or {}).get("GM"), 1)),
        ("GM × ", lambda s: _number((s.get("IntensityRatio") or {}).get("GM"), 2)),
        ("noise SD", lambda s: _number(s.get("NoiseStandardDeviation"), 1)),
        ("seed", lambda s: str(s.get("Seed", ""))),
    )
    header = ["draw", *(name for name, _ in columns)]
    return header, [[str(i), *(show(s) for _, show in columns)] for i, s in enumerate(sidecars, start=1)]


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{float(value):.{digits}f}"


def _contoured(drawer: PlaneDrawer, maps: Maps) -> list[Image.Image]:
    """Return the slices of a plane with the contours of the maps."""
    cuts = [(drawer.cuts(maps[key]), colour) for key, _, colour in reversed(CONTOURS) if key in maps]
    return [
        pictures.outline(pictures.enlarge(frame, drawer.size), [(cut[i], colour) for cut, colour in cuts])
        for i, frame in enumerate(drawer.grey(drawer.scene.volumes.before))
    ]


def _draw_plane(scene: Scene, plane: Plane, maps: Maps, rung: Rung, files: dict[str, bytes]) -> Comparison:
    drawer = PlaneDrawer(scene, plane, files, rung)
    plain = drawer.sheet("t1w", drawer.grey(scene.volumes.before), "the high-field scan")
    drawn = drawer.sheet("contours", _contoured(drawer, maps), "with contours of the tissue maps")
    return drawer.compare(
        "planes", [Layer("plain", "T1w", plain)], Layer("contours", "Tissue contours", drawn)
    )


def _draw_thumbnail(scene: Scene, maps: Maps, files: dict[str, bytes]) -> Picture:
    drawer = PlaneDrawer(scene, PLANES["coronal"], files, Rung(1, 220, 80), file="{name}")
    grey = pictures.enlarge(drawer.grey(scene.volumes.before)[0], drawer.size).convert("RGB")
    both = [grey, *_contoured(drawer, maps)]
    words = "the high-field scan, right with the contours of its tissue maps"
    return drawer.sheet("thumbnail", both, words, marked=False)


def _draw_pictures(scene: Scene, draw: Draw, number: int, files: dict[str, bytes]) -> PictureRow:
    """Draw the source and a simulated scan, in a plane across its slices and in the plane of its slices."""
    snr = draw.sidecar.get("SNR") or {}
    drawn = f": SNR {snr['WM']:.1f} in white matter, {snr['GM']:.1f} in grey matter" if snr else ""
    title = f"Draw {number}{drawn}"
    thick = load_array(draw.image)
    if thick is None:
        return PictureRow(f"{title} (the simulated scan is missing)", ())
    axis = slice_axis(thick[1])
    before, affine = scene.volumes.before, scene.volumes.affine
    # Each thick voxel as a block: nothing is interpolated.
    blocks = on_grid(thick, affine, before.shape, kind="nearest")
    across = next(p for p in PLANES.values() if p.normal != axis)
    within = next(p for p in PLANES.values() if p.normal == axis)
    found = []
    for plane, words in ((across, "across the slices"), (within, "in the plane of the slices")):
        drawer = PlaneDrawer(scene, plane, files, file=f"draw{number:02d}-{{plane}}-{{name}}", text_px=18)
        for name, data, tag in (("source", before, "Source"), ("draw", blocks, f"Draw {number}")):
            tag = f"{tag}, {words}"
            found.append((tag, drawer.sheet(name, drawer.grey(data), tag)))
    return PictureRow(title, tuple(found))


def _tissue_values(
    volumes: Volumes, maps: Maps, draw: Draw
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Return the intensities of white and grey matter in the source and in a draw, if there are enough."""
    loaded = load_array(draw.image)
    if loaded is None:
        return None
    thick, affine = loaded
    values = {}
    for key, name in (("wm", "WM"), ("gm", "GM")):
        there = on_grid((maps[key], volumes.affine), affine, thick.shape) > 0.9
        values[name] = (volumes.before[maps[key] > 0.9], thick[there])
    return None if any(len(part) < 50 for pair in values.values() for part in pair) else values
