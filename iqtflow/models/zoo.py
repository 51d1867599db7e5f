"""The choice of a model, and a description of the models that ship."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from iqtflow.config import CONTRASTS
from iqtflow.image.geometry import SliceGeometry, Upsampling, choose_upsampling
from iqtflow.models.card import Card
from iqtflow.models.model_file import ModelInfo, find_model, list_shipped, read_card
from iqtflow.utils.errors import InputError


def choose_model(
    geometry: SliceGeometry,
    model: str | os.PathLike | None = None,
    contrast: str = "T1w",
    voxel_size: float | str = "native",
) -> tuple[Path, Upsampling]:
    """Choose the model for a scan, and how the scan is brought to the model's upsampling factor.

    Parameters
    ----------
    geometry
        Slices of the scan (`iqtflow.image.geometry.find_slice_geometry`).
    model, contrast
        As for `candidates`.
    voxel_size
        As for `iqtflow.image.geometry.choose_upsampling`.

    Returns
    -------
    path : Path
        The model file: the one asked for, else the one that ships for this ratio of slice spacing to
        in-plane voxel size.
    upsampling : Upsampling
        Factor, and in-plane voxel size to resample to.

    Raises
    ------
    InputError
        As `candidates`.
    """
    files = candidates(model, contrast)
    upsampling = choose_upsampling(geometry, sorted(files), voxel_size)
    return files[upsampling.k], upsampling


def candidates(model: str | os.PathLike | None, contrast: str) -> dict[int, Path]:
    """Return the model files that can enhance scans of a contrast, by upsampling factor.

    Parameters
    ----------
    model
        A model file or the name of a model that ships; None: all models that ship for the contrast.
    contrast
        BIDS suffix of the scans. A model is only used for the contrast that it was trained on.

    Returns
    -------
    dict of int to Path
        At least one.

    Raises
    ------
    InputError
        The model cannot be read, was trained on another contrast, or none ships for this contrast.
    """
    if model is None:
        shipped = list_shipped()
        files = {info.k: info.path for info in shipped if info.contrast == contrast}
        if not files:
            known = ", ".join(sorted({info.contrast for info in shipped})) or "no contrast"
            raise InputError(
                f"models for {contrast}",
                found=f"none that ships (models ship for {known})",
                expected=f"a model trained on {contrast} scans",
                next_step="Give a model of your own with --model PATH, or see iqtflow --list-models.",
            )
        return files
    path = find_model(model)[0]
    card = card_of(path)
    if card.contrast != contrast:
        raise InputError(
            model,
            found=f"a model trained on {card.contrast} scans",
            expected=f"a model trained on {contrast} scans, as asked for",
            next_step=f"Give a model for {contrast}. If the scans are {card.contrast} and only their names "
            f"say otherwise, add --contrast {card.contrast}.",
        )
    return {card.k: path}


def contrast_of(path: str | os.PathLike) -> str:
    """Return the contrast in a file's BIDS name (``..._T2w.nii.gz``), else T1w."""
    suffix = Path(path).name.split(".")[0].rpartition("_")[2]
    return suffix if suffix in CONTRASTS else "T1w"


def card_of(path: str | os.PathLike) -> Card:
    """Return a model's card; the file is read again only after it has changed. Do not modify the card."""
    return _card_of(os.fspath(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=8)
def _card_of(path: str, _changed: int) -> Card:
    return read_card(path)


def describe_models() -> str:
    """Return a paragraph of text for each model that ships; the files are read and checked."""
    paragraphs = [describe_model(info, read_card(info.name)) for info in list_shipped()]
    return "\n".join(paragraphs) if paragraphs else "no model ships with this version"


def describe_model(info: ModelInfo, card: Card) -> str:
    """Return a paragraph of text: a line with name, k and contrast, then indented lines."""
    network = card["network"]
    settings = ", ".join(f"{key} {value}" for key, value in network["kwargs"].items())
    lines = [
        f"{info.name}\tk = {info.k}\t{info.contrast}\t{info.path.stat().st_size / 1e6:.1f} MB",
        f"  network   {card.n_members} x {network['name']} ({settings})",
    ]
    split = card.training.get("split")
    if split:
        counts = ", ".join(f"{len(labels)} for {part}" for part, labels in split.items())
        lines.append(f"  subjects  {counts}; each in one list only")
    if "snr_prior" in card and "slice_profile" in card:
        low, high = card["slice_profile"]["fwhm_over_spacing"]
        lines.append(
            f"  trained   on simulated scans: SNR prior {card['snr_prior'].get('name')}, slice thickness "
            f"{low:g} to {high:g} of the spacing"
        )
    if found := card.evaluation:
        psnr, mssim = found["psnr"], found["mssim"]
        folds = f"{len(found['folds'])}-fold cross-validation, " if "folds" in found else ""
        lines.append(
            f"  figures   {folds}{found['n']} unseen subjects: PSNR {psnr['iqt']['mean']:.2f} dB, "
            f"{psnr['gain']['mean']:+.2f} over the cubic spline (smallest {psnr['gain']['min']:+.2f}); MSSIM "
            f"{mssim['iqt']['mean']:.3f}, {mssim['gain']['mean']:+.3f}"
        )
    lines += [f"  SHA-256   {info.sha256}", f"  file      {info.path}"]
    return "\n".join(lines)
