"""Participant level of the application: one sub-workflow for each scan, its results stored under BIDS names.

Workflows for others are in `enhance`, `prepare`, `segment`, `calibrate`, `train` and `evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

import iqtflow
from iqtflow.bids import LeftOut, Scan, derivative_name, scan_seed
from iqtflow.bids.names import can_have_page, library_name, node_name
from iqtflow.config import Settings, TrainSettings
from iqtflow.image.geometry import choose_upsampling, find_slice_geometry
from iqtflow.image.metadata import boolean, skull_stripped
from iqtflow.inference.uncertainty import description, kind_of_model
from iqtflow.utils.errors import printable
from iqtflow.workflows.app.collect import engine_of
from iqtflow.workflows.execution.headers import peek
from iqtflow.workflows.execution.large import LargeWorkflow
from iqtflow.workflows.execution.memory import enhancing_gb, state_memory

#: Label in BIDS, and name, of each map.
TISSUES = {"wm": ("WM", "white matter"), "gm": ("GM", "grey matter"), "csf": ("CSF", "cerebrospinal fluid")}


def workflow_name(scan: Scan) -> str:
    """Name of a scan's sub-workflow: its BIDS name, as nipype takes it."""
    return node_name(scan.name)


def build_enhance_graph(
    scans: Sequence[Scan],
    settings: Settings,
    *,
    name: str,
    skipped: Sequence[tuple[Scan, str]] = (),
    left_out: Sequence[LeftOut] = (),
) -> Workflow:
    """Build the graph that enhances scans and stores the derivatives.

    Parameters
    ----------
    scans
        Scans to enhance.
    settings
        All settings.
    name
        Name of the workflow; it holds the package version, since caching looks at inputs, not at code.
    skipped
        Scans that are not enhanced, each with the reason: their subjects' pages mention them.
    left_out
        Files that cannot be scans: the pages mention these, too.
    """
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.report import ReportSubject
    from iqtflow.workflows.enhance import init_enhance_wf

    workflow = LargeWorkflow(name=name)
    others = [*skipped_records(skipped), *left_out_records(left_out)]
    reports: dict[str, list] = {}
    for scan in scans:
        run = settings.run
        model = choose_model_file(scan, settings)
        enhance = init_enhance_wf(
            name=workflow_name(scan),
            model=model,
            device=run.device,
            force=run.force,
            omp_nthreads=run.omp_nthreads,
            mem_gb=enhancing_gb(scan, model, settings),
            tiling=settings.enhance.tiling,
            precision=settings.enhance.precision,
            mirror=settings.enhance.mirror,
            keep_white_matter=settings.enhance.keep_white_matter,
        )
        state_memory(enhance, scan)
        given = enhance.get_node("inputnode").inputs  # enhance.inputs would list all inputs of all nodes
        given.in_file = os.fspath(scan.path)
        given.sidecar = dict(scan.sidecar)
        out = enhance.get_node("outputnode")
        shared = {"Sources": [scan.uri], "RandomSeed": run.seed}
        for field, desc, extra in (
            (
                "enhanced",
                "iqt",
                {
                    "Description": "Enhanced by image quality transfer; detail between the scan's slices "
                    "is inferred, not measured."
                },
            ),
            ("std", "iqtstd", _what_std_is(model, settings)),
        ):
            sink = _sink(f"sink_{field}", settings, derivative_name(scan, desc=desc), {**shared, **extra})
            enhance.connect([(out, sink, [(field, "in_file"), (("details", _as_list), "metadata_files")])])
        workflow.add_nodes([enhance])
        reports.setdefault(scan.subject, []).append((scan, enhance))
    for subject, members in reports.items():
        report = Node(
            ReportSubject(
                n_scans=len(members),
                outputs_named=[
                    os.fspath(settings.paths.output_dir / derivative_name(s, desc="iqt")) for s, _ in members
                ],
                **_on_page(subject, [scan for scan, _ in members], others, settings),
            ),
            name=f"report_{node_name(subject)}",
            mem_gb=1.0,
        )
        for i, (_, enhance) in enumerate(members, start=1):
            workflow.connect(
                [
                    (
                        enhance,
                        report,
                        [
                            (f"outputnode.{field}", f"{field}{i}")
                            for field in ("enhanced", "std", "spline", "mask", "details")
                        ],
                    )
                ]
            )
    return workflow


def build_prepare_graph(
    scans: Sequence[Scan],
    settings: Settings,
    *,
    name: str,
    skipped: Sequence[tuple[Scan, str]] = (),
    left_out: Sequence[LeftOut] = (),
) -> Workflow:
    """Build the graph that prepares high-field scans for training and stores maps, simulated scans and patch
    libraries.

    Parameters
    ----------
    scans
        High-field scans.
    settings
        All settings.
    name
        Name of the workflow.
    skipped
        Scans that are not prepared, each with the reason: their subjects' pages mention them.
    left_out
        Files that cannot be scans: the pages mention these, too.
    """
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.report import ReportPrepared
    from iqtflow.workflows.prepare import init_prepare_wf

    workflow = LargeWorkflow(name=name)
    train, run = settings.train, settings.run
    n_draws = 1 if train.draws == "fresh" else train.draws
    others = [*skipped_records(skipped), *left_out_records(left_out)]
    reports: dict[str, list] = {}
    for scan in scans:
        prepare = init_prepare_wf(
            name=workflow_name(scan),
            upsampling_factor=train.upsampling_factor,
            slice_axes=train.slice_axes,
            n_draws=n_draws,
            snr_prior=os.fspath(train.snr_prior) if train.snr_prior else "ibadan-0.36T",
            seed=run.seed,
            first_draw_seed=scan_seed(scan, run.seed),
            stored_draws=0 if train.draws == "fresh" else train.draws,
            patch_step=train.patch_step,
            background_limit=train.background_limit,
            pairs=pair_inputs(train, seed=run.seed),
            omp_nthreads=run.omp_nthreads,
            engine=engine_of(scan, settings),
            sampling_mm=settings.segmentation.sampling_mm,
            derivatives_dir=settings.segmentation.derivatives,
        )
        state_memory(prepare, scan)
        given = prepare.get_node("inputnode").inputs
        given.in_file = os.fspath(scan.path)
        given.sidecar = dict(scan.sidecar)
        given.subject = scan.subject
        given.skull_stripped = skull_stripped(scan.sidecar)
        stripped = boolean(scan.sidecar.get("SkullStripped"))
        out = prepare.get_node("outputnode")
        shared = {"Sources": [scan.uri], "RandomSeed": run.seed, "PackageVersion": iqtflow.__version__}
        there = {**shared, "SpatialReference": scan.uri}
        for field, (label, tissue) in TISSUES.items():
            path = derivative_name(scan, label=label, suffix="probseg")
            said = {**there, "Description": f"Probability of {tissue}."}
            sink = _sink(f"sink_{field}", settings, path, said)
            prepare.connect(
                [(out, sink, [(field, "in_file"), (("segmentation", _as_list), "metadata_files")])]
            )
        mask = _sink(
            "sink_mask",
            settings,
            derivative_name(scan, desc="brain", suffix="mask"),
            {**there, "Type": "Brain", "Description": "Brain, cerebrospinal fluid included."},
        )
        library = _sink("sink_library", settings, library_name(scan), {})
        prepare.connect(
            [
                (out, mask, [("mask", "in_file"), (("segmentation", _as_list), "metadata_files")]),
                (out, library, [("library", "in_file")]),
            ]
        )
        if train.patch_library == "pairs":
            for field, extension in (("pairs", ".npy"), ("pairs_header", ".json")):
                name = library_name(scan, suffix="pairs", extension=extension)
                prepare.connect(out, field, _sink(f"sink_{field}", settings, name, {}), "in_file")
        for i in range(1, n_draws + 1):
            fields = {
                **shared,
                "Description": "Low-field scan simulated from the high-field one (Algorithm 1 of Lin et "
                "al. 2019).",
            }
            draw = _sink(f"sink_draw{i:02d}", settings, derivative_name(scan, desc=f"sim{i:02d}"), fields)
            drawn_from = [
                (f"draw{i:02d}", "in_file"),
                ((f"draw{i:02d}_metadata", _as_list), "metadata_files"),
            ]
            if stripped is None:  # what was found when the tissue maps were made
                drawn_from.append((("segmentation", _with_skull, fields), "metadata"))
            else:
                draw.inputs.metadata = {**fields, "SkullStripped": stripped}
            prepare.connect([(out, draw, drawn_from)])
        workflow.add_nodes([prepare])
        reports.setdefault(scan.subject, []).append((scan, prepare))
    drawn = [f"draw{i:02d}" for i in range(1, n_draws + 1)]
    fields = [(f, f) for f in ("wm", "gm", "csf", "mask", "library")] + [("segmentation", "details")]
    fields += [(f, f"{f}_") for draw in drawn for f in (draw, f"{draw}_metadata")]
    for subject, members in reports.items():
        stems = [derivative_name(s, desc="iqt").as_posix().split("_desc-iqt")[0] for s, _ in members]
        report = Node(
            ReportPrepared(
                n_scans=len(members),
                n_draws=n_draws,
                outputs_named=[os.fspath(settings.paths.output_dir / stem) for stem in stems],
                **_on_page(subject, [scan for scan, _ in members], others, settings),
            ),
            name=f"report_{node_name(subject)}",
            mem_gb=1.0,
        )
        for i, (_, prepare) in enumerate(members, start=1):
            shown = [(f"outputnode.{field}", f"{name}{i}") for field, name in fields]
            workflow.connect([(prepare, report, shown)])
    return workflow


def skipped_records(skipped: Sequence[tuple[Scan, str]]) -> list[dict[str, str]]:
    """Return what pages are told of skipped scans."""
    return [
        {"subject": s.subject, "input": os.fspath(s.path), "status": "skipped", "message": why}
        for s, why in skipped
    ]


def left_out_records(left_out: Sequence[LeftOut]) -> list[dict[str, str]]:
    """Return what pages are told of files that were left out; what is no subject of BIDS, or has too long a
    label, has no page.
    """
    return [
        {
            "subject": left.subject,
            "input": printable(left.path),
            "status": "failed",
            "message": f"left out: {left.reason}",
        }
        for left in left_out
        if can_have_page(left.subject)
    ]


def _on_page(
    subject: str, scans: Sequence[Scan], others: Sequence[dict[str, str]], settings: Settings
) -> dict:
    """What the page of a subject is told of its scans, those that were skipped or left out included."""
    return {
        "base_directory": os.fspath(settings.paths.output_dir),
        "subject": subject,
        "inputs_named": [os.fspath(scan.path) for scan in scans],
        "others": [
            {key: value for key, value in record.items() if key != "subject"}
            for record in others
            if record["subject"] == subject
        ],
    }


def choose_model_file(scan: Scan, settings: Settings) -> str | None:
    """Return the model for a scan: the one asked for, else the shipped one nearest to its slice spacing.

    The file is an input of the graph's node, so that the cache notices when a new version ships another
    model. None when the scan's header cannot be read: the node that checks the scan says so.
    """
    from iqtflow.models.model_file import find_model
    from iqtflow.models.zoo import check_contrast, shipped_for

    choice = settings.enhance
    if choice.model is not None:
        path = os.fspath(find_model(choice.model)[0])
        check_contrast(card_of(path), choice.contrast, choice.model)
        return path
    shipped = shipped_for(choice.contrast)
    try:
        geometry = find_slice_geometry(peek(scan.path), scan.sidecar)
    except Exception:  # the conform node says what is wrong, and fails this scan alone
        return None
    return os.fspath(shipped[choose_upsampling(geometry, sorted(shipped)).k].path)


def card_of(path: str) -> dict[str, Any]:
    """Card of a model; its file is read once, not for each scan, and again when it has changed."""
    return _card_of(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=8)
def _card_of(path: str, _changed: int) -> dict[str, Any]:
    from iqtflow.models.model_file import read_card

    return read_card(path)


def _what_std_is(model: str | None, settings: Settings) -> dict[str, str]:
    """Description of a scan's standard deviation map, if its model writes one."""
    kind = None if model is None else kind_of_model(card_of(model), mirror=settings.enhance.mirror)
    if model is None or kind is None:
        return {}
    return {"Description": description(card_of(model), kind, mirror=settings.enhance.mirror)}


def pair_inputs(train: TrainSettings, *, seed: int) -> dict[str, Any] | None:
    """Inputs of `iqtflow.interfaces.patches.WritePairs`; None where no explicit library is asked for."""
    if train.patch_library != "pairs":
        return None
    return {
        "n_draws": train.draws,
        "fraction": train.patch_fraction,
        "patch_size": train.patch_edge,
        "seed": seed,
    }


def _sink(name: str, settings: Settings, path: Path, metadata: dict):
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.sink import SinkDerivative

    return Node(
        SinkDerivative(
            base_directory=os.fspath(settings.paths.output_dir), name=os.fspath(path), metadata=metadata
        ),
        name=name,
        mem_gb=0.3,
    )


def _as_list(path):
    return [path]


def _with_skull(details_file, fields):
    import json

    with open(details_file) as stream:
        return {**fields, "SkullStripped": bool(json.load(stream).get("skull_stripped"))}
