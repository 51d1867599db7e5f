"""The page of a subject that was prepared for training, and pages made again from what is on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from report_phantoms import (
    DRAWN,
    FAMILIAR,
    UNFAMILIAR,
    Page,
    failed,
    make_head,
    make_prepared_record,
    make_record,
    save,
)

from iqtflow.bids.sidecars import write_dataset_description
from iqtflow.image.validate import check_scan
from iqtflow.inference.pipeline import enhance_image
from iqtflow.reports.assemble.facts import fact_tables, judge
from iqtflow.reports.assemble.index import rebuild, write_index_page
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.volumes import load_array, on_grid
from iqtflow.reports.record import Record
from iqtflow.simulation.snr_prior import DEFAULT_PRIOR, PUBLISHED
from iqtflow.utils.errors import InputError


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(scope="module")
def record(volumes) -> Record:
    return make_prepared_record(volumes)


@pytest.fixture(scope="module")
def page(record, tmp_path_factory) -> Page:
    return Page(write_subject_page(tmp_path_factory.mktemp("out"), "02", [record]))


def test_a_training_subject_shows_contours_draws_and_what_was_drawn(page):
    names = {path.name for path in page.image_files()}
    for plane in ("axial", "coronal", "sagittal"):
        assert {f"sub-02_T1w_{plane}-t1w.webp", f"sub-02_T1w_{plane}-contours.webp"} <= names
    # Draws have thick slices along x or z; each is shown across its slices and in their plane.
    for number, planes in ((1, "coronal axial"), (2, "coronal sagittal"), (3, "coronal axial")):
        for plane in planes.split():
            for kind in ("source", "draw"):
                assert f"sub-02_T1w_draw{number:02d}-{plane}-{kind}.webp" in names
    assert {"sub-02_T1w_snr.svg", "sub-02_T1w_tissues.svg"} <= names
    snr = "Draw 1: SNR 67.6 in white matter, 59.4 in grey matter"
    for words in (snr, "ANTs N4 + Atropos", "GM 793 ml", "412"):
        assert page.says(words), words
    (ellipse,) = (image for image in page.images if image["src"].endswith("_snr.svg"))
    assert ellipse["alt"].endswith("; 1 of them outside.")
    assert page.tags.count("figure") == page.tags.count("figcaption")
    assert all(len(image["alt"]) > 20 for image in page.images)


def test_contours_run_where_the_map_is_one_half():
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    disc = np.clip((8 - np.hypot(x - 25, y - 10)) / 4 + 0.5, 0, 1)
    black = Image.new("L", (400, 300))
    drawn = np.asarray(pictures.outline(black, [(disc, "#ffffff")]).convert("L"), float)
    rows, columns = np.nonzero(drawn > 100)
    # Pixel (r, c) of the map is a block of 10 x 10 pixels of the picture, its middle at 10 r + 4.5.
    radius = np.hypot((columns - 254.5) / 10, (rows - 104.5) / 10)
    assert len(radius) > 300 and np.all(np.abs(radius - 8) < 0.35)


def test_the_published_ellipse_holds_the_share_of_draws_that_it_says():
    prior = PUBLISHED[DEFAULT_PRIOR]
    rng = np.random.default_rng(0)
    draws = np.array([prior.sample(rng) for _ in range(4000)])
    assert prior.holds(draws).mean() == pytest.approx(0.95, abs=0.012)
    assert list(prior.holds(np.array(DRAWN))) == [True, True, False]
    outline = prior.outline(0.95).T
    assert prior.holds(0.999 * (outline - prior.mean) + prior.mean).all()
    assert not prior.holds(1.001 * (outline - prior.mean) + prior.mean).any()


def test_a_draw_lies_over_its_source_on_the_page(record, volumes):
    """A bright spot of the source is in the same place of the picture of a draw, in every plane."""
    image = nib.load(record.input)
    data = np.zeros(image.shape, np.float32)
    data[20:24, 30:34, 12:16] = 1000
    thick = data.reshape(48, 56, 12, 4).mean(3)
    affine = image.affine @ np.diag([1, 1, 4, 1.0])
    affine[:3, 3] = image.affine[:3, 3] + image.affine[:3, 2] * 1.5
    nib.save(nib.Nifti1Image(thick, affine), volumes / "spot.nii")
    blocks = on_grid(load_array(volumes / "spot.nii"), image.affine, data.shape, kind="nearest")
    np.testing.assert_array_equal(blocks, data)


@pytest.mark.usefixtures("small_pictures")
def test_a_prepared_scan_without_maps_or_draws_is_shown_all_the_same(record, tmp_path):
    found = Page(write_subject_page(tmp_path, "02", [Record("prepared", record.input)]))
    assert len(found.image_files()) == 6 and not found.says("Drawn values")
    gone = Page(write_subject_page(tmp_path, "03", [Record("prepared", "/nowhere.nii.gz")]))
    assert gone.says("No pictures.") and gone.says("no high-field scan")


@pytest.mark.usefixtures("small_pictures")
def test_the_index_counts_prepared_subjects_and_shows_their_contours(record, tmp_path):
    write_subject_page(tmp_path, "02", [record])
    found = Page(write_index_page(tmp_path))
    assert found.says("1 prepared")
    assert [path.name for path in found.image_files()] == ["sub-02_T1w_thumbnail.webp"]


@pytest.mark.parametrize(
    ("field", "badge", "words"),
    [
        (UNFAMILIAR, "unlike the training data", "4.2"),
        ({**FAMILIAR, "Score": 1.2}, "at the limit of the training data", "1.2"),
        (FAMILIAR, "like the training data", "anatomy"),
        (None, "not compared", "the model"),
    ],
)
def test_the_page_says_whether_a_scan_is_like_the_training_data(field, badge, words):
    verdict = judge({"Device": "cpu", "OutOfDistribution": field})
    assert verdict.badge == badge and words in verdict.sentence


@pytest.mark.usefixtures("small_pictures")
def test_a_scan_unlike_the_training_data_says_why_and_is_marked_on_the_index(volumes, tmp_path):
    scan = make_record(volumes)
    scan.details.update(
        {
            "OutOfDistribution": {**UNFAMILIAR, "Score": 4.3},
            "Warnings": ["Out of distribution (score 4.2): check it."],
        }
    )
    found = Page(write_subject_page(tmp_path, "01", [scan]))
    assert found.says("the slices cover less of the brain (mm) than usual (40; expected 120 to 174)")
    assert found.says("Length of the brain along the slice axis (mm) 40 120 to 174 4.2")
    assert not found.says("Notes of the run"), "said once"
    assert Page(write_index_page(tmp_path)).says("do not use")


def test_the_pages_geometry_is_that_of_a_real_sidecar(untrained_model, tmp_path):
    """What the command writes is what the page reads: keys of the sidecar, not of a test."""
    data, _, affine = make_head()
    image = check_scan(save(tmp_path / "sub-01_T1w.nii.gz", data, affine))
    sidecar = {"SliceThickness": 6.0, "SkullStripped": True}
    details = enhance_image(image, sidecar=sidecar, model=untrained_model, num_threads=1).details
    tables = {title: dict(rows) for title, rows in fact_tables(details).items()}
    geometry = tables["Geometry"]
    assert geometry["Slice spacing"] == "8 mm" and geometry["Slice thickness"] == "6 mm"
    assert geometry["Gap between slices"] == "2 mm" and geometry["Pixel size in plane"] == "2 × 2 mm"
    assert geometry["Voxel size of the enhanced volume"] == "2 × 2 × 2 mm"
    assert geometry["Upsampling factor k"] == "4"
    assert {"Source of these values", "Choice of k", "Slice spacing / pixel size"} <= set(geometry)
    assert {"Name", "SHA-256", "Number of networks", "Brain mask", "Contrast"} <= set(tables["Model"])
    assert {"Device", "Precision", "Time", "Peak memory", "Version of iqtflow"} <= set(tables["Run"])


@pytest.fixture
def derivatives(tmp_path, volumes) -> Path:
    """Derivatives of an enhanced and a prepared subject; the work directory is gone."""
    raw, out, work = tmp_path / "raw", tmp_path / "out", tmp_path / "work"
    work.mkdir()
    write_dataset_description(out, source_dir=raw)
    enhanced, prepared = make_record(work), make_prepared_record(work)
    for label, scan in (("01", enhanced.input), ("02", prepared.input)):
        (raw / f"sub-{label}" / "anat").mkdir(parents=True)
        (out / f"sub-{label}" / "anat").mkdir(parents=True)
        shutil.copy(scan, raw / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz")
    one, two = out / "sub-01" / "anat", out / "sub-02" / "anat"
    shutil.copy(enhanced.output, one / "sub-01_desc-iqt_T1w.nii.gz")
    shutil.copy(enhanced.std, one / "sub-01_desc-iqtstd_T1w.nii.gz")
    sources = {"Sources": ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"], **enhanced.details}
    (one / "sub-01_desc-iqt_T1w.json").write_text(json.dumps(sources))
    for key in ("wm", "gm"):
        shutil.copy(getattr(prepared, key), two / f"sub-02_label-{key.upper()}_probseg.nii.gz")
    shutil.copy(prepared.mask, two / "sub-02_desc-brain_mask.nii.gz")
    sources = {"Sources": ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"], **prepared.details}
    (two / "sub-02_label-GM_probseg.json").write_text(json.dumps(sources))
    for i, draw in enumerate(prepared.draws, start=1):
        shutil.copy(draw.image, two / f"sub-02_desc-sim{i:02d}_T1w.nii.gz")
        (two / f"sub-02_desc-sim{i:02d}_T1w.json").write_text(json.dumps(draw.sidecar))
    shutil.rmtree(work)
    return out


@pytest.mark.usefixtures("small_pictures")
def test_all_pages_can_be_made_again_from_derivatives_alone(derivatives):
    index = Page(rebuild(derivatives))
    assert index.says("1 look closer") and index.says("1 prepared")
    one, two = Page(derivatives / "sub-01.html"), Page(derivatives / "sub-02.html")
    for words in ("aniso-k4", "Median in the foreground", "12 slices (bottom to top) became 48"):
        assert one.says(words), words
    assert two.says("Draw 3") and two.says("GM 793 ml")
    for page in (index, one, two):
        assert all(path.stat().st_size > 0 for path in page.image_files())


@pytest.mark.usefixtures("small_pictures")
def test_pages_are_made_again_where_the_derivatives_were_moved_to(derivatives, tmp_path):
    log = derivatives / "logs" / "run" / "crash.txt"
    log.parent.mkdir(parents=True)
    log.write_text("Traceback\nInputError: it is a banana\n")
    write_subject_page(derivatives, "03", [failed("sub-03_T1w", "a banana", log=log)])
    rebuild(derivatives)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    derivatives.rename(moved)
    for page in moved.glob("*.html"):
        page.unlink()
    index = Page(rebuild(moved))
    assert all(index.says(words) for words in ("1 look closer", "1 prepared", "1 failed"))
    assert Page(moved / "sub-03.html").says("InputError: it is a banana")
    assert "logs/run/crash.txt" in Page(moved / "sub-03.html").links
    assert Page(moved / "sub-01.html").says("12 slices (bottom to top) became 48"), (
        "the scan is where DatasetLinks says"
    )


def test_a_folder_without_anything_to_show_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither pages nor derivatives"):
        rebuild(tmp_path)
