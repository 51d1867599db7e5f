"""A run of SPM proves its success or fails plainly; what goes in and what comes out is judged.

No SPM is needed here: where a process has to run, it is a shell script that behaves as Octave does in one way
or another. The same about a real SPM under a real Octave is in ``test_spm_real.py``.
"""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pretend_spm import SUCCESS, make_program, make_spm
from scipy.io import savemat

from iqtflow.interfaces.spm import UnifiedSegmentation
from iqtflow.segmentation.spm.checks import SpmFigures, find_unstripped_sibling, judge, measure
from iqtflow.segmentation.spm.install import find_spm
from iqtflow.segmentation.spm.job import (
    SpmError,
    expected_outputs,
    run_m_code,
    run_unified_segmentation,
    single_thread_environment,
)
from iqtflow.segmentation.spm.script import DEFAULT_TISSUES, UnifiedSegmentationSettings, job_script
from iqtflow.segmentation.spm.segment import brain_from_tissues, segment_with_spm
from iqtflow.utils.errors import InputError, OutputError
from iqtflow.utils.system import peak_memory_gb


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """Return a compressed whole-head sized image in a folder of its own."""
    image = nib.Nifti1Image(
        np.random.default_rng(0).uniform(1, 9, (12, 12, 12)).astype("float32"), np.diag([10, 10, 10, 1])
    )
    path = tmp_path / "raw" / "sub-01_T1w.nii.gz"
    path.parent.mkdir()
    image.to_filename(path)
    return path


@pytest.fixture
def octave(tmp_path: Path):
    """Return a function that makes an installation whose Octave is a shell script."""

    def make(body: str):
        spm = tmp_path / "spm" if (tmp_path / "spm").exists() else make_spm(tmp_path / "spm")
        program = make_program(tmp_path / "bin" / "octave-cli", body)
        return find_spm(spm_dir=spm, octave=program, environ={})

    return make


# The job


def test_standalone_spm_runs_the_job_with_its_own_priors(tmp_path, head):
    record = tmp_path / "arguments"
    said = f"echo IQTFLOW-SPM-TPM /somewhere/TPM.nii; echo $# $1 $2 $3 > {record}; {SUCCESS}"
    launcher = make_program(tmp_path / "mcr" / "run_spm12.sh", said)
    found = find_spm(environ={"FORCE_SPMMCR": "1", "SPMMCRCMD": f"{launcher} /opt/mcr script"})
    run = run_unified_segmentation(head, tmp_path / "out", installation=found)
    assert record.read_text().split() == ["3", "/opt/mcr", "script", "iqtflow_job.m"]
    assert run.tpm == Path("/somewhere/TPM.nii")


def test_the_job_calls_unified_segmentation_directly_and_names_nothing_of_the_users():
    code = job_script(UnifiedSegmentationSettings(), ["TPM1.nii"] * 6)
    assert code.isascii()
    assert "spm_preproc_run(job)" in code
    assert "jobman" not in code  # its failures crash Octave up to 10.1
    assert {line.split("'")[1] for line in code.splitlines() if ".vols" in line} == {"T1.nii,1"}
    for callback in ("crash_dumps_octave_core(false)", "sigterm_dumps_octave_core(false)"):
        assert callback in code


def test_the_gaussians_per_class_are_those_of_spm12():
    assert [tissue.gaussians for tissue in DEFAULT_TISSUES] == [1, 1, 2, 3, 4, 2]


def test_the_sampling_distance_is_a_setting_of_the_job():
    scripts = [job_script(UnifiedSegmentationSettings(sampling_mm=mm), ["TPM1.nii"] * 6) for mm in (2.0, 3.0)]
    assert "job.warp.samp = 2.0;" in scripts[0]
    assert "job.warp.samp = 3.0;" in scripts[1]


def test_the_child_process_has_one_thread(octave, head, tmp_path):
    run_unified_segmentation(
        head, tmp_path / "out", installation=octave(f"env > {tmp_path / 'env'}; {SUCCESS}")
    )
    environment = (tmp_path / "env").read_text().splitlines()
    assert {"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"} <= set(environment)
    assert single_thread_environment({"A": "b", "OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "1"


def test_the_private_folder_is_empty_but_for_plain_names_and_the_image_is_unpacked_in_it(
    octave, head, tmp_path
):
    listing = tmp_path / "listing"
    look = f"ls -A > {listing}; head -c 352 T1.nii > {tmp_path / 'header'}; {SUCCESS}"
    run_unified_segmentation(head, tmp_path / "out", installation=octave(look))
    assert set(listing.read_text().split()) == {"T1.nii", "TPM1.nii", "iqtflow_job.m", "iqtflow_job.log"}
    assert (tmp_path / "header").read_bytes() == gzip.decompress(head.read_bytes())[:352]


def test_outputs_arrive_together_under_the_users_name_and_the_users_folder_stays_as_it_was(
    octave, head, tmp_path
):
    before = {p.name: p.read_bytes() for p in head.parent.iterdir()}
    run = run_unified_segmentation(head, tmp_path / "out", installation=octave(SUCCESS))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *(f"c{i}sub-01_T1w.nii" for i in range(1, 6)),
        "msub-01_T1w.nii",
        "sub-01_T1w_seg8.mat",
    }
    assert run.native[0].name == "c1sub-01_T1w.nii"
    assert run.native[5] is None
    assert {p.name: p.read_bytes() for p in head.parent.iterdir()} == before


def test_an_error_in_octaves_farewell_is_no_error(octave, head, tmp_path):
    farewell = "echo 'error: ignoring const execution_exception& while preparing to exit' >&2"
    run = run_unified_segmentation(head, tmp_path / "out", installation=octave(f"{SUCCESS}; {farewell}"))
    assert run.parameters.exists()


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("exit 0", "no completion"),
        (f"{SUCCESS}; exit 1", "exit code 1"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("kill -KILL $$", "SIGKILL .out of memory"),
        ("exit 139", "SIGSEGV"),
        ("echo IQTFLOW-SPM-ERROR spm:bad '| Cannot read volume'; exit 3", "Cannot read volume"),
        (f"{SUCCESS}; rm c2T1.nii", "no new c2T1.nii"),
        (f"{SUCCESS}; touch -d 2001-01-01 c3T1.nii", "no new c3T1.nii"),
        (f"{SUCCESS}; : > mT1.nii", "no new mT1.nii"),
    ],
)
def test_old_outputs_beside_a_run_that_did_not_complete_are_not_taken_for_new_ones(
    octave, head, tmp_path, behaviour, complaint
):
    out = tmp_path / "out"
    stale = expected_outputs(out, "sub-01_T1w", UnifiedSegmentationSettings())
    out.mkdir()
    for path in [*stale["native"][:5], stale["bias_corrected"], stale["parameters"]]:
        path.write_text("old")
    with pytest.raises(SpmError, match=complaint):
        run_unified_segmentation(head, out, installation=octave(behaviour))
    assert {p.read_text() for p in out.iterdir()} == {"old"}  # no new file, no private folder left behind


def test_a_run_that_takes_too_long_is_ended(octave, head, tmp_path):
    start = time.monotonic()
    with pytest.raises(SpmError, match=r"still running after 0\.3 s"):
        run_unified_segmentation(head, tmp_path / "out", installation=octave("exec sleep 60"), timeout_s=0.3)
    assert time.monotonic() - start < 10


def test_octave_that_cannot_be_started_is_an_error_with_a_next_step(octave, head, tmp_path):
    installation = octave("true")
    installation.octave.write_bytes(b"\x7fELF no program")
    with pytest.raises(SpmError, match="doctor"):
        run_unified_segmentation(head, tmp_path / "out", installation=installation)


def test_an_unwritable_folder_is_noticed_before_anything_is_started(octave, head, tmp_path):
    (tmp_path / "file").touch()
    installation = octave(f"touch {tmp_path / 'started'}; {SUCCESS}")
    with pytest.raises(OutputError):
        run_unified_segmentation(head, tmp_path / "file" / "out", installation=installation)
    with pytest.raises(OutputError):
        segment_with_spm(head, installation=installation, work_dir=tmp_path / "gone")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(OutputError):
            run_unified_segmentation(head, tmp_path / "locked", installation=installation)
    assert not (tmp_path / "started").exists()


# What goes in


def write(path: Path, data: np.ndarray, voxel_mm: float = 10.0, **header) -> Path:
    # nibabel writes an sform wherever it is given an affine.
    affine = None if "sform_code" in header else np.diag([voxel_mm] * 3 + [1])
    image = nib.Nifti1Image(data.astype("float32"), affine)
    image.header.set_zooms([voxel_mm] * 3 + [1] * (data.ndim - 3))
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)
    return path


NOISE = np.random.default_rng(1).uniform(1, 9, (12, 12, 12))


@pytest.mark.parametrize(
    ("name", "data", "header", "complaint"),
    [
        ("4-D", np.stack([NOISE, NOISE], axis=3), {}, "dimensions"),
        ("single slice", NOISE[:, :, :1], {}, "single slice"),
        ("slab of 40 mm", NOISE[:, :, :4], {}, "field of view"),
        ("zeros", 0 * NOISE, {}, "value 0 in every voxel"),
        ("constant", 0 * NOISE + 7, {}, "value 7 in every voxel"),
        ("NaN", np.nan * NOISE, {}, "NaN"),
        ("neither sform nor qform", NOISE, {"sform_code": 0, "qform_code": 0}, "left and right are a guess"),
    ],
)
def test_what_spm_would_turn_into_garbage_is_refused_before_it_starts(
    octave, tmp_path, name, data, header, complaint
):
    path = write(tmp_path / "T1w.nii.gz", data, **header)
    installation = octave(f"touch {tmp_path / 'started'}; {SUCCESS}")
    with pytest.raises(InputError, match=complaint):
        segment_with_spm(path, installation=installation)
    assert not (tmp_path / "started").exists()


def test_an_image_in_memory_without_a_place_in_the_world_is_refused_too(octave, tmp_path):
    path = write(tmp_path / "T1w.nii.gz", NOISE, sform_code=0, qform_code=0)
    with pytest.raises(InputError, match="left and right are a guess"):
        segment_with_spm(nib.load(path), installation=octave(SUCCESS))


def test_a_truncated_image_is_refused_by_name(octave, head, tmp_path):
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(head.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cut\.nii\.gz"):
        segment_with_spm(cut, installation=octave(SUCCESS))
    with pytest.raises(InputError, match="damaged"):
        run_unified_segmentation(cut, tmp_path / "out", installation=octave(SUCCESS))


def test_the_whole_head_beside_a_stripped_hcp_image_is_preferred(tmp_path):
    stripped = tmp_path / "T1w_acpc_dc_restore_brain.nii.gz"
    whole = tmp_path / "T1w_acpc_dc_restore.nii.gz"
    stripped.touch()
    assert find_unstripped_sibling(stripped) is None
    whole.touch()
    assert find_unstripped_sibling(stripped) == whole
    assert find_unstripped_sibling(whole) is None
    assert find_unstripped_sibling(tmp_path / "sub-01_T1w.nii.gz") is None


# What comes out


PLAUSIBLE = dict(
    determinant=1.2,
    rotation_deg=15.0,
    stretch=1.1,
    gm_ml=750.0,
    wm_ml=460.0,
    csf_ml=350.0,
    explained=0.87,
    coverage=1.0,
)


def test_a_usual_head_passes_without_remark():
    assert judge(SpmFigures(**PLAUSIBLE), "T1w.nii") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"determinant": -1.2},
        {"determinant": 3.0},
        {"stretch": 2.0},
        {"gm_ml": 0.0, "wm_ml": 0.0, "csf_ml": 0.0},
        {"gm_ml": 2500.0},
        {"explained": 0.3},
        {"coverage": 0.4},
    ],
)
def test_maps_of_no_head_are_refused_with_the_figures(wrong):
    with pytest.raises(InputError, match=r"det\(affine\).*GM.*coverage"):
        judge(SpmFigures(**{**PLAUSIBLE, **wrong}), "T1w.nii")


@pytest.mark.parametrize(
    ("odd", "remark"),
    [
        ({"determinant": 1.8}, "size"),
        ({"rotation_deg": 92.0}, "mislabelled"),
        ({"stretch": 1.5}, "shape"),
        ({"explained": 0.7}, "loosely"),
        ({"coverage": 0.8}, "outside the image"),
    ],
)
def test_an_unusual_head_passes_with_a_remark(odd, remark):
    (said,) = judge(SpmFigures(**{**PLAUSIBLE, **odd}), "T1w.nii")
    assert remark in said


def ball(radius_mm: float, mm: float = 4.0, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    centre = (n - 1) / 2 * mm
    grid = np.indices((n, n, n)) * mm - centre
    affine = np.diag([mm, mm, mm, 1])
    affine[:3, 3] = -centre
    return (grid**2).sum(axis=0) < radius_mm**2, affine


def test_rotation_and_scale_are_read_from_spms_affine(tmp_path):
    inside, affine = ball(60)
    turn = nib.affines.from_matvec(1.1 * np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]))  # 90 degrees about z
    savemat(tmp_path / "seg8.mat", {"Affine": turn})
    image = nib.Nifti1Image(inside.astype("float32"), affine)
    gm = inside.astype("float32")
    figures = measure(tmp_path / "seg8.mat", image, (gm, 0 * gm, 0 * gm), gm, None)
    assert figures.rotation_deg == pytest.approx(90, abs=0.01)
    assert figures.determinant == pytest.approx(1.1**3)
    assert figures.stretch == pytest.approx(1)
    assert figures.gm_ml == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.02)


def test_a_brain_half_outside_the_image_is_half_covered(tmp_path):
    inside, affine = ball(60)
    savemat(tmp_path / "seg8.mat", {"Affine": np.eye(4)})
    gm = inside[:, :, 25:].astype("float32")
    affine[2, 3] += 25 * affine[2, 2]
    image = nib.Nifti1Image(gm, affine)
    coverage = measure(tmp_path / "seg8.mat", image, (gm, 0 * gm, 0 * gm), gm, None).coverage
    assert 0.4 < coverage < 0.7


def test_maps_that_follow_the_image_explain_its_intensities_and_others_do_not(tmp_path):
    outer, affine = ball(70)
    middle, inner = ball(60)[0], ball(45)[0]
    savemat(tmp_path / "seg8.mat", {"Affine": np.eye(4)})
    noise = np.random.default_rng(0).normal(0, 3, outer.shape)
    intensity = np.where(
        outer, 100.0 * inner + 65 * (middle & ~inner) + 30 * (outer & ~middle) + noise + 5, 0
    )
    image = nib.Nifti1Image(intensity.astype("float32"), affine)
    true = [m.astype("float32") for m in (middle & ~inner, inner, outer & ~middle)]
    moved = [np.roll(m, 15, axis=0) for m in true]
    assert measure(tmp_path / "seg8.mat", image, true, intensity, None).explained > 0.95
    assert measure(tmp_path / "seg8.mat", image, moved, intensity, None).explained < 0.5


def test_the_brain_mask_is_one_piece_without_holes_and_keeps_brains_that_touch_the_border():
    inside, _ = ball(60)
    probability = inside.astype("float32")
    probability[25, 25, 25] = 0  # a hole
    probability[0, 0, 0] = 1  # a speck
    assert (brain_from_tissues(probability) & ~inside).sum() < 0.02 * inside.sum()
    assert brain_from_tissues(probability)[25, 25, 25]
    assert not brain_from_tissues(probability)[0, 0, 0]
    assert brain_from_tissues(inside[:, :, 25:].astype("float32"))[25, 25, 0]


# In the place of nipype's NewSegment


def test_inputs_and_outputs_are_those_of_nipypes_newsegment():
    from nipype.interfaces.spm.preprocess import NewSegmentInputSpec, NewSegmentOutputSpec

    ours = UnifiedSegmentation()
    assert set(NewSegmentInputSpec().copyable_trait_names()) <= set(ours.inputs.copyable_trait_names())
    outputs = set(UnifiedSegmentation.output_spec().copyable_trait_names())
    assert set(NewSegmentOutputSpec().copyable_trait_names()) == outputs


def test_settings_reach_the_job_as_newsegment_users_state_them(octave, head, tmp_path, monkeypatch):
    installation = octave(
        f"cp iqtflow_job.m {tmp_path}; {SUCCESS}; cp c1T1.nii rc2T1.nii; cp c1T1.nii iy_T1.nii"
    )
    tpm = str(installation.tpm)
    monkeypatch.chdir(tmp_path)
    node = UnifiedSegmentation(
        spm_dir=str(installation.spm_dir),
        octave=str(installation.octave),
        channel_files=str(head),
        channel_info=(0.0001, 30, (False, True)),
        tissues=[
            ((tpm, 1), 2, (True, False), (False, False)),
            ((tpm, 2), 2, (True, True), (False, False)),
            ((tpm, 3), 2, (False, False), (False, False)),
        ],
        affine_regularization="eastern",
        sampling_distance=2,
        warping_regularization=2.0,
        write_deformation_fields=[True, False],
        check_plausibility=False,
    )
    outputs = node.run().outputs
    code = (tmp_path / "iqtflow_job.m").read_text()
    for line in (
        "channel.biasreg = 0.0001;",
        "channel.biasfwhm = 30.0;",
        "tissue(2).native = [1 1];",
        "tissue(3).ngaus = 2;",
        "warp.affreg = 'eastern';",
        "warp.samp = 2.0;",
        "warp.reg = [0.0 0.002 1.0 0.1 0.4];",
        "warp.write = [1 0];",
    ):
        assert line in code
    here = str(tmp_path)
    assert outputs.native_class_images == [[f"{here}/c1sub-01_T1w.nii"], [f"{here}/c2sub-01_T1w.nii"], []]
    assert outputs.dartel_input_images == [[], [f"{here}/rc2sub-01_T1w.nii"], []]
    assert outputs.bias_corrected_images == f"{here}/msub-01_T1w.nii"
    assert outputs.inverse_deformation_field == f"{here}/iy_sub-01_T1w.nii"
    assert outputs.transformation_mat == f"{here}/sub-01_T1w_seg8.mat"


def test_two_images_of_the_same_name_do_not_overwrite_each_other(octave, head, tmp_path, monkeypatch):
    other = tmp_path / "other" / head.name
    other.parent.mkdir()
    other.write_bytes(head.read_bytes())
    installation = octave(SUCCESS)
    monkeypatch.chdir(tmp_path)
    node = UnifiedSegmentation(
        spm_dir=str(installation.spm_dir),
        octave=str(installation.octave),
        channel_files=[str(head), str(other)],
        check_plausibility=False,
    )
    node.inputs.channel_info = (0.001, 60, (False, True))
    first, second = node.run().outputs.native_class_images[0]
    assert first != second


def test_m_code_that_is_run_leaves_its_log_in_its_folder(octave, tmp_path):
    (tmp_path / "job").mkdir()
    log, seconds, peak_gb = run_m_code(
        "x = 1;", tmp_path / "job", installation=octave("echo hello; echo IQTFLOW-SPM-DONE"), name="test"
    )
    assert "hello" in log
    assert seconds < 30
    # A child's peak begins with what its parent holds when it forks: here a process full of tests.
    assert 0 < peak_gb < 1 + peak_memory_gb()
