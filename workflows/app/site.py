"""What a run of ``--mode adapt`` starts from: the low-field scans, the model for them, and the high-field
people. Decided from headers alone, before anything is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from nibabel.orientations import io_orientation

from iqtflow.bids import Listing, Scan
from iqtflow.bids.sidecars import describe_source
from iqtflow.config import AXES, FETCH, InputSettings, Settings, TrainSettings
from iqtflow.image.geometry import SliceGeometry
from iqtflow.models.card import Card
from iqtflow.models.model_file import find_model, list_shipped, read_card
from iqtflow.models.zoo import choose_model
from iqtflow.training.adaptation import adapted_name, choose_people, people_in_time
from iqtflow.training.split import read_split
from iqtflow.utils.errors import UsageError
from iqtflow.workflows.app.collect import engine_of, geometry_of, list_inputs, peek
from iqtflow.workflows.app.group import check_unseen
from iqtflow.workflows.app.plan import choose_scans

#: With fewer scans, the spread of the SNR is not the scanner's.
LEAST_SCANS = 3
#: Scans whose ratios differ by more are of several protocols.
SAME_RATIO = 1.1
#: Seconds in which one processor prepares a person, by what makes the tissue maps.
PERSON_S = {"ants": 75.0, "spm": 300.0, "derivatives": 20.0}
#: An axis with voxels longer than the shortest by this factor is too coarse to simulate slices along.
COARSE_AXIS = 1.05


@dataclass(frozen=True)
class Site:
    """What an adaptation starts from.

    Attributes
    ----------
    scans
        Thick-slice scans.
    ratio
        Their slice spacing over in-plane voxel size, the median.
    model, card
        The model that the training starts from.
    name
        Name of the adapted model.
    split
        High-field people: who trains, validates and evaluates.
    slice_axes
        Axes along which slices are simulated; the first is that of the scans, if possible.
    person_s
        Expected seconds of one processor for each person.
    notes
        For the user.
    """

    scans: tuple[Scan, ...]
    ratio: float
    model: Path
    card: Card
    name: str
    split: dict[str, tuple[str, ...]]
    slice_axes: tuple[str, ...]
    person_s: float
    notes: tuple[str, ...] = ()

    @property
    def people(self) -> tuple[str, ...]:
        """Labels of all high-field people, sorted."""
        return tuple(sorted(label for labels in self.split.values() for label in labels))


def with_mode(settings: Settings, mode: str, *levels: str) -> Settings:
    """Return settings for levels of another mode."""
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, mode=mode, levels=levels))


def measuring(settings: Settings, *levels: str) -> Settings:
    """Return settings that measure the low-field scans."""
    own, paths = with_mode(settings, "calibrate", *levels), settings.paths
    return dataclasses.replace(own, paths=dataclasses.replace(paths, work_dir=paths.work_dir / "lowfield"))


def preparing(settings: Settings, people: Sequence[str] = (), train: TrainSettings | None = None) -> Settings:
    """Return settings that prepare the high-field people; results go to ``training`` in the output folder."""
    own, paths = with_mode(settings, "train", "participant"), settings.paths
    return dataclasses.replace(
        own,
        paths=dataclasses.replace(
            paths,
            bids_dir=settings.adapt.highfield,
            output_dir=paths.output_dir / "training",
            work_dir=paths.work_dir / "highfield",
        ),
        run=dataclasses.replace(own.run, participant_labels=tuple(people), session_labels=()),
        inputs=InputSettings(skip_validation=True),
        train=train or TrainSettings(),
    )


def survey(settings: Settings, listing: Listing) -> Site:
    """Look at the headers of all scans, and choose model, name and people.

    Raises
    ------
    UsageError
        There is no thick-slice scan, scans need models of several factors, there are too few high-field
        people, the model was trained on one that is to be evaluated, or the name of the new model is that of
        a shipped one.
    """
    scans = choose_scans(listing, measuring(settings, "participant")).chosen
    known = [(scan, geometry) for scan in scans if (geometry := _geometry(scan, settings)) is not None]
    if not known:
        raise UsageError(
            settings.paths.bids_dir,
            found="no low-field scan whose header can be read",
            expected="T1w scans with thick slices",
            next_step="Check the data set with --dry-run.",
        )
    geometries = [geometry for _, geometry in known]
    ratio = float(median(geometry.ratio for geometry in geometries))
    notes = _check_alike(known)
    if len(known) < LEAST_SCANS:
        notes.append(
            f"{len(known)} scan{'s' if len(known) > 1 else ''}: the spread of the SNR is that of the "
            f"published prior. Give {LEAST_SCANS} scans or more, better 10."
        )
    wanted = settings.train.start_from
    model = (
        find_model(wanted)[0]
        if wanted is not None
        else choose_model(sorted(geometries, key=lambda one: one.ratio)[len(known) // 2])[0]
    )
    card = read_card(model)
    shipped = {info.name for info in list_shipped()}
    source = describe_source(settings.paths.bids_dir).get("Name", settings.paths.bids_dir.name)
    name = settings.train.model_name or adapted_name(source, card.k, shipped)
    if name.lower() in {one.lower() for one in shipped}:
        raise UsageError(
            "--model-name",
            found=f"{name}, the name of a shipped model",
            expected="another name",
            next_step="Add the name of your hospital or scanner.",
        )
    prepare = preparing(settings)
    people = choose_scans(list_inputs(prepare), prepare).chosen
    if not people:
        raise UsageError(
            prepare.paths.bids_dir,
            found="no scan with near-isotropic voxels",
            expected="high-field T1w scans",
            next_step=FETCH,
        )
    person_s = max(PERSON_S[engine_of(scan, prepare).engine] for scan in people[:1])
    labels = sorted({scan.subject for scan in people})
    most = people_in_time(settings.adapt.budget_s, person_s, settings.run.nprocs)
    if settings.train.split is not None:
        split = read_split(settings.train.split)
        check_unseen(card, split["evaluation"], option="--split")
    else:
        split = choose_people(labels, card.subjects(), seed=settings.run.seed, most=most)
    n = sum(map(len, split.values()))
    if n < len(labels):
        notes.append(f"{n} of {len(labels)} high-field people are used, because of --budget.")
    axes = slice_axes(known[0][0], geometries[0].axis, people)
    return Site(tuple(scans), ratio, model, card, name, split, axes, person_s, tuple(notes))


def slice_axes(scan: Scan, axis: int, people: Sequence[Scan]) -> tuple[str, ...]:
    """Return the axes of the high-field images to simulate slices along, that of the scans first.

    Along an axis with longer voxels than along others, an image has less detail: none is simulated there.
    """
    edges = np.array([peek(person.path).header.get_zooms()[:3] for person in people], dtype=float)
    fine = [a for a in range(3) if (edges[:, a] <= COARSE_AXIS * edges.min(axis=1)).all()] or [0, 1, 2]
    body = io_orientation(peek(scan.path).affine)[axis, 0]
    same = io_orientation(peek(people[0].path).affine)[:, 0].tolist().index(body)
    return tuple(AXES[a] for a in sorted(fine, key=lambda a: (a != same, a)))


def _check_alike(known: Sequence[tuple[Scan, SliceGeometry]]) -> list[str]:
    """Return notes on scans with different slices; UsageError if they need models of several factors."""
    found: dict[int, str] = {}
    for scan, geometry in known:
        found.setdefault(choose_model(geometry)[1].k, scan.name)
    if len(found) > 1:
        examples = ", ".join(f"{name} (k = {k})" for k, name in sorted(found.items()))
        raise UsageError(
            "low-field scans",
            found=f"slices for several models: {examples}",
            expected="scans of one protocol",
            next_step="Choose the scans of one protocol with --participant-label or --bids-filter-file.",
        )
    low, high = (pick(known, key=lambda one: one[1].ratio) for pick in (min, max))
    if high[1].ratio <= SAME_RATIO * low[1].ratio:
        return []
    return [
        f"Slice spacing / voxel size is {low[1].ratio:.2f} in {low[0].name} and {high[1].ratio:.2f} in "
        f"{high[0].name}. Are all scans of one protocol? The model is adapted to their median."
    ]


def _geometry(scan: Scan, settings: Settings) -> SliceGeometry | None:
    try:
        return geometry_of(scan, settings)
    except Exception:  # the node that checks the scan reports it
        return None
