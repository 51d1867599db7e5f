"""The page of a subject: what it shows, that it shows it truthfully, that it needs nothing but its folder."""

from __future__ import annotations

import base64
import gzip
import math
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from report_phantoms import THICK, K, Page, failed, make_record, save
from scipy import ndimage

from iqtflow.image.geometry import thin_affine
from iqtflow.image.resampling import isotropic_grid, to_grid
from iqtflow.models.card import Card
from iqtflow.reports.assemble.group import write_group_page
from iqtflow.reports.assemble.index import write_index_page
from iqtflow.reports.assemble.page import NOTICE
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.draw.enhanced import busiest_place, draw_sheets, make_scene
from iqtflow.reports.draw.excess import find_excess
from iqtflow.reports.draw.slices import PlaneDrawer, Rung, Scene
from iqtflow.reports.draw.viewer import make_viewer
from iqtflow.reports.draw.volumes import PLANES, cut, load_volumes
from iqtflow.reports.record import VOLUMES, Record
from iqtflow.reports.verdict import judge, make_checks
from iqtflow.utils.errors import InputError

#: What a name from outside may hold at worst.
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x.png onerror=alert(1)>&"


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Record:
    return make_record(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def page(record, tmp_path_factory) -> Page:
    return Page(write_subject_page(tmp_path_factory.mktemp("out"), "01", [record]))


def test_every_plane_is_shown_before_and_after_with_uncertainty_and_error(page):
    names = {path.name for path in page.image_files()}
    for plane in PLANES:
        for kind in ("acquired", "before", "iqt", "std", "errspline", "erriqt"):
            assert f"sub-01_ses-1_T1w_{plane}-{kind}.webp" in names
        for kind in ("acquired", "before", "iqt", "change", "std", "truth"):
            assert f"sub-01_ses-1_T1w_detail-{plane}-{kind}.webp" in names


def test_every_figure_on_the_page_exists_and_is_a_picture_of_something(page):
    files = page.image_files()
    assert len(files) > 30
    for path in files:
        assert path.stat().st_size > 0
        if path.suffix == ".webp":
            assert np.asarray(Image.open(path).convert("L")).std() > 1, f"{path.name} is blank"
        else:
            assert b"</svg>" in path.read_bytes()


def test_no_figure_is_written_that_the_page_does_not_show(page):
    written = {
        p for p in (page.path.parent / "sub-01" / "figures").iterdir() if p.suffix in (".webp", ".svg")
    }
    thumbnail = {p for p in written if p.name.endswith("_thumbnail.webp")}  # shown by the index
    assert written - thumbnail == page.image_files()


def test_every_picture_is_described(page):
    assert all(len(image["alt"]) > 20 for image in page.images)


def test_the_page_asks_the_network_for_nothing(page):
    assert not re.search(r"""(src|srcset|data|action)\s*=\s*["']?\s*(https?:)?//""", page.source)
    assert not re.search(r"url\(|@import|<link[^>]+stylesheet|fetch\(|XMLHttpRequest", page.source)
    assert "default-src 'none'" in page.source
    assert all(not link.startswith("http") for link in page.links)
    for path in page.image_files():
        if path.suffix == ".svg":
            references = re.findall(r'href="([^"]*)"', path.read_text())
            assert all(r.startswith("#") or r.startswith("http://purl.org/") for r in references)


def test_the_page_has_the_limits_of_use_and_geometry_model_device_time_and_warnings(page):
    assert "research only" in NOTICE and "not measured" in NOTICE
    for words in (
        NOTICE,
        *("8 mm", "6 mm", "2 mm", "from SliceThickness", "third array axis (k)", "aniso-k4", "ab" * 32),
        *("cpu", "31.4 s", "4.2 GB", "Thickness and spacing differ.", "PSNR", "30.25"),
        *("2.00 × 2.00 × 8.00 mm to 2.00 × 2.00 × 2.00 mm", "12 slices (bottom to top) became 48"),
    ):
        assert page.says(words), words


def test_the_patients_right_is_on_the_left_of_a_radiological_picture(record):
    volumes = load_volumes(record)
    for plane in (PLANES["axial"], PLANES["coronal"]):
        middle = volumes.after.shape[plane.normal] // 2
        for convention, side in (("radiological", 0), ("neurological", 1)):
            picture = cut(volumes.after, plane, middle, convention=convention)
            column = np.unravel_index(np.argmax(picture), picture.shape)[1]
            assert (column > picture.shape[1] / 2) == bool(side)
            assert plane.sides(convention)[side] == "R"


@pytest.mark.parametrize("stored", ["LAS", "PIR", "SAL", "IPL"])
def test_the_same_head_gives_the_same_pictures_however_it_is_stored(record, tmp_path, stored):
    turned = {}
    for key in ("input", "output", "spline", "std", "mask", "truth"):
        image = nib.load(getattr(record, key))
        ornt = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(stored)
        )
        turned[key] = tmp_path / f"{key}.nii"
        nib.save(image.as_reoriented(ornt), turned[key])
    expected, found = load_volumes(record), load_volumes(replace(record, **turned))
    assert found.slice_axis == expected.slice_axis == 2
    for key in ("before", "after", "std", "truth", "mask"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))
    assert found.window == expected.window


def test_pictures_have_the_proportions_of_the_head_in_millimetres(record):
    volumes = load_volumes(replace(record, std=None, truth=None))
    planes, *_ = draw_sheets(Scene(volumes, "x", "radiological"), Rung(1, 400, 80), {})
    for comparison in planes:
        plane = PLANES[comparison.plane]
        full_mm = np.array(volumes.after.shape) * volumes.sizes_mm
        # The head nearly fills its field of view here, so the crop may take little away.
        assert comparison.width / comparison.height == pytest.approx(
            full_mm[plane.columns] / full_mm[plane.rows], rel=0.1
        )


@pytest.mark.usefixtures("small_pictures")
def test_before_and_after_share_one_grey_scale(record, tmp_path):
    same = replace(record, output=record.spline, std=None, truth=None)
    write_subject_page(tmp_path, "01", [same])
    figures = tmp_path / "sub-01" / "figures"
    for plane in PLANES:
        before, after = (figures / f"sub-01_ses-1_T1w_{plane}-{kind}.webp" for kind in ("before", "iqt"))
        assert before.read_bytes() == after.read_bytes()


@pytest.mark.usefixtures("small_pictures")
def test_a_scan_without_ensemble_mask_or_spline_is_shown_all_the_same(record, tmp_path):
    bare = Record("enhanced", record.input, output=record.output)
    found = Page(write_subject_page(tmp_path, "sub-01", [bare]))
    names = {path.name for path in found.image_files()}
    assert "sub-01_ses-1_T1w_coronal-before.webp" in names
    assert not any("-std" in name or "-err" in name for name in names)
    assert found.says("no brain mask") and found.says("no uncertainty map")


def test_a_spline_made_for_the_page_lies_where_the_shipped_baseline_lies(record):
    with_spline, without = load_volumes(record), load_volumes(replace(record, spline=None))
    np.testing.assert_allclose(without.before, with_spline.before, atol=1e-3)


def test_the_detail_is_taken_where_most_has_changed(record):
    volumes = load_volumes(record)
    after = volumes.before.copy()
    after[30:33, 20:23, 22:26] += 200
    changed = replace(volumes, after=after)
    index, (rows, columns) = busiest_place(changed, PLANES["axial"], convention="radiological")
    picture = cut(np.abs(after - volumes.before), PLANES["axial"], index, convention="radiological")
    assert picture.max() > 0 and picture[rows, columns].sum() == picture.sum()


def test_the_acquired_slices_are_shown_as_blocks_where_they_lie(record):
    volumes = load_volumes(record)
    scene = Scene(volumes, "x", "radiological")
    for plane in (PLANES["coronal"], PLANES["axial"]):
        drawer = PlaneDrawer(scene, plane, {}, Rung(1, 480, 80))
        found = np.asarray(drawer.acquired()[0], float)
        blocks = np.repeat(volumes.acquired[0], K, axis=2)
        expected = np.asarray(drawer.enlarged(drawer.grey(blocks)[0]), float)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98, plane.name
        if plane.name == "coronal":
            rows = np.abs(np.diff(found, axis=0)).max(axis=1)
            assert (rows > 0).sum() <= volumes.acquired[0].shape[2], "one step between two slices, no more"


@pytest.mark.usefixtures("small_pictures")
def test_an_enhanced_volume_of_cubic_voxels_is_shown_where_it_is(record, tmp_path):
    """Voxels of 1.5 mm, of which no whole number fits into a slice of 8 mm."""
    scan, cubic = nib.load(record.input), {}
    shape, grid = isotropic_grid(scan.shape, scan.affine, 1.5)
    for name in ("output", "std", "truth"):
        volume = nib.load(getattr(record, name))
        cubic[name] = save(
            tmp_path / f"{name}.nii.gz", to_grid(volume.dataobj, volume.affine, shape, grid), grid
        )
    shown = replace(record, spline=None, **cubic)
    volumes = load_volumes(shown)
    np.testing.assert_allclose(volumes.sizes_mm, 1.5, atol=1e-4)
    spot = np.array(np.unravel_index(volumes.before.argmax(), shape))
    own = nib.affines.apply_affine(np.linalg.inv(scan.affine) @ volumes.affine, spot)
    assert scan.get_fdata()[tuple(own.round().astype(int))] > 250, "the bright spot of the scan"
    drawer = PlaneDrawer(Scene(volumes, "x", "radiological"), PLANES["coronal"], {}, Rung(1, 480, 80))
    blocks = np.asarray(drawer.acquired()[0], float)
    smooth = np.asarray(drawer.enlarged(drawer.grey(volumes.before)[0]), float)
    assert np.corrcoef(blocks.ravel(), smooth.ravel())[0, 1] > 0.95
    write_subject_page(tmp_path, "01", [shown])
    layers = layers_of(tmp_path)
    for key in ("acquired", "spline", "iqt"):
        data, affine = layers[key].get_fdata(), layers[key].affine
        there = nib.affines.apply_affine(np.linalg.inv(affine) @ volumes.affine, spot).round().astype(int)
        assert data[tuple(there)] > 0.9 * data.max(), key


def test_what_every_map_of_the_standard_deviation_has_is_subtracted(record):
    volumes = load_volumes(record)
    depth = np.arange(volumes.after.shape[2]) % K
    usual = np.broadcast_to(1.0 + (depth % 3 > 0), volumes.after.shape).astype(np.float32)
    quiet = find_excess(replace(volumes, std=usual))
    assert np.abs(quiet).max() < 1e-3, "stripes at the slice spacing"
    place = tuple(int(i) for i in np.argwhere(volumes.mask).mean(axis=0))
    around = tuple(slice(i - 2, i + 3) for i in place)
    unusual = usual.copy()
    unusual[around] += 5
    found = find_excess(replace(volumes, std=unusual))
    assert found[place] > 4 and np.unravel_index(found.argmax(), found.shape) in [
        tuple(i) for i in np.argwhere(found > 4)
    ]
    assert found[place] > 10 * np.percentile(found[volumes.mask], 90)


@pytest.mark.usefixtures("small_pictures")
def test_places_of_the_audit_are_listed_and_drawn_where_they_are(record, tmp_path):
    volumes = load_volumes(record)
    voxel = np.array([32, 26, 24, 1])
    place = {"Kind": "missing", "PositionMM": (volumes.affine @ voxel)[:3].tolist(), "VolumeML": 0.2}
    odd = ({"Kind": "odd"}, {**place, "PositionMM": ["x", 0, 0]}, {**place, "Score": math.nan}, 3)
    places = [*odd, {**place, "Slices": [5, 6], "Score": 4.0}]
    audited = replace(record, details={**record.details, "DataConsistency": {"Places": places}})
    found = Page(write_subject_page(tmp_path, "01", [audited]))
    assert found.says("1: missing") and found.says("6 to 7") and found.says("0.20 ml")
    drawn = [path for path in found.image_files() if "_place01-" in path.name]
    assert {"acquired", "iqt"} <= {path.stem.rpartition("-")[2] for path in drawn}
    grey = np.asarray(Image.open(next(p for p in drawn if "iqt" in p.name)).convert("L"), float)
    n = grey.shape[0] // 5
    assert grey[2 * n : 3 * n, 2 * n : 3 * n].mean() > 1.2 * grey.mean(), "the bright spot is in the middle"


def test_the_verdict_its_reason_and_all_checks_are_on_the_page(page, record):
    checks = make_checks(record)
    verdict = judge(checks)
    assert page.says(verdict.reason)
    for check in checks:
        assert page.says(check.name) and page.says(check.words)


def test_no_path_of_this_machine_is_on_the_page(record, page):
    assert str(Path(record.input).parent) not in page.source
    assert page.says("sub-01_ses-1_T1w.nii.gz")


def layers_of(folder: Path) -> dict[str, nib.Nifti1Image]:
    """Volumes of the viewer of the only page in a folder, by their names."""
    found = {}
    for script in folder.glob("sub-*/figures/*_viewer-*.js"):
        scan, key, text = re.fullmatch(
            r'iqtflowVolume\("(.+)", "(.+)", "(.+)"\);\n', script.read_text()
        ).groups()
        assert script.name == f"{scan}_viewer-{key}.js"
        found[key] = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
    return found


@pytest.mark.usefixtures("small_pictures")
def test_the_viewer_shows_the_volumes_where_they_are_and_as_they_are(record, tmp_path):
    residual = save(tmp_path / "residual.nii.gz", np.full(THICK, 3.0), nib.load(record.input).affine)
    write_subject_page(tmp_path, "01", [replace(record, residual=residual)])
    layers = layers_of(tmp_path)
    assert set(layers) == {"acquired", "spline", "iqt", "std", "residual"}
    volumes = load_volumes(record)
    spot = np.array([*nib.affines.apply_affine(volumes.affine, (32, 26, 24)), 1])
    for key, source in (("acquired", record.input), ("spline", record.spline), ("iqt", record.output)):
        there, truth = (
            (np.linalg.inv(i.affine) @ spot)[:3].round().astype(int) for i in (layers[key], nib.load(source))
        )
        value, expected = layers[key].get_fdata()[tuple(there)], nib.load(source).get_fdata()[tuple(truth)]
        top = volumes.window[0] + 1.5 * (volumes.window[1] - volumes.window[0])
        assert value == pytest.approx(min(expected, top), abs=2), key
    assert np.abs(layers["residual"].get_fdata() - 3).max() < 0.1
    assert layers["acquired"].header.get_zooms()[2] == 8, "the scan keeps its thick slices"
    ends = [nib.affines.apply_affine(i.affine, [-0.5] * 3) for i in (layers["acquired"], layers["iqt"])]
    np.testing.assert_allclose(*ends, atol=0.01)


@pytest.mark.usefixtures("small_pictures")
def test_a_viewer_that_is_too_large_is_made_coarser_or_left_out_or_not_asked_for(record, page, tmp_path):
    assert page.says("Viewer")
    assert "0.69.0" in (page.path.parent / "viewer/niivue.umd.js").read_text(), (
        "the version that documents name"
    )
    assert "BSD 2-Clause" in (page.path.parent / "viewer/LICENSE").read_text()
    scene = make_scene(load_volumes(replace(record, std=None, truth=None)), "x", "radiological")
    full = make_viewer(scene, None, max_megabytes=40)
    coarse = make_viewer(scene, None, max_megabytes=0.9 * full.megabytes)
    assert (full.step, coarse.step) == (1, 2) and coarse.megabytes < 0.5 * full.megabytes
    assert make_viewer(scene, None, max_megabytes=0.001) is None
    bare = Record("enhanced", record.input, output=record.output)
    found = Page(write_subject_page(tmp_path, "01", [bare], viewer_mb=0.001))
    assert found.says("--viewer-mb") and not layers_of(tmp_path)
    none = Page(write_subject_page(tmp_path / "none", "01", [bare], viewer_mb=0))
    assert 'class="viewer"' not in none.source and not (tmp_path / "none" / "viewer").exists()


@pytest.mark.usefixtures("small_pictures")
def test_names_and_messages_from_outside_cannot_write_into_the_page(record, tmp_path):
    details = {"Warnings": [HOSTILE], "Model": {"Name": HOSTILE}, HOSTILE: HOSTILE}
    hostile = replace(record, details=details, metrics={HOSTILE: {HOSTILE: 1.0}})
    write_subject_page(tmp_path, "01", [hostile, failed(HOSTILE, HOSTILE, log=f"{HOSTILE}\nend")])
    write_group_page(tmp_path, HOSTILE, card=Card({HOSTILE: HOSTILE}))
    write_index_page(tmp_path, ["01"])
    for name in ("sub-01.html", "group.html", "index.html"):
        found = Page(tmp_path / name)
        assert found.tags.count("script") == 1, name
        assert all("evil" not in image["src"] for image in found.images)
        assert "alert('x')" in found.text


def test_a_failed_scan_shows_the_message_and_the_end_of_its_log(tmp_path):
    log = tmp_path / "crash.txt"
    log.write_text("\n".join(f"line {i}" for i in range(1000)) + "\nMemoryError: out of memory\n")
    found = Page(write_subject_page(tmp_path, "01", [failed(message="not enough memory", log=log)]))
    excerpt = found.source.partition('<pre class="excerpt">')[2].partition("</pre>")[0].splitlines()
    assert excerpt[-1] == "MemoryError: out of memory"
    assert len(excerpt) == 14, "the end is seen without scrolling"
    assert found.says("not enough memory") and found.says("line 999") and not found.says("line 500 ")
    assert not found.images


def test_a_skipped_scan_shows_its_sentence(tmp_path):
    sentence = "already near-isotropic (slices 1 mm apart), nothing to gain; --force enhances it all the same"
    skipped = Record("skipped", "/d/sub-01_T1w.nii.gz", message=sentence)
    assert Page(write_subject_page(tmp_path, "01", [skipped])).says(sentence)


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_volume_that_cannot_be_read_is_said_on_the_page_and_does_not_fail_it(record, tmp_path, damage):
    broken = tmp_path / "broken.nii.gz"
    if damage == "truncated":
        broken.write_bytes(Path(record.output).read_bytes()[:2000])
    found = Page(write_subject_page(tmp_path / "out", "01", [replace(record, output=broken)]))
    assert found.says("No pictures.") and not found.images


def test_a_label_or_status_or_convention_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="letters and digits"):
        write_subject_page(tmp_path, "../../etc", [])
    with pytest.raises(InputError, match="enhanced, prepared, skipped, failed"):
        Record("done")
    with pytest.raises(InputError, match="radiological or neurological"):
        write_subject_page(tmp_path, "01", [], convention="japanese")
    assert not list(tmp_path.iterdir())


def test_a_record_is_the_same_after_it_was_a_file_and_files_of_other_versions_can_be_read(record):
    assert Record.read(record.as_json()) == record
    older = {**record.as_json(), "csf": None, "draws": [], "volumes": {"output": "x"}, "warnings": ["w"]}
    assert Record.read(older) == record
    logged = replace(record, log="two\nlines")
    assert "log" not in logged.as_json()
    assert {name for name, _ in logged.files()} == set(VOLUMES) - {"wm", "gm", "csf", "library", "residual"}


def test_the_same_scan_gives_the_same_bytes(record, page, tmp_path):
    again = write_subject_page(tmp_path, "01", [record])
    assert again.read_bytes() == page.path.read_bytes()
    for path in page.image_files():
        assert (tmp_path / "sub-01" / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_page_stays_below_its_size_even_for_pure_noise(record, tmp_path):
    max_bytes = 550_000
    noise = {"std": None, "truth": None}
    for i, key in enumerate(("output", "spline")):
        image = nib.load(getattr(record, key))
        values = np.random.default_rng(i).random(image.shape) * 300
        noise[key] = save(tmp_path / f"{key}.nii", values, image.affine)
    noise = replace(record, **noise)
    write_subject_page(tmp_path / "out", "01", [noise], max_bytes=max_bytes, viewer_mb=0)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()) <= max_bytes


@pytest.mark.usefixtures("small_pictures")
def test_a_page_that_is_current_is_not_drawn_again_and_one_that_lost_a_figure_is(record, tmp_path):
    small = replace(record, std=None, truth=None)
    first = write_subject_page(tmp_path, "01", [small]).stat().st_mtime_ns
    figure = tmp_path / "sub-01" / "figures" / "sub-01_ses-1_T1w_axial-iqt.webp"
    assert write_subject_page(tmp_path, "01", [small]).stat().st_mtime_ns == first
    figure.unlink()
    write_subject_page(tmp_path, "01", [small])
    assert figure.exists()


@pytest.mark.usefixtures("small_pictures")
def test_figures_of_an_earlier_run_do_not_stay_behind(record, tmp_path):
    write_subject_page(tmp_path, "01", [replace(record, truth=None)])
    foreign = tmp_path / "sub-01" / "figures" / "somebody-elses.png"
    foreign.touch()
    write_subject_page(tmp_path, "01", [Record("skipped", record.input, message="why")])
    left = {path.name for path in foreign.parent.iterdir()}
    assert left == {"somebody-elses.png", "sub-01_desc-report.json"}


@pytest.mark.slow
@pytest.mark.real_data
def test_the_page_of_a_clinical_scan_takes_less_than_6_megabytes(real_data, tmp_path):
    scan = real_data / "mixed" / "sub-lfC01" / "anat" / "sub-lfC01_T1w.nii.gz"
    image = nib.load(scan)
    thick = np.asarray(image.dataobj, np.float32)
    thin = thin_affine(image.affine, K)
    output = save(tmp_path / "iqt.nii", np.repeat(thick, K, axis=2), thin)
    spline = save(
        tmp_path / "spline.nii", ndimage.gaussian_filter1d(np.repeat(thick, K, axis=2), 2, axis=2), thin
    )
    std = save(
        tmp_path / "std.nii", np.random.default_rng(0).random((*thick.shape[:2], thick.shape[2] * K)), thin
    )
    enhanced = Record("enhanced", scan, output=output, spline=spline, std=std)
    write_subject_page(tmp_path / "out", "lfC01", [enhanced])
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and "viewer" not in str(p)]
    assert 100_000 < sum(p.stat().st_size for p in files) < 6_000_000
