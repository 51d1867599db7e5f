"""The picture of a measured scan: where the SNR of its tissues and its noise were measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, PngImagePlugin

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.prepared import CONTOURS
from iqtflow.reports.draw.slices import PlaneDrawer, Rung, Scene
from iqtflow.reports.draw.volumes import PLANES, Volumes, choose_slices, window_of
from iqtflow.simulation.snr_estimation import MAJORITY
from iqtflow.utils.files import write_atomically

EDGE_PX = 260  #: longer side of each plane
NOISE = ("#e03fd8", 0.45)  #: colour of the voxels of the noise, and its opacity
LEGEND = ((NOISE[0], "noise"), *((colour, words) for key, words, colour in CONTOURS if key != "mask"))


def draw_measurement(
    path: str | os.PathLike, image: nib.Nifti1Image, regions: Mapping[str, np.ndarray]
) -> Path:
    """Draw the middle slice of each plane with contours of the tissues and the voxels of the noise.

    Parameters
    ----------
    path
        PNG file.
    image
        The scan.
    regions
        ``wm``, ``gm`` (probabilities), ``mask`` (brain) and ``noise``, each of the scan's shape (w, h, d).

    Returns
    -------
    Path
        The file; the same data give the same bytes.
    """

    def upright(data: np.ndarray) -> np.ndarray:
        volume = nib.Nifti1Image(np.asarray(data, np.float32), image.affine)
        return np.asarray(nib.as_closest_canonical(volume).dataobj)

    scan, affine = upright(np.asarray(image.dataobj)), nib.as_closest_canonical(image).affine
    wm, gm, mask, noise = (upright(regions[name]) for name in ("wm", "gm", "mask", "noise"))
    brain = mask > 0
    volumes = Volumes(scan, scan, brain, True, affine, window_of(scan, brain, has_mask=True))
    scene = Scene(volumes, "measured", "radiological")
    colours = {key: colour for key, _, colour in CONTOURS}
    frames = []
    for plane in PLANES.values():
        middle = choose_slices(brain, plane, 1)[0]
        # The whole slice, with the air around the head.
        whole = slice(0, scan.shape[plane.rows]), slice(0, scan.shape[plane.columns])
        drawer = PlaneDrawer(scene, plane, {}, Rung(1, EDGE_PX), zoom=(middle, whole))
        grey = pictures.enlarge(drawer.grey(scan)[0], drawer.size)
        tinted = Image.composite(
            Image.new("RGB", grey.size, NOISE[0]),
            grey.convert("RGB"),
            pictures.enlarge((255 * NOISE[1] * drawer.cuts(noise)[0]).astype(np.uint8), drawer.size),
        )
        contours = [(drawer.cuts(part)[0], colours[key]) for key, part in (("gm", gm), ("wm", wm))]
        frame = pictures.outline(tinted, contours, level=MAJORITY)
        frames.append(pictures.mark(frame, sides=plane.sides(scene.convention), note=drawer.places[0]))
    page = Image.new("RGB", (sum(f.width for f in frames), max(f.height for f in frames)))
    left = 0
    for frame in frames:
        page.paste(frame, (left, (page.height - frame.height) // 2))
        left += frame.width
    # The name of the command. By it, the command recognises a picture that it may replace.
    made = PngImagePlugin.PngInfo()
    made.add_text("Software", "iqtflow-calibrate")
    few = page.quantize(128, method=Image.Quantize.FASTOCTREE)
    return write_atomically(path, lambda stream: few.save(stream, "PNG", pnginfo=made, optimize=True))
