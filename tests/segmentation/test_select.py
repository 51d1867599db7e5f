"""Choice of the engine for tissue maps: ready-made maps, then SPM, then the embedded engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import iqtflow
from conftest import make_affine, write_scan
from phantoms import Brain, make_brain
from pretend_spm import make_program, make_spm

from iqtflow.bids import find_scans
from iqtflow.cli import main as cli
from iqtflow.cli.commands.segment import main as segment
from iqtflow.cli.parser import parse
from iqtflow.config import SegmentationSettings, read_settings, write_settings
from iqtflow.interfaces.segmentation import summarise
from iqtflow.segmentation.precomputed import ReadyMaps, find_ready_maps, read_ready_maps
from iqtflow.segmentation.select import EngineChoice, check_engine, choose_engine, engine_for
from iqtflow.segmentation.spm.install import SpmNotFoundError
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.workflows.segment import init_segment_node

T1W = "sub-01/anat/sub-01_T1w.nii.gz"
AFFINE = make_affine((1.6, 1.6, 1.6))
TISSUES = ("WM", "GM", "CSF")


@pytest.fixture
def some_spm(monkeypatch, no_spm, tmp_path):
    """Let one SPM be found, by its variable."""
    monkeypatch.setenv("SPM_HOME", os.fspath(make_spm(tmp_path / "spm")))
    monkeypatch.setenv("OCTAVE_EXEC", os.fspath(make_program(tmp_path / "octave-cli", "exit 1")))


@pytest.fixture(scope="module")
def brain() -> Brain:
    return make_brain((72, 76, 72))


def write_maps(
    folder: Path,
    brain: Brain,
    stem: str = "sub-01",
    *,
    affine: np.ndarray = AFFINE,
    turn=lambda volume: volume,
    mask: bool = True,
) -> ReadyMaps:
    """Write maps like fMRIPrep, with a mask."""
    csf = np.clip(brain.mask - brain.wm - brain.gm, 0, 1).astype(np.float32)
    paths = []
    for label, tissue in zip(TISSUES, (brain.wm, brain.gm, csf), strict=True):
        paths.append(write_scan(folder / f"{stem}_label-{label}_probseg.nii.gz", turn(tissue), affine))
    if mask:
        name = f"{stem}_desc-brain_mask.nii.gz"
        paths.append(write_scan(folder / name, turn(brain.mask.astype(np.uint8)), affine))
    return ReadyMaps(*paths)


def as_image(brain: Brain, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    image = nib.Nifti1Image(brain.intensity, affine)
    image.set_filename("sub-01_T1w.nii.gz")
    return image


# --- which engine ---


@pytest.mark.usefixtures("some_spm")
def test_ready_made_maps_come_before_spm():
    maps = ReadyMaps(Path("wm"), Path("gm"), Path("csf"))
    assert choose_engine(maps=maps).engine == "derivatives"
    assert choose_engine().engine == "spm"


@pytest.mark.usefixtures("some_spm")
def test_spm_comes_before_the_embedded_engine_and_is_described_with_its_priors():
    choice = choose_engine()
    assert choice.spm.spm_source == "$SPM_HOME"
    assert "SPM12 r7771" in choice.describe()
    assert "NOT SPM's own" in choice.describe()


@pytest.mark.usefixtures("no_spm")
def test_without_spm_the_embedded_engine_is_taken_and_the_reason_said():
    choice = choose_engine()
    assert choice.engine == "ants"
    assert "$SPM_HOME" in choice.describe()


@pytest.mark.usefixtures("no_spm")
def test_a_user_who_asks_for_spm_does_not_get_another_engine(tmp_path):
    with pytest.raises(SpmNotFoundError):
        choose_engine("spm")
    with pytest.raises(SpmNotFoundError):
        choose_engine("auto", spm_dir=tmp_path / "nowhere")
    assert choose_engine("ants", spm_dir=tmp_path / "nowhere").engine == "ants"


def test_of_the_human_connectome_project_spm_gets_the_whole_head(some_spm, tmp_path):
    stripped = write_scan(tmp_path / "T1w_acpc_dc_restore_brain.nii.gz")
    head = write_scan(tmp_path / "T1w_acpc_dc_restore.nii.gz")
    link = tmp_path / "sub-01_T1w.nii.gz"
    link.symlink_to(stripped)  # the usual way to make a BIDS data set of them
    assert engine_for(link, SegmentationSettings()).whole_head == head
    assert engine_for(link, SegmentationSettings(engine="ants")).whole_head is None


# --- which maps belong to a scan ---


def test_maps_are_found_by_name_in_the_space_of_the_image_only(bids_tree):
    names = [f"sub-01/anat/sub-01_{kind}" for kind in ("label-{}", "space-MNI152NLin2009cAsym_label-{}")]
    root = bids_tree(*(f"{name.format(label)}_probseg.nii.gz" for name in names for label in TISSUES))
    found = find_ready_maps(f"/raw/{T1W}", root)
    assert [path.name for path in (found.wm, found.gm, found.csf)] == [
        f"sub-01_label-{label}_probseg.nii.gz" for label in TISSUES
    ]
    assert found.mask is None
    assert find_ready_maps("/raw/sub-02/anat/sub-02_T1w.nii.gz", root) is None


def test_maps_of_the_scan_are_preferred_to_maps_of_an_average(bids_tree):
    kinds = ("sub-01/ses-a/anat/sub-01_ses-a_run-2", "sub-01/anat/sub-01", "sub-01/ses-b/anat/sub-01_ses-b")
    root = bids_tree(
        *(f"{kind}_label-{label}_probseg.nii.gz" for kind in kinds for label in TISSUES),
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
    )

    def folder_of(scan: str) -> str:
        return find_ready_maps(scan, root).gm.name.split("_label")[0]

    assert folder_of("sub-01_ses-a_run-2_T1w.nii.gz") == "sub-01_ses-a_run-2"
    assert folder_of("sub-01_ses-a_run-1_T1w.nii.gz") == "sub-01"
    assert folder_of("sub-01_ses-b_T1w.nii.gz") == "sub-01_ses-b"
    assert find_ready_maps("sub-01_ses-c_T1w.nii.gz", root).mask.name == "sub-01_desc-brain_mask.nii.gz"


def test_two_of_three_tissues_are_no_maps(bids_tree):
    root = bids_tree(*(f"sub-01/anat/sub-01_label-{label}_probseg.nii.gz" for label in ("WM", "GM")))
    assert find_ready_maps(T1W, root) is None


# --- maps on the grid of their image ---


def test_maps_on_the_grid_of_the_image_are_taken_as_they_are(brain, tmp_path):
    maps = read_ready_maps(as_image(brain), brain.intensity, write_maps(tmp_path, brain))
    np.testing.assert_array_equal(maps.gm, brain.gm)
    np.testing.assert_array_equal(maps.mask, brain.mask)
    assert (maps.details["grid"], maps.details["remarks"]) == ("same", [])


def test_maps_that_were_turned_to_ras_come_back_without_loss(brain, tmp_path):
    """SMRIPrep reorders every image to RAS; the scanner can use any order and direction."""
    turned = nib.Nifti1Image(brain.intensity, AFFINE).as_reoriented([[2, 1], [0, -1], [1, 1]])
    image = nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine)
    image.set_filename("sub-01_T1w.nii.gz")
    maps = read_ready_maps(image, np.asarray(image.dataobj), write_maps(tmp_path, brain))
    expected = nib.Nifti1Image(brain.gm, AFFINE).as_reoriented([[2, 1], [0, -1], [1, 1]])
    assert maps.gm.shape != brain.gm.shape
    np.testing.assert_array_equal(maps.gm, np.asarray(expected.dataobj))
    assert (maps.details["grid"], maps.details["remarks"]) == ("turned", [])


def test_maps_on_coarser_voxels_are_interpolated_and_that_is_said(brain, tmp_path):
    coarse = Brain(*(volume[::2, ::2, ::2] for volume in (brain.intensity, brain.wm, brain.gm, brain.mask)))
    files = write_maps(tmp_path, coarse, affine=AFFINE @ np.diag([2, 2, 2, 1]))
    maps = read_ready_maps(as_image(brain), brain.intensity, files)
    assert maps.wm.shape == brain.wm.shape
    assert np.corrcoef(maps.wm.ravel(), brain.wm.ravel())[0, 1] > 0.95
    assert maps.wm.sum() == pytest.approx(brain.wm.sum(), rel=0.02)
    assert maps.details["grid"] == "resampled"
    assert any("interpolated" in remark for remark in maps.details["remarks"])


FAR = AFFINE + np.array([[0, 0, 0, 40], [0, 0, 0, 40], [0, 0, 0, 40], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("seed", "change", "words"),
    [
        pytest.param(
            7,
            {"turn": lambda volume: np.roll(volume[::-1], 6, axis=1)},
            r"explains 0\.\d+ of the variance .* at least 0\.35",
            id="another subject",
        ),
        pytest.param(0, {"affine": FAR}, r"only \d+% of its tissue inside", id="elsewhere in the world"),
        pytest.param(
            0,
            {"turn": lambda volume: volume * np.float32(255)},
            "values from 0 to 255; expected probabilities",
            id="no probabilities",
        ),
    ],
)
def test_maps_that_do_not_belong_to_the_image_are_refused(brain, tmp_path, seed, change, words):
    files = write_maps(tmp_path, make_brain((72, 76, 72), seed=seed), **change)
    with pytest.raises(InputError, match=words):
        read_ready_maps(as_image(brain), brain.intensity, files)


def test_without_a_mask_the_brain_is_where_the_tissues_are(brain, tmp_path):
    maps = read_ready_maps(as_image(brain), brain.intensity, write_maps(tmp_path, brain, mask=False))
    assert np.count_nonzero(maps.mask != brain.mask) < 0.01 * np.count_nonzero(brain.mask)


# --- the command ---


@pytest.fixture
def prepared(brain, tmp_path) -> tuple[Path, Path]:
    """Write a scan, and its maps as derivatives of another program."""
    scan = write_scan(tmp_path / "raw" / T1W, brain.intensity, AFFINE)
    root = tmp_path / "smriprep"
    write_maps(root / "sub-01/anat", brain)
    maker = {"Name": "sMRIPrep", "Version": "0.19.1"}
    (root / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [maker]}))
    return scan, root


def test_the_command_finds_the_maps_and_records_who_made_them(prepared, tmp_path, capsys):
    scan, root = prepared
    prefix = tmp_path / "out" / "x"
    assert (
        segment([str(scan), "--out-prefix", str(prefix), "--engine", "auto", "--derivatives", str(root)]) == 0
    )
    assert "ready-made maps" in capsys.readouterr().out
    record = json.loads(Path(f"{prefix}_segmentation.json").read_text())
    assert (record["Engine"], record["EngineVersion"]) == ("ready-made", "sMRIPrep 0.19.1")
    assert record["maps"]["GM"] == str(root / "sub-01/anat/sub-01_label-GM_probseg.nii.gz")
    assert record["Warnings"] == []
    for ending in ("label-WM_probseg", "desc-brain_mask", "desc-preproc_T1w"):
        assert nib.load(f"{prefix}_{ending}.nii.gz").shape == nib.load(scan).shape


def test_if_maps_are_required_a_scan_without_them_fails_with_a_next_step(prepared, tmp_path, capsys):
    scan = write_scan(tmp_path / "raw/sub-02/anat/sub-02_T1w.nii.gz")
    arguments = [str(scan), "--out-prefix", str(tmp_path / "x"), "--engine", "derivatives"]
    assert segment([*arguments, "--derivatives", str(prepared[1])]) == 1
    message = capsys.readouterr().err
    assert f"no tissue maps of it in {prepared[1]}" in message
    assert "choose auto" in message
    assert not list(tmp_path.glob("x*"))


@pytest.mark.usefixtures("no_spm")
def test_without_spm_the_command_says_where_it_looked(prepared, tmp_path, capsys):
    assert segment([str(prepared[0]), "--out-prefix", str(tmp_path / "x"), "--engine", "spm"]) == 2
    assert "$SPM_HOME" in capsys.readouterr().err


def test_the_line_for_the_terminal_tells_engine_priors_sampling_volumes_and_seconds():
    record = {
        "Engine": "SPM unified segmentation",
        "EngineVersion": "SPM12 r7771",
        "tpm_genuine": False,
        "sampling_distance_mm": 3.0,
        "volumes_ml": {"WM": 520.4, "GM": 700.0, "CSF": 300.0},
        "seconds": {"spm": 301.2},
        "Warnings": ["skull-stripped input"],
    }
    line, note = summarise("sub-01_T1w.nii.gz", record).splitlines()
    assert line == (
        "sub-01_T1w.nii.gz: tissue maps by SPM unified segmentation (SPM12 r7771); sampling 3 mm; "
        "priors that are not SPM's own; CSF 300 ml, GM 700 ml, WM 520 ml; 301 s"
    )
    assert note == "  note: skull-stripped input"


# --- the node ---


def test_other_engines_leave_the_cache_key_of_the_embedded_one_as_it_was(brain, tmp_path):
    node = init_segment_node(EngineChoice("ants", "asked for"), seed=3)
    node.inputs.in_file = write_scan(tmp_path / "T1w.nii.gz", brain.intensity, AFFINE)
    names = [name for name, _ in node.inputs.get_hashval(hash_method="content")[0]]
    assert names == ["in_file", "out_prefix", "seed", "skull_stripped"]
    assert (node.mem_gb, node.n_procs) == (3.0, 1)


@pytest.mark.usefixtures("some_spm")
def test_spm_has_its_own_resources_and_its_key_follows_version_priors_and_sampling(tmp_path):
    choice = choose_engine()
    node = init_segment_node(choice, omp_nthreads=8, sampling_mm=2.0)
    assert (node.mem_gb, node.n_procs, node.inputs.num_threads) == (2.0, 1, 1)

    def key() -> str:
        return node.inputs.get_hashval(hash_method="content")[1]

    before = key()
    node.inputs.spm_dir = tmp_path  # the same SPM at another place is the same SPM
    assert key() == before
    node.inputs.sampling_distance = 3.0
    assert key() != before
    node.inputs.sampling_distance = 2.0
    Path(choice.spm.tpm).write_bytes(b"other priors")
    assert key() != before


# --- the command line ---


def settle(*arguments: object):
    return cli.settle(parse([str(argument) for argument in arguments]))[0]


def test_the_options_are_in_the_settings_and_in_their_file(bids_tree, tmp_path, brain):
    write_maps(tmp_path / "maps" / "sub-01/anat", brain)
    settings = settle(
        *(bids_tree(T1W), tmp_path / "out", "participant", "--mode", "train"),
        *("--segmentation", "derivatives", "--derivatives", tmp_path / "maps", "--sampling-distance", 2),
    )
    assert settings.segmentation == SegmentationSettings(
        engine="derivatives", derivatives=(tmp_path / "maps",), sampling_mm=2.0
    )
    assert read_settings(write_settings(settings, tmp_path / "s.toml")) == settings


@pytest.mark.usefixtures("no_spm")
@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--segmentation", "spm"], "SPM_HOME"),
        (["--segmentation", "derivatives"], "no --derivatives"),
        (["--segmentation", "ants", "--derivatives", "{empty}"], "--segmentation ants"),
        (["--segmentation", "derivatives", "--derivatives", "{empty}"], "no tissue maps of any image"),
        (["--derivatives", "/nowhere/at/all"], "no folder"),
        (["--tpm", "/nowhere/TPM.nii"], "no file"),
    ],
)
def test_what_cannot_be_segmented_is_refused_before_anything_is_written(bids_tree, tmp_path, options, found):
    (tmp_path / "empty").mkdir()
    options = [option.format(empty=tmp_path / "empty") for option in options]
    with pytest.raises(UsageError, match=found):
        settle(bids_tree(T1W), tmp_path / "out", "participant", "--mode", "train", *options)
    assert not (tmp_path / "out").exists()


def test_enhancing_takes_no_option_of_the_segmentation(bids_tree, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        settle(bids_tree(T1W), tmp_path / "out", "participant", "--segmentation", "ants")
    assert ended.value.code == 2
    assert "--segmentation is for --mode train" in capsys.readouterr().err


@pytest.mark.usefixtures("no_spm")
def test_scans_without_maps_go_to_the_next_engine_and_the_terminal_says_how_many(bids_tree, tmp_path, brain):
    root = bids_tree(T1W, "sub-02/anat/sub-02_T1w.nii.gz")
    write_maps(tmp_path / "maps" / "sub-01/anat", brain)
    settings = SegmentationSettings(derivatives=(tmp_path / "empty", tmp_path / "maps"))
    scans = [scan.path for scan in find_scans(root)]
    assert [engine_for(scan, settings).engine for scan in scans] == ["derivatives", "ants"]
    text = check_engine(scans, settings)
    assert "1 of 2 images by ready-made maps" in text
    assert "1 of 2 images by embedded engine" in text


@pytest.mark.usefixtures("some_spm")
def test_a_slab_gets_the_embedded_engine_unless_spm_is_asked_for(tmp_path):
    slab = write_scan(tmp_path / "slab.nii.gz", np.ones((90, 90, 12), np.float32), make_affine((2, 2, 6)))
    head = write_scan(tmp_path / "head.nii.gz")
    assert engine_for(slab, SegmentationSettings()).engine == "ants"
    assert "80 mm" in check_engine([slab, head], SegmentationSettings())
    assert engine_for(head, SegmentationSettings()).engine == "spm"
    assert engine_for(slab, SegmentationSettings(engine="spm")).engine == "spm"


# --- the doctor ---


@pytest.mark.usefixtures("no_spm")
def test_the_doctor_takes_the_arguments_of_a_run_and_its_exit_code_says_whether_it_can_start(
    monkeypatch, capsys, tmp_path, brain
):
    monkeypatch.setattr("iqtflow.cli.doctor.available_memory_gb", lambda: 16.0)
    common = ["--doctor", "--mode", "train", "--device", "cpu", "--segmentation"]
    assert cli.main([*common, "ants"]) == 0
    assert "Ready to run." in capsys.readouterr().out
    assert cli.main([*common, "derivatives"]) == 1
    assert "Name it with --derivatives." in capsys.readouterr().out
    assert cli.main([*common, "derivatives", "--derivatives", str(tmp_path)]) == 1
    write_maps(tmp_path / "sub-01" / "anat", brain)
    assert cli.main([*common, "derivatives", "--derivatives", str(tmp_path)]) == 0
    assert "1 grey-matter maps" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert cli.main(["/data", str(tmp_path / "file" / "out"), "participant", *common, "spm"]) == 1
    screen = capsys.readouterr().out
    assert "Output" in screen and "--spm-dir" in screen and "2 faults" in screen


# --- a whole run ---


@pytest.mark.slow
def test_only_a_subject_without_the_required_maps_fails(prepared, bids_tree, brain, tmp_path):
    _, derivatives = prepared
    root = bids_tree()
    for label in ("01", "02"):
        write_scan(root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", brain.intensity, AFFINE)
    out = tmp_path / "out"
    run = iqtflow(
        *(root, out, "participant", "--mode", "train", "-w", tmp_path / "work", "--nprocs", 1),
        *("--segmentation", "derivatives", "--derivatives", derivatives),
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 of 2 images by ready-made maps" in run.stdout
    assert "sub-01_T1w.nii.gz: tissue maps by ready-made (sMRIPrep 0.19.1)" in run.stdout
    assert "1 prepared, 0 skipped, 1 failed" in run.stdout
    assert "no tissue maps of it" in "".join(run.stdout.splitlines()[-4:])
    sidecar = json.loads((out / "sub-01/anat/sub-01_label-GM_probseg.json").read_text())
    assert sidecar["EngineVersion"] == "sMRIPrep 0.19.1"
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    gm = nib.load(out / "sub-01/anat/sub-01_label-GM_probseg.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(gm, brain.gm)
    assert (out / "patches/sub-01_patches.safetensors").exists()
    assert not (out / "sub-02/anat").exists()  # only its page exists
