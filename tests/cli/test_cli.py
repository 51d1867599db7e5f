"""What a BIDS-App user meets first: help, options, and refusals before anything is written."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
from pathlib import Path
from unittest.mock import Mock

import clinics
import pytest
from conftest import make_affine, make_head, write_scan

import iqtflow
from iqtflow.bids import write_dataset_description
from iqtflow.cli import main as cli
from iqtflow.cli.parser import build_parser, parse
from iqtflow.config import FRESH_ONLY, SETTINGS, Settings, read_settings, write_settings
from iqtflow.utils.errors import OutputError, UsageError

T1W = "sub-01/anat/sub-01_T1w.nii.gz"


def settle(*arguments: object) -> Settings:
    return clinics.settle(*arguments)[0]


def tree(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


# --- help ---


def test_help_comes_within_a_second_and_states_every_exit_code():
    fastest = float("inf")
    for _ in range(3):
        # The processor's time, since the machine may be busy with other things: help waits for nothing.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = clinics.python("-m", "iqtflow.cli", "--help", check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        fastest = min(fastest, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert fastest < 1
    for code in ("0", "1", "2", "70", "73", "130"):
        assert f"\n  {code:<5}" in done.stdout


def test_nothing_heavy_is_imported_to_parse_arguments():
    code = (
        "import sys; from iqtflow.cli import main, parser; parser.build_parser();"
        "print(*{'torch', 'monai', 'lightning', 'ants', 'nipype', 'nibabel', 'numpy', 'bids', 'pandas'}"
        " & set(sys.modules))"
    )
    done = clinics.python("-c", code, check=True)
    assert done.stdout.strip() == ""


def test_every_option_shows_its_default_once():
    without = {"--help", "--version", "--list-models"}
    parser = build_parser()
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.option_strings and not without & set(action.option_strings):
            assert formatter._expand_help(action).count("(default: ") == 1, action.option_strings
    text = parser.format_help()
    assert "SUPPRESS" not in text
    assert "None" not in text
    assert "__" not in text


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"iqtflow {iqtflow.__version__}\n"


def test_every_model_that_ships_is_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--list-models"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    listed = [line.split("\t")[0] for line in said.splitlines() if not line.startswith(" ")]
    shipped = (Path(iqtflow.__file__).parent / "models/weights").glob("*.safetensors")
    assert sorted(listed) == sorted(file.stem for file in shipped)
    for word in ("k = 4", "T1w", "MB", "unseen subjects: PSNR", "SHA-256", "SNR prior"):
        assert word in said


# --- what the arguments mean ---


def test_without_options_all_scans_are_enhanced(bids_tree, tmp_path):
    settings = settle(bids_tree(T1W), tmp_path / "out", "participant", "--nprocs", 1, "--omp-nthreads", 4)
    assert (settings.run.mode, settings.run.levels) == ("enhance", ("participant",))
    assert (settings.run.participant_labels, settings.run.session_labels) == ((), ())
    assert settings.enhance.model is None
    assert settings.run.omp_nthreads == 1  # one task never gets more processors than the run


def test_a_run_can_be_repeated_from_its_settings_and_options_go_over_them(bids_tree, tmp_path):
    root = bids_tree(T1W)
    arguments = [root, tmp_path / "out", "participant"]
    settings = settle(*arguments, "--force", "--random-seed", 5, "-w", tmp_path / "w")
    file = write_settings(settings, tmp_path / "settings.toml")
    assert settle(*arguments, "--config-file", file) == settings
    changed = settle(*arguments, "--config-file", file, "--no-force")
    assert changed.run == dataclasses.replace(settings.run, force=False)


def test_a_near_isotropic_scan_is_skipped_with_a_sentence_and_the_run_leaves_its_settings(
    bids_tree, tmp_path, capsys
):
    root = bids_tree(T1W)
    write_scan(root / T1W, make_head((40, 40, 30)), make_affine((4.0, 4.0, 5.0)))
    arguments = [str(root), str(tmp_path / "out"), "participant"]
    assert cli.main(arguments) == 0
    assert "near-isotropic" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*_T1w.nii.gz"))
    settings = read_settings(tmp_path / "out-work" / "settings.toml")
    assert settings == settle(*arguments)


def test_intermediate_results_go_beside_the_output_and_never_into_the_data_set(bids_tree, tmp_path):
    root = bids_tree(T1W)
    assert settle(root, tmp_path / "out", "participant").paths.work_dir == tmp_path / "out-work"
    inside = settle(root, root / "derivatives" / "iqtflow", "participant").paths
    assert inside.work_dir == tmp_path / "bids-iqtflow-work"


def test_relative_paths_become_absolute(bids_tree, tmp_path, monkeypatch, untrained_model):
    root = bids_tree(T1W)
    shutil.copy(untrained_model, tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    settings = settle(root.name, "out", "participant", "--model", "own.safetensors")
    assert settings.paths.bids_dir == root
    assert settings.paths.output_dir == tmp_path / "out"
    assert settings.enhance.model == str(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mode", "harmonise"], "--mode"),
        (["--filters", "0"], "found '0'; expected a whole number from 2"),
        (["--nprocs", "99999999999"], "from 1 up to 1024"),
        (["--mode", "train", "--bias-amplitude", "1000"], "expected a number from 0 up to 3.0"),
        (["--mode", "train", "--cross-validation", "1"], "found '1'; expected a whole number from 2"),
        (["--filters", "many"], "found 'many'; expected a whole number"),
        (["--mem-gb", "-1"], "above 0"),
        (["--mem-gb", "nan"], "above 0"),
        (["--thickness-fraction", "0.5", "1.2"], "found '1.2'; expected a number from 0.01 up to 1"),
        (["--slice-axes", "x,x"], "each once"),
        (["--slice-axes", "w"], "x, y, z"),
        (["--draws", "0"], "found '0'; expected a whole number from 1"),
        *(
            (["--participant-label", label], "expected a BIDS label")
            for label in ("", "sub-", "../x", "01-a", "é", "sub-01_ses-a")
        ),
        (["--forc"], "unrecognized arguments: --forc"),
        (["--model", ""], "--model: found ''"),
        (["--filters", "8"], "--filters is for --mode train; the mode is enhance"),
        (["--mode", "train", "--model", "x"], "--model is for --mode enhance; the mode is train"),
        *(
            (["--mode", "train", *option.split()], f"{option.split()[0]} is for the group level")
            for option in ("--thickness-fraction 0.5 1", "--snr-scale 0.5 1", "--stripes 0.1")
        ),
        (["--mode", "train", "--bias-amplitude", "0.2"], "--bias-amplitude is for the group level"),
        (["--mode", "train", "--patch-fraction", "0.5"], "--patch-fraction is for --patch-library pairs"),
        (["--mode", "train", "--force"], "--force is for --mode enhance or calibrate or adapt"),
        (["--mode", "train", "--split-ratio", "1", "1", "1", "--split", "s.json"], "there is --split"),
        (["--bids-database-wipe"], "add --bids-database-dir"),
        (["--combine-stacks", "--acquired-spacing", "5"], "there is --acquired-spacing"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(capsys, arguments, named):
    with pytest.raises(SystemExit) as ended:
        cli.main(["in", "out", "participant", *arguments])
    assert ended.value.code == 2
    assert named in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--nthreads", "3"], "run__nprocs", 3),
        (["--n-cpus", "3"], "run__nprocs", 3),
        (["--mem", "16000"], "run__mem_gb", 16.0),
        (["--mem-mb", "16G"], "run__mem_gb", 16.0),
        (["--mem_mb", "512MB"], "run__mem_gb", 0.512),
        (["-d", "smriprep=/maps", "--mode", "train"], "segmentation__derivatives", [Path("/maps")]),
        (["-d", "/a", "b=/b", "--mode", "train"], "segmentation__derivatives", [Path("/a"), Path("/b")]),
        (["--nipype-plugin-file", "slurm.yml"], "run__use_plugin", Path("slurm.yml")),
        (["--participant-label", "sub-01", "02"], "run__participant_labels", ["01", "02"]),
        (["--participant_label", "sub-01"], "run__participant_labels", ["01"]),
        (["--session-label", "ses-a", "b"], "run__session_labels", ["a", "b"]),
        (["--skip_bids_validation"], "inputs__skip_validation", True),
        (["-vv"], "run__verbose", 2),
        (["group", "--mode", "train"], "run__levels", ["participant", "group"]),
        (["--mode", "train", "-k", "8"], "train__upsampling_factor", 8),
        (["--mode", "train", "--slice-axes", "x,y"], "train__slice_axes", ("x", "y")),
        (["group", "--mode", "train", "--zoom", "0.5", "1"], "train__zoom", [0.5, 1.0]),
        (["--mode", "train", "--draws", "2"], "train__draws", 2),
        (["--mode", "train", "--no-residual"], "train__residual", False),
        (["--mode", "train", "--learning-rate", "2e-4"], "train__learning_rate", 2e-4),
        (["--mode", "train", "--training-precision", "bfloat16"], "train__precision", "bfloat16"),
        (["--mode", "train", "--network-option", "a=1", "b=[2]"], "train__network_options", ["a=1", "b=[2]"]),
    ],
)
def test_an_option_sets_its_setting(flags, key, value):
    assert getattr(parse(["in", "out", "participant", *flags]), key) == value


# --- bad input, before anything is written ---


def test_a_folder_that_is_no_data_set_ends_with_code_2(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert cli.main([str(tmp_path / "in"), str(tmp_path / "out"), "participant"]) == 2
    assert "dataset_description.json" in capsys.readouterr().err
    assert tree(tmp_path) == [tmp_path / "in"]


@pytest.mark.parametrize(
    ("files", "arguments", "named"),
    [
        pytest.param(["sub-01/anat/sub-01_T2w.nii.gz"], [], "no T1w image", id="no T1w"),
        pytest.param([T1W], ["--participant-label", "02"], "no sub-02", id="unknown subject"),
        pytest.param([T1W], ["--session-label", "02"], "no ses-02", id="unknown session"),
        pytest.param([T1W], ["--model", "./absent.safetensors"], "absent.safetensors", id="no such model"),
        pytest.param([T1W], ["--mode", "train", "--split", "absent.json"], "absent.json", id="no such split"),
        pytest.param(
            [T1W], ["--mode", "train", "--snr-prior", "absent.json"], "absent.json", id="no such prior"
        ),
        pytest.param([T1W], ["--config-file", "absent.toml"], "absent.toml", id="no such settings"),
        *(
            pytest.param([T1W], ["group", "--mode", "train", *options], named, id=options[-2])
            for options, named in (
                (["--patch-library", "pairs"], "Add --draws N"),
                (["-k", "3", "--patch-size", "32"], "a multiple of k = 3"),
                (["--devices", "3", "--batch-size", "32"], "32 patches for 3 devices"),
                (["--uncertainty", "only"], "--start-from"),
                (["--split", __file__, "--cross-validation", "5"], "found a split file, --split"),
                (["--evaluate-model", "iqt-k4", "--cross-validation", "5"], "found --evaluate-model"),
                (["--snr-scale", "2", "1"], "--snr-scale: found 2 to 1"),
                (["--model-name", "x" * 97, "--cross-validation", "5"], "--model-name: found"),
                (["--model-name", "../../x"], "--model-name: found '../../x'"),
                (["--model-name", "models/x"], "--model-name: found 'models/x'"),
            )
        ),
    ],
)
def test_what_is_missing_or_does_not_go_together_ends_with_code_2_and_nothing_written(
    bids_tree, tmp_path, capsys, files, arguments, named
):
    root = bids_tree(*files)
    before = tree(tmp_path)
    assert cli.main([str(root), str(tmp_path / "out"), "participant", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_split_with_a_subject_twice_is_refused_before_hours_of_training(bids_tree, tmp_path):
    (tmp_path / "s.json").write_text('{"train": ["01"], "validation": ["01"], "evaluation": []}')
    with pytest.raises(UsageError, match="sub-01 more than once"):
        settle(bids_tree(T1W), tmp_path / "out", "group", "--mode", "train", "--split", tmp_path / "s.json")


@pytest.mark.parametrize(
    "place",
    [".", "sub-01", "new", "derivatives", "derivatives/../sub-01", "../bids", "../link"],
    ids=lambda place: place,
)
@pytest.mark.parametrize("option", ["output", "work"])
def test_nothing_is_written_into_the_data_set(bids_tree, tmp_path, place, option):
    root = bids_tree(T1W)
    (tmp_path / "link").symlink_to(root)
    before = tree(tmp_path)
    output = root / place if option == "output" else tmp_path / "out"
    work = root / place if option == "work" else tmp_path / "work"
    with pytest.raises(UsageError, match=r"(equal to|inside) the input"):
        settle(root, output, "participant", "-w", work)
    assert tree(tmp_path) == before


def test_another_program_s_derivatives_are_left_alone(bids_tree, tmp_path):
    root = bids_tree(T1W)
    (tmp_path / "out").mkdir()
    made = tmp_path / "out" / "dataset_description.json"
    made.write_text(json.dumps({"Name": "x", "GeneratedBy": [{"Name": "fMRIPrep"}]}))
    with pytest.raises(UsageError, match="made by fMRIPrep"):
        settle(root, tmp_path / "out", "participant")
    made.write_text(json.dumps({"Name": "x", "GeneratedBy": [{"Name": "iqtflow"}]}))
    settle(root, tmp_path / "out", "participant")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "folder"])
def test_a_description_of_the_output_that_cannot_be_read_is_named(bids_tree, tmp_path, capsys, content):
    root, made = bids_tree(T1W), tmp_path / "out/dataset_description.json"
    made.parent.mkdir()
    made.mkdir() if content == "folder" else made.write_text(content)
    assert cli.main([str(root), str(tmp_path / "out"), "participant"]) == 2
    told = capsys.readouterr().err
    assert "dataset_description.json: found" in told and "delete" in told


@pytest.mark.parametrize(
    "name", [".bidsignore", "index.html", "group.html", "group_metrics.tsv", "group_iqt.tsv"]
)
def test_a_folder_with_files_of_somebody_else_is_no_output(bids_tree, tmp_path, capsys, name):
    root, mine = bids_tree(T1W), tmp_path / "out" / name
    mine.parent.mkdir()
    mine.write_text("my own\n")
    assert cli.main([str(root), str(tmp_path / "out"), "participant"]) == 2
    assert f"{name}: found a file that iqtflow did not write" in capsys.readouterr().err
    assert mine.read_text() == "my own\n"


@pytest.mark.parametrize(
    "name",
    ["sub-01.html", "sub-01/anat/sub-01_desc-iqt_T1w.nii.gz", "sub-01/anat/sub-01_desc-iqtstd_T1w.json"],
)
def test_a_result_of_somebody_else_is_not_replaced(bids_tree, tmp_path, capsys, name):
    """In a folder that iqtflow has described, a file of this name is its own."""
    root, out = bids_tree(T1W), tmp_path / "out"
    mine = out / name
    mine.parent.mkdir(parents=True)
    mine.write_text("my own\n")
    assert cli.main([str(root), str(out), "participant"]) == 2
    assert f"{mine}: found a file that the run would replace" in capsys.readouterr().err
    assert [path for path in tree(out) if path.is_file()] == [mine]
    write_dataset_description(out, source_dir=root)
    assert settle(root, out, "participant").paths.output_dir == out


@pytest.mark.parametrize("option", ["--dry-run", "-v"])
@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("index.html", True), ("sub-01.html", True), (".bidsignore", True), ("logs/CITATION.md", True),
        ("sub-01", False), ("sub-01/figures", False), ("logs", False), ("logs/citation", False),
    ],
)  # fmt: skip
def test_a_name_that_is_taken_by_another_kind_is_told_before_the_work(
    bids_tree, tmp_path, capsys, name, is_folder, option
):
    root, out = bids_tree(T1W), tmp_path / "out"
    write_dataset_description(out, source_dir=root)
    (out / name).unlink(missing_ok=True)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).mkdir() if is_folder else (out / name).touch()
    assert cli.main([str(root), str(out), "participant", option]) == 2
    assert f"{out / name}: found {'a folder' if is_folder else 'no folder'}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_standard_output_that_takes_no_more_is_no_defect(bids_tree, tmp_path, capsys, monkeypatch, error):
    monkeypatch.setattr(cli, "announce", Mock(side_effect=OSError(error, os.strerror(error))))
    assert cli.main([str(bids_tree(T1W)), str(tmp_path / "out"), "participant"]) == 73
    told = capsys.readouterr().err
    assert os.strerror(error) in told and "Traceback" not in told


def test_an_output_that_is_a_file_ends_with_code_73(bids_tree, tmp_path, capsys):
    root = bids_tree(T1W)
    (tmp_path / "out").touch()
    assert cli.main([str(root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "w")]) == 73
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
@pytest.mark.parametrize("option", ["output", "work"])
def test_a_read_only_folder_is_refused(bids_tree, tmp_path, option):
    root = bids_tree(T1W)
    (tmp_path / "locked").mkdir(mode=0o555)
    places = {"output": tmp_path / "out", "work": tmp_path / "w"} | {option: tmp_path / "locked" / "x"}
    with pytest.raises(OutputError, match="locked"):
        settle(root, places["output"], "participant", "-w", places["work"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, where not even root can make a folder")
@pytest.mark.parametrize("option", ["output", "work"])
def test_a_place_where_no_folder_can_be_made_is_refused(bids_tree, tmp_path, option):
    places = {"output": tmp_path / "out", "work": tmp_path / "w"} | {option: "/proc/iqtflow"}
    root = bids_tree(T1W)
    for options in ([], ["--dry-run"]):
        with pytest.raises(OutputError, match="/proc/iqtflow"):
            settle(root, places["output"], "participant", "-w", places["work"], *options)


def test_a_dry_run_does_not_promise_a_folder_below_a_file(bids_tree, tmp_path, capsys):
    (tmp_path / "file").touch()
    root, before = bids_tree(T1W), tree(tmp_path)
    assert cli.main([str(root), str(tmp_path / "file/out"), "participant", "--dry-run"]) == 73
    assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "work", "told"),
    [
        ("out", "out", "work directory that is, or holds, the output"),
        ("out/results", "out", "work directory that is, or holds, the output"),
        ("out", "/", "work directory that is, or holds, the input"),
        (".", "w", "output directory that holds the input"),
    ],
)
def test_no_folder_is_taken_whose_loss_or_mixture_would_harm(bids_tree, tmp_path, output, work, told):
    root = bids_tree(T1W)
    with pytest.raises(UsageError, match=told):
        settle(root, root.parent / output, "participant", "-w", root.parent / work)


def test_derivatives_may_hold_their_input_in_sourcedata(bids_tree, tmp_path):
    root = bids_tree(T1W)
    raw = tmp_path / "out/sourcedata/raw"
    raw.parent.mkdir(parents=True)
    shutil.copytree(root, raw)
    assert settle(raw, tmp_path / "out", "participant", "-w", tmp_path / "w").paths.bids_dir == raw


def test_ctrl_c_and_defects_have_their_own_exit_codes(monkeypatch, capsys):
    for fault, code in ((KeyboardInterrupt, 130), (ZeroDivisionError("of all things"), 70)):
        monkeypatch.setattr(cli, "settle", Mock(side_effect=fault))
        assert cli.main(["in", "out", "participant"]) == code
    assert "of all things" in capsys.readouterr().err


# --- settings arrive, or are refused ---


@pytest.mark.parametrize(
    ("option", "levels"),
    [*((name, ["group"]) for name in FRESH_ONLY), ("thickness_fraction", ["participant", "group"])],
)
def test_stored_draws_take_no_settings_of_fresh_ones(bids_tree, tmp_path, capsys, option, levels):
    flag = f"--{option.replace('_', '-')}"
    item = SETTINGS["train"][option]
    least = item.low or 0.2
    values = [f"{least:g}", f"{2 * least:g}"] if item.many else [item.choices[-1] if item.choices else "0.2"]
    arguments = [str(bids_tree(T1W)), str(tmp_path / "out"), *levels, "--mode", "train"]
    assert cli.main([*arguments, "--draws", "2", flag, *values]) == 2
    said = capsys.readouterr().err
    assert flag in said and "--draws 2" in said
    settings = settle(*arguments, flag, *values)
    assert getattr(settings.train, option) == ((least, 2 * least) if item.many else item.kind(values[0]))


@pytest.mark.parametrize(
    ("level", "option", "read_by"),
    [("participant", "--filters", "group"), ("group", "--slice-axes", "participant")],
)
def test_options_that_two_commands_share_may_have_no_effect_in_one_and_that_is_said(
    bids_tree, tmp_path, capsys, level, option, read_by
):
    value = {"--filters": 8, "--slice-axes": "x,y"}[option]
    root = bids_tree(T1W)
    settle(root, tmp_path / "out", level, "--mode", "train", option, value)
    assert f"note: {option} is for the {read_by} level" in capsys.readouterr().out
    settle(root, tmp_path / "out", "participant", "group", "--mode", "train", option, value)
    assert "note:" not in capsys.readouterr().out


def test_a_settings_file_is_for_many_runs_and_its_values_may_stay(bids_tree, tmp_path, capsys):
    (tmp_path / "s.toml").write_text("[train]\nthickness_fraction = [0.5, 1.0]\nfilters = 8\n")
    arguments = ["participant", "--mode", "train", "--config-file", tmp_path / "s.toml"]
    assert settle(bids_tree(T1W), tmp_path / "out", *arguments).train.filters == 8
    assert "note:" not in capsys.readouterr().out


def test_enhancing_has_no_group_level(bids_tree, tmp_path, capsys):
    assert cli.main([str(bids_tree(T1W)), str(tmp_path / "out"), "group"]) == 2
    said = capsys.readouterr().err
    assert "--mode train, calibrate or adapt" in said and "subjects to train on" not in said


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "nonesuch"],
        ["--mode", "train", "--start-from", "nonesuch"],
        ["--mode", "train", "--evaluate-model", "nonesuch"],
    ],
    ids=lambda options: options[-2],
)
def test_an_unknown_model_is_told_before_anything_else(bids_tree, tmp_path, capsys, options):
    root = bids_tree(T1W, "sub-01/anat/sub-01_t1.nii.gz")
    level = "group" if "train" in options else "participant"
    assert cli.main([str(root), str(tmp_path / "out"), level, *options]) == 2
    told = capsys.readouterr()
    assert "nonesuch: found no such file, and no shipped model of this name" in told.err
    assert "T1w" not in told.out


@pytest.mark.parametrize("option", ["--snr-prior", "--use-plugin"])
def test_a_file_for_later_is_read_before_hours_of_work(bids_tree, tmp_path, capsys, option):
    (tmp_path / "file.json").write_text("[5]")
    arguments = [str(bids_tree(T1W)), str(tmp_path / "out"), "group", "--mode", "train"]
    assert cli.main([*arguments, option, str(tmp_path / "file.json")]) == 2
    assert "file.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("n", "words"), [(1, "1 processor,"), (2, "2 processors,")])
def test_one_processor_is_one(bids_tree, tmp_path, capsys, n, words):
    settings = settle(bids_tree(T1W), tmp_path / "out", "participant", "--nprocs", n)
    cli.announce(settings, "asked for")
    assert words in capsys.readouterr().out
