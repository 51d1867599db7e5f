"""The graph of the participant level: one sub-workflow for each scan, the nodes that store its results under
BIDS names, and one node for each subject's page.

The sub-workflows can be used without this application: see `iqtflow.workflows`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Node, Workflow
from nipype.pipeline.engine.base import EngineBase

import iqtflow
from iqtflow.bids import Scan, scan_seed
from iqtflow.bids.names import node_name, output_name, stem_name
from iqtflow.config import AXES, Settings, TrainSettings
from iqtflow.image.metadata import boolean, skull_stripped
from iqtflow.inference.uncertainty import description
from iqtflow.models.zoo import candidates, card_of, choose_model
from iqtflow.workflows.app.collect import engine_of, geometry_of, peek
from iqtflow.workflows.app.memory import enhancing_gb, state_memory
from iqtflow.workflows.app.stacks import add_combinations

TISSUES = {"wm": "white matter", "gm": "grey matter", "csf": "cerebrospinal fluid"}


def build_participant_graph(
    scans: Sequence[Scan], settings: Settings, *, name: str, others: Sequence[Mapping[str, str]] = ()
) -> Workflow:
    """Build the graph that enhances, prepares or measures scans, as the mode of the settings says.

    Parameters
    ----------
    scans
        Scans to process.
    settings
        All settings.
    name
        Name of the workflow.
    others
        Records of scans and files that are not processed; the pages of their subjects mention them.

    Returns
    -------
    Workflow
        With a sub-workflow for each scan, named after it.
    """
    add_scan = {"enhance": _enhance, "train": _prepare, "calibrate": _measure}[settings.run.mode]
    workflow = _LargeWorkflow(name=name)
    by_subject: dict[str, list[tuple[Scan, Workflow]]] = {}
    combine = settings.run.mode == "enhance" and settings.enhance.combine_stacks
    for scan in scans:
        part = add_scan(scan, settings)
        state_memory(part, scan)
        given = part.get_node("inputnode").inputs  # part.inputs would list all inputs of all nodes
        given.in_file, given.sidecar = os.fspath(scan.path), dict(scan.sidecar)
        workflow.add_nodes([part])
        by_subject.setdefault(scan.subject, []).append((scan, part))
    if settings.run.mode != "calibrate":
        for subject, members in by_subject.items():
            about = [record for record in others if record["subject"] == subject]
            combined = add_combinations(workflow, members, settings) if combine else []
            _add_page(workflow, subject, members, about, settings, combined)
    return workflow


def sink_node(label: str, settings: Settings, path: Path, metadata: Mapping[str, Any] | None = None) -> Node:
    """Return the node that stores a file in the output folder.

    Parameters
    ----------
    label
        End of the node's name.
    settings
        They name the output folder.
    path
        Relative to it, from `iqtflow.bids.names.output_name`.
    metadata
        Fields of the sidecar; no sidecar without any.
    """
    from iqtflow.interfaces.sink import SinkDerivative

    sink = SinkDerivative(base_directory=os.fspath(settings.paths.output_dir), name=os.fspath(path))
    if metadata:
        sink.inputs.metadata = dict(metadata)
    return Node(sink, name=f"sink_{label}", mem_gb=0.3)


def _enhance(scan: Scan, settings: Settings) -> Workflow:
    from iqtflow.workflows.enhance import init_enhance_wf

    run, choice = settings.run, settings.enhance
    model = choose_model_file(scan, settings)
    workflow = init_enhance_wf(
        name=node_name(scan.name),
        model=model,
        device=run.device,
        force=run.force,
        omp_nthreads=run.omp_nthreads,
        mem_gb=enhancing_gb(scan, model, settings),
        tiling=choice.tiling,
        precision=choice.precision,
        slice_intensity=choice.slice_intensity,
        mirror=choice.mirror,
        keep_white_matter=choice.keep_white_matter,
        data_consistency=choice.data_consistency,
        voxel_size=choice.voxel_size,
        acquired_spacing=choice.acquired_spacing,
        acquired_axis=choice.acquired_axis,
    )
    descriptions = {
        "enhanced": "Enhanced by image quality transfer; detail between the scan's slices is inferred, not "
        "measured.",
        "std": _describe_std(model, settings),
    }
    for field, text in descriptions.items():
        fields = {**_provenance(scan, settings), **({"Description": text} if text else {})}
        _store(workflow, field, output_name(field, scan), settings, fields, described_by="details")
    residual = _store(workflow, "residual", output_name("residual", scan), settings)
    about = (("details", _of_residual, _provenance(scan, settings)), "metadata")
    workflow.connect([(workflow.get_node("outputnode"), residual, [about])])
    return workflow


def _prepare(scan: Scan, settings: Settings) -> Workflow:
    from iqtflow.workflows.prepare import init_prepare_wf

    train, run = settings.train, settings.run
    pairs = {
        "n_draws": train.draws,
        "fraction": train.patch_fraction,
        "patch_size": train.patch_edge,
        "seed": run.seed,
    }
    workflow = init_prepare_wf(
        name=node_name(scan.name),
        upsampling_factor=train.upsampling_factor,
        slice_axes=train.slice_axes,
        n_draws=train.stored_draws,
        snr_prior=os.fspath(train.snr_prior),
        simulator=_simulator(scan, train),
        seed=run.seed,
        first_draw_seed=scan_seed(scan, run.seed),
        stored_draws=0 if train.draws == "fresh" else train.draws,
        patch_step=train.patch_step,
        background_limit=train.background_limit,
        pairs=pairs if train.patch_library == "pairs" else None,
        **_segmentation(scan, settings),
    )
    given = workflow.get_node("inputnode").inputs
    given.subject, given.skull_stripped = scan.subject, skull_stripped(scan.sidecar)
    shared = {**_provenance(scan, settings), "PackageVersion": iqtflow.__version__}
    on_grid = {**shared, "SpatialReference": scan.uri}
    about = {field: {"Description": f"Probability of {tissue}."} for field, tissue in TISSUES.items()}
    about["mask"] = {"Type": "Brain", "Description": "Brain, cerebrospinal fluid included."}
    for field, fields in about.items():
        name = output_name(field, scan)
        _store(workflow, field, name, settings, {**on_grid, **fields}, described_by="segmentation")
    for field in ("library", *(("pairs", "pairs_header") if train.patch_library == "pairs" else ())):
        _store(workflow, field, output_name(field, scan), settings)
    shared["Description"] = (
        "Low-field scan simulated from the high-field one (Algorithm 1 of Lin et al. 2019)."
    )
    stripped = boolean(scan.sidecar.get("SkullStripped"))
    for i in range(1, train.stored_draws + 1):
        draw, name = f"draw{i:02d}", output_name("draw", scan, number=i)
        fields = shared if stripped is None else {**shared, "SkullStripped": stripped}
        sink = _store(workflow, draw, name, settings, fields, described_by=f"{draw}_metadata")
        if stripped is None:  # take what the segmentation found
            found = (("segmentation", _with_skull, fields), "metadata")
            workflow.connect([(workflow.get_node("outputnode"), sink, [found])])
    return workflow


def _simulator(scan: Scan, train: TrainSettings) -> dict[str, dict[str, Any]] | None:
    """Return the inputs of the simulator, by slice axis, for stored scans like those of the training; None
    for those of the paper, and for a scan whose header cannot be read: the node that checks it reports it.
    """
    if train.evaluate_as == "paper":
        return None
    from nibabel.affines import voxel_sizes

    try:
        edges = dict(zip(AXES, voxel_sizes(peek(scan.path).affine).tolist(), strict=True))
    except Exception:
        return None
    (low, high), blur = train.thickness_fraction, train.plane_blur
    made: dict[str, dict[str, Any]] = {}
    for axis in train.slice_axes:
        edge = min(length for name, length in edges.items() if name != axis)  # in the plane
        made[axis] = {
            # Drawn between both ends of the range, evenly in its logarithm.
            "thickness_mm": (low * high) ** 0.5 * train.upsampling_factor * edges[axis],
            "fwhm_jitter": (high / low) ** 0.5 - 1,
            "inplane_fwhm_least_mm": blur[0] * edge,
            "inplane_fwhm_mm": blur[1] * edge,
            "noise": train.noise,
        }
    return made


def _measure(scan: Scan, settings: Settings) -> Workflow:
    from iqtflow.workflows.calibrate import init_calibrate_wf

    workflow = init_calibrate_wf(
        name=node_name(scan.name), seed=settings.run.seed, **_segmentation(scan, settings)
    )
    given = workflow.get_node("inputnode").inputs
    given.label, given.source = scan.name, scan.uri
    given.skull_stripped = skull_stripped(scan.sidecar)
    _store(workflow, "snr", output_name("measurement", scan), settings)
    _store(workflow, "figure", output_name("measurement_figure", scan), settings)
    return workflow


def _segmentation(scan: Scan, settings: Settings) -> dict[str, Any]:
    """Arguments of a workflow that needs tissue maps of a scan."""
    return {
        "engine": engine_of(scan, settings),
        "sampling_mm": settings.segmentation.sampling_mm,
        "derivatives_dir": next(iter(settings.segmentation.derivatives), None),
        "omp_nthreads": settings.run.omp_nthreads,
    }


def _provenance(scan: Scan, settings: Settings) -> dict[str, Any]:
    return {"Sources": [scan.uri], "RandomSeed": settings.run.seed}


def _store(
    workflow: Workflow,
    field: str,
    path: Path,
    settings: Settings,
    metadata: Mapping[str, Any] | None = None,
    *,
    described_by: str | None = None,
) -> Node:
    """Store an output of a scan's sub-workflow; the JSON output `described_by` adds to its sidecar."""
    sink = sink_node(field, settings, path, metadata)
    given = [(field, "in_file"), *([((described_by, _as_list), "metadata_files")] if described_by else [])]
    workflow.connect([(workflow.get_node("outputnode"), sink, given)])
    return sink


def _add_page(
    workflow: Workflow,
    subject: str,
    members: Sequence[tuple[Scan, Workflow]],
    others: Sequence[Mapping[str, str]],
    settings: Settings,
    combined: Sequence[tuple[Scan, Workflow]] = (),
) -> None:
    """Add the node that writes the page of a subject from the results of its scans."""
    from iqtflow.interfaces.report import ReportPrepared, ReportSubject

    output = settings.paths.output_dir
    scans = [scan for scan, _ in (*members, *combined)]
    told = {
        "base_directory": os.fspath(output),
        "subject": subject,
        "n_scans": len(scans),
        "inputs_named": [os.fspath(scan.path) for scan in scans],
        "others": [{key: record[key] for key in record if key != "subject"} for record in others],
    }
    if settings.run.mode == "enhance":
        names = [os.fspath(output / output_name("enhanced", scan)) for scan, _ in members]
        names += [os.fspath(output / output_name("combined", scan)) for scan, _ in combined]
        page = ReportSubject(outputs_named=names, viewer_mb=settings.run.page_viewer_mb, **told)
        fields = {field: field for field in ("enhanced", "std", "residual", "spline", "mask", "details")}
    else:
        draws = [f"draw{i:02d}" for i in range(1, settings.train.stored_draws + 1)]
        names = [os.fspath(output / stem_name(scan)) for scan in scans]
        page = ReportPrepared(n_draws=len(draws), outputs_named=names, **told)
        fields = {**{field: field for field in (*TISSUES, "mask", "library")}, "segmentation": "details"}
        fields |= {field: f"{field}_" for draw in draws for field in (draw, f"{draw}_metadata")}
    report = Node(page, name=f"report_{node_name(subject)}", mem_gb=1.0)
    for i, (_, part) in enumerate(members, start=1):
        shown = [(f"outputnode.{field}", f"{name}{i}") for field, name in fields.items()]
        workflow.connect([(part, report, shown)])
    for i, (scan, joined) in enumerate(combined, start=len(members) + 1):
        # The best single enhanced volume is shown in place of the spline.
        made = {
            "enhanced": "out",
            "std": "std",
            "residual": "residual",
            "spline": "single",
            "details": "details",
        }
        shown = [(f"combine.{kind}_file", f"{name}{i}") for name, kind in made.items()]
        first = next(part for member, part in members if member.path == scan.path)
        workflow.connect([(joined, report, shown), (first, report, [("outputnode.mask", f"mask{i}")])])


class _LargeWorkflow(Workflow):
    """A workflow of many sub-workflows. nipype searches all of them for each node that is connected; with a
    thousand subjects that takes most of the time. This one looks at its own nodes only.
    """

    def _has_node(self, wanted_node: EngineBase) -> bool:
        # A node of a sub-workflow carries the names of the workflows that hold it.
        nested = wanted_node._hierarchy not in (None, self.name)
        return nested or wanted_node in self._nodes_cache

    def _check_nodes(self, nodes: set[EngineBase]) -> None:
        taken = {node.name for node in self._nodes_cache if node._hierarchy in (None, self.name)}
        for node in nodes:
            if node.name in taken:
                raise OSError(f'Duplicate node name "{node.name}" found.')
            taken.add(node.name)


def choose_model_file(scan: Scan, settings: Settings) -> str | None:
    """Return the model for a scan: the one asked for, else the shipped one nearest to its slice spacing.

    The file is an input of the graph's node, so that the cache notices when a new version ships another
    model. None when the scan's header cannot be read: the node that checks the scan reports it.
    """
    choice = settings.enhance
    files = list(candidates(choice.model, choice.contrast).values())
    if choice.model is not None:
        return os.fspath(files[0])
    try:
        geometry = geometry_of(scan, settings)
    except Exception:  # the conform node reports it, and fails this scan alone
        return None
    return os.fspath(choose_model(geometry, None, choice.contrast, choice.voxel_size)[0])


def _describe_std(model: str | None, settings: Settings) -> str | None:
    """Describe the standard deviation map of a model; None when it writes none."""
    card = None if model is None else card_of(model)
    kind = None if card is None else card.uncertainty(mirror=settings.enhance.mirror)
    return None if kind is None else description(card, kind, mirror=settings.enhance.mirror)


def _as_list(path):
    return [path]


def _of_residual(details_file, fields):
    import json

    with open(details_file) as stream:
        details = json.load(stream)
    return {
        **fields,
        "Description": "Scan minus the scan that the enhanced volume predicts, in the brain; 0 elsewhere.",
        "Units": "standard deviations of the noise",
        **{name: details[name] for name in ("SkullStripped", "DataConsistency", "Model", "PackageVersion")},
    }


def _with_skull(details_file, fields):
    import json

    with open(details_file) as stream:
        return {**fields, "SkullStripped": bool(json.load(stream).get("skull_stripped"))}
