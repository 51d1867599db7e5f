"""Whole-volume simulation: what holds for any slice axis, any orientation, any spacing and any draw."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import python
from conftest import make_affine, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from phantoms import make_brain
from scipy import ndimage

from iqtflow.cli.commands.simulate import build_parser
from iqtflow.cli.commands.simulate import main as simulate
from iqtflow.config import TrainSettings, check_training
from iqtflow.interfaces.simulate import SimulateLowField
from iqtflow.simulation.artifacts import Extras, bias_field, blur_in_plane, draw_bias
from iqtflow.simulation.simulate import Draw, SliceStack, draw_scan, plan_slices, prepare_subject, realise
from iqtflow.simulation.slice_profile import apply_profile, profile_matrix
from iqtflow.simulation.snr_prior import PUBLISHED
from iqtflow.training.samplers import Degradation
from iqtflow.utils.errors import InputError, UsageError

PRIOR = PUBLISHED["ibadan-0.36T"]
few = settings(max_examples=8, deadline=None, derandomize=True)
ratios = st.floats(1.0, 9.0)


def two_tissues(n=48):
    """Two slabs of pure WM and GM with air around them."""
    wm = np.zeros((n, n, n), np.float32)
    gm = wm.copy()
    wm[6 : n // 2 - 2, 6:-6, 6:-6] = 1
    gm[n // 2 + 2 : n - 6, 6:-6, 6:-6] = 1
    return 900 * wm + 650 * gm, wm, gm


@few
@given(
    snr=st.tuples(st.floats(8, 90), st.floats(8, 90)),
    seed=st.integers(0, 2**31),
    axis=st.integers(0, 2),
    fixed=st.sampled_from(["WM", "GM"]),
)
def test_the_drawn_snr_is_measured_back_within_sampling_error(snr, seed, axis, fixed):
    intensity, wm, gm = two_tissues()
    stack = SliceStack(axis, spacing_mm=4.0, thickness_mm=3.0)
    subject = prepare_subject(intensity, (wm, gm), np.diag([-1, 1, 1, 1]), stack)
    low = realise(subject, Draw(snr, seed, fwhm_mm=3.0), fixed=fixed)
    matrix = profile_matrix(48, 4, 3.0)
    pure = [apply_profile(m, axis, matrix) > 0.9999 for m in (wm, gm)]
    air = low[apply_profile(wm + gm, axis, matrix) < 1e-6]
    noise = air.std()
    for inside, wanted in zip(pure, snr, strict=True):
        measured = low[inside].mean() / noise
        # mean of n voxels: 1/sqrt(n); standard deviation of m: 1/sqrt(2 m), relative; four of each
        error = 4 * np.hypot(1 / np.sqrt(inside.sum()), wanted / np.sqrt(2 * air.size))
        assert abs(measured - wanted) < error


@few
@given(ratio=st.floats(2.5, 9.0), share=st.floats(0.8, 1.0))
def test_the_profile_is_as_wide_as_the_slice_is_thick(ratio, share):
    """Its full width at half maximum is the thickness, its centre the slab's, and little lies outside."""
    thickness = share * ratio
    matrix = profile_matrix(120, ratio, thickness).astype(float)
    middle = len(matrix) // 2
    row, place = matrix[middle], np.arange(120)
    seen = row > 1e-3 * row.max()  # the logarithm of a Gaussian is a parabola: exact between voxels, too
    bend, slope, _ = np.polyfit(place[seen], np.log(row[seen]), 2)
    assert -slope / bend / 2 == pytest.approx(ratio * middle + (ratio - 1) / 2, abs=1e-4)
    assert 2 * np.sqrt(-np.log(2) / bend) == pytest.approx(thickness, rel=1e-4)
    # it ends at four standard deviations: centre of mass and second moment are those of the whole one
    centre = row @ place
    assert centre == pytest.approx(ratio * middle + (ratio - 1) / 2, abs=1e-3)
    spread = np.sqrt(row @ (place - centre) ** 2) * np.sqrt(8 * np.log(2))
    assert spread == pytest.approx(thickness, rel=5e-3)


@few
@given(n=st.integers(9, 200), ratio=ratios, share=st.floats(0.3, 1.5), offset=st.floats(-0.5, 0.5))
def test_probabilities_sum_to_one_in_every_thick_voxel(n, ratio, share, offset):
    matrix = profile_matrix(n, ratio, max(share * ratio, 0.7), offset * ratio)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert matrix.min() >= 0


@few
@given(
    spacing=st.floats(3.0, 9.0),
    offset=st.floats(-0.7, 0.7),
    axis=st.integers(0, 2),
    code=st.sampled_from(["RAS", "LPS", "PIR", "LAS", "SRA", "IAL"]),
)
def test_every_slice_lies_where_its_affine_says(spacing, offset, axis, code):
    """An image of coordinates in mm: each slice shows the coordinate of its centre, for any real ratio."""
    affine = make_affine((0.9, 1.1, 1.0)) @ inv_ornt_aff(
        ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(code)), (40, 40, 40)
    )
    stack = SliceStack(axis, spacing_mm=spacing, thickness_mm=0.75 * spacing)
    grid = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), axis=-1)
    half = np.full((40, 40, 40), 0.5, np.float32)
    direction = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    along = (nib.affines.apply_affine(affine, grid) @ direction).astype(np.float32) + 500
    subject = prepare_subject(along, (half, half), affine, stack, offset_mm=offset)
    clean = realise(subject, Draw((1e6, 1e6), 0, fwhm_mm=stack.thickness_mm, offset_mm=offset))
    where = np.stack(np.meshgrid(*[np.arange(n) for n in clean.shape], indexing="ij"), axis=-1)
    expected = nib.affines.apply_affine(subject.affine, where) @ direction + 500
    inner = tuple(slice(2, -2) if a == axis else slice(None) for a in range(3))
    np.testing.assert_allclose(clean[inner], expected[inner], atol=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_48_orientation_codes_give_the_same_scan_up_to_reordering(axis):
    """Every way to store an array, slices along each anatomical axis; oblique, all extras on."""
    rng = np.random.default_rng(0)
    volumes = [rng.random((16, 20, 24), dtype=np.float32) for _ in range(3)]  # whole slices of 4
    affine = make_affine((1.0, 1.1, 0.9), tilt_degrees=15.0)
    edge = float(np.linalg.norm(affine[:3, axis]))
    extras = Extras(fwhm_jitter=0.2, slice_offset_mm=0.6, inplane_fwhm_mm=2.0, bias_amplitude=0.3)

    def scan(turn):
        stack = SliceStack(int(turn[axis, 0]), 4 * edge, 3 * edge)
        draw = draw_scan(PRIOR, extras, stack, seed=5)
        intensity, wm, gm = (apply_orientation(v, turn) for v in volumes)
        grid = affine @ inv_ornt_aff(turn, volumes[0].shape)
        profile = {"fwhm_mm": draw.fwhm_mm, "offset_mm": draw.offset_mm}
        subject = prepare_subject(intensity, (wm / 2, gm / 2), grid, stack, **profile)
        return realise(subject, draw), subject.affine

    plain, plain_affine = scan(np.array([[0, 1], [1, 1], [2, 1]]))
    codes = [
        np.array([[a, f] for a, f in zip(order, flips, strict=True)])
        for order in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    assert len(codes) == 48
    for turn in codes:
        low, low_affine = scan(turn)
        np.testing.assert_allclose(apply_orientation(plain, turn), low, atol=1e-5 * np.ptp(plain))
        np.testing.assert_allclose(plain_affine @ inv_ornt_aff(turn, plain.shape), low_affine, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_the_profile_applied_along_their_axis_however_the_array_lies_in_memory(order, axis):
    volume = np.asarray(np.random.default_rng(0).random((50, 41, 66), dtype=np.float32), order=order)
    matrix = profile_matrix(volume.shape[axis], 2.6, 2.0)
    expected = np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
    np.testing.assert_allclose(apply_profile(volume, axis, matrix), expected, atol=1e-6)


def test_the_other_extras_and_the_noise_stay_when_one_extra_is_switched_on():
    stack = SliceStack(2, 4.0, 3.0)
    plain = draw_scan(PRIOR, Extras(), stack, seed=3)
    assert (plain.fwhm_mm, plain.offset_mm, plain.inplane_fwhm_mm, plain.bias) == (3.0, 0.0, 0.0, ())
    all_on = draw_scan(PRIOR, Extras(0.2, 0.5, 1.0, 0.3), stack, seed=3)
    only_blur = draw_scan(PRIOR, Extras(inplane_fwhm_mm=1.0), stack, seed=3)
    assert all_on.snr == only_blur.snr == plain.snr
    assert only_blur.inplane_fwhm_mm == all_on.inplane_fwhm_mm > 0
    assert only_blur.fwhm_mm == 3.0 != all_on.fwhm_mm


@few
@given(seed=st.integers(0, 2**31), jitter=st.floats(0, 0.5), offset=st.floats(0, 2), bias=st.floats(0, 0.5))
def test_no_extra_gets_larger_than_it_may(seed, jitter, offset, bias):
    stack = SliceStack(2, 4.0, 3.0)
    draw = draw_scan(PRIOR, Extras(jitter, offset, 1.5, bias), stack, seed=seed)
    assert 3 / (1 + jitter) - 1e-9 <= draw.fwhm_mm <= 3 * (1 + jitter) + 1e-9
    assert abs(draw.offset_mm) <= offset
    assert 0 <= draw.inplane_fwhm_mm <= 1.5
    if draw.bias:
        shading = np.log(bias_field(draw.bias, (31, 29, 12)))
        assert np.abs(shading).max() <= bias * 1.01
        assert abs(shading.mean()) < 1e-4


def test_shading_is_smooth():
    """From voxel to voxel of a 60-voxel head the shading changes by a few per cent of its amplitude."""
    shading = np.log(bias_field(draw_bias(np.random.default_rng(1), 0.3), (60, 60, 60)))
    assert max(np.abs(np.diff(shading, axis=a)).max() for a in range(3)) < 0.1 * np.abs(shading).max()


def test_a_point_is_blurred_in_the_plane_by_what_was_asked_for_and_not_across_slices():
    point = np.zeros((61, 61, 5), np.float32)
    point[30, 30, 2] = 1
    blurred = blur_in_plane(point, 4.0, (0.8, 1.0))
    assert blurred[:, :, [0, 1, 3, 4]].max() == 0
    for axis, edge in ((0, 0.8), (1, 1.0)):
        line = blurred[:, :, 2].sum(axis=1 - axis)
        width = np.sqrt(line @ (np.arange(61) - 30.0) ** 2 / line.sum()) * np.sqrt(8 * np.log(2)) * edge
        assert width == pytest.approx(4.0, rel=0.01)


def test_thickness_and_gap_decide_the_spacing_when_k_is_not_given():
    assert plan_slices(0.7, axis=2, thickness_mm=5.0, gap_mm=1.0) == SliceStack(2, 6.0, 5.0)
    assert plan_slices(0.7, axis=2, k=4).thickness_mm == pytest.approx(2.1)
    assert plan_slices(0.7, axis=2, k=8, gap_mm=1.4).thickness_mm == pytest.approx(4.2)


@pytest.mark.parametrize(
    "layout",
    [
        {"k": 4, "thickness_mm": 5.0},
        {"k": 4, "thickness_mm": 3.0, "gap_mm": 2.0},
        {"thickness_mm": -1.0, "gap_mm": 5.0},
        {"thickness_mm": 6.0, "gap_mm": -1.0},
    ],
    ids=["thickness above spacing", "sum is not the spacing", "negative thickness", "negative gap"],
)
def test_slices_that_cannot_be_are_refused(layout):
    with pytest.raises(InputError, match="slices"):
        plan_slices(1.0, axis=2, **layout)


def test_what_is_no_subject_is_refused_by_name():
    intensity, wm, gm = two_tissues()
    stack = SliceStack(2, 4.0, 3.0)

    def prepare(maps, layout=stack):
        prepare_subject(intensity, maps, np.eye(4), layout)

    with pytest.raises(InputError, match="WM probability map"):
        prepare((np.zeros_like(wm), gm))
    with pytest.raises(InputError, match="GM probability map"):
        prepare((wm, np.zeros_like(gm)))
    with pytest.raises(InputError, match="grid"):
        prepare((wm[:-1], gm))
    with pytest.raises(InputError, match="from 0 to 1"):
        prepare((255 * wm, gm))
    with pytest.raises(InputError, match="thin slices"):
        prepare((wm, gm), SliceStack(2, 60.0, 45.0))
    with pytest.raises(InputError, match="slice spacing"):
        prepare((wm, gm), SliceStack(2, 0.5, 0.5))
    with pytest.raises(InputError, match="half the spacing"):
        draw_scan(PRIOR, Extras(slice_offset_mm=3.0), stack, seed=0)
    with pytest.raises(InputError, match="bias amplitude"):
        Extras(bias_amplitude=-1.0)


def arguments(files, out, *extra):
    maps = [f"--{name}={files / name}.nii.gz" for name in ("wm", "gm")]
    return [str(files / "t1.nii.gz"), str(out), *maps, *extra]


EVERYTHING = shlex.split(
    "--slice-axis y --thickness-mm 4.1 --gap-mm 0.7 --noise rician --seed 11 --fwhm-jitter 0.2 "
    "--slice-offset-mm 1 --inplane-fwhm-mm 1.5 --bias-amplitude 0.2 --fixed-tissue GM"
)


def test_the_sidecar_alone_makes_the_same_voxels_again(brain_files, tmp_path):
    first = ("--json", f"{tmp_path / 'a.json'}", *EVERYTHING)
    assert simulate(arguments(brain_files, tmp_path / "a.nii.gz", *first)) == 0
    again = ("--from-json", f"{tmp_path / 'a.json'}", "--json", f"{tmp_path / 'b.json'}")
    assert simulate(arguments(brain_files, tmp_path / "b.nii.gz", *again)) == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())


@pytest.mark.slow
def test_a_node_makes_the_same_voxels_again_from_the_json_of_another_node(brain_files, tmp_path):
    """All extras on, Rician noise, a spacing that is no multiple of the edge: one JSON file holds it all."""
    names = {"in_file": "t1", "wm_file": "wm", "gm_file": "gm"}
    inputs = {trait: str(brain_files / f"{name}.nii.gz") for trait, name in names.items()}
    settings = {
        "slice_axis": "y", "thickness_mm": 4.1, "gap_mm": 0.7, "noise": "rician", "fixed_tissue": "GM",
        "fwhm_jitter": 0.2, "slice_offset_mm": 1.0, "inplane_fwhm_mm": 1.5, "inplane_fwhm_least_mm": 0.5,
        "bias_amplitude": 0.2, "snr": (33.0, 27.0), "seed": 11,
    }  # fmt: skip
    made, sidecar = [], str(tmp_path / "first" / "lowfield.json")
    for folder, more in (("first", settings), ("again", {"from_json": sidecar})):
        (tmp_path / folder).mkdir()
        outputs = SimulateLowField(**inputs, **more).run(cwd=str(tmp_path / folder)).outputs
        made.append(outputs)
    first, again = (Path(outputs.out_file).read_bytes() for outputs in made)
    assert first == again
    fields = json.loads(Path(made[0].metadata_file).read_text())
    assert fields["SNR"] == {"WM": 33.0, "GM": 27.0} and fields["NoiseDistribution"] == "rician"
    assert all(value > 0 for value in fields["Extras"].values()) and len(fields["Extras"]) == 5
    assert fields == json.loads(Path(made[1].metadata_file).read_text())


def test_a_sidecar_is_refused_with_other_images_other_settings_or_when_it_is_none(
    brain_files, tmp_path, capsys
):
    sidecar = tmp_path / "low.json"
    assert simulate(arguments(brain_files, tmp_path / "low.nii.gz", "--json", str(sidecar))) == 0
    again = arguments(brain_files, tmp_path / "x.nii.gz", "--from-json", str(sidecar))
    assert simulate([*again, "--seed", "4"]) == 2
    assert "--seed" in capsys.readouterr().err
    write_scan(tmp_path / "gm.nii", np.ones((48, 52, 40), np.float32) / 2, make_affine((1, 1, 1)))
    assert simulate([*again[:3], f"--gm={tmp_path}/gm.nii", "--from-json", str(sidecar)]) == 1
    assert "gm.nii" in capsys.readouterr().err
    sidecar.write_text('{"Seed": 1}')
    assert simulate(again) == 1
    assert "Simulation" in capsys.readouterr().err
    assert not (tmp_path / "x.nii.gz").exists()


def test_any_real_spacing_and_a_fixed_snr_from_the_command_line(brain_files, tmp_path):
    extra = [*shlex.split("--thickness-mm 5 --gap-mm 1.5 --snr 30 25 --json"), str(tmp_path / "low.json")]
    assert simulate(arguments(brain_files, tmp_path / "low.nii.gz", *extra)) == 0
    low, fields = nib.load(tmp_path / "low.nii.gz"), json.loads((tmp_path / "low.json").read_text())
    assert low.shape == (48, 52, 6)
    assert low.header.get_zooms()[2] == pytest.approx(6.5, abs=1e-5)
    assert (fields["UpsamplingFactor"], fields["SNR"]) == (6.5, {"WM": 30.0, "GM": 25.0})


#: Prints digests of scans of a volume of usual size, where libraries share out their work.
LARGE = """
import hashlib
import numpy as np
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, realise
from iqtflow.simulation.snr_prior import PUBLISHED
maps = np.random.default_rng(0).random((3, 256, 240, 200), dtype=np.float32).transpose(0, 3, 2, 1) / 2
for axis in range(3):
    stack = SliceStack(axis, 5.6, 4.2)
    draw = draw_scan(PUBLISHED["ibadan-0.36T"], Extras(0.2, 0.5, 1.5, 0.2), stack, seed=3)
    layout = {"fwhm_mm": draw.fwhm_mm, "offset_mm": draw.offset_mm}
    subject = prepare_subject(maps[0], maps[1:], np.diag([-0.7, 0.7, 0.7, 1]), stack, **layout)
    scan = realise(subject, draw, distribution="rician")
    print(hashlib.sha256(np.ascontiguousarray(scan)).hexdigest())
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_in_processes_of_one_and_of_two_threads(brain_files, tmp_path):
    digests = {}
    for n in ("1", "2"):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), n)
        environment = {**os.environ, **threads}
        command = ["-m", "iqtflow.cli.commands.simulate"]
        command += arguments(brain_files, tmp_path / f"{n}.nii.gz", *EVERYTHING)
        python(*command, env=environment, check=True)
        digests[n] = python("-c", LARGE, env=environment, check=True).stdout.split()
    assert (tmp_path / "1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()
    assert digests["1"] == digests["2"] and len(set(digests["1"])) == 3


def test_a_ball_keeps_its_centre_of_mass_for_any_real_ratio():
    ball = ndimage.gaussian_filter(make_brain((60, 60, 60)).mask.astype(np.float32), 4)
    half = np.full_like(ball, 0.5)
    affine = make_affine((0.7, 0.7, 0.7))
    before = nib.affines.apply_affine(affine, ndimage.center_of_mass(ball))
    for spacing in (1.4, 2.0, 3.0, 3.5):  # all of them fill the 42 mm of the volume
        subject = prepare_subject(ball, (half, half), affine, SliceStack(1, spacing, 0.8 * spacing))
        thick = np.moveaxis(subject.intensity.numpy()[::-1], 2, 1)  # canonical is LAS, this image RAS
        after = nib.affines.apply_affine(subject.affine, ndimage.center_of_mass(thick))
        np.testing.assert_allclose(after, before, atol=0.1)


@pytest.mark.parametrize(
    "setting",
    [{"inplane_fwhm_mm": 1e9}, {"fwhm_jitter": 1e308}, {"bias_amplitude": 1e3}, {"slice_offset_mm": 1e4}],
)
def test_imperfections_that_leave_nothing_of_a_head_are_refused(setting, capsys):
    with pytest.raises(InputError, match=r"a number from 0 \(off\) to"):
        Extras(**setting)
    (name, value), *_ = setting.items()
    with pytest.raises(SystemExit):
        build_parser().parse_args(
            ["a.nii", "b.nii", "--wm", "w.nii", "--gm", "g.nii", f"--{name.replace('_', '-')}", str(value)]
        )
    assert "expected a number from 0" in capsys.readouterr().err


def test_a_range_begins_with_its_lower_number():
    for setting in ({"thickness_fraction": (0.6, 0.5)}, {"snr_scale": (2.0, 1.0)}):
        with pytest.raises(InputError, match=r"the lower one first.*Swap the two"):
            Degradation(**setting)
    with pytest.raises(UsageError, match=r"--thickness-fraction: found 0.6 to 0.5"):
        check_training(TrainSettings(thickness_fraction=(0.6, 0.5)))
