"""What a run would do with each scan, told by headers and settings alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iqtflow.bids import LeftOut, Scan, derivative_name
from iqtflow.bids.names import library_name, measurement_name
from iqtflow.config import Settings
from iqtflow.image.geometry import SliceGeometry, find_slice_geometry
from iqtflow.image.validate import check_scan
from iqtflow.inference.uncertainty import kind_of_model
from iqtflow.utils.errors import EXIT_OK, EXIT_SUBJECT_FAILED, IQTFlowError, printable
from iqtflow.workflows.app.collect import check_engines, engine_of, list_inputs
from iqtflow.workflows.app.participant import card_of, choose_model_file
from iqtflow.workflows.execution.headers import peek

AXES = "ijk"


@dataclass(frozen=True)
class Plan:
    """The scans of a run.

    Attributes
    ----------
    chosen
        To be processed. One that cannot be read is among them: the graph says what is wrong with it.
    skipped
        Not to be processed, each with the reason.
    """

    chosen: tuple[Scan, ...]
    skipped: tuple[tuple[Scan, str], ...]


def choose_scans(scans: Sequence[Scan], settings: Settings) -> Plan:
    """Tell thick-slice scans from near-isotropic ones, by the header alone."""
    chosen, skipped = [], []
    for scan in scans:
        try:
            geometry = _geometry(scan)
        except Exception:  # whatever it is, the conform node says it properly and fails this scan alone
            chosen.append(scan)
            continue
        why = _why_not(geometry, settings)
        if why:
            skipped.append((scan, why))
        else:
            chosen.append(scan)
    return Plan(tuple(chosen), tuple(skipped))


def print_plan(settings: Settings) -> int:
    """Print what a run with these settings would do, and do nothing of it; return what it would end with."""
    print("iqtflow: dry run; nothing is computed, nothing is written")
    code = EXIT_OK
    for level in settings.run.levels:
        code = max(code, _print_group(settings) if level == "group" else _print_participants(settings))
    return code


def _print_participants(settings: Settings) -> int:
    scans, left_out = list_inputs(settings)
    plan = choose_scans(scans, settings)
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
            geometry = _geometry(scan)
            for note in geometry.notes:
                print(f"  note      {note}")
            print(f"  geometry  {describe_geometry(geometry)}")
            print(f"  {_means(scan, settings)}")
        except (IQTFlowError, OSError, ValueError) as fault:
            doomed += 1
            print(f"  will fail {fault}")
            continue
        for name in outputs_of(scan, settings):
            print(f"  writes    {name}")
    for scan, why in plan.skipped:
        print(f"{scan.path}\n  skipped   {why}")
    for left in left_out:
        print(f"{printable(left.path)}\n  left out  {left.reason}")
    print(
        f"iqtflow: {len(plan.chosen) - doomed} to process, {len(plan.skipped)} to skip, {doomed} that will "
        f"fail{count_left_out(left_out)}; results would go to {settings.paths.output_dir}"
    )
    return EXIT_SUBJECT_FAILED if doomed or left_out else EXIT_OK


def count_left_out(left_out: Sequence[LeftOut]) -> str:
    """Return the end of a list of counts: nothing where nothing was left out."""
    return f", {len(left_out)} left out" if left_out else ""


def _print_group(settings: Settings) -> int:
    output = settings.paths.output_dir
    if settings.run.mode == "calibrate":
        print(
            f"iqtflow: group level fits a prior to the measured scans; it writes {output}/calibration/prior.*"
        )
    elif settings.run.mode == "train":
        train = settings.train
        name = train.model_name or f"iqt-k{train.upsampling_factor}"
        print(
            f"iqtflow: group level trains {train.ensemble} x {train.network}, k = "
            f"{train.upsampling_factor}, on the libraries of the split "
            f"{train.split or 'in models/split.json'}; it writes {output}/models/{name}.safetensors "
            "and group.html"
        )
    return EXIT_OK


def main_output(scan: Scan, settings: Settings) -> Path:
    """Return the output that tells whether a scan has been processed, under the root of the derivatives."""
    if settings.run.mode == "enhance":
        return derivative_name(scan, desc="iqt")
    if settings.run.mode == "calibrate":
        return measurement_name(scan)
    return library_name(scan)


def outputs_of(scan: Scan, settings: Settings) -> list[Path]:
    """Return the images and tables that a scan gives rise to, under the root of the derivatives."""
    first = main_output(scan, settings)
    if settings.run.mode == "enhance":
        kind = kind_of_model(_card(scan, settings)[0], mirror=settings.enhance.mirror)
        return [first, *([] if kind is None else [derivative_name(scan, desc="iqtstd")])]
    if settings.run.mode == "calibrate":
        return [first]
    draws = 1 if settings.train.draws == "fresh" else settings.train.draws
    return [
        *(derivative_name(scan, label=label, suffix="probseg") for label in ("WM", "GM", "CSF")),
        derivative_name(scan, desc="brain", suffix="mask"),
        *(derivative_name(scan, desc=f"sim{i:02d}") for i in range(1, draws + 1)),
        first,
    ]


def describe_geometry(geometry: SliceGeometry) -> str:
    """One line on how the slices of a scan lie."""
    gap = f", {geometry.gap_mm:.3g} mm between them" if geometry.gap_mm else ""
    return (
        f"slices along {AXES[geometry.axis]}, {geometry.spacing_mm:.3g} mm apart "
        f"({geometry.thickness_mm:.3g} mm thick{gap}), {geometry.inplane_mm[0]:.3g} x "
        f"{geometry.inplane_mm[1]:.3g} mm in plane"
    )


def _geometry(scan: Scan) -> SliceGeometry:
    return find_slice_geometry(peek(scan.path), scan.sidecar)


def _why_not(geometry: SliceGeometry, settings: Settings) -> str | None:
    mode, force = settings.run.mode, settings.run.force
    sizes = (
        f"slices {geometry.spacing_mm:.3g} mm apart, {geometry.inplane_mm[0]:.3g} x "
        f"{geometry.inplane_mm[1]:.3g} mm in plane"
    )
    if mode == "enhance" and geometry.near_isotropic and not force:
        return (
            f"already near-isotropic ({sizes}), nothing to gain along the slice axis; --force enhances it "
            "all the same"
        )
    if mode == "calibrate" and geometry.near_isotropic and not force:
        return f"near-isotropic ({sizes}), taken for high field; --force measures it all the same"
    if mode == "train" and not geometry.near_isotropic:
        return f"thick slices ({sizes}): not a high-field scan to train on"
    return None


def _means(scan: Scan, settings: Settings) -> str:
    """One line on the model, or on what makes the tissue maps."""
    if settings.run.mode == "enhance":
        card, file = _card(scan, settings)
        return f"model     {card['name']}, k = {card['k']}, {file}"
    engine = engine_of(scan, settings)
    return (
        f"engine    {engine.engine} ({engine.reason}), k = {settings.train.upsampling_factor}"
        if (settings.run.mode == "train")
        else f"engine    {engine.engine} ({engine.reason})"
    )


def _card(scan: Scan, settings: Settings) -> tuple[dict, str]:
    file = choose_model_file(scan, settings)
    return card_of(file), os.fspath(file)
