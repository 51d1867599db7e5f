"""Options that do something other than a run: tell what would be done, write pages or citations, clean up."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import settle
from conftest import make_affine, make_head, write_scan
from phantoms import make_tissue

import iqtflow
from iqtflow.bids import write_dataset_description
from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.config import PathSettings, RunSettings, Settings, TrainSettings
from iqtflow.image.geometry import cubic_upsample
from iqtflow.reports.methods import (
    Paragraph,
    bibliography,
    describe_run,
    render_citation,
    write_citation,
)
from iqtflow.segmentation.select import EngineChoice

THICK, THIN = "sub-01/anat/sub-01_acq-axial_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"


@pytest.fixture
def clinic(bids_tree) -> Path:
    """One thick-slice scan, one near-isotropic one, and one whose content is elsewhere."""
    root = bids_tree(
        *(THICK, THIN, "sub-03/anat/sub-03_T1w.nii.gz"),
        sidecars={"acq-axial_T1w.json": {"SliceThickness": 6.0, "SkullStripped": True}},
    )
    write_scan(root / THICK, make_head((48, 48, 14)), make_affine((2.0, 2.0, 8.0)))
    write_scan(root / THIN, make_head((40, 40, 30)), make_affine((4.0, 4.0, 5.0)))
    pointer = root / "sub-03/anat/sub-03_T1w.nii.gz"
    pointer.unlink()
    pointer.symlink_to("../../.git/annex/objects/absent")
    return root


def tree(root: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in sorted(root.rglob("*"))}


def made(mode: str, **train: object) -> Settings:
    paths = PathSettings(bids_dir=Path("/b"), output_dir=Path("/o"), work_dir=Path("/w"))
    return Settings(paths=paths, run=RunSettings(mode=mode), train=TrainSettings(**train))


# --- dry run ---


def test_a_dry_run_tells_geometry_model_and_outputs_of_each_scan_and_writes_nothing(clinic, tmp_path, capsys):
    before = tree(tmp_path)
    arguments = [str(clinic), str(tmp_path / "out"), "participant", "--dry-run", "--device", "cpu"]
    assert cli.main([*arguments, "--bids-database-dir", str(tmp_path / "index")]) == 1
    assert tree(tmp_path) == before
    told = capsys.readouterr().out
    thick = told[told.index(str(clinic / THICK)) :].split("sub-03")[0]
    assert "slices along k, 8 mm apart (6 mm thick, 2 mm between them), 2 x 2 mm in plane" in thick
    assert re.search(r"model     iqt-k4, k = 4, \S+iqt-k4\.safetensors", thick)
    assert "writes    sub-01/anat/sub-01_acq-axial_desc-iqt_T1w.nii.gz" in thick
    assert f"datalad get {clinic}/sub-03/anat/sub-03_T1w.nii.gz" in told.split("will fail")[1]
    assert "already near-isotropic" in told.split(str(clinic / THIN))[1]
    assert "1 to process, 1 to skip, 1 that will fail" in told


def test_a_dry_run_names_an_interpolated_scan_and_the_options_that_bring_it_back(bids_tree, tmp_path, capsys):
    root = bids_tree(THIN)
    slices = make_tissue((64, 64, 64), 1.5).reshape(64, 64, 16, 4).mean(axis=3)
    write_scan(root / THIN, cubic_upsample(slices, 4), make_affine((1.5, 1.5, 1.5)))
    arguments = [str(root), str(tmp_path / "out"), "participant", "--dry-run", "--device", "cpu"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "nothing to gain" not in told
    flags = re.search(r"--acquired-spacing (\S+) (--acquired-axis z)", told)
    assert float(flags[1]) == pytest.approx(6, rel=0.03)
    assert cli.main([*arguments, "--acquired-spacing", "6", *flags[2].split()]) == 0
    told = capsys.readouterr().out
    assert "slices along k, 6 mm apart" in told
    assert "measured  effective resolution: 1.5 mm along i, 1.5 mm along j, " in told
    assert "1 to process" in told
    assert cli.main([*arguments, "--acquired-spacing", "2"]) == 1
    assert "--acquired-spacing 2" in capsys.readouterr().out.split("will fail")[1]
    assert cli.main([*arguments, "--acquired-spacing", "6", "--acquired-axis", "x"]) == 1
    assert "1.5 mm along x" in capsys.readouterr().out.split("will fail")[1]
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--acquired-axis", "z"])
    assert "--acquired-spacing" in capsys.readouterr().err


def test_a_dry_run_tells_what_the_run_would_stumble_over(clinic, tmp_path, capsys):
    """A checksum that is wrong, a qform that cannot be, a value that fills up the air: as the run does."""
    damaged = clinic / "sub-04/anat/sub-04_T1w.nii.gz"
    head = make_head((48, 48, 14))
    head[:5] = -1024
    write_scan(damaged, head, make_affine((2.0, 2.0, 8.0)), qform_code=1, quatern_b=np.nan)
    noted = clinic / "sub-05/anat/sub-05_T1w.nii.gz"
    noted.parent.mkdir(parents=True)
    noted.write_bytes(damaged.read_bytes())
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    arguments = [str(clinic), str(tmp_path / "out"), "participant", "--dry-run", "--device", "cpu"]
    assert cli.main([*arguments, "--participant-label", "04", "05", "--skip-bids-validation"]) == 1
    told = capsys.readouterr().out
    assert f"will fail {damaged}: found a file that cannot be read" in told
    after = told.split(f"{noted}\n")[1]
    assert "note      The qform is not usable" in after
    assert "are -1024" in after
    assert "1 to process, 0 to skip, 1 that will fail" in told


def test_a_dry_run_tells_the_voxel_size_and_a_scan_whose_slices_are_too_far_apart(clinic, tmp_path, capsys):
    far = clinic / "sub-04/anat/sub-04_T1w.nii.gz"
    write_scan(far, make_head((48, 48, 14)), make_affine((0.8, 0.8, 10.0)))
    arguments = [str(clinic), str(tmp_path / "out"), "participant", "--dry-run", "--device", "cpu"]
    arguments += ["--participant-label", "01", "04"]
    assert cli.main([*arguments, "--voxel-size", "0.8"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"model     iqt-k8, .*cubic voxels of 0.8 mm", told.split(str(far))[0])
    assert re.search(f"will fail {far}: .*ratio 12.5", told)
    assert "1 to process, 0 to skip, 1 that will fail" in told
    assert cli.main([*arguments, "--voxel-size", "1"]) == 0


def test_a_dry_run_of_training_names_draws_and_the_model(clinic, tmp_path, capsys):
    (tmp_path / "split.json").write_text('{"train": ["02"], "validation": ["01"], "evaluation": []}')
    arguments = [
        *(str(clinic), str(tmp_path / "out"), "participant", "group", "--mode", "train", "--dry-run"),
        *("--split", str(tmp_path / "split.json"), "--draws", "2", "--segmentation", "ants", "-k", "8"),
        *("--participant-label", "02", "--model-name", "ours"),
    ]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "engine    ants (asked for), k = 8" in told
    assert "writes    sub-02/anat/sub-02_desc-sim02_T1w.nii.gz" in told
    assert "models/ours.safetensors" in told


def test_a_dry_run_of_an_evaluation_tells_of_no_training(clinic, tmp_path, capsys):
    arguments = [str(clinic), str(tmp_path / "out"), "group", "--mode", "train", "--dry-run"]
    assert cli.main([*arguments, "--evaluate-model", "iqt-k4"]) == 0
    told = capsys.readouterr().out
    assert "evaluates iqt-k4 on all prepared subjects" in told and "trains" not in told


def test_only_one_of_the_three_can_be_meant(capsys):
    with pytest.raises(SystemExit):
        parse(["in", "out", "participant", "--dry-run", "--reports-only"])
    assert "not allowed with" in capsys.readouterr().err


# --- pages only ---


def test_pages_come_anew_from_what_is_there(clinic, tmp_path, capsys):
    out = tmp_path / "out"
    scan = nib.load(clinic / THICK)
    thin = np.repeat(scan.get_fdata(dtype=np.float32), 4, axis=2)
    affine = scan.affine @ np.diag([1, 1, 0.25, 1])
    write_dataset_description(out, source_dir=clinic)
    write_scan(out / "sub-01/anat/sub-01_acq-axial_desc-iqt_T1w.nii.gz", thin, affine)
    (out / "sub-01/anat/sub-01_acq-axial_desc-iqt_T1w.json").write_text(
        json.dumps({"Sources": [f"bids:raw:{THICK}"], "SkullStripped": True})
    )
    arguments = [str(clinic), str(out), "participant", "--reports-only", "--device", "cpu"]
    assert cli.main(arguments) == 0
    assert f"pages {out / 'index.html'}" in capsys.readouterr().out
    page = (out / "sub-01.html").read_text()
    assert "sub-01_acq-axial" in page
    (out / "sub-01.html").unlink()
    assert cli.main([*arguments, "--participant-label", "sub-01"]) == 0
    assert (out / "sub-01.html").read_text() == page
    (out / "ratings.tsv").write_text("scan\trating\nsub-01_acq-axial_T1w\tnice\n")
    assert cli.main(arguments) == 2, "a rating that is none is named before the work"
    assert f"{out / 'ratings.tsv'}: found line 2: rating 'nice'" in capsys.readouterr().err
    (out / "ratings.tsv").write_text("scan\trating\nsub-01_acq-axial_T1w\tfail\n")
    assert cli.main(arguments) == 0
    assert "\tfail\t" in (out / "group_iqt.tsv").read_text()
    assert not list((tmp_path / "out-work").glob("*/*")), "a graph has run"


@pytest.mark.parametrize("labels", [[], ["--participant-label", "02"]], ids=["all", "one"])
def test_pages_of_nothing_are_refused(clinic, tmp_path, capsys, labels):
    arguments = [str(clinic), str(tmp_path / "out"), "participant", "--reports-only", "--device", "cpu"]
    assert cli.main([*arguments, *labels]) == 2
    assert "output of an earlier run" in capsys.readouterr().err


# --- citation only ---


def test_the_citation_comes_without_a_run_and_is_the_same_for_every_job_of_an_array(clinic, tmp_path):
    texts = []
    for label in ("01", "03"):
        out = tmp_path / f"out{label}"
        arguments = [str(clinic), str(out), "participant", "--boilerplate-only", "--participant-label", label]
        assert cli.main(arguments) == 0
        texts.append([(out / "logs" / f"CITATION{ending}").read_text() for ending in (".md", ".bib")])
        assert not list(out.rglob("*.nii.gz"))
    assert texts[0] == texts[1]
    markdown, bibtex = texts[0]
    assert f"iqtflow {iqtflow.__version__}" in markdown and "iqt-k4 (upsampling factor 4" in markdown
    for key in re.findall(r"@\w+\{(\w+),", bibtex):
        assert key in bibliography()
    assert markdown.count("https://doi.org/") == bibtex.count("doi = ")


def test_every_mode_and_level_has_its_sentences_and_references():
    found = set()
    engines = [EngineChoice("ants", ""), EngineChoice("derivatives", "")]
    for mode in ("enhance", "train", "calibrate"):
        for level in ("participant", "group"):
            found |= set(describe_run(made(mode, ensemble=5, mirror=True), level, engines))
    text = render_citation(list(found))
    words = ["ANTsPy", "ready-made", "simulated", "ensemble of 5", "mirror True", "Wilcoxon", "equation 4"]
    for sentence in (*words, "ICBM 152"):
        assert sentence in text
    assert {key for paragraph in found for key in paragraph.references} <= set(bibliography())
    # Who is named in the text is in the list, and the other way round.
    for year_and_name in (("Tustison", "2010"), ("Wang", "2004"), ("Lin", "2019")):
        assert re.search(rf"\* {year_and_name[0]}, .*\({year_and_name[1]}\)", text)


def test_methods_state_settings_of_fresh_draws_at_group_level_and_the_papers_for_stored_scans():
    fresh = {"thickness_fraction": (0.5, 1.0), "snr_scale": (0.6, 1.5), "bias_amplitude": 0.2}
    settings = made("train", **fresh, patch_step=(4, 4, 4), optimiser="adamw")
    stored, trained = (
        render_citation(describe_run(settings, level, [])) for level in ("participant", "group")
    )
    assert "half maximum is 0.75 of their distance" in stored and "patch_step (4, 4, 4)" in stored
    for name, value in fresh.items():
        assert f"{name} {value}" in trained and name not in stored
    assert "patch_step" not in trained and "by AdamW on" in trained


def test_methods_of_a_cross_validation_state_the_folds():
    text = render_citation(describe_run(made("train", cross_validation=5), "group", []))
    assert "into 5 folds" in text and "cross_validation" not in text and "were split into" not in text


def test_methods_state_no_evaluation_without_evaluation_subjects(tmp_path):
    (tmp_path / "split.json").write_text('{"train": ["02"], "validation": ["01"], "evaluation": []}')
    train = made("train", split=tmp_path / "split.json", network="subpixel-unet")
    text = render_citation(describe_run(train, "group", []))
    assert "those for training and validation." in text and "Wilcoxon" not in text
    assert "variance of its error was learned" in text and "8 channels" not in text


def test_methods_of_a_model_that_is_only_judged_tell_of_no_training():
    text = render_citation(describe_run(made("train", evaluate_model="iqt-k4"), "group", []))
    assert "was trained" not in text and "Wilcoxon" in text


def test_jobs_that_end_together_lose_no_paragraph(tmp_path):
    paragraphs = [Paragraph(i, f"Step {i}", f"What step {i} does.") for i in range(12)]
    jobs = [threading.Thread(target=write_citation, args=(tmp_path, [one])) for one in paragraphs]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert [one.text in text for one in paragraphs] == [True] * 12
    write_citation(tmp_path, paragraphs[:1])
    assert (tmp_path / "logs" / "CITATION.md").read_text() == text
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "3", "[" * 100_000, '{"order": 1}', '{"order": 1, "heading": 2, "text": 3}']
)
def test_what_is_no_paragraph_does_not_keep_a_run_from_citing(tmp_path, content):
    kept = Paragraph(1, "Before", "What was done before.")
    write_citation(tmp_path, [kept])
    (tmp_path / "logs/citation/50_garbage.json").write_text(content)
    write_citation(tmp_path, [Paragraph(2, "Now", "What is done now.")])
    text = (tmp_path / "logs/CITATION.md").read_text()
    assert "What was done before." in text and "What is done now." in text


def test_a_paragraph_is_json_and_is_written_again_when_it_was_emptied(tmp_path):
    one = Paragraph(1, "Über", "Größe", ("lin2019",))
    write_citation(tmp_path, [one])
    (file,) = (tmp_path / "logs/citation").iterdir()
    assert json.loads(file.read_text())["text"] == "Größe"
    file.write_bytes(b"")
    assert "Größe" in write_citation(tmp_path, [one]).read_text()


# --- the work directory ---


def test_a_work_directory_is_emptied_when_asked_for_and_only_then(clinic, tmp_path):
    work = tmp_path / "work"
    options = ["participant", "-w", str(work), "--participant-label", "02"]
    arguments = [str(clinic), str(tmp_path / "out"), *options]
    assert cli.main(arguments) == 0
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "last.ckpt").touch()
    assert cli.main(arguments) == 0
    assert (work / "checkpoints" / "last.ckpt").exists()
    assert cli.main([*arguments, "--clean-workdir"]) == 0
    assert not (work / "checkpoints").exists()
    assert (work / "settings.toml").exists()


def test_a_folder_of_somebody_else_is_not_emptied(clinic, tmp_path, capsys):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.docx").touch()
    arguments = [str(clinic), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert cli.main([*arguments, "--clean-workdir"]) == 2
    assert "thesis.docx" in capsys.readouterr().err
    assert (tmp_path / "work" / "thesis.docx").exists()


# --- settings of a run ---


def test_the_seed_and_the_resources_of_the_command_line_reach_the_graph(clinic, tmp_path):
    from iqtflow.workflows.app.graphs import build_participant_graph
    from iqtflow.workflows.app.plan import choose_scans

    options = ["--random-seed", 7, "--nprocs", 2, "--device", "cpu", "--participant-label", "01"]
    settings, listing = settle(clinic, tmp_path / "out", "participant", *options)
    graph = build_participant_graph(choose_scans(listing, settings).chosen, settings, name="all")
    sink = graph.get_node("sub_01_acq_axial_T1w.sink_enhanced")
    assert sink.inputs.metadata["RandomSeed"] == 7
    assert sink.inputs.base_directory == str(tmp_path / "out")


def test_every_setting_of_a_run_can_be_given_by_its_own_settings_file(clinic, tmp_path):
    arguments = [str(clinic), str(tmp_path / "out"), "participant"]
    options = ["--participant-label", "02", "--stop-on-first-crash", "--write-graph", "--resource-monitor"]
    assert cli.main([*arguments, *options, "-vv", "--skip-bids-validation"]) == 0
    settings, _ = settle(*arguments, "--config-file", tmp_path / "out-work" / "settings.toml")
    run = settings.run
    assert (run.participant_labels, run.stop_on_first_crash, run.verbose) == (("02",), True, 2)
    assert run.write_graph and run.resource_monitor and settings.inputs.skip_validation
