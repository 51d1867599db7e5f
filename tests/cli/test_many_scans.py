"""``iqtflow-enhance`` on what a clinic has: a folder of files, a table of them, DICOM files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import write_thick_scan
from conftest import make_affine, make_head, write_scan

from iqtflow.bids.loose_files import LooseScan, list_folder, read_table, why_left_out
from iqtflow.cli.commands import enhance
from iqtflow.utils.errors import UsageError

COLOURS = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_scan_of_a_folder_is_enhanced_and_no_bad_file_stops_the_others(
    tmp_path, untrained_model, capsys
):
    folder, out = tmp_path / "scans", tmp_path / "scans/enhanced"
    write_thick_scan(
        folder / "patient 1/t1_se.nii.gz", sidecar={"SliceThickness": 5.0, "SkullStripped": True}
    )
    write_scan(folder / "series.nii.gz", make_head((20, 20, 12, 3)))
    write_scan(folder / "report.nii.gz", np.zeros((16, 16, 16), COLOURS))
    write_scan(folder / "t1_loc.nii.gz", make_head((20, 20, 12)))
    (folder / "cut.nii.gz").write_bytes((folder / "patient 1/t1_se.nii.gz").read_bytes()[:3000])
    (folder / "._t1.nii.gz").write_text("a hidden file of another system")
    arguments = [str(folder), str(out), "--model", str(untrained_model), "--device", "cpu"]
    assert enhance.main(arguments) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1].split(": ", 1)[1].startswith("1 done, 0 done before, 3 left out, 1 failed")
    reasons = {said[i].split(": ", 1)[1]: said[i + 1] for i, line in enumerate(said) if "left out: /" in line}
    for name, word in (("series", "4-D"), ("report", "colour"), ("t1_loc", "localizer")):
        assert word in reasons[str(folder / f"{name}.nii.gz")]
    made = out / "patient 1"
    assert sorted(path.name for path in made.iterdir()) == ["t1_se.json", "t1_se.nii.gz", "t1_se_std.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == ["iqtflow-enhance.json", "patient 1"]
    assert nib.load(made / "t1_se.nii.gz").shape == (64, 68, 64)
    assert json.loads((made / "t1_se.json").read_text())["Geometry"]["ThicknessMm"] == 5.0

    before = bytes_of(out)
    (folder / "cut.nii.gz").unlink()
    assert enhance.main(arguments) == 0
    assert "0 done, 1 done before, 3 left out, 0 failed" in capsys.readouterr().out
    assert enhance.main([*arguments, "--average-mirrored"]) == 2  # other settings
    assert "--average-mirrored yes" in capsys.readouterr().err
    assert bytes_of(out) == before


@pytest.mark.parametrize(
    ("name", "sidecar", "reason"),
    [
        ("401_AX_T1_SE_6mm", {}, None),
        ("SAG_MPRAGE", {}, None),
        ("sub-B01_scan", {}, None),
        ("301", {"SeriesDescription": "Ax T1 FLAIR"}, None),
        ("301", {"SeriesDescription": "Ax T2 TSE"}, "T2w"),
        ("301", {"ProtocolName": "DWI b1000", "ImageType": ["DERIVED", "ADC"]}, "diffusion"),
        ("T2_FLAIR_COR", {}, "T2w"),
        ("3Plane_Loc_SSFSE", {}, "localizer"),
        ("t1_brain_mask", {}, "mask"),
    ],
)
def test_names_and_sidecars_tell_what_is_no_t1w_scan(tmp_path, name, sidecar, reason):
    scan = write_scan(tmp_path / f"{name}.nii.gz", make_head((60, 60, 12)))
    (tmp_path / f"{name}.json").write_text(json.dumps(sidecar))
    why = why_left_out(LooseScan(scan, Path(scan.name), tmp_path / f"{name}.json"), contrast="T1w")
    assert why is None if reason is None else reason in why


def test_a_few_slices_are_a_localizer_and_thin_slices_have_nothing_to_gain(tmp_path):
    few = write_scan(tmp_path / "a.nii.gz", make_head((40, 40, 3)))
    thin = write_scan(tmp_path / "b.nii.gz", make_head((20, 20, 20)), make_affine((2, 2, 2.2)))
    assert "3 slices" in why_left_out(LooseScan(few, Path("a.nii.gz")), contrast="T1w")
    scan = LooseScan(thin, Path("b.nii.gz"))
    assert "near-isotropic" in why_left_out(scan, contrast="T1w")
    assert why_left_out(scan, contrast="T1w", force=True) is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_names_scans_relative_to_itself_and_what_is_known_of_them(tmp_path, separator):
    rows = ["\ufeffscan,output,skull_stripped", "p1/t1.nii.gz,,", "../p2/t1.nii,p2.nii.gz,yes", ""]
    (tmp_path / "list.csv").write_text("\n".join(rows).replace(",", separator), encoding="utf-8")
    first, second = read_table(tmp_path / "list.csv")
    assert (first.path, first.output) == (tmp_path / "p1/t1.nii.gz", Path("p1/t1.nii.gz"))
    assert (second.output, second.skull_stripped) == (Path("p2.nii.gz"), "yes")
    assert second.where.endswith("list.csv, line 3")


@pytest.mark.parametrize(
    ("rows", "places"),
    [
        ("file\na.nii", ("line 1", "column file")),
        ("output\na.nii", ("line 1", "column scan")),
        ("scan,contrast\na.nii,T1w\nb.nii,T7", ("line 3", "column contrast", "T7")),
        ("scan,output\na.nii,../a.nii", ("line 2", "column output")),
        ("scan\na.nii\np/a.mgz", ("line 3", "column scan", "a.mgz")),
        ("scan,output\na.nii,x.nii\nb.nii,x.nii.gz", ("line 3", "column output", "line 2")),
        ("scan,output\na.nii", ("line 2", "1 values")),
        ("scan", ("line 2", "no row")),
    ],
)
def test_an_error_in_a_table_names_line_and_column_before_any_work(tmp_path, rows, places):
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(UsageError) as caught:
        read_table(tmp_path / "list.csv")
    assert all(place in str(caught.value) for place in ("list.csv", *places))


def test_a_scan_of_a_table_that_is_not_there_fails_by_its_line(tmp_path, untrained_model, capsys):
    (tmp_path / "list.csv").write_text("scan\ngone.nii.gz\n")
    arguments = [str(tmp_path / "list.csv"), str(tmp_path / "out"), "--model", str(untrained_model)]
    assert enhance.main(arguments) == 1
    said = capsys.readouterr().out
    assert "line 2, column scan" in said and "0 done, 0 done before, 0 left out, 1 failed" in said


@pytest.mark.parametrize("option", ["--std", "--json"])
def test_options_with_a_file_of_one_scan_are_refused_for_many(tmp_path, capsys, option):
    write_scan(tmp_path / "scans/a.nii.gz", make_head((20, 20, 12)))
    assert enhance.main([str(tmp_path / "scans"), str(tmp_path / "out"), option, "x.nii.gz"]) == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_never_lie_in_the_folder_of_the_scans(tmp_path, capsys):
    write_scan(tmp_path / "a.nii.gz", make_head((20, 20, 12)))
    assert enhance.main([str(tmp_path), str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_names_in_capitals_are_scans_too_and_results_end_in_small_letters(tmp_path):
    for name in ("A1", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"):  # which is longer in small letters
        write_scan(tmp_path / "scan.nii.gz", make_head((8, 8, 8))).rename(tmp_path / f"{name}.NII.GZ")
        (tmp_path / f"{name}.json").write_text("{}")
        listed = {scan.path.name: scan for scan in list_folder(tmp_path, without=tmp_path / "out")}
        assert listed[f"{name}.NII.GZ"] == LooseScan(
            tmp_path / f"{name}.NII.GZ", Path(f"{name}.nii.gz"), tmp_path / f"{name}.json"
        )


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert enhance.main([str(tmp_path / "nifi"), str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'nifi'}: found nothing" in capsys.readouterr().err


def test_two_lines_lead_from_dicom_files_to_enhanced_scans(tmp_path, untrained_model):
    for name in ("pydicom", "dcm2niix"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")
    import dcm2niix
    from dicom_series import write_series

    brain = tmp_path / "brain.nii.gz"
    write_thick_scan(brain)
    thick = np.swapaxes(nib.load(brain).get_fdata(), 1, 2)
    write_series(tmp_path / "dicom", thick, "AX T1 SE", spacing_mm=6.0, thickness_mm=5.0, pixel_mm=1.5)
    write_series(tmp_path / "dicom", thick[:, :, :3], "localizer", spacing_mm=10.0, number=2)
    nifti, out = tmp_path / "nifti", tmp_path / "enhanced"
    nifti.mkdir()
    converted = subprocess.run(
        [dcm2niix.bin, "-b", "y", "-z", "y", "-f", "%s_%d", "-o", nifti, tmp_path / "dicom"],
        capture_output=True,
    )
    assert converted.returncode == 0, converted.stdout.decode()
    assert enhance.main([str(nifti), str(out), "--model", str(untrained_model), "--device", "cpu"]) == 0
    (made,) = out.glob("1_*SE.json")
    fields = json.loads(made.read_text())
    assert fields["Geometry"]["SpacingMm"] == pytest.approx(6.0)
    assert fields["Geometry"]["ThicknessMm"] == pytest.approx(5.0)  # from the sidecar of dcm2niix
    assert not list(out.glob("2_*"))
