"""The methods of a run for a manuscript: ``logs/CITATION.md`` and ``.bib``.

A run can have several jobs, at the same time or not, and several modes. Each job writes its paragraphs into
files named by their content, so that jobs with the same method write the same files. Then it renders all
paragraphs that are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import iqtflow
from iqtflow.bids.names import output_name
from iqtflow.config import PARTICIPANT, Settings, TrainSettings
from iqtflow.image.slice_intensity import LARGEST_P, LEAST_SHARE
from iqtflow.segmentation.select import EngineChoice, describe_priors
from iqtflow.training.split import read_split
from iqtflow.utils.files import read_text, sha256_of, write_text

_PREAMBLE = """\
# What was done to these data

The text below was written by iqtflow, to be copied into manuscripts unchanged; it is in the public domain
([CC0](https://creativecommons.org/publicdomain/zero/1.0/)). `CITATION.bib` beside it has the references.
"""


@dataclass(frozen=True)
class Paragraph:
    """One step of the method.

    Attributes
    ----------
    order
        Place in the text.
    heading
        Heading above it; paragraphs in a row with the same one share it.
    text
        Sentences in Markdown.
    references
        Keys of `boilerplate.bib`.
    """

    order: int
    heading: str
    text: str
    references: tuple[str, ...] = ()


#: Settings that another sentence names, or that say where something is, not what is done.
_TOLD = {
    "enhance": ("model", "contrast", "voxel_size", "combine_stacks"),
    "train": (
        "split", "upsampling_factor", "slice_axes", "network", "filters", "shrink", "residual", "uncertainty",
        "ensemble", "loss", "optimiser", "model_name", "devices", "num_nodes", "tensorboard",
        "cross_validation",
    ),
}  # fmt: skip
#: Networks of this package: all can predict their error. (Their registry would load PyTorch.)
OWN_NETWORKS = ("aniso-unet", "iso-unet", "sru-net", "subpixel-unet")
_LIKELIHOOD = "by maximum likelihood (Kendall and Gal, 2017; Tanno et al., 2021)"
#: What the text on training adds for each value of ``uncertainty``.
_UNCERTAINTY = {
    "learn": f"; the variance of its error was learned from its features {_LIKELIHOOD}",
    "only": f" in an earlier training; the variance of its error was now learned "
    f"from its features {_LIKELIHOOD}",
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
    mode, participant = settings.run.mode, level == "participant"
    texts = [(0, "Software", _software())]
    if participant and mode != "enhance":
        texts += [(10, "Tissue maps", text) for text in _tissue_maps(engines, settings)]
    if mode == "enhance" and participant:
        texts.append((40, "Enhancement", _enhancement(settings)))
    elif mode == "calibrate":
        texts.append((20, "Calibration", _MEASUREMENT) if participant else (21, "Calibration", _PRIOR_FIT))
    elif mode == "train" and participant:
        texts.append((30, "Simulation", _simulation(settings)))
    elif mode == "train":
        if not settings.train.evaluate_model:
            texts.append((50, "Training", _training(settings)))
        if _has_evaluation(settings.train):
            texts.append((60, "Evaluation", _EVALUATION))
    return [Paragraph(order, heading, text, _cited(text)) for order, heading, text in texts]


def _cited(text: str) -> tuple[str, ...]:
    """Return the keys of the references in a text: ``lin2019`` for "Lin et al., 2019"."""
    named = re.findall(r"([A-Z][a-z]+)(?: and [A-Z][a-z]+| et al\.)?, (\d{4})", text)
    return tuple(sorted({f"{name.lower()}{year}" for name, year in named}))


_MEASUREMENT = (
    "The signal-to-noise ratio of white and grey matter was measured in each low-field scan as the mean of "
    "the tissue divided by the standard deviation of the noise (Lin et al., 2019, equation 4)."
)
_PRIOR_FIT = (
    "A two-dimensional normal distribution was fitted to the signal-to-noise ratios of white and grey matter "
    "of all measured scans (Lin et al., 2019)."
)
_EVALUATION = (
    "On subjects that were not used for training or validation, the network was compared with cubic spline "
    "interpolation by peak signal-to-noise ratio and mean structural similarity (Wang et al., 2004) in the "
    "brain, with a two-tailed Wilcoxon signed-rank test (Wilcoxon, 1945)."
)


def _software() -> str:
    return (
        f"Results were obtained with iqtflow {iqtflow.__version__}, which implements image quality transfer "
        "(Lin et al., 2019) as a BIDS App (Gorgolewski et al., 2016) on nipype "
        f"{_version('nipype')} (Gorgolewski et al., 2011) and PyTorch {_version('torch')} (Paszke et al., "
        "2019)."
    )


def _enhancement(settings: Settings) -> str:
    white = (
        " If the mean of white matter differed from that of the scan by more than in the evaluation of the "
        "model, the enhanced volume was multiplied by one factor, to the limit of that range."
    )
    stripes = (
        " Odd and even slices were compared by a t test on second differences of the log intensity along "
        f"the slice axis. If they differed (p < {LARGEST_P:g}, at least {LEAST_SHARE:.0%}), odd and even "
        "slices were each multiplied by one gain."
    )
    return (
        f"Thick-slice {settings.enhance.contrast} scans were enhanced by image quality transfer (Lin et al., "
        "2019). Slice axis, spacing and thickness were taken from the header and metadata of each scan. "
        "Intensities were divided by the 80th percentile of the brain."
        f"{stripes if settings.enhance.slice_intensity == 'auto' else ''} In whole heads, the brain was "
        f"found by deepbet {_version('deepbet')} (Fisch et al., 2024). {_models(settings)}"
        f"{white if settings.enhance.keep_white_matter else ''}{_grid(settings)}{_combination(settings)} "
        "Detail between the acquired "
        f"slices was not measured; the network inferred it from other brains.{_changed(settings, 'enhance')}"
    )


def _grid(settings: Settings) -> str:
    size = settings.enhance.voxel_size
    if isinstance(size, str):
        return ""
    return (
        f" Enhanced volumes have cubic voxels of {size:g} mm: a plane with larger pixels was resampled to "
        "this voxel size before the network, every other axis after it, by cubic B-splines."
    )


def _combination(settings: Settings) -> str:
    if not settings.enhance.combine_stacks:
        return ""
    return (
        " Scans of one session were registered rigidly to the first one (ANTs "
        f"{_version('antspyx')}, mutual information; Avants et al., 2011), and their enhanced volumes were "
        "combined with weights from predicted error, slice spacing and slice direction at each spatial "
        "frequency."
    )


def _models(settings: Settings) -> str:
    from iqtflow.models.model_file import find_model, list_shipped, read_card

    def say(name: str, k: int, sha256: str) -> str:
        return f"{name} (upsampling factor {k}, SHA-256 {sha256})"

    if settings.enhance.model is not None:
        path = find_model(settings.enhance.model)[0]
        card, digest = read_card(path), sha256_of(path)
        return f"The model was {say(card.name, card.k, digest)}."
    shipped = [info for info in list_shipped() if info.contrast == settings.enhance.contrast]
    named = " and ".join(say(info.name, info.k, info.sha256) for info in shipped)
    return f"For each scan, the model for its slice spacing was used, out of {named}."


def _tissue_maps(engines: Iterable[EngineChoice], settings: Settings) -> list[str]:
    """Return a paragraph for each kind of engine."""
    found = set()
    # Once for each kind: SPM's tissue priors have to be read.
    for choice in {dataclasses.replace(one, maps=None, whole_head=None, reason="") for one in engines}:
        if choice.engine == "spm":
            found.add(_spm(choice, settings))
        elif choice.engine == "derivatives":
            found.add("Tissue probability maps were taken ready-made from derivatives.")
        else:
            found.add(_ants(thick=settings.run.mode == "calibrate"))
    return sorted(found)


def _spm(choice: EngineChoice, settings: Settings) -> str:
    runner = "the MATLAB Runtime" if choice.spm.compiled else "GNU Octave"
    priors = describe_priors(choice.spm)
    priors = "SPM's own tissue priors" if priors.startswith("SPM's own") else "priors that are not SPM's own"
    return (
        "Probability maps of white matter, grey matter and cerebrospinal fluid were made by unified "
        f"segmentation (Ashburner and Friston, 2005) in {choice.spm.version} under {runner}, with {priors} "
        f"and a sampling distance of {settings.segmentation.sampling_mm:g} mm."
    )


def _ants(*, thick: bool) -> str:
    """Describe the embedded engine: with a template for thick slices, by intensity alone for thin ones."""
    classified = "Atropos (Avants et al., 2011)"
    if thick:
        classified = (
            "a mixture of Gaussians with the tissue probabilities of the ICBM 152 template (Fonov et al., "
            "2011), registered to each brain by an affine map, as priors, or by Atropos (Avants et al., "
            "2011) where the template did not fit,"
        )
    return (
        f"Brains were found in whole heads by deepbet {_version('deepbet')} (Fisch et al., 2024). "
        "Probability maps of white matter, grey matter and cerebrospinal fluid were made by N4 bias "
        f"correction (Tustison et al., 2010) and {classified} in ANTsPy {_version('antspyx')}."
    )


def _simulation(settings: Settings) -> str:
    train = settings.train
    # Settings of fresh draws are for the group level only: stored scans are simulated as in the paper.
    thickness = TrainSettings.thickness_fraction[0]
    return (
        "Low-field scans were simulated from high-field scans by the probabilistic decimation simulator "
        f"(Lin et al., 2019, algorithm 1): slices {train.upsampling_factor} voxels apart along the "
        f"{', '.join(train.slice_axes)} axis, with a Gaussian profile whose full width at half maximum is "
        f"{thickness:g} of their distance, and signal-to-noise ratios of white and grey matter drawn from "
        f"the prior {os.path.basename(str(train.snr_prior))}.{_changed(settings, 'train', only=PARTICIPANT)}"
    )


def _training(settings: Settings) -> str:
    train = settings.train
    loss = {"mse": "mean squared error", "l1": "mean absolute error"}.get(train.loss, train.loss)
    # Other networks may not be able to.
    uncertainty = train.uncertainty if train.network in OWN_NETWORKS else "none"
    optimiser = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon"}[train.optimiser]
    how_many = "A network" if train.ensemble == 1 else f"An ensemble of {train.ensemble} networks"
    blocks = f", {train.shrink} shrinking layers in each bottleneck block" if "aniso" in train.network else ""
    # The sub-pixel network has other settings, which are named below.
    subpixel = train.network == "subpixel-unet"
    size = "" if subpixel else f", {train.filters} channels at the first level{blocks}"
    learned = "what to add to the cubic spline" if train.residual or subpixel else "the high-field image"
    return (
        f"{how_many} ({train.network}{size}) was trained on patches to estimate {learned} from simulated "
        f"low-field scans with an upsampling factor of {train.upsampling_factor}, by {optimiser} on the "
        f"{loss}{_UNCERTAINTY[uncertainty]}. {_split_words(train)}"
        f"{_changed(settings, 'train', without=PARTICIPANT)}"
    )


def _split_words(train: TrainSettings) -> str:
    if train.cross_validation is not None:
        return (
            f"Subjects were dealt at random into {train.cross_validation} folds. For each fold a model was "
            "trained and validated on the subjects of the other folds and evaluated on those of this fold "
            "(cross-validation). The final model was trained and validated on all subjects in the same way; "
            "it was not evaluated itself."
        )
    if _has_evaluation(train):
        return "Subjects were split into those for training, validation and evaluation."
    return "Subjects were split into those for training and validation."


def _has_evaluation(train: TrainSettings) -> bool:
    return train.split is None or bool(read_split(train.split)["evaluation"])


def _changed(
    settings: Settings, section: str, *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> str:
    """Name the settings of a section that are not the defaults and that no other sentence names."""
    chosen = getattr(settings, section)
    changed = [
        f"{item.name} {os.path.basename(value) if isinstance(value, (str, os.PathLike)) else value}"
        for item in dataclasses.fields(chosen)
        for value in [getattr(chosen, item.name)]
        if value != item.default and item.name not in (*_TOLD[section], *without)
        if only is None or item.name in only
    ]
    return f" Settings other than the defaults: {', '.join(changed)}." if changed else ""


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]  # the build (CPU, CUDA) is no part of the method
    except PackageNotFoundError:
        return "(unknown version)"


def write_citation(output_dir: str | os.PathLike, paragraphs: Iterable[Paragraph]) -> Path:
    """Add paragraphs to those of a folder of derivatives, and write its citation again.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    paragraphs
        What this run does, without subjects and dates.

    Returns
    -------
    Path
        ``logs/CITATION.md``.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    output_dir = Path(output_dir)
    folder = output_dir / output_name("paragraphs")
    for paragraph in paragraphs:
        content = json.dumps(asdict(paragraph), indent=2, ensure_ascii=False) + "\n"
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        path = folder / f"{paragraph.order:02d}_{digest}.json"
        if not path.is_file() or path.read_bytes() != content.encode():
            write_text(path, content)
    citation = output_dir / output_name("citation")
    while True:
        names = _names(folder)
        # Files that are no paragraphs are left out.
        known = [one for name in names if (one := _read(folder / name)) is not None]
        write_text(citation, render_citation(known))
        write_text(output_dir / output_name("references"), "\n".join(_entries(known).values()))
        # Several jobs may write at the same time: the last one looks again, so that no paragraph is lost.
        if _names(folder) == names:
            return citation


def render_citation(paragraphs: Sequence[Paragraph]) -> str:
    """Return the Markdown of paragraphs, with the references in full at its end."""
    lines, heading = [_PREAMBLE], ""
    for paragraph in sorted(paragraphs, key=lambda one: (one.order, one.heading, one.text)):
        if paragraph.heading != heading:
            heading = paragraph.heading
            lines.append(f"## {heading}\n")
        lines.append(f"{paragraph.text}\n")
    lines.append("## References\n")
    lines += [f"* {_in_words(entry)}" for entry in _entries(paragraphs).values()]
    return "\n".join(lines) + "\n"


def bibliography() -> dict[str, str]:
    """Return all BibTeX entries by key."""
    text = Path(__file__).with_name("boilerplate.bib").read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"\n(?=@)", text.strip()):
        key = re.match(r"@\w+\{([^,]+),", entry)
        if key:
            found[key.group(1)] = entry.strip() + "\n"
    return found


def _entries(paragraphs: Sequence[Paragraph]) -> dict[str, str]:
    """Return the BibTeX entries that paragraphs refer to, by key."""
    wanted = {key for paragraph in paragraphs for key in paragraph.references}
    return {key: entry for key, entry in sorted(bibliography().items()) if key in wanted}


def _in_words(entry: str) -> str:
    """Return a line for the list of references, from a BibTeX entry."""
    found = re.findall(r"^  (\w+) = \{(.*)\}", entry, re.M)
    fields = {key: re.sub(r"[{}]", "", value) for key, value in found}
    names = fields["author"].split(" and ")
    others = len(names) > 3 or names[-1] == "others"
    authors = "; ".join(name for name in names[:3] if name != "others") + (" et al." if others else "")
    where = (fields.get("journal") or fields.get("booktitle"), fields.get("volume"), fields.get("pages"))
    place = ", ".join(filter(None, where)).replace("--", "-")
    doi = f" https://doi.org/{fields['doi']}" if "doi" in fields else ""
    return f"{authors} ({fields['year']}). {fields['title']}. {place}.{doi}"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[0-9]*.json"))


def _read(path: Path) -> Paragraph | None:
    try:
        fields = json.loads(read_text(path))
        one = Paragraph(**{**fields, "references": tuple(fields["references"])})
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    texts = (one.heading, one.text, *one.references)
    return one if isinstance(one.order, int) and all(isinstance(text, str) for text in texts) else None
