"""What a run does with each scan, decided from headers and settings alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iqtflow.bids import LeftOut, Listing, Scan
from iqtflow.bids.names import output_name, scan_outputs
from iqtflow.config import Settings
from iqtflow.image.acquired_slices import advise, choose_axis, doubt_spacing, require_coarse
from iqtflow.image.geometry import AXIS_NAMES, SliceGeometry, require_ratio
from iqtflow.image.validate import check_scan
from iqtflow.models.card import Card
from iqtflow.models.zoo import card_of
from iqtflow.utils.errors import EXIT_OK, EXIT_SUBJECT_FAILED, IQTFlowError, printable
from iqtflow.workflows.app.collect import check_engines, engine_of, geometry_of, resolution_of
from iqtflow.workflows.app.graphs import choose_model_file
from iqtflow.workflows.app.stacks import sessions_to_combine


@dataclass(frozen=True)
class Plan:
    """The scans of a run.

    Attributes
    ----------
    chosen
        To be processed. Scans that cannot be read are among them: the graph reports what is wrong.
    skipped
        Not to be processed, each with the reason.
    left_out
        Files that look like scans and cannot be processed.
    """

    chosen: tuple[Scan, ...]
    skipped: tuple[tuple[Scan, str], ...]
    left_out: tuple[LeftOut, ...]


def choose_scans(listing: Listing, settings: Settings) -> Plan:
    """Choose the scans to process: thick-slice or near-isotropic ones, as the mode needs.

    Parameters
    ----------
    listing
        What was found in the data set.
    settings
        All settings.
    """
    chosen, skipped = [], []
    for scan in listing.scans:
        try:
            why = _why_not(scan, geometry_of(scan, settings), settings)
        except Exception:  # the conform node reports it, and fails this scan alone
            why = None
        if why:
            skipped.append((scan, why))
        else:
            chosen.append(scan)
    return Plan(tuple(chosen), tuple(skipped), tuple(listing.left_out))


def print_plan(settings: Settings, listing: Listing) -> int:
    """Print what a run with these settings would do, without doing it; return its exit code as far as the
    headers tell.
    """
    print("iqtflow: dry run; nothing is computed, nothing is written")
    code = EXIT_OK
    for level in settings.run.levels:
        if level == "group":
            _print_group(settings)
        else:
            code = _print_participants(choose_scans(listing, settings), settings)
    return code


def _print_participants(plan: Plan, settings: Settings) -> int:
    if plan.chosen and settings.run.mode != "enhance":
        engine = check_engines(plan.chosen, settings)
        print(f"iqtflow: tissue maps: {engine}")
    doomed = 0
    for scan in plan.chosen:
        print(scan.path)
        for warning in scan.warnings:
            print(f"  note      {warning}")
        try:
            for note in check_scan(scan.path).extra["notes"]:
                print(f"  note      {note}")
            geometry = geometry_of(scan, settings)
            for note in geometry.notes:
                print(f"  note      {note}")
            print(f"  geometry  {describe_geometry(geometry)}")
            if settings.run.mode == "enhance":
                _print_resolution(scan, settings)
            if settings.run.mode == "enhance" and not settings.run.force:
                require_ratio(geometry, settings.enhance.voxel_size, scan.path)
            print(f"  {_means(scan, settings)}")
        except (IQTFlowError, OSError, ValueError) as fault:
            doomed += 1
            print(f"  will fail {fault}")
            continue
        for name in outputs_of(scan, settings):
            print(f"  writes    {name}")
    for combined, scans in sessions_to_combine(plan.chosen, settings):
        print(f"{len(scans)} scans of one session\n  writes    {output_name('combined', combined)}")
    for scan, why in plan.skipped:
        print(f"{scan.path}\n  skipped   {why}")
    for left in plan.left_out:
        print(f"{printable(left.path)}\n  left out  {left.reason}")
    print(
        f"iqtflow: {len(plan.chosen) - doomed} to process, {len(plan.skipped)} to skip, {doomed} that will "
        f"fail{count_left_out(plan.left_out)}; results would go to {settings.paths.output_dir}"
    )
    return EXIT_SUBJECT_FAILED if doomed or plan.left_out else EXIT_OK


def count_left_out(left_out: Sequence[LeftOut]) -> str:
    """Return the last part of a list of counts; empty if no file was left out."""
    return f", {len(left_out)} left out" if left_out else ""


def _print_group(settings: Settings) -> None:
    output, train = settings.paths.output_dir, settings.train
    if settings.run.mode == "calibrate":
        prior = output / output_name("prior").with_suffix(".*")
        print(f"iqtflow: group level fits a prior to the measured scans; it writes {prior}")
    elif settings.run.mode == "train" and train.cross_validation is not None:
        _print_folds(settings)
    elif settings.run.mode == "train" and train.evaluate_model is not None:
        asked = " of --participant-label" if settings.run.participant_labels else ""
        subjects = (
            f"the evaluation subjects of {train.split}" if train.split else f"all prepared subjects{asked}"
        )
        print(
            f"iqtflow: group level evaluates {train.evaluate_model} on {subjects}; it writes "
            f"{output / output_name('metrics')} and {output_name('group_page')}"
        )
    elif settings.run.mode == "train":
        print(
            f"iqtflow: group level trains {train.ensemble} x {train.network}, k = "
            f"{train.upsampling_factor}, on the libraries of the split "
            f"{train.split or 'in ' + os.fspath(output_name('split'))}; it writes "
            f"{output / output_name('model', model=train.output_model)} and {output_name('group_page')}"
        )


def _print_folds(settings: Settings) -> None:
    """Print the folds of a cross-validation, if the participant level has prepared subjects."""
    from iqtflow.workflows.app.cross_validation import describe_folds, settle_folds, stored_folds
    from iqtflow.workflows.app.group import prepared_subjects

    output, train = settings.paths.output_dir, settings.train
    print(
        f"iqtflow: group level trains {train.ensemble} x {train.network}, k = {train.upsampling_factor}, for "
        f"each of {train.cross_validation} folds, and on all subjects; it writes "
        f"{output / output_name('model', model=train.output_model)}, a model for each fold, and "
        f"{output_name('group_page')}"
    )
    if stored_folds(settings).exists() or prepared_subjects(settings):
        print(*describe_folds(settle_folds(settings)), sep="\n")
    else:
        print("  the folds are dealt when the participant level has prepared the subjects")


def outputs_of(scan: Scan, settings: Settings) -> list[Path]:
    """Return the images and tables that are made of a scan, relative to the root of the derivatives."""
    names = scan_outputs(scan, settings)
    if settings.run.mode == "enhance":
        card = _card(scan, settings)[0]
        if card.uncertainty(mirror=settings.enhance.mirror) is not None:
            names.append(output_name("std", scan))
    return names


def describe_geometry(geometry: SliceGeometry) -> str:
    """Return one line on the slices of a scan: axis, distance, thickness, voxel size in plane."""
    gap = f", {geometry.gap_mm:.3g} mm between them" if geometry.gap_mm else ""
    return (
        f"slices along {AXIS_NAMES[geometry.axis]}, {geometry.spacing_mm:.3g} mm apart "
        f"({geometry.thickness_mm:.3g} mm thick{gap}), {geometry.inplane_mm[0]:.3g} x "
        f"{geometry.inplane_mm[1]:.3g} mm in plane"
    )


def _print_resolution(scan: Scan, settings: Settings) -> None:
    resolution = resolution_of(scan.path)
    print(f"  measured  effective resolution: {resolution.words()}")
    spacing, stated = settings.enhance.acquired_spacing, settings.enhance.acquired_axis
    if spacing is None:
        if told := advise(resolution):
            print(f"  note      This is {told[0]}. {told[1]}")
        return
    axis = choose_axis(scan.path, stated, resolution)
    if not settings.run.force:
        require_coarse(scan.path, resolution, axis, spacing)
    if doubt := doubt_spacing(resolution, axis, spacing):
        print(f"  note      {doubt}")


def _why_not(scan: Scan, geometry: SliceGeometry, settings: Settings) -> str | None:
    mode, force = settings.run.mode, settings.run.force
    sizes = (
        f"slices {geometry.spacing_mm:.3g} mm apart, {geometry.inplane_mm[0]:.3g} x "
        f"{geometry.inplane_mm[1]:.3g} mm in plane"
    )
    if mode == "enhance" and geometry.near_isotropic and not force:
        if told := advise(resolution_of(scan.path)):  # a scan that cannot be measured fails in its own node
            return f"{told[0]}, not as acquired. {told[1]}"
        return f"already near-isotropic ({sizes}), nothing to gain; use --force to enhance it anyway"
    if mode == "calibrate" and geometry.near_isotropic and not force:
        return f"near-isotropic ({sizes}), so it counts as high-field; use --force to measure it anyway"
    if mode == "train" and not geometry.near_isotropic:
        return f"thick slices ({sizes}): not a high-field scan to train on"
    return None


def _means(scan: Scan, settings: Settings) -> str:
    """Return one line on the model, or on what makes the tissue maps."""
    if settings.run.mode == "enhance":
        card, file = _card(scan, settings)
        size = settings.enhance.voxel_size
        grid = "" if isinstance(size, str) else f"; cubic voxels of {size:g} mm"
        return f"model     {card.name}, k = {card.k}, {file}{grid}"
    engine = engine_of(scan, settings)
    factor = f", k = {settings.train.upsampling_factor}" if settings.run.mode == "train" else ""
    return f"engine    {engine.engine} ({engine.reason}){factor}"


def _card(scan: Scan, settings: Settings) -> tuple[Card, str]:
    file = choose_model_file(scan, settings)
    return card_of(file), os.fspath(file)
