"""What a run does, in sentences for a manuscript: the settings decide, not the subjects."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import iqtflow
from iqtflow.config import PARTICIPANT, Settings, TrainSettings, default_of
from iqtflow.reports.citation import Paragraph
from iqtflow.segmentation.select import EngineChoice, describe_priors

#: Settings that another sentence tells of, or that say where something is, not what is done.
_TOLD = {
    "enhance": ("model", "contrast"),
    "train": (
        *(
            "split",
            "upsampling_factor",
            "slice_axes",
            "network",
            "filters",
        ),
        *(
            "shrink",
            "residual",
            "uncertainty",
            "ensemble",
            "loss",
            "model_name",
            "devices",
            "num_nodes",
            "tensorboard",
        ),
    ),
}


#: Networks of this package, all of which can predict their error. (Their registry would load PyTorch here.)
OWN_NETWORKS = ("aniso-unet", "iso-unet", "sru-net")
#: What a description of training adds for each way of learning uncertainty.
_UNCERTAINTY = {
    "learn": "; from its features the variance of its error was learned by maximum likelihood (Kendall and "
    "Gal, 2017; Tanno et al., 2021)",
    "only": " in an earlier training; the variance of its error was now learned from its features by maximum "
    "likelihood (Kendall and Gal, 2017; Tanno et al., 2021)",
    "none": "",
}


def describe_run(settings: Settings, level: str, engines: Iterable[EngineChoice] = ()) -> list[Paragraph]:
    """Describe what one level of a run does.

    Parameters
    ----------
    settings
        All settings.
    level
        "participant" or "group".
    engines
        What makes the tissue maps, for each scan that needs them.
    """
    mode = settings.run.mode
    first = [_introduction()]
    if mode == "enhance":
        return [*first, _enhancement(settings)] if level == "participant" else first
    if mode == "calibrate":
        if level == "group":
            return [*first, _prior_fit()]
        return [*first, *_tissue_maps(engines, settings), _measurement()]
    if level == "group":
        trained = [] if settings.train.evaluate_model else [_training(settings)]
        return [*first, *trained, _evaluation()]
    return [*first, *_tissue_maps(engines, settings), _simulation(settings)]


def _introduction() -> Paragraph:
    return Paragraph(
        0,
        "Software",
        f"Results were obtained with iqtflow {iqtflow.__version__}, which implements image quality "
        "transfer (Lin et al., 2019) as a BIDS App (Gorgolewski et al., 2016) on nipype "
        f"{_version('nipype')} (Gorgolewski et al., 2011) and PyTorch {_version('torch')} (Paszke et al., "
        "2019).",
        ("lin2019", "gorgolewski2011", "gorgolewski2016", "paszke2019"),
    )


def _enhancement(settings: Settings) -> Paragraph:
    contrast, white = settings.enhance.contrast, ""
    if settings.enhance.keep_white_matter:
        white = (
            " An estimate whose white matter had left the scan's by more than on scans of known truth was "
            "scaled by one factor, back to the border of that range."
        )
    return Paragraph(
        40,
        "Enhancement",
        f"Thick-slice {contrast} scans were enhanced by image quality transfer (Lin et al., 2019). Slice "
        "axis, spacing and thickness were taken from each scan's header and metadata. Intensities were "
        "scaled by the 80th percentile of the brain, which in whole heads was found by deepbet "
        f"{_version('deepbet')} (Fisch et al., 2024). {_models(settings)}{white} Detail between the acquired "
        "slices is inferred from what the network learned from other people; it was not "
        f"measured.{_changed(settings, 'enhance')}",
        ("lin2019", "fisch2024"),
    )


def _models(settings: Settings) -> str:
    from iqtflow.models.model_file import find_model, list_shipped, read_card

    def say(name: str, k: int, sha256: str) -> str:
        return f"{name} (up-sampling factor {k}, SHA-256 {sha256})"

    if settings.enhance.model is not None:
        path = find_model(settings.enhance.model)[0]
        card, digest = read_card(path), hashlib.sha256(path.read_bytes()).hexdigest()
        return f"The model was {say(card['name'], card['k'], digest)}."
    shipped = [info for info in list_shipped() if info.contrast == settings.enhance.contrast]
    named = " and ".join(say(info.name, info.k, info.sha256) for info in shipped)
    return f"For each scan the model nearest to its slice spacing was taken out of {named}."


def _tissue_maps(engines: Iterable[EngineChoice], settings: Settings) -> list[Paragraph]:
    """One paragraph for each kind of engine that made maps."""
    found = {}
    # Described once for each kind: that reads SPM's tissue priors.
    for choice in {dataclasses.replace(one, maps=None, whole_head=None, reason="") for one in engines}:
        if choice.engine == "spm":
            paragraph = _spm(choice, settings)
        elif choice.engine == "derivatives":
            paragraph = Paragraph(
                10, "Tissue maps", "Tissue probability maps were taken ready-made from derivatives."
            )
        else:
            paragraph = _ants(thick=settings.run.mode == "calibrate")
        found[paragraph.text] = paragraph
    return [found[text] for text in sorted(found)]


def _spm(choice: EngineChoice, settings: Settings) -> Paragraph:
    runner = "the MATLAB Runtime" if choice.spm.compiled else "GNU Octave"
    priors = describe_priors(choice.spm)
    priors = "SPM's own tissue priors" if priors.startswith("SPM's own") else "priors that are not SPM's own"
    return Paragraph(
        10,
        "Tissue maps",
        "Probability maps of white matter, grey matter and cerebrospinal fluid were made by unified "
        f"segmentation (Ashburner and Friston, 2005) in {choice.spm.version} under {runner}, with {priors} "
        f"and a sampling distance of {settings.segmentation.sampling_mm:g} mm.",
        ("ashburner2005",),
    )


def _ants(*, thick: bool) -> Paragraph:
    """The embedded engine: by intensity and place in thick slices, by intensity alone in thin ones."""
    classified = "Atropos (Avants et al., 2011)"
    if thick:
        classified = (
            "a mixture of Gaussians with the tissue probabilities of the ICBM 152 template (Fonov et al., "
            "2011), registered to each brain by an affine map, as priors, or by Atropos (Avants et al., "
            "2011) where the template did not fit,"
        )
    return Paragraph(
        10,
        "Tissue maps",
        f"Brains were found in whole heads by deepbet {_version('deepbet')} (Fisch et al., 2024). "
        "Probability maps of white matter, grey matter and cerebrospinal fluid were made by N4 bias "
        f"correction (Tustison et al., 2010) and {classified} in ANTsPy {_version('antspyx')}.",
        ("fisch2024", "tustison2010", "avants2011", *(("fonov2011",) if thick else ())),
    )


def _measurement() -> Paragraph:
    return Paragraph(
        20,
        "Calibration",
        "The signal-to-noise ratio of white and grey matter was measured in each low-field scan as the "
        "mean of the tissue over the standard deviation of the noise (Lin et al., 2019, equation 4).",
        ("lin2019",),
    )


def _prior_fit() -> Paragraph:
    return Paragraph(
        21,
        "Calibration",
        "A two-dimensional normal distribution was fitted to the signal-to-noise ratios of white and grey "
        "matter of all measured scans.",
        ("lin2019",),
    )


def _simulation(settings: Settings) -> Paragraph:
    train = settings.train
    # Whatever fresh draws of the group level are: these are stored, and as in the paper.
    thickness = default_of(TrainSettings, "thickness_fraction")[0]
    return Paragraph(
        30,
        "Simulation",
        "Low-field scans were simulated from high-field ones by the probabilistic decimation simulator "
        f"(Lin et al., 2019, algorithm 1): slices {train.upsampling_factor} voxels apart along the "
        f"{', '.join(train.slice_axes)} axis, with a Gaussian profile whose full width at half maximum is "
        f"{thickness:g} of their distance, and signal-to-noise ratios of white and grey matter drawn from "
        f"the prior {os.path.basename(str(train.snr_prior))}.{_changed(settings, 'train', only=PARTICIPANT)}",
        ("lin2019",),
    )


def _training(settings: Settings) -> Paragraph:
    train = settings.train
    loss = {"mse": "mean squared error", "l1": "mean absolute error"}.get(train.loss, train.loss)
    # Networks of one's own need not be able to.
    uncertainty = train.uncertainty if train.network in OWN_NETWORKS else "none"
    how_many = "A network" if train.ensemble == 1 else f"An ensemble of {train.ensemble} networks"
    blocks = f", {train.shrink} shrinking layers in each bottleneck block" if "aniso" in train.network else ""
    learned = "what to add to the cubic spline" if train.residual else "the high-field image"
    return Paragraph(
        50,
        "Training",
        f"{how_many} ({train.network}, {train.filters} channels at the first level{blocks}) was trained on "
        f"patches to estimate {learned} from simulated low-field scans with an up-sampling factor of "
        f"{train.upsampling_factor}, by Adam on the {loss}{_UNCERTAINTY[uncertainty]}. Subjects were "
        "split into those for training, validation and evaluation."
        f"{_changed(settings, 'train', without=PARTICIPANT)}",
        ("lin2019",) if uncertainty == "none" else ("lin2019", "kendall2017", "tanno2021"),
    )


def _evaluation() -> Paragraph:
    return Paragraph(
        60,
        "Evaluation",
        "On subjects that had no part in training, the network was compared with cubic spline "
        "interpolation by peak signal-to-noise ratio and mean structural similarity (Wang et al., 2004) "
        "inside the brain, with a two-tailed Wilcoxon signed-rank test (Wilcoxon, 1945).",
        ("wang2004", "wilcoxon1945"),
    )


def _changed(
    settings: Settings, section: str, *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> str:
    """Name the settings of a section that are not the defaults, and that no other sentence tells of."""
    values: Mapping[str, Any] = dataclasses.asdict(getattr(settings, section))
    changed = [
        f"{item.name} {os.path.basename(value) if isinstance(value, (str, os.PathLike)) else value}"
        for item in dataclasses.fields(getattr(settings, section))
        for value in [values[item.name]]
        if value != item.default and item.name not in (*_TOLD[section], *without)
        if only is None or item.name in only
    ]
    return f" Settings other than the defaults: {', '.join(changed)}." if changed else ""


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]  # the build (CPU, CUDA) is no part of the method
    except PackageNotFoundError:
        return "(unknown version)"
