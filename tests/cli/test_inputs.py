"""Which scans a run takes: filters, a kept index, downloads of HCP; and what is said of faults."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from contextlib import nullcontext
from pathlib import Path

import pytest
from clinics import settle
from conftest import make_affine, make_head, write_scan

from iqtflow.bids import derivative_name, find_scans, list_scans
from iqtflow.bids.index import read_filters, wipe_database
from iqtflow.bids.validation import Fault, _look, summarise, validate
from iqtflow.cli import main as cli
from iqtflow.image.metadata import drop_invalid_fields, read_fields
from iqtflow.utils.errors import UsageError

VISITS = (
    "sub-01/ses-pre/anat/sub-01_ses-pre_acq-axial_run-1_T1w.nii.gz",
    "sub-01/ses-pre/anat/sub-01_ses-pre_acq-axial_run-2_T1w.nii.gz",
    "sub-01/ses-pre/anat/sub-01_ses-pre_acq-3D_rec-norm_T1w.nii.gz",
    "sub-01/ses-post/anat/sub-01_ses-post_T1w.nii.gz",
    "sub-02/anat/sub-02_T1w.nii.gz",
)


def names(scans) -> list[str]:
    return [scan.path.name.removesuffix("_T1w.nii.gz") for scan in scans]


# --- filters ---


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"session": "pre"}, [2, 0, 1]),
        ({"session": None}, [4]),
        ({"session": ["pre", None], "run": None}, [2, 4]),
        ({"acquisition": "*"}, [2, 0, 1]),
        ({"acquisition": "axial", "run": 2}, [1]),
        ({"reconstruction": "norm"}, [2]),
        ({"MagneticFieldStrength": 0.36}, [3, 4]),
        ({}, [3, 2, 0, 1, 4]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_filter_asks_for_entities_or_metadata(bids_tree, filters, kept):
    low = {"MagneticFieldStrength": 0.36}
    sidecars = {VISITS[i].replace(".nii.gz", ".json"): low for i in (3, 4)}
    root = bids_tree(*VISITS, sidecars=sidecars)
    expected = [Path(VISITS[i]).name.removesuffix("_T1w.nii.gz") for i in kept]
    assert names(find_scans(root, filters=filters)) == expected


def test_a_filter_file_is_read_as_fmriprep_reads_it(tmp_path):
    file = tmp_path / "filters.json"
    file.write_text('{"bold": {"task": "rest"}, "t1w": {"session": null, "acquisition": "*"}}')
    assert read_filters(file, "T1w") == {"session": None, "acquisition": "*"}
    assert read_filters(file, "FLAIR") == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "filters.json"),
        ("[1]", r"found \[1\] as the whole"),
        ('{"t1w": "pre"}', 'found "t1w": "pre"; expected'),
        ('{"t1w": null}', 'found "t1w": null; expected'),
        ('{"t1w": {"session": "\\ud800"}}', r'filters.json: found session: "\\ud800"; expected'),
        ('{"t1w": {"run": 99999999999999999999999}}', "found run: 99999999999999999999999; expected"),
        pytest.param(
            f'{{"t1w": {{"run": {"9" * 5000}}}}}', "found run: Infinity; expected", id="5000 digits"
        ),
        ('{"t1w": {"session": {"a": 1}}}', "session"),
    ],
)
def test_a_filter_file_that_cannot_be_meant_is_refused(tmp_path, text, named):
    (tmp_path / "filters.json").write_text(text)
    with pytest.raises(UsageError, match=named):
        read_filters(tmp_path / "filters.json")


def test_a_short_entity_name_in_a_filter_is_corrected(bids_tree):
    with pytest.raises(UsageError, match="acq"):
        find_scans(bids_tree(*VISITS), filters={"acq": "axial"})


def test_a_field_that_no_sidecar_has_is_named(bids_tree):
    with pytest.raises(UsageError, match='found Foo: "x", which no sidecar or name here has'):
        find_scans(bids_tree(*VISITS), filters={"Foo": "x"})


def test_a_number_of_thousands_of_digits_in_a_sidecar_is_not_used(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(f'{{"SliceThickness": {"9" * 5000}, "SkullStripped": true}}')
    fields, notes = drop_invalid_fields(read_fields(path), path)
    assert fields == {"SkullStripped": True} and "SliceThickness is Infinity" in notes[0]


def test_the_filter_file_reaches_the_run(bids_tree, tmp_path, monkeypatch):
    (tmp_path / "filters.json").write_text('{"t1w": {"run": 2}}')
    monkeypatch.chdir(tmp_path)
    options = ["--bids-filter-file", "filters.json", "--participant-label", "01", "--skip-bids-validation"]
    settings, listing = settle(bids_tree(*VISITS), "out", "participant", *options)
    assert settings.inputs.filter_file == tmp_path / "filters.json"
    assert names(listing.scans) == ["sub-01_ses-pre_acq-axial_run-2"]


def test_filters_that_leave_nothing_are_blamed(bids_tree):
    with pytest.raises(UsageError, match="passes the filters"):
        find_scans(bids_tree(*VISITS), filters={"session": "never"})


# --- an index that is kept ---


def test_an_index_is_kept_and_serves_the_next_run_until_it_is_wiped(bids_tree, tmp_path):
    root, index = bids_tree(*VISITS), tmp_path / "index"
    assert names(find_scans(root, subjects=["02"], database_dir=index)) == ["sub-02"]
    # Made for one subject, it serves another; and a scan that came later is not in it.
    (root / "sub-02/anat/sub-02_run-2_T1w.nii.gz").touch()
    assert len(find_scans(root, subjects=["01"], database_dir=index)) == 4
    assert len(find_scans(root, subjects=["02"], database_dir=index)) == 1
    assert wipe_database(index)
    assert len(find_scans(root, subjects=["02"], database_dir=index)) == 2
    assert [path.name for path in index.iterdir()] == ["layout_index.sqlite"]


def test_an_index_of_another_data_set_is_refused(bids_tree, tmp_path):
    find_scans(bids_tree(*VISITS, name="one"), database_dir=tmp_path / "index")
    with pytest.raises(UsageError, match="--bids-database-wipe"):
        find_scans(bids_tree(*VISITS, name="other"), database_dir=tmp_path / "index")


def test_wiping_touches_the_index_alone(bids_tree, tmp_path):
    root, index = bids_tree(*VISITS), tmp_path / "index"
    index.mkdir()
    (index / "thesis.docx").touch()
    options = ["--bids-database-dir", index, "--skip-bids-validation"]
    settle(root, tmp_path / "out", "participant", *options)
    made = (index / "layout_index.sqlite").stat().st_mtime_ns
    settle(root, tmp_path / "out", "participant", *options, "--bids-database-wipe")
    assert (index / "layout_index.sqlite").stat().st_mtime_ns > made
    assert (index / "thesis.docx").exists()


def test_the_index_never_goes_into_the_data_set(bids_tree, tmp_path):
    root = bids_tree(*VISITS)
    with pytest.raises(UsageError, match="the index inside the input"):
        settle(root, tmp_path / "out", "participant", "--bids-database-dir", root / "db")


# --- HCP ---


def hcp_tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.mark.parametrize(
    ("files", "taken", "stripped"),
    [
        (["100307/T1w/T1w_acpc_dc_restore.nii.gz"], 0, False),
        (["100307/T1w/T1w_acpc_dc_restore.nii.gz", "100307/T1w/T1w_acpc_dc_restore_brain.nii.gz"], 1, True),
        (["100307/T1w/100307_acpc_dc_restore_brain.nii.gz"], 0, True),
        (["100307/100307_acpc_dc_restore.nii.gz"], 0, False),
        (["100307/T1w/100307_brain.nii.gz"], 0, True),
    ],
    ids=["head", "head and brain", "named by subject", "flat", "brain alone"],
)
def test_downloads_of_hcp_are_recognised_by_themselves(tmp_path, files, taken, stripped):
    root = hcp_tree(
        tmp_path / "HCP", *files, "100307/T1w/T1w_acpc_dc_restore_1.25.nii.gz", "100307/MNINonLinear/x"
    )
    (scan,) = find_scans(root)
    assert scan.path == root / files[taken]
    assert scan.sidecar == {"SkullStripped": stripped}
    assert (scan.name, scan.uri) == ("sub-100307_T1w", f"bids:raw:{files[taken]}")
    assert derivative_name(scan, desc="iqt") == Path("sub-100307/anat/sub-100307_desc-iqt_T1w.nii.gz")


def test_visits_of_the_lifespan_studies_become_sessions(tmp_path):
    image = "T1w/T1w_acpc_dc_restore_brain.nii.gz"
    root = hcp_tree(
        tmp_path, f"HCA6002236_V1_MR/{image}", f"HCA6002236_V2_MR/{image}", f"HCD0001305_V1_MR/{image}"
    )
    assert [(s.subject, s.session) for s in find_scans(root)] == [
        ("HCA6002236", "V1"),
        ("HCA6002236", "V2"),
        ("HCD0001305", "V1"),
    ]
    assert [s.session for s in find_scans(root, subjects=["sub-HCA6002236"], sessions=["ses-V2"])] == ["V2"]
    with pytest.raises(UsageError, match="no sub-1"):
        find_scans(root, subjects=["1"])


def test_two_folders_of_hcp_never_become_one_subject(tmp_path):
    image = "T1w/T1w_acpc_dc_restore.nii.gz"
    listing = list_scans(hcp_tree(tmp_path, f"a-b/{image}", f"ab/{image}", f"c/{image}"))
    assert [scan.subject for scan in listing.scans] == ["c"]
    assert [left.path.parts[-3] for left in listing.left_out] == ["a-b", "ab"]
    assert "ab/T1w" in listing.left_out[0].reason and "a-b/T1w" in listing.left_out[1].reason


def test_an_hcp_image_that_datalad_has_not_fetched_is_found_all_the_same(tmp_path):
    (tmp_path / "100307/T1w").mkdir(parents=True)
    link = tmp_path / "100307/T1w/T1w_acpc_dc_restore.nii.gz"
    link.symlink_to("../../.git/annex/objects/absent")
    assert [scan.path for scan in find_scans(tmp_path)] == [link]


@pytest.mark.parametrize("unlocked", [False, True])
def test_a_description_that_datalad_has_not_fetched_is_asked_for(tmp_path, unlocked):
    (tmp_path / "sub-01/anat").mkdir(parents=True)
    path = tmp_path / "dataset_description.json"
    if unlocked:
        path.write_text("/annex/objects/MD5E-s80--0123.json\n")
    else:
        path.symlink_to(".git/annex/objects/absent")
    with pytest.raises(UsageError, match=f"datalad get {path}"):
        find_scans(tmp_path)


def test_subjects_of_hcp_whose_files_have_one_name_stay_apart_in_a_graph(tmp_path):
    from iqtflow.workflows.app.graphs import build_participant_graph

    for label in ("100307", "100408"):
        path = tmp_path / f"HCP/{label}/T1w/T1w_acpc_dc_restore_brain.nii.gz"
        write_scan(path, make_head((48, 48, 12)), make_affine((2.0, 2.0, 8.0)))
    options = ["participant", "--device", "cpu"]
    settings, _ = settle(tmp_path / "HCP", tmp_path / "out", *options)
    scans = find_scans(tmp_path / "HCP")
    graph = build_participant_graph(scans, settings, name="enhance")
    given = graph.get_node("sub_100408_T1w.inputnode").inputs
    assert given.in_file == str(tmp_path / "HCP/100408/T1w/T1w_acpc_dc_restore_brain.nii.gz")
    sink = graph.get_node("sub_100307_T1w.sink_enhanced").inputs
    assert sink.name == "sub-100307/anat/sub-100307_desc-iqt_T1w.nii.gz"
    assert sink.metadata["Sources"] == ["bids:raw:100307/T1w/T1w_acpc_dc_restore_brain.nii.gz"]
    options += ["--mode", "calibrate", "--segmentation", "ants"]
    settings, _ = settle(tmp_path / "HCP", tmp_path / "out", *options)
    graph = build_participant_graph(scans, settings, name="calibrate")
    given = graph.get_node("sub_100307_T1w.inputnode").inputs
    assert (given.label, given.skull_stripped) == ("sub-100307_T1w", "yes")


def test_a_folder_that_is_neither_says_what_both_look_like(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(UsageError, match=r"dataset_description\.json.*T1w_acpc_dc_restore"):
        find_scans(tmp_path)


@pytest.mark.parametrize("mode", ["enhance", "train", "calibrate"])
def test_all_modes_take_hcp(tmp_path, capsys, mode):
    voxel_mm = (4.0, 4.0, 4.2) if mode == "train" else (2.0, 2.0, 8.0)
    for label in ("100307", "100408"):
        path = tmp_path / f"HCP/{label}/T1w/T1w_acpc_dc_restore_brain.nii.gz"
        write_scan(path, make_head((48, 48, 40 if mode == "train" else 12)), make_affine(voxel_mm))
    arguments = [str(tmp_path / "HCP"), str(tmp_path / "out"), "participant", "--mode", mode, "--dry-run"]
    engine = [] if mode == "enhance" else ["--segmentation", "ants"]
    assert cli.main([*arguments, *engine, "--participant-label", "100307"]) == 0
    told = capsys.readouterr().out
    expected = {
        "enhance": "sub-100307/anat/sub-100307_desc-iqt_T1w.nii.gz",
        "train": "patches/sub-100307_patches.safetensors",
        "calibrate": "calibration/sub-100307_T1w_snr.json",
    }[mode]
    assert expected in told
    assert "100408" not in told


# --- faults of a data set ---


def test_faults_are_told_in_few_lines_that_name_files(tmp_path):
    faults = [
        Fault("NOT_INCLUDED", "no such name", f"sub-{i:02d}/anat/sub-{i:02d}_t1w.nii.gz") for i in range(40)
    ]
    faults += [Fault("NOT_INCLUDED", "no such name", f"sub-{i:02d}/func/x.nii.gz") for i in range(7)]
    lines = summarise(faults, tmp_path)
    assert len(lines) == 2
    assert "sub-00/anat/sub-00_t1w.nii.gz" in lines[0] and "37 more" in lines[0]
    assert lines[1].startswith("7 faults in files that are not read")


def test_faults_of_subjects_that_are_not_processed_are_only_counted(tmp_path):
    faults = [Fault("NOT_INCLUDED", "", f"sub-{label}/anat/x") for label in ("01", "02")]
    lines = summarise(faults, tmp_path, ["02"])
    assert "sub-02/anat/x" in lines[0] and "sub-01" not in "".join(lines)


def test_many_kinds_of_faults_are_not_a_wall(tmp_path):
    faults = [Fault(f"CODE_{i}", "x", "sub-01/anat/x") for i in range(50)]
    assert len(summarise(faults, tmp_path)) == 6


def test_without_a_validator_names_and_description_are_looked_at(bids_tree):
    root = bids_tree(
        *("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_t1.nii.gz"),
        sidecars={"dataset_description.json": {"Name": "x"}},
    )
    assert [(f.code, f.file) for f in _look(root)] == [
        ("JSON_KEY_REQUIRED", "dataset_description.json"),
        ("NOT_INCLUDED", "sub-01/anat/sub-01_t1.nii.gz"),
    ]


def test_of_some_subjects_only_their_names_are_looked_at(bids_tree):
    root = bids_tree("sub-01/ses-a/anat/sub-01_ses-a_t1.nii.gz", "sub-02/anat/sub-02_t1.nii.gz")
    faults, notes = validate(root, ["01"])
    assert [fault.file for fault in faults] == ["sub-01/ses-a/anat/sub-01_ses-a_t1.nii.gz"]
    assert notes == []


def test_a_validator_that_breaks_is_told_and_replaced(bids_tree, monkeypatch):
    root = bids_tree("sub-01/anat/sub-01_t1.nii.gz")
    monkeypatch.setattr("iqtflow.bids.validation.sys.executable", "/nowhere/python")
    monkeypatch.setattr("iqtflow.bids.validation.shutil.which", lambda _: "/bin/false")
    faults, notes = validate(root)
    assert [fault.file for fault in faults] == ["sub-01/anat/sub-01_t1.nii.gz"]
    assert "bids-validator-deno failed" in notes[0]


@pytest.mark.parametrize("skip", [[], ["--skip-bids-validation"]], ids=["looked over", "skipped"])
def test_a_description_that_is_no_json_stops_a_run_unless_told_otherwise(bids_tree, tmp_path, capsys, skip):
    root = bids_tree("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_t1.nii.gz")
    (root / "dataset_description.json").write_text("{")
    refused = pytest.raises(UsageError, match="--skip-bids-validation")
    with nullcontext() if skip else refused:
        settle(root, tmp_path / "out", "participant", *skip)
    assert "not BIDS" not in capsys.readouterr().out


def test_a_misnamed_scan_is_told_and_stops_nobody(bids_tree, tmp_path, capsys):
    root = bids_tree("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_t1.nii.gz")
    settle(root, tmp_path / "out", "participant")
    assert "sub-01/anat/sub-01_t1.nii.gz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"T1w": {"session": "pre"}}, "the key 'T1w'"),
        ({"T1W": {"session": "pre"}}, "the key 'T1W'"),
        ({"t1": {"session": "pre"}}, "the key 't1'"),
        ({"t1w": {"return_type": "id"}}, "'return_type' in 't1w'"),
        ({"t1w": {"regex_search": True}}, "'regex_search' in 't1w'"),
        ({"t1w": {"acq": "axial"}}, r"'acq' in 't1w'; expected .*acquisition"),
        ({"t1w": {"run": True}}, "run: true"),
        ({"t1w": {"run": []}}, r"run: \[\]"),
        ({"t1w": {"suffix": ["T1w", "T2w"]}}, "one value"),
        ({"t1w": {"extension": None}}, "extension: null"),
        ({"t1w": {"Nowhere": 3}}, "Nowhere"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_filter_that_would_match_nothing_ends_with_code_2(bids_tree, tmp_path, capsys, filters, named):
    (tmp_path / "f.json").write_text(json.dumps(filters))
    arguments = [str(bids_tree(*VISITS)), str(tmp_path / "out"), "participant", "--dry-run"]
    assert cli.main([*arguments, "--bids-filter-file", str(tmp_path / "f.json")]) == 2
    assert re.search(named, capsys.readouterr().err)


@pytest.mark.parametrize("content", [b"no database", b"", "other", "folder"])
def test_an_index_that_is_none_is_to_be_made_anew(bids_tree, tmp_path, capsys, content):
    index = tmp_path / "index" / "layout_index.sqlite"
    index.parent.mkdir()
    if content == "other":
        with sqlite3.connect(index) as database:
            database.execute("create table layout_info (id integer)")
    elif content == "folder":
        index.mkdir()
    else:
        index.write_bytes(content)
    arguments = [str(bids_tree(*VISITS)), str(tmp_path / "out"), "participant", "--dry-run"]
    assert cli.main([*arguments, "--bids-database-dir", str(index.parent)]) == 2
    said = capsys.readouterr().err
    assert "--bids-database-wipe" in said and "SELECT" not in said


def test_an_index_serves_a_data_set_that_is_reached_through_a_link(bids_tree, tmp_path):
    root = bids_tree(*VISITS)
    (tmp_path / "link").symlink_to(root)
    find_scans(root, database_dir=tmp_path / "index")
    scans = find_scans(tmp_path / "link", database_dir=tmp_path / "index")
    assert len(scans) == len(VISITS) and all(scan.root == tmp_path / "link" for scan in scans)


@pytest.mark.parametrize("place", ["T1w.json", "sub-01/ses-pre/anat/sub-01_ses-pre_acq-3D_rec-norm_T1w.json"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "metadata"])
def test_a_sidecar_that_is_a_pipe_is_passed_by_where_pybids_would_wait_for_it(
    bids_tree, tmp_path, place, kept
):
    root = bids_tree(*VISITS, sidecars={"sub-02/anat/sub-02_T1w.json": {"MagneticFieldStrength": 0.36}})
    os.mkfifo(root / place)
    options = {"database_dir": tmp_path / "index"} if kept else {}
    assert names(find_scans(root, filters={"MagneticFieldStrength": 0.36}, **options)) == ["sub-02"]


def test_an_index_is_a_folder(bids_tree, tmp_path):
    (tmp_path / "index").touch()
    with pytest.raises(UsageError, match="found a file; expected a folder"):
        settle(bids_tree(*VISITS), "out", "participant", "--bids-database-dir", tmp_path / "index")
