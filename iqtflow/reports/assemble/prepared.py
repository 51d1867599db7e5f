"""The figures of a high-field scan that was prepared for training: its tissue maps as contours, the
low-field scans simulated from it beside it, and what was drawn for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from iqtflow.image.geometry import slice_axis
from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.grids import load_array, on_grid
from iqtflow.reports.draw.sheets import Comparison, PlaneDrawer, Rung, Subject
from iqtflow.reports.draw.snr_plot import snr_ellipse
from iqtflow.reports.draw.views import (
    PLANES,
    Plane,
    Volumes,
    choose_slices,
    crop_box,
    cut,
    position_label,
    window_of,
)
from iqtflow.utils.errors import InputError

#: Choices of size and quality, the best first; the first that fits the budget is used.
LADDER = (
    Rung(slices=9, edge_px=560, quality=84),
    Rung(slices=9, edge_px=420, quality=72),
    Rung(slices=4, edge_px=380, quality=62),
)
#: Contours, at the probability of one half (Okabe & Ito, doi:10.1038/nmeth.1618).
CONTOURS = (("wm", "white matter", "#f0a020"), ("gm", "grey matter", "#40b8f0"), ("mask", "brain", "#b8b8b8"))
SHOWN_DRAWS = 6  #: draws with pictures; the table has all of them
DRAW_PX = 420


@dataclass(frozen=True)
class DrawPictures:
    """Pictures of one simulated scan: words for it, and (tag, picture) of the source and of the draw, across
    the slices and in their plane.
    """

    title: str
    pictures: tuple[tuple[str, pictures.Picture], ...]


@dataclass
class PreparedFigures:
    """All figures of one prepared scan.

    Attributes
    ----------
    files
        Bytes by file name.
    planes
        Comparisons of the image alone and with contours.
    contours
        (what, colour) of each contour.
    draws
        Pictures of the first draws.
    n_draws
        How many there are.
    ellipse, tissues, thumbnail
        Drawn SNRs on their prior; intensities of both tissues before and after; a picture for the index.
    table
        Header and one row for each draw.
    prior
        Name of the prior.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    planes: list[Comparison] = field(default_factory=list)
    contours: list[tuple[str, str]] = field(default_factory=list)
    draws: list[DrawPictures] = field(default_factory=list)
    n_draws: int = 0
    ellipse: pictures.Picture | None = None
    tissues: pictures.Picture | None = None
    thumbnail: pictures.Picture | None = None
    table: tuple[Sequence[str], Sequence[list[str]]] = ((), ())
    prior: str = ""


def draw_prepared(
    record: Mapping[str, Any], stem: str, *, convention: str, max_bytes: int
) -> PreparedFigures:
    """Draw the figures of a prepared scan within a budget.

    Parameters
    ----------
    record
        ``input`` (the high-field scan), ``wm``, ``gm``, ``mask``: paths; ``draws``: mappings with ``image``
        (path) and ``sidecar`` (mapping).
    stem
        Beginning of every file name.
    convention
        ``radiological`` or ``neurological``.
    max_bytes
        Budget for all files.

    Raises
    ------
    InputError
        The scan is not there, or a volume is not three-dimensional.
    """
    volumes, maps = _load(record)
    subject = Subject(volumes, stem, convention, None, None)
    figures = PreparedFigures(contours=[(words, colour) for key, words, colour in CONTOURS if key in maps])
    draws = [dict(draw) for draw in record.get("draws") or ()]
    figures.n_draws = len(draws)
    for number, draw in enumerate(draws[:SHOWN_DRAWS], start=1):
        figures.draws.append(_draw_pictures(subject, draw, number, figures.files))
    sidecars = [draw.get("sidecar") or {} for draw in draws]
    figures.table = draw_table(sidecars)
    drawn = [(float(s["SNR"]["WM"]), float(s["SNR"]["GM"])) for s in sidecars if s.get("SNR")]
    if drawn:
        prior = next((s["SNRPrior"] for s in sidecars if s.get("SNRPrior")), None)
        figures.prior = str((prior or {}).get("name", ""))
        figures.ellipse = pictures.keep(figures.files, f"{stem}_snr.svg", *snr_ellipse(drawn, prior))
    if draws and {"wm", "gm"} <= set(maps):
        figures.tissues = _draw_tissues(volumes, maps, draws[0], stem, figures.files)
    figures.thumbnail = _draw_thumbnail(subject, maps, figures.files)
    left = max_bytes - sum(map(len, figures.files.values()))
    for rung in LADDER:
        files: dict[str, bytes] = {}
        planes = [_draw_plane(subject, plane, maps, rung, files) for plane in PLANES.values()]
        if sum(map(len, files.values())) <= left:
            break
    figures.files |= files
    figures.planes = planes
    return figures


def draw_table(sidecars: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was drawn, from the sidecars of simulated scans."""
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


def _load(record: Mapping[str, Any]) -> tuple[Volumes, dict[str, np.ndarray]]:
    loaded = load_array(record, "input")
    if loaded is None:
        raise InputError(
            record.get("input") or "the record",
            found="no high-field scan",
            expected="a readable NIfTI file",
            next_step="Put the scan back where it was and write the page again.",
        )
    image, affine = loaded
    maps = {}
    for key in ("wm", "gm", "mask"):
        part = load_array(record, key)
        if part is not None:
            maps[key] = on_grid(part, affine, image.shape)
    mask = maps["mask"] > 0.5 if "mask" in maps else None
    has_mask = mask is not None and bool(mask.any())
    if not has_mask:
        maps.pop("mask", None)
        mask = image > 0.2 * np.percentile(image[::2, ::2, ::2], 98)
    volumes = Volumes(
        before=image,
        after=image,
        mask=mask,
        has_mask=has_mask,
        std=None,
        truth=None,
        affine=affine,
        slice_axis=None,
        acquired=None,
        window=window_of(image, mask, has_mask=has_mask),
    )
    return volumes, maps


def _draw_plane(
    subject: Subject, plane: Plane, maps: Mapping[str, np.ndarray], rung: Rung, files: dict[str, bytes]
) -> Comparison:
    drawer = PlaneDrawer(subject, plane, rung, files)
    frames = drawer.grey(subject.volumes.before)
    plain = drawer.sheet("t1w", frames, "of the high-field scan")
    cuts = {key: drawer.cuts(maps[key]) for key in maps}

    def contoured(index: int) -> Any:
        lines = [(cuts[key][index], colour) for key, _, colour in reversed(CONTOURS) if key in cuts]
        return pictures.outline(pictures.enlarge(frames[index], drawer.size), lines)

    drawn = drawer.sheet_of(
        [contoured(i) for i in range(len(frames))], "contours", "with contours of the tissue maps"
    )
    return drawer.compare("planes", plain, drawn, ("T1w", "Tissue contours"))


def _draw_pictures(
    subject: Subject, draw: Mapping[str, Any], number: int, files: dict[str, bytes]
) -> DrawPictures:
    """Source and draw, in a plane across the draw's slices and in theirs."""
    sidecar = draw.get("sidecar") or {}
    snr = sidecar.get("SNR") or {}
    drawn = f": SNR {snr['WM']:.1f} in white matter, {snr['GM']:.1f} in grey matter" if snr else ""
    title = f"Draw {number}{drawn}"
    loaded = load_array(draw, "image")
    if loaded is None:
        return DrawPictures(f"{title} (the simulated scan is not there)", ())
    thick, affine = loaded
    axis = slice_axis(affine)
    volumes, convention = subject.volumes, subject.convention
    # Each thick voxel as the block that it stands for: nothing is interpolated that a scanner would not have.
    blocks = on_grid((thick, affine), volumes.affine, volumes.before.shape, kind="nearest")
    across = next(p for p in PLANES.values() if p.normal != axis)
    within = next(p for p in PLANES.values() if p.normal == axis)
    found = []
    for plane, words in ((across, "across the slices"), (within, "in their plane")):
        index = choose_slices(volumes.mask, plane, 1)[0]
        box = crop_box(volumes, plane, convention=convention)
        place = position_label(volumes, plane, index)
        for name, data, tag in (("source", volumes.before, "Source"), ("draw", blocks, f"Draw {number}")):
            grey = pictures.to_grey(cut(data, plane, index, convention=convention)[box], volumes.window)
            size = pictures.picture_size(grey.shape, volumes.pixel_mm(plane), DRAW_PX)
            image = pictures.mark(
                pictures.enlarge(grey, size), sides=plane.sides(convention), note=place, text_px=18
            )
            file = f"{subject.stem}_draw{number:02d}-{plane.name}-{name}.webp"
            what = "the high-field scan" if name == "source" else f"simulated scan {number}"
            alt = f"{plane.name.capitalize()} slice at {place}, {words}: {what}."
            found.append((f"{tag}, {words}", pictures.keep(files, file, pictures.encode(image, 82), alt)))
    return DrawPictures(title, tuple(found))


def _draw_tissues(
    volumes: Volumes,
    maps: Mapping[str, np.ndarray],
    draw: Mapping[str, Any],
    stem: str,
    files: dict[str, bytes],
) -> pictures.Picture | None:
    """Histograms of white and grey matter in the source and in the first draw."""
    loaded = load_array(draw, "image")
    if loaded is None:
        return None
    thick, affine = loaded
    values = {}
    for key, name in (("wm", "WM"), ("gm", "GM")):
        there = on_grid((maps[key], volumes.affine), affine, thick.shape) > 0.9
        values[name] = (volumes.before[maps[key] > 0.9], thick[there])
    if any(len(part) < 50 for pair in values.values() for part in pair):
        return None
    return pictures.keep(files, f"{stem}_tissues.svg", *plots.tissue_histograms(values))


def _draw_thumbnail(
    subject: Subject, maps: Mapping[str, np.ndarray], files: dict[str, bytes]
) -> pictures.Picture:
    plane = PLANES["coronal"]
    drawer = PlaneDrawer(replace(subject), plane, Rung(1, 220, 80), files)
    grey = pictures.enlarge(drawer.grey(subject.volumes.before)[0], drawer.size)
    lines = [(drawer.cuts(maps[key])[0], colour) for key, _, colour in reversed(CONTOURS) if key in maps]
    both = pictures.sheet([grey.convert("RGB"), pictures.outline(grey, lines)], 2)
    alt = "A coronal slice of the high-field scan, right with the contours of its tissue maps."
    return pictures.keep(files, f"{subject.stem}_thumbnail.webp", pictures.encode(both, 80), alt)
