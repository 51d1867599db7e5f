"""A scan comes back where it was, in its own units, whatever its orientation; or it is refused."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from clinics import python
from conftest import make_affine
from nibabel.orientations import axcodes2ornt, ornt_transform
from phantoms import make_brain, make_tissue
from small_models import write_model

import iqtflow
from iqtflow.cli.commands.enhance import main
from iqtflow.image.geometry import cubic_upsample
from iqtflow.image.validate import check_scan
from iqtflow.inference.pipeline import NothingToGain, enhance_image
from iqtflow.models import model_file as models
from iqtflow.models.zoo import contrast_of
from iqtflow.utils.errors import InputError

torch.set_num_threads(1)

#: Every way to lay the voxel axes along left-right, posterior-anterior and inferior-superior.
ORIENTATIONS = [
    "".join(code)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for code in itertools.product(*order)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def scan() -> nib.Nifti1Image:
    """A skull-stripped brain, oblique: 32 x 36 voxels of 1.5 mm in plane, 9 axial slices 6 mm apart."""
    brain = make_brain((32, 36, 36))
    thick = brain.intensity.reshape(32, 36, 9, 4).mean(axis=3)
    return nib.Nifti1Image(thick.astype(np.float32), make_affine((1.5, 1.5, 6.0)))


def reorient(image: nib.Nifti1Image, code: str) -> nib.Nifti1Image:
    """Store the same image with its axes along other directions."""
    transform = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(code))
    return image.as_reoriented(transform)


def enhance(image: nib.Nifti1Image, model: Path, **options):
    return enhance_image(image, model=model, skull_stripped=options.pop("skull_stripped", True), **options)


def centroid_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Centre of mass of the intensities, in world mm."""
    data = np.asarray(image.dataobj, dtype=float)
    voxels = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(image.affine, (voxels * data[..., None]).sum((0, 1, 2)) / data.sum())


@pytest.fixture(scope="module")
def spotted() -> nib.Nifti1Image:
    """A small brain with one very bright voxel."""
    data = make_brain((16, 16, 32)).intensity.reshape(16, 16, 8, 4).mean(axis=3)
    data[9, 6, 5] = 20_000.0
    return nib.Nifti1Image(data.astype(np.float32), make_affine((2, 2, 8)))


@pytest.fixture(scope="module")
def spotted_result(spotted, model):
    return enhance(spotted, model)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_how_a_file_orders_its_axes_changes_only_the_order(spotted, spotted_result, model, code):
    """In all 48 orientations: a landmark stays where it is in the world, and every voxel keeps its value."""
    stored = reorient(spotted, code)
    result = enhance(stored, model)
    assert nib.aff2axcodes(result.mean.affine) == nib.aff2axcodes(stored.affine) == tuple(code)
    spot = np.unravel_index(np.argmax(stored.get_fdata()), stored.shape)
    interpolated = result.spline.get_fdata()
    bright = interpolated * (interpolated > 0.5 * interpolated.max())
    landmark = nib.affines.apply_affine(stored.affine, spot)
    assert np.linalg.norm(centroid_mm(nib.Nifti1Image(bright, result.spline.affine)) - landmark) < 0.05  # mm
    for name in ("mean", "spline", "mask"):
        ours, expected = reorient(getattr(result, name), "RAS"), getattr(spotted_result, name)
        assert np.array_equal(ours.get_fdata(), expected.get_fdata())
        np.testing.assert_allclose(ours.affine, expected.affine, atol=1e-4)


def test_the_enhanced_grid_divides_each_slice_into_k_and_fills_the_same_space(scan, model):
    result = enhance(scan, model)
    assert result.mean.shape == (32, 36, 36)
    np.testing.assert_allclose(result.mean.header.get_zooms(), (1.5, 1.5, 1.5), atol=1e-4)
    corner = nib.affines.apply_affine(scan.affine, (-0.5, -0.5, -0.5))
    np.testing.assert_allclose(nib.affines.apply_affine(result.mean.affine, (-0.5,) * 3), corner, atol=1e-4)
    far = nib.affines.apply_affine(scan.affine, np.array(scan.shape) - 0.5)
    np.testing.assert_allclose(
        nib.affines.apply_affine(result.mean.affine, np.array((32, 36, 36)) - 0.5), far, atol=1e-4
    )
    assert np.array_equal(result.spline.affine, result.mean.affine)
    assert result.mask.shape == scan.shape
    np.testing.assert_allclose(result.mask.affine, scan.affine, atol=1e-5)


def test_qform_and_sform_each_keep_their_code_and_space(scan, model):
    """A scan whose sform leads to a template and whose qform to the scanner: both still do."""
    image = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine)
    scanner = make_affine((1.5, 1.5, 6.0), tilt_degrees=25)
    image.set_sform(scan.affine, code=4)
    image.set_qform(scanner, code=1)
    out = enhance(image, model).mean
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (4, 1)
    corner = (-0.5, -0.5, -0.5)
    for before, after in ((image.get_sform(), out.get_sform()), (image.get_qform(), out.get_qform())):
        np.testing.assert_allclose(*(nib.affines.apply_affine(a, corner) for a in (before, after)), atol=1e-3)
    assert out.header.get_xyzt_units()[0] == "mm"


def test_a_form_that_the_scan_lacks_is_not_invented(scan, model):
    image = nib.Nifti1Image(np.asarray(scan.dataobj), None)
    image.set_sform(None, code=0)
    image.set_qform(scan.affine, code=1)
    out = enhance(image, model).mean
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (0, 1)
    np.testing.assert_allclose(out.affine, enhance(scan, model).mean.affine, atol=1e-3)
    np.testing.assert_allclose(out.header.get_zooms(), 1.5, atol=1e-4)


@pytest.mark.parametrize("unit", [1000.0, 1e-2])
def test_units_of_the_scan_do_not_matter(scan, model, unit):
    scaled = nib.Nifti1Image(np.asarray(scan.dataobj) * np.float32(unit), scan.affine)
    one, other = enhance(scan, model), enhance(scaled, model)
    np.testing.assert_allclose(other.mean.get_fdata(), one.mean.get_fdata() * unit, atol=1e-3 * 1000 * unit)
    assert other.details["IntensityScale"] == pytest.approx(one.details["IntensityScale"] * unit, rel=1e-5)


def test_integers_and_floats_give_the_same(scan, model):
    whole = np.round(np.asarray(scan.dataobj)).astype(np.int16)
    one, other = (
        enhance(nib.Nifti1Image(whole.astype(t), scan.affine), model) for t in (np.int16, np.float32)
    )
    assert np.array_equal(one.mean.get_fdata(), other.mean.get_fdata())


def test_a_stripped_scan_stays_stripped(scan, model):
    """Networks leave traces in the erased background; downstream tools take what is not 0 for brain."""
    result = enhance(scan, model)
    assert result.details["SkullStripped"] is True
    assert result.details["BrainMask"]["Method"] == "nonzero"
    far = np.asarray(result.mean.dataobj)[:2, :2]
    assert not far.any()


def test_the_plane_is_resampled_when_the_ratio_is_not_the_models(scan, model):
    """Slices 12 mm apart with 1.5 mm in plane: to a k = 4 network that is a 3 mm plane."""
    brain = make_brain((32, 36, 32)).intensity.reshape(32, 36, 4, 8).mean(axis=3)
    thick = nib.Nifti1Image(brain.astype(np.float32), make_affine((1.5, 1.5, 12.0)))
    result = enhance(thick, model)
    assert result.mean.shape == (16, 18, 16)
    assert result.residual.shape == thick.shape
    np.testing.assert_allclose(result.residual.affine, thick.affine, atol=1e-5)
    np.testing.assert_allclose(result.details["VoxelSizeMm"], 3.0, atol=1e-3)
    notes = " ".join(result.details["Warnings"])
    assert "resampled from 1.5 x 1.5 to 3 x 3 mm" in notes
    assert "4 slices" in notes


def test_a_near_isotropic_scan_is_not_touched_unless_forced(scan, model):
    flat = nib.Nifti1Image(np.asarray(scan.dataobj), make_affine((4.5, 4.5, 6.0)))
    with pytest.raises(NothingToGain, match="nothing to gain"):
        enhance(flat, model)
    forced = enhance(flat, model, force=True)
    assert forced.details["UpsamplingFactor"] == 4
    np.testing.assert_allclose(forced.mean.header.get_zooms(), 1.5, atol=1e-3)


def test_the_sidecar_is_believed_about_skull_and_thickness(scan, model):
    details = enhance_image(scan, sidecar={"SkullStripped": True, "SliceThickness": 5.0}, model=model).details
    assert details["SkullStripped"] is True
    assert details["Geometry"]["ThicknessMm"] == 5.0
    assert details["Geometry"]["GapMm"] == pytest.approx(1.0)
    assert "SliceThickness in the sidecar" in details["Geometry"]["Source"]


def test_an_enhanced_volume_that_is_made_consistent_differs_less_from_the_scan(scan, tmp_path):
    """A network that adds much to the spline."""
    path = write_model(tmp_path / "wild.safetensors", trained=0.5)
    free, bound = (enhance(scan, path, data_consistency=on) for on in (False, True))
    before, after = (r.details["DataConsistency"] for r in (free, bound))
    assert after["CorrectionApplied"]
    assert after["ResidualRMS"] < 0.8 * before["ResidualRMS"]
    assert not np.array_equal(free.mean.get_fdata(), bound.mean.get_fdata())


def test_details_are_what_a_sidecar_needs(scan, tmp_path):
    path = write_model(tmp_path / "three.safetensors", n_members=3)
    lines = []
    result = enhance(scan, path, report=lines.append)
    details = json.loads(json.dumps(result.details))
    model = {"Name": "tiny-T1w-k4", "SHA256": models.load_model(path).sha256, "Members": 3, "Contrast": "T1w"}
    assert details["Model"] == model
    assert (details["UpsamplingFactor"], details["SliceAxis"]) == (4, "k")
    assert details["Device"] == "cpu"
    assert details["PeakMemoryGB"] > 0.1
    assert "white matter keeps its intensity" in details["IntensityDescription"]
    assert result.std.shape == result.mean.shape
    audit = details["DataConsistency"]
    assert (audit["UncheckedShare"], audit["ThicknessStated"], audit["CorrectionApplied"]) == (
        None,
        False,
        False,
    )
    assert len(lines) == 2
    assert "GB predicted" in lines[1]
    assert all(word in lines[0] for word in ("cpu", "tiny-T1w-k4", "k = 4", "along k", "NIfTI header"))


@pytest.mark.parametrize(("spacing", "k"), [(6.0, 4), (10.5, 8), (3.0, 2)])
def test_the_shipped_model_nearest_to_the_ratio_is_chosen(scan, tmp_path, monkeypatch, spacing, k):
    shelf = tmp_path / "weights"
    shelf.mkdir()
    (shelf / "index.json").write_text('{"models": []}')
    monkeypatch.setattr(models, "WEIGHTS", shelf)
    for factor in (2, 4, 8):
        models.register_shipped(write_model(tmp_path / "m.safetensors", k=factor))
    image = nib.Nifti1Image(np.asarray(scan.dataobj), make_affine((1.5, 1.5, spacing)))
    assert enhance_image(image, skull_stripped=True).details["Model"]["Name"] == f"tiny-T1w-k{k}"


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-1_T2w.nii.gz", "T2w"),
        ("sub-1_ses-a_FLAIR.nii", "FLAIR"),
        ("brain.nii.gz", "T1w"),
        ("my_scan.nii", "T1w"),
    ],
)
def test_the_contrast_is_read_from_the_files_name(name, contrast):
    assert contrast_of(Path("/data") / name) == contrast


def test_the_command_on_a_plain_file(scan, tmp_path, model, capsys):
    nib.save(scan, tmp_path / "scan.nii.gz")
    names = ("out.nii.gz", "std.nii.gz", "spline.nii", "mask.nii.gz", "details.json")
    out, std, spline, mask, details = (tmp_path / "new" / name for name in names)
    arguments = [tmp_path / "scan.nii.gz", out, "--model", model, "--skull-stripped", "yes"]
    arguments += ["--std", std, "--spline", spline, "--json", details, "--mask-out", mask]
    assert main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "device cpu" in said[0]
    assert "tiny-T1w-k4" in said[0]
    assert out.is_file()
    assert not std.exists(), "one network has no spread"
    assert nib.load(out).get_data_dtype() == np.float32
    expected = np.clip(cubic_upsample(np.asarray(scan.dataobj), 4), 0, None)
    tissue = nib.load(spline).get_fdata() > 0
    np.testing.assert_allclose(nib.load(spline).get_fdata()[tissue], expected[tissue], atol=1e-2)
    assert nib.load(mask).get_fdata().max() == 1
    assert json.loads(details.read_text())["Model"]["Name"] == "tiny-T1w-k4"
    before = out.read_bytes()
    assert main([str(a) for a in arguments]) == 0
    assert out.read_bytes() == before
    assert not list(out.parent.glob(".*"))
    image = iqtflow.enhance(tmp_path / "scan.nii.gz", model, skull_stripped=True, device="cpu")
    assert np.array_equal(image.get_fdata(), nib.load(out).get_fdata()), "the function gives the same voxels"


def test_the_function_takes_an_image_and_gives_the_standard_deviation_on_request(scan, tmp_path):
    """An image in memory is checked as a file is; a single network that predicts no error gives none."""
    ensemble = write_model(tmp_path / "two.safetensors", n_members=2)
    options = {"skull_stripped": True, "device": "cpu", "return_std": True}
    nib.save(scan, tmp_path / "scan.nii.gz")
    mean, std = iqtflow.enhance(scan, ensemble, **options)
    for image, of_file in zip(
        (mean, std), iqtflow.enhance(tmp_path / "scan.nii.gz", ensemble, **options), strict=True
    ):
        assert np.array_equal(image.get_fdata(), of_file.get_fdata())
        assert np.array_equal(image.affine, of_file.affine)
    assert std.get_fdata().max() > 0
    assert iqtflow.enhance(scan, write_model(tmp_path / "one.safetensors"), **options)[1] is None
    empty = nib.Nifti1Image(np.zeros((40, 40, 40), np.float32), np.eye(4))
    with pytest.raises(InputError, match="image in memory: found the value 0 in every voxel"):
        iqtflow.enhance(empty, ensemble)


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("img", np.zeros((4, 4, 4)), "nibabel image"),
        ("stacks", "coronal.nii.gz", "list"),
        ("device", "mps", "auto, cpu, cuda"),
        ("skull_stripped", "no", "True, False or None"),
    ],
)
def test_the_function_names_an_argument_that_it_cannot_use(scan, model, argument, value, expected):
    with pytest.raises(InputError, match=f"^{argument}: .*{expected}"):
        iqtflow.enhance(**{"img": scan, "model": model, argument: value})


def test_an_error_of_an_image_in_memory_names_no_temporary_file(model):
    cube = nib.Nifti1Image(make_brain((40, 40, 40)).intensity, make_affine((1, 1, 1)))
    with pytest.raises(NothingToGain, match="image in memory: found"):
        iqtflow.enhance(cube, model)


def test_command_and_node_refuse_a_near_isotropic_scan_and_say_why(scan, tmp_path, model, capsys):
    """Both were asked for this very scan; neither ends well without the file that it was to write."""
    flat = nib.Nifti1Image(np.asarray(scan.dataobj), make_affine((4.5, 4.5, 6.0)))
    path = tmp_path / "flat.nii.gz"
    nib.save(flat, path)
    assert main([str(path), str(tmp_path / "out.nii.gz"), "--model", str(model)]) == 1
    why = "found slices 6 mm apart, 4.5 x 4.5 mm in plane; expected thick slices."
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()

    from iqtflow.interfaces.enhance import EnhanceVolume

    with pytest.raises(Exception, match=re.escape(why)):
        EnhanceVolume(in_file=os.fspath(path), model=os.fspath(model)).run(cwd=os.fspath(tmp_path))


def test_an_air_of_minus_1024_changes_no_voxel_of_the_estimate(scan, model, tmp_path):
    """A scan whose air is erased, and the same one filled up as CT is."""
    data = np.asarray(scan.dataobj)
    nib.save(nib.Nifti1Image(np.where(data == 0, np.float32(-1024), data), scan.affine), tmp_path / "x.nii")
    filled = check_scan(tmp_path / "x.nii")
    result = enhance(filled, model)
    np.testing.assert_array_equal(result.mean.get_fdata(), enhance(scan, model).mean.get_fdata())
    assert any("are -1024" in warning for warning in result.details["Warnings"])


def test_a_lost_slice_is_empty_in_the_estimate_and_spoils_no_other(scan, model, tmp_path):
    lost = np.array(scan.dataobj)
    lost[:, :, 4] = 0
    nib.save(nib.Nifti1Image(lost, scan.affine), tmp_path / "x.nii.gz")
    result = enhance(check_scan(tmp_path / "x.nii.gz"), model)
    mean, whole = result.mean.get_fdata(), enhance(scan, model).mean.get_fdata()
    for volume in (result.mean, result.spline):
        assert not volume.get_fdata()[:, :, 16:20].any()
    assert not result.mask.get_fdata()[:, :, 4].any()
    brain = whole > 100
    for beside in (slice(12, 16), slice(20, 24)):
        apart = np.abs(mean - whole)[:, :, beside][brain[:, :, beside]]
        assert apart.mean() < 0.1 * whole[brain].mean(), "the gap would ring in its neighbours"
    assert any("Slice 5 is empty" in warning for warning in result.details["Warnings"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.nii.gz", "out.nii.gz"], "missing.nii.gz: found nothing"),
        (["scan_T2w.nii.gz", "out.nii.gz", "--model", "MODEL"], "trained on T1w"),
        (["scan_T2w.nii.gz", "out.nii.gz", "--model", "nowhere"], "no shipped model of this name"),
        (["scan_T2w.nii.gz", "out.nii.gz", "--model", "scan_T2w.nii.gz"], "no whole safetensors file"),
        (["scan_T2w.nii.gz", "out.nii.gz", "--sidecar", "scan_T2w.nii.gz"], "expected a JSON object"),
    ],
)
def test_the_command_names_what_is_wrong(scan, tmp_path, model, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    nib.save(scan, "scan_T2w.nii.gz")
    assert main([str(model) if a == "MODEL" else a for a in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("iqtflow-enhance: error: ")
    assert words in error
    assert not Path("out.nii.gz").exists()


def test_a_gpu_that_is_not_there_is_an_error(scan, tmp_path):
    nib.save(scan, tmp_path / "scan.nii.gz")
    arguments = ["-m", "iqtflow.cli.commands.enhance", "scan.nii.gz", "out.nii.gz", "--device", "cuda"]
    run = python(*arguments, cwd=tmp_path, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 2
    assert "NVIDIA" in run.stderr and "--device cpu" in run.stderr


def test_the_command_names_the_sidecar_and_the_value_that_it_cannot_use(scan, tmp_path, model, capsys):
    sidecar = tmp_path / "scan.json"
    sidecar.write_text('{"SkullStripped": "yes", "SliceThickness": "n/a"}')
    nib.save(scan, tmp_path / "scan.nii.gz")
    details = tmp_path / "details.json"
    arguments = [tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", "--model", model, "--json", details]
    assert main([*map(str, arguments), "--sidecar", str(sidecar), "--skull-stripped", "yes"]) == 0
    said = capsys.readouterr().out
    assert f'{sidecar}: SkullStripped is "yes"' in said and f'{sidecar}: SliceThickness is "n/a"' in said
    assert "thickness not stated" in json.loads(details.read_text())["Geometry"]["Source"]


def test_stripes_are_corrected_before_the_network_unless_they_shall_stay(model):
    """Every other slice 6 % brighter: the enhanced volume is that of the scan without stripes."""
    brain = make_brain((32, 32, 128))
    data = brain.intensity.reshape(32, 32, 32, 4).mean(axis=3)
    striped = data.copy()
    striped[:, :, ::2] *= np.float32(1.06)
    clean, even, kept = (
        enhance(nib.Nifti1Image(d, make_affine((1.5, 1.5, 6.0))), model, slice_intensity=how)
        for d, how in ((data, "auto"), (striped, "auto"), (striped, "keep"))
    )
    assert clean.details["SliceIntensity"]["Corrected"] is False
    assert even.details["SliceIntensity"]["Corrected"] is True
    assert kept.details["SliceIntensity"] == {**even.details["SliceIntensity"], "Corrected": False}
    assert kept.details["SliceIntensity"]["AlternatingShare"] == pytest.approx(0.06, abs=0.01)
    truth = clean.mean.get_fdata() * 1.06**0.5
    far, near = (np.abs(r.mean.get_fdata() - truth).mean() for r in (kept, even))
    assert near < 0.4 * far
    assert any("slices" in note and "Corrected" in note for note in even.details["Warnings"])


@pytest.fixture(scope="module")
def interpolated(tmp_path_factory) -> Path:
    """Twenty slices 6 mm apart of a skull-stripped brain, interpolated to cubes of 1.5 mm."""
    brain = make_tissue((80, 88, 80), 1.5)
    slices = brain.reshape(80, 88, 20, 4).mean(axis=3)
    path = tmp_path_factory.mktemp("interpolated") / "sub-01_T1w.nii.gz"
    thin = np.where(brain > 0, np.maximum(cubic_upsample(slices, 4), 1), 0)
    nib.save(nib.Nifti1Image(thin.astype(np.float32), make_affine((1.5, 1.5, 1.5))), path)
    return path


def test_an_interpolated_scan_is_told_what_was_measured_and_which_flag_to_give(interpolated, model):
    with pytest.raises(InputError) as told:
        enhance(check_scan(interpolated), model)
    flag = re.search(r"--acquired-spacing (\S+) --acquired-axis z", str(told.value))
    assert float(flag[1]) == pytest.approx(6, rel=0.02)
    assert not isinstance(told.value, NothingToGain)
    assert interpolated.name in str(told.value)


def test_an_interpolated_scan_is_enhanced_from_its_slices(interpolated, model, tmp_path):
    """The command, the function, and the arrays that are on the grid of the slices."""
    done = enhance(check_scan(interpolated), model, acquired_spacing=6.0)
    assert done.mask.shape == done.residual.shape == (80, 88, 20)
    assert done.mean.shape == (80, 88, 20 * done.details["UpsamplingFactor"])
    told = done.details["AcquiredSpacing"]
    assert (told["SpacingMm"], told["Axis"], told["PlacesFrom"]) == (6.0, "k", "second difference")
    assert told["FirstSlice"] == pytest.approx(1.5, abs=0.1)
    assert done.details["EffectiveResolutionMm"]["k"] == pytest.approx(6, rel=0.03)
    assert done.details["Geometry"]["SpacingMm"] == 6.0
    scan = nib.load(interpolated)
    assert centroid_mm(done.spline) == pytest.approx(centroid_mm(scan), abs=0.3)

    output = tmp_path / "enhanced.nii.gz"
    options = ["--acquired-spacing", "6", "--acquired-axis", "z", "--skull-stripped", "yes"]
    assert main([str(interpolated), str(output), "--model", str(model), *options]) == 0
    same = iqtflow.enhance(
        interpolated, model, skull_stripped=True, device="cpu", acquired_spacing=6, acquired_axis="z"
    )
    assert np.allclose(nib.load(output).get_fdata(), same.get_fdata(), atol=1e-3)


def test_an_axis_without_a_spacing_is_refused(interpolated, model):
    with pytest.raises(InputError, match="acquired_spacing"):
        iqtflow.enhance(interpolated, model, acquired_axis="z")
