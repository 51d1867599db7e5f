"""Scans of one session become one more volume of the run; every scan keeps its own."""

from __future__ import annotations

import os

import pytest
from clinics import dataset, settle, write_thick_scan

from iqtflow.bids import list_scans
from iqtflow.bids.names import output_name
from iqtflow.bids.sessions import find_sessions
from iqtflow.workflows.app.graphs import build_participant_graph
from iqtflow.workflows.app.plan import choose_scans, print_plan


def folder(subject: str, session: str = "") -> str:
    return f"sub-{subject}/{f'ses-{session}/' if session else ''}anat"


@pytest.fixture
def clinic(tmp_path, untrained_model):
    """Two scans of one session, one of another session, a near-isotropic one, and a subject with one scan."""
    bids = dataset(tmp_path / "bids")
    for name, k in (("acq-cor", 4), ("acq-tra_run-1", 4), ("acq-3D", 1)):
        write_thick_scan(bids / folder("1", "a") / f"sub-1_ses-a_{name}_T1w.nii.gz", k=k)
    write_thick_scan(bids / folder("1", "b") / "sub-1_ses-b_T1w.nii.gz")
    write_thick_scan(bids / folder("2") / "sub-2_T1w.nii.gz")
    return settle(
        *(bids, tmp_path / "out", "participant", "-w", tmp_path / "work"),
        *("--model", untrained_model, "--combine-stacks", "--skip-bids-validation"),
    )


def test_scans_that_differ_in_acq_or_run_belong_together_and_no_others(bids_tree):
    names = ["acq-cor_T1w", "acq-tra_T1w", "acq-tra_ce-gd_T1w", "rec-norm_T1w", "run-2_T1w"]
    root = bids_tree(
        *(f"{folder('1')}/sub-1_{name}.nii.gz" for name in names), f"{folder('2')}/sub-2_T1w.nii.gz"
    )
    ((combined, scans),) = find_sessions(list_scans(root).scans)
    assert {scan.name for scan in scans} == {"sub-1_acq-cor_T1w", "sub-1_acq-tra_T1w", "sub-1_run-2_T1w"}
    assert output_name("combined", combined).as_posix() == "sub-1/anat/sub-1_desc-iqtcombined_T1w.nii.gz"


def test_the_graph_combines_the_scans_of_a_session_and_shows_the_result_on_the_page(clinic):
    settings, listing = clinic
    graph = build_participant_graph(choose_scans(listing, settings).chosen, settings, name="run")
    nodes = {name for name in graph.list_node_names() if "combine" in name}
    part = "sub_1_ses_a_T1w_combined"
    assert f"{part}.combine" in nodes and f"{part}.sink_combined_std" in nodes
    assert {name.split(".")[0] for name in nodes} == {part}
    node = graph.get_node(f"{part}.combine")
    assert [os.path.basename(file) for file in node.inputs.in_files] == [
        "sub-1_ses-a_acq-cor_T1w.nii.gz",
        "sub-1_ses-a_acq-tra_run-1_T1w.nii.gz",
    ]
    sources = graph.get_node(f"{part}.sink_combined").inputs.metadata["Sources"]
    assert sources == [f"bids:raw:{name}" for name in node.inputs.names]
    page = graph.get_node("report_1").inputs
    assert page.outputs_named[-1].endswith("sub-1_ses-a_desc-iqtcombined_T1w.nii.gz")
    assert len(page.inputs_named) == 4 and len(graph.get_node("report_2").inputs.inputs_named) == 1


def test_without_the_option_nothing_is_combined(clinic):
    settings, listing = clinic
    object.__setattr__(settings.enhance, "combine_stacks", False)
    graph = build_participant_graph(choose_scans(listing, settings).chosen, settings, name="run")
    assert not [name for name in graph.list_node_names() if "combine" in name]


def test_a_dry_run_names_the_combined_volume_and_the_near_isotropic_scan(clinic, capsys):
    settings, listing = clinic
    print_plan(settings, listing)
    said = capsys.readouterr().out
    assert "sub-1_ses-a_desc-iqtcombined_T1w.nii.gz" in said
    assert "acq-3D_T1w.nii.gz\n  skipped" in said
