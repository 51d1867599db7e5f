"""Files with an invalid name or a shared output name are left out with a reason; the rest is processed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from conftest import make_affine, make_head, write_scan

from iqtflow.bids import derivative_name, find_scans, list_scans
from iqtflow.bids.validation import summarise, validate
from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.utils.errors import UsageError

T1W = "sub-01/anat/sub-01_T1w.nii.gz"


def left_out(root: Path, **options) -> dict[str, str]:
    """Return the names of files that are left out, with the reasons."""
    return {left.path.name: left.reason for left in list_scans(root, **options).left_out}


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("sub-01/anat/sub-02_T1w.nii.gz", "found sub-02 in its name; expected sub-01, as its folder says"),
        ("sub-01/anat/brain_T1w.nii.gz", "found 'brain' in its name; expected entities of BIDS"),
        ("sub-01/anat/sub-01_defaced_T1w.nii.gz", "found 'defaced' in its name"),
        ("sub-01/anat/sub-01_site-a_T1w.nii.gz", "found 'site-a' in its name"),
        ("sub-01/anat/sub-01_acq-_T1w.nii.gz", "found 'acq-' in its name"),
        ("sub-01/anat/sub-01_acq-a_acq-b_T1w.nii.gz", "found two entities acq-"),
        ("sub-01/anat/sub-01_acq-é_T1w.nii.gz", "letters, digits and + in a label"),
        ("sub-01/anat/sub-01.2_T1w.nii.gz", "found the label '01.2'"),
        ("sub-01/anat/sub-01_ses-1_T1w.nii.gz", "found ses-1 in its name; expected no ses-"),
        ("sub-01/anat/acq-a_T1w.nii.gz", "found no sub- in its name; expected sub-01"),
        ("sub-01/ses-1/anat/sub-01_acq-a_T1w.nii.gz", "found no ses- in its name; expected ses-1"),
        ("sub-01/ses-1/anat/sub-01_ses-2_T1w.nii.gz", "found ses-2 in its name; expected ses-1"),
        ("sub-01-a/anat/sub-01-a_T1w.nii.gz", "found the label '01-a'"),
        ("sub-/anat/sub-_T1w.nii.gz", "found 'sub-' in its name"),
        ("sub-{0}/anat/sub-{0}_T1w.nii.gz".format("b" * 236), "found a name of 244 characters; expected"),
        (f"sub-01/anat/sub-01_acq-{'a' * 201}_T1w.nii.gz", "found a name of 216 characters"),
        ("sub-01/anat/sub-01_T1w.NII.gz", "found the ending '.NII.gz'; expected small letters"),
    ],
)
def test_a_file_with_an_invalid_name_is_left_out_and_the_rest_is_found(bids_tree, file, found):
    root = bids_tree("sub-03/anat/sub-03_T1w.nii.gz", file)
    listing = list_scans(root)
    assert [scan.subject for scan in listing.scans] == ["03"]
    (left,) = listing.left_out
    assert left.path == root / file
    assert left.subject == file.split("/")[0].removeprefix("sub-")
    assert found in left.reason and left.reason.endswith("Rename the file.")


def test_a_subject_with_only_invalid_names_does_not_stop_the_run(bids_tree):
    root = bids_tree(*(f"sub-01/ses-{i}/anat/sub-01_T1w.nii.gz" for i in (1, 2)))
    listing = list_scans(root, subjects=["01"])
    assert (listing.scans, len(listing.left_out)) == ([], 2)
    assert len(list_scans(root, sessions=["1"]).left_out) == 1


def test_entities_may_stand_in_any_order_and_labels_may_have_a_plus_sign(bids_tree):
    root = bids_tree("sub-01+a/anat/sub-01+a_run-1_acq-t1+x_T1w.nii.gz")
    (scan,) = find_scans(root)
    assert (scan.subject, left_out(root)) == ("01+a", {})
    assert derivative_name(scan, desc="iqt") == Path(
        "sub-01+a/anat/sub-01+a_acq-t1+x_run-1_desc-iqt_T1w.nii.gz"
    )


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["sub-01_T1w.nii.gz", "sub-01_desc-defaced_T1w.nii.gz"], 0),
        (["sub-01_acq-a_run-1_T1w.nii.gz", "sub-01_run-1_acq-a_T1w.nii.gz"], 0),
        (["sub-01_T1w.nii.gz", "sub-01_T1w.nii"], 0),
        (["sub-01_desc-b_T1w.nii.gz", "sub-01_desc-b_T1w.nii"], 0),
        (["sub-01_T1w.nii", "sub-01_desc-a_T1w.nii.gz", "sub-01_desc-b_T1w.nii.gz"], 0),
        (["sub-01_desc-a_T1w.nii.gz", "sub-01_desc-b_T1w.nii.gz"], None),
    ],
    ids=["desc", "order", "both extensions", "desc, both extensions", "three", "two descs"],
)
def test_of_scans_with_the_same_output_name_the_simplest_is_taken(bids_tree, names, taken):
    root = bids_tree(*(f"sub-01/anat/{name}" for name in names), "sub-02/anat/sub-02_T1w.nii.gz")
    listing = list_scans(root)
    kept = [names[taken]] if taken is not None else []
    assert [scan.path.name for scan in listing.scans] == [*kept, "sub-02_T1w.nii.gz"]
    reasons = left_out(root)
    assert set(reasons) == set(names) - set(kept)
    for name, reason in reasons.items():
        assert all(other in reason for other in set(names) - {name})
        assert (f"{kept[0]} is taken" if kept else "None of them is taken") in reason


def test_a_filter_decides_between_scans_with_one_output_name(bids_tree):
    root = bids_tree("sub-01/anat/sub-01_desc-a_T1w.nii.gz", "sub-01/anat/sub-01_desc-b_T1w.nii.gz")
    listing = list_scans(root, filters={"desc": "b"})
    assert [scan.path.name for scan in listing.scans] == ["sub-01_desc-b_T1w.nii.gz"]
    assert listing.left_out == []


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
@pytest.mark.parametrize("filters", [None, {"acquisition": "odd"}], ids=["listed", "filtered"])
def test_what_is_no_file_is_not_waited_for(bids_tree, monkeypatch, kind, filters):
    root = bids_tree(T1W)
    odd = root / "sub-01/anat/sub-01_acq-odd_T1w.nii.gz"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(odd.parent)  # a socket's path has 107 characters at most
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(odd.name)
    if kind == "folder" and filters:  # pybids does not list it
        return
    assert "expected a file" in left_out(root, filters=filters)[odd.name]


def test_a_sidecar_or_description_that_is_a_pipe_is_not_waited_for(bids_tree, tmp_path):
    root = bids_tree(T1W)
    os.mkfifo(root / "sub-01/anat/sub-01_T1w.json")
    (scan,) = find_scans(root)
    assert "a pipe or a device, not a file" in scan.warnings[0]
    os.mkfifo(tmp_path / "dataset_description.json")
    with pytest.raises(UsageError, match=r"dataset_description\.json"):
        find_scans(tmp_path)


def test_files_of_macos_beside_a_scan_are_none(bids_tree):
    root = bids_tree(T1W, "sub-01/anat/._sub-01_T1w.nii.gz")
    assert len(find_scans(root)) == 1 and left_out(root) == {}


def test_a_name_that_no_terminal_can_show_is_escaped(bids_tree):
    root = bids_tree(T1W)
    (root / "sub-01/anat/sub-01_acq-\udcff\n_T1w.nii.gz").touch()
    (left,) = list_scans(root).left_out
    assert str(left).isprintable() and "acq-\\udcff\\n" in str(left)


# --- validation, dry run and run report the same ---


@pytest.fixture
def mixed(bids_tree) -> Path:
    """Write a near-isotropic scan, one with an invalid name for raw data, and two that are left out."""
    names = ("sub-01_T1w", "sub-01_space-a_T1w", "sub-01_desc-x_T1w", "sub-02_T1w")
    root = bids_tree(T1W, "sub-01/anat/sub-01_t1.nii.gz")
    for name in names:
        write_scan(root / f"sub-01/anat/{name}.nii.gz", make_head((40, 40, 30)), make_affine((4.0, 4.0, 5.0)))
    return root


@pytest.mark.parametrize("labels", [[], ["01"]], ids=["validator", "names"])
def test_the_validation_says_of_each_file_whether_it_is_read(mixed, labels):
    faults, _ = validate(mixed, labels)
    lines = summarise(faults, mixed, labels, list_scans(mixed))
    about = {
        name: next(line for line in lines if f"{name}.nii.gz" in line)
        for name in ("sub-01_t1", "sub-01_space-a_T1w", "sub-01_desc-x_T1w", "sub-02_T1w")
    }
    assert "; not read (" in about["sub-01_t1"]
    assert "; read nevertheless (" in about["sub-01_space-a_T1w"]
    assert "left out" in about["sub-01_desc-x_T1w"] and "left out" in about["sub-02_T1w"]


def test_dry_run_and_run_leave_out_the_same_files_and_end_with_code_1(mixed, tmp_path, capsys):
    arguments = [str(mixed), str(tmp_path / "out"), "participant", "--device", "cpu"]
    reasons = left_out(mixed)
    assert len(reasons) == 2
    for more, counted in ((["--dry-run"], "0 that will fail, 2 left out"), ([], "0 failed, 2 left out")):
        assert cli.main([*arguments, *more]) == 1
        told = capsys.readouterr().out
        assert counted in told
        for name, reason in reasons.items():
            assert name in told and reason in told
    page = (tmp_path / "out" / "sub-01.html").read_text()
    assert "left out" in page and "sub-02_T1w.nii.gz" in page
    assert not (tmp_path / "out" / "sub-02").exists()


def test_the_group_level_goes_on_after_a_file_was_left_out(mixed, tmp_path, capsys):
    arguments = [str(mixed), str(tmp_path / "out"), "participant", "group", "--mode", "calibrate"]
    assert cli.main([*arguments, "--device", "cpu", "--segmentation", "ants"]) == 2
    assert "no measured scan" in capsys.readouterr().err, "all are near-isotropic: the group level has begun"


def test_subjects_that_differ_by_a_plus_sign_have_folders_of_their_own_everywhere(bids_tree, tmp_path):
    from iqtflow.workflows.app.graphs import build_participant_graph
    from iqtflow.workflows.execution.progress import step_of

    labels = ["01", "01+a", "01a", "01++"]
    root = bids_tree(*(f"sub-{label}/anat/sub-{label}_T1w.nii.gz" for label in labels))
    settings, _ = cli.settle(parse([str(root), str(tmp_path / "out"), "participant", "--device", "cpu"]))
    scans = find_scans(root)
    for mode in ("enhance", "calibrate"):
        run = dataclasses.replace(settings.run, mode=mode)
        graph = build_participant_graph(scans, dataclasses.replace(settings, run=run), name="graph")
        names = [part.name for part in graph._graph if part.name.startswith("sub_")]
        assert len(set(names)) == len(labels)
        told = {step_of(f"{name}.enhance").subject for name in names}
        assert told == {f"sub-{label}" for label in labels}


# --- folders that are no data set ---


def test_one_subjects_folder_leads_to_the_folder_above(bids_tree):
    root = bids_tree(T1W)
    for part in ("sub-01", "sub-01/anat"):
        with pytest.raises(UsageError, match=f"{root}, with --participant-label 01"):
            list_scans(root / part)


def test_dicom_files_are_to_be_converted_first(tmp_path):
    folder = tmp_path / "study" / "series"
    folder.mkdir(parents=True)
    (folder / "IM0001").write_bytes(bytes(128) + b"DICM")
    for given in (tmp_path / "study", folder / "IM0001"):
        with pytest.raises(UsageError, match="dcm2niix -b y -z y"):
            list_scans(given)


def test_names_that_are_too_long_are_refused(bids_tree, tmp_path, capsys):
    root, long = str(bids_tree(T1W)), "a" * 300
    out = str(tmp_path / "out")
    for arguments in (
        [f"{tmp_path}/{long}", out, "participant"],
        [root, out, "participant", "--model", long],
        [root, out, "participant", "--bids-filter-file", long],
        [root, out, "participant", "--bids-database-dir", f"{tmp_path}/{long}"],
        [root, out, "participant", "--mode", "train", "--derivatives", long],
        [root, out, "participant", "--mode", "train", "--snr-prior", long],
    ):
        assert cli.main(arguments) == 2
        assert long in capsys.readouterr().err


def test_loose_images_go_to_iqtflow_enhance(tmp_path):
    image = tmp_path / "a scan.nii.gz"
    image.touch()
    for given in (tmp_path, image):
        with pytest.raises(UsageError, match=f"iqtflow-enhance '{image}' enhanced"):
            list_scans(given)


@pytest.mark.parametrize("place", ["input", "output", "work"])
def test_a_path_that_is_not_utf8_is_refused(bids_tree, tmp_path, capsys, place):
    paths = {"input": str(bids_tree(T1W)), "output": str(tmp_path / "out"), "work": str(tmp_path / "w")}
    odd = f"{tmp_path}/\udcff"
    if place == "input":
        shutil.copytree(paths["input"], odd)
    paths[place] = odd
    assert cli.main([paths["input"], paths["output"], "participant", "-w", paths["work"]]) == 2
    said = capsys.readouterr().err
    assert "\\udcff" in said
    assert "UTF-8" in said


def test_percent_signs_are_characters_like_any_other(tmp_path, monkeypatch):
    """In nipype's settings, a percent sign once referred to other settings."""
    from nipype import config

    monkeypatch.setitem(config._sections["execution"], "crashdump_dir", "")  # restored afterwards
    root = tmp_path / "in %d"
    write_scan(root / T1W, make_head((40, 40, 30)), make_affine((4.0, 4.0, 5.0)))
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    out = tmp_path / "out %(home)s 100%"
    assert (
        cli.main([str(root), str(out), "participant", "-w", str(tmp_path / "w %s"), "--device", "cpu"]) == 0
    )
    assert (out / "index.html").is_file()
