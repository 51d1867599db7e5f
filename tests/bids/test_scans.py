"""Scans of a data set are found, their outputs are named, and their metadata are read."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import write_scan
from validate_bids import find_faults

from iqtflow.bids import (
    derivative_name,
    find_scans,
    list_scans,
    scan_seed,
    write_dataset_description,
    write_sidecar,
)
from iqtflow.utils.errors import UsageError

T1W = "sub-01/anat/sub-01_T1w.nii.gz"


def test_every_t1w_is_found_and_nothing_else(bids_tree):
    root = bids_tree(
        T1W,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3D_run-02_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "derivatives/other/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-09/anat/sub-09_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_part-phase_T1w.nii.gz",
    )
    found = find_scans(root)
    assert [str(scan.path.relative_to(root)) for scan in found] == [
        T1W,
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3D_run-02_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
    ]
    assert [(scan.subject, scan.session) for scan in found] == [("01", None), ("02", "a"), ("02", "b")]


@pytest.mark.parametrize("subjects", [["02"], ["sub-02"], ["02", "sub-02"]])
@pytest.mark.parametrize("sessions", [None, ["pre"], ["ses-pre"], ["ses-pre", "pre"]])
def test_labels_have_a_prefix_or_not_and_count_once(bids_tree, subjects, sessions):
    names = [f"sub-02/ses-{s}/anat/sub-02_ses-{s}_T1w.nii.gz" for s in ("post", "pre")]
    listing = list_scans(
        bids_tree(T1W, *names, "sub-021/anat/sub-021_T1w.nii.gz"), subjects=subjects, sessions=sessions
    )
    found = [(scan.subject, scan.session) for scan in listing.scans]
    assert found == ([("02", "pre")] if sessions else [("02", "post"), ("02", "pre")])
    assert listing.left_out == []


def test_other_contrasts_can_be_asked_for(bids_tree):
    root = bids_tree(T1W, "sub-01/anat/sub-01_FLAIR.nii.gz")
    assert [scan.path.name for scan in find_scans(root, suffix="FLAIR")] == ["sub-01_FLAIR.nii.gz"]


def test_a_scan_that_lies_behind_a_dangling_link_is_still_listed(bids_tree):
    # git-annex: the content has not been fetched. Only this subject fails, with a message.
    root = bids_tree("sub-02/anat/sub-02_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
    (root / T1W).symlink_to("../../.git/annex/objects/absent.nii.gz")
    assert [scan.subject for scan in find_scans(root)] == ["01", "02"]


def test_metadata_are_inherited_and_the_nearest_wins(bids_tree):
    root = bids_tree(
        "sub-01/ses-a/anat/sub-01_ses-a_acq-2D_T1w.nii.gz",
        sidecars={
            "T1w.json": {"MagneticFieldStrength": 0.36, "SliceThickness": 5.0},
            "T2w.json": {"EchoTime": 9},
            "acq-3D_T1w.json": {"EchoTime": 8},
            "sub-01/sub-01_acq-2D_T1w.json": {"SliceThickness": 6.0},
            "sub-01/ses-a/anat/sub-01_ses-a_acq-2D_T1w.json": {"SpacingBetweenSlices": 7.2},
        },
    )
    (scan,) = find_scans(root)
    assert scan.sidecar == {"MagneticFieldStrength": 0.36, "SliceThickness": 6.0, "SpacingBetweenSlices": 7.2}
    assert scan.sidecar_path == root / "sub-01/ses-a/anat/sub-01_ses-a_acq-2D_T1w.json"


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ([], {}, "no T1w image"),
        (["sub-01/anat/sub-01_T2w.nii.gz"], {}, "no T1w image"),
        ([T1W, "sub-02/anat/sub-02_T2w.nii.gz"], {"subjects": ["01", "02"]}, "no T1w image of sub-02"),
        ([T1W, "sub-02/anat/sub-02_T1w.nii.gz"], {"subjects": ["01", "03"]}, "no sub-03; .*sub-01, sub-02"),
        ([T1W], {"sessions": ["x"]}, r"no ses-x; .*ses-\* at all"),
    ],
)
def test_without_a_scan_or_with_an_unknown_label_the_error_names_what_is_missing(
    bids_tree, files, options, words
):
    with pytest.raises(UsageError, match=words):
        find_scans(bids_tree(*files), **options)


def test_a_folder_that_is_no_data_set_or_is_missing_is_refused(tmp_path):
    for folder, words in ((tmp_path, r"dataset_description\.json"), (tmp_path / "absent", "found nothing")):
        with pytest.raises(UsageError, match=words):
            find_scans(folder)


def test_derivatives_keep_every_entity_of_the_scan_in_the_order_of_bids(bids_tree):
    (scan,) = find_scans(bids_tree("sub-01/ses-a/anat/sub-01_ses-a_acq-3D_rec-n_run-02_T1w.nii"))
    assert derivative_name(scan, desc="iqt") == Path(
        "sub-01/ses-a/anat/sub-01_ses-a_acq-3D_rec-n_run-02_desc-iqt_T1w.nii.gz"
    )
    assert derivative_name(scan, label="WM", suffix="probseg", extension=".json") == Path(
        "sub-01/ses-a/anat/sub-01_ses-a_acq-3D_rec-n_run-02_label-WM_probseg.json"
    )


def test_a_derivative_cannot_be_given_a_label_that_is_none(bids_tree):
    (scan,) = find_scans(bids_tree(T1W))
    with pytest.raises(ValueError, match="desc-iqt_std"):
        derivative_name(scan, desc="iqt_std")


def test_a_sidecar_holds_numbers_whoever_computed_them(tmp_path):
    path = write_sidecar(
        tmp_path / "new" / "x.json",
        {"a": np.float64(2.1), "b": np.array([1, 2]), "c": None, "d": Path("/x"), "e": np.bool_(True)},
    )
    assert json.loads(path.read_text()) == {"a": 2.1, "b": [1, 2], "d": "/x", "e": True}


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    (tmp_path / "x.json").write_text("before")
    with pytest.raises(ValueError, match="JSON"):
        write_sidecar(tmp_path / "x.json", {"snr": float("nan")})
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "before"


def test_jobs_can_write_the_same_description_at_the_same_time(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_dataset_description(tmp_path / "out", source_dir=tmp_path), range(64)))
    assert (
        json.loads((tmp_path / "out" / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        ".bidsignore",
        "README.md",
        "dataset_description.json",
    ]


def test_the_source_of_derivatives_inside_the_data_set_moves_with_it(tmp_path):
    path = write_dataset_description(
        tmp_path / "bids" / "derivatives" / "iqtflow", source_dir=tmp_path / "bids"
    )
    assert json.loads(path.read_text())["DatasetLinks"] == {"raw": "../.."}


def test_derivatives_as_written_pass_the_bids_validator(bids_tree, tmp_path):
    root = bids_tree("sub-01/ses-a/anat/sub-01_ses-a_run-02_T1w.nii.gz")
    (scan,) = find_scans(root)
    out = tmp_path / "out"
    write_dataset_description(out, source_dir=root)
    for name in (
        derivative_name(scan, desc="iqt"),
        derivative_name(scan, desc="iqtstd"),
        derivative_name(scan, label="WM", suffix="probseg"),
        derivative_name(scan, desc="brain", suffix="mask"),
    ):
        write_sidecar(
            out / name.with_name(name.name.replace(".nii.gz", ".json")),
            {"Sources": [scan.uri], "SkullStripped": False},
        )
        write_scan(out / name, np.ones((4, 4, 4), "uint8"))
    for extra in ("sub-01/figures/a.svg", "models/m.safetensors", "sub-01.html", "logs/l.txt"):
        (out / extra).parent.mkdir(exist_ok=True)
        (out / extra).write_text("x")
    assert [fault for fault in find_faults(out) if fault.startswith("error")] == []


@pytest.mark.real_data
def test_inheritance_agrees_with_pybids_on_real_data(real_data):
    from bids import BIDSLayout

    layout = BIDSLayout(real_data / "mixed", validate=False)
    scans = find_scans(real_data / "mixed")
    assert {str(scan.path): scan.sidecar for scan in scans} == {
        file.path: file.get_metadata() for file in layout.get(suffix="T1w", extension=[".nii", ".nii.gz"])
    }


def test_no_two_scans_share_a_simulated_draw(bids_tree):
    names = [f"sub-{i:02d}/ses-{j}/anat/sub-{i:02d}_ses-{j}_T1w.nii.gz" for i in range(20) for j in "ab"]
    scans = find_scans(bids_tree(*names))
    seeds = [scan_seed(scan, seed) + draw for scan in scans for seed in (0, 1) for draw in range(8)]
    assert len(set(seeds)) == len(seeds) == 20 * 2 * 2 * 8
    assert max(seeds) < 2**53, "a seed is written to JSON without loss"
    assert scan_seed(scans[0], 0) == scan_seed(scans[0], 0)


# --- values of sidecars ---


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("SkullStripped", True, True),
        ("SkullStripped", False, False),
        ("SkullStripped", "false", None),
        ("SkullStripped", "true", None),
        ("SkullStripped", "n/a", None),
        ("SkullStripped", 1, None),
        ("SliceThickness", 5, 5.0),
        ("SliceThickness", "10", None),
        ("SliceThickness", "n/a", None),
        ("SliceThickness", 0, None),
        ("SliceThickness", -5, None),
        ("SliceThickness", [5], None),
        ("SliceThickness", True, None),
        ("SliceThickness", float("nan"), None),
        ("SpacingBetweenSlices", float("inf"), None),
        ("SpacingBetweenSlices", 10**400, None),
        ("MagneticFieldStrength", "0.36T", None),
    ],
)
def test_an_invalid_value_is_ignored_with_a_note_that_names_the_json_file(bids_tree, field, value, read):
    sidecar = "sub-01/sub-01_T1w.json"
    root = bids_tree(T1W, sidecars={sidecar: {field: value}, "T1w.json": {field: True}})
    (scan,) = find_scans(root)
    assert scan.sidecar == ({} if read is None else {field: read}), "the nearest file wins, right or wrong"
    if read is None:
        (note,) = scan.warnings
        assert note.startswith(f"{root / sidecar}: {field} is ") and "It is not used" in note
    else:
        assert scan.warnings == ()


def test_null_in_a_sidecar_means_not_known(bids_tree):
    root = bids_tree(T1W, sidecars={"T1w.json": {"SkullStripped": None, "SliceThickness": None}})
    (scan,) = find_scans(root)
    assert (scan.sidecar, scan.warnings) == ({}, ())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"[5]", "a list, not an object"),
        (b'{"SliceThickness": 5', "delimiter"),
        (b'{"X": "\xff"}', "utf-8"),
        (b"[" * 100_000, "recursion"),
        (None, "a folder"),
    ],
    ids=["empty", "list", "cut", "not UTF-8", "deep", "folder"],
)
def test_only_the_metadata_of_an_unreadable_sidecar_are_ignored(bids_tree, content, why):
    other = "sub-02/anat/sub-02_T1w.nii.gz"
    root = bids_tree(T1W, other, sidecars={"T1w.json": {"SliceThickness": 6}})
    path = root / "sub-01/anat/sub-01_T1w.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    scan, second = find_scans(root)
    assert scan.sidecar == second.sidecar == {"SliceThickness": 6.0}
    assert str(path) in scan.warnings[0] and why in scan.warnings[0]
    assert second.warnings == ()


def test_a_byte_order_mark_is_no_fault(bids_tree):
    root = bids_tree(T1W)
    (root / "sub-01/anat/sub-01_T1w.json").write_bytes(b'\xef\xbb\xbf{"SkullStripped": true}')
    (scan,) = find_scans(root)
    assert (scan.sidecar, scan.warnings) == ({"SkullStripped": True}, ())


@pytest.mark.parametrize(
    ("stated", "told"), [(True, "yes"), (False, "no"), ("false", "auto"), (None, "auto")]
)
@pytest.mark.parametrize("mode", ["train", "calibrate"])
def test_a_text_for_skull_stripped_is_not_used(bids_tree, tmp_path, mode, stated, told):
    from iqtflow.cli import main as cli
    from iqtflow.cli.parser import parse
    from iqtflow.workflows.app.graphs import build_participant_graph

    root = bids_tree(T1W, sidecars={"T1w.json": {"SkullStripped": stated}})
    arguments = [str(root), str(tmp_path / "out"), "participant", "--mode", mode, "--segmentation", "ants"]
    settings, _ = cli.settle(parse([*arguments, "--device", "cpu"]))
    graph = build_participant_graph(find_scans(root), settings, name="graph")
    assert graph.get_node("sub_01_T1w.inputnode").inputs.skull_stripped == told
