"""A run with another model or other settings never replaces results unnoticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import clinics
import pytest
from small_models import write_model

from iqtflow.bids import write_dataset_description
from iqtflow.utils.errors import UsageError
from iqtflow.workflows.app.made_with import describe

SCAN = "sub-01/anat/sub-01_T1w.nii.gz"


@pytest.fixture
def place(bids_tree, tmp_path) -> tuple[Path, Path]:
    return bids_tree(SCAN), tmp_path / "out"


def settle(*arguments: object):
    """Settings of a run; the check of the data set would take most of the time."""
    return clinics.settle(*arguments, "--skip-bids-validation")


def pretend_to_run(bids: Path, out: Path, *options: object, result: str) -> None:
    """Leave in the output folder what a run with these options leaves there: its description, a result."""
    settings, _ = settle(bids, out, *options)
    out = settings.paths.output_dir
    entries = [describe(settings, level) for level in settings.run.levels]
    write_dataset_description(out, source_dir=bids, made_with=entries)
    (out / result).parent.mkdir(parents=True, exist_ok=True)
    (out / result).touch()


def pretend_to_enhance(bids: Path, out: Path, *options: object) -> None:
    result = "sub-01/anat/sub-01_desc-iqt_T1w.nii.gz"
    pretend_to_run(bids, out, "participant", *options, result=result)


def test_the_description_states_the_models_and_the_settings_that_change_results(place):
    pretend_to_enhance(*place, "--average-mirrored")
    *_, made = json.loads((place[1] / "dataset_description.json").read_text())["GeneratedBy"]
    assert made["Name"] == "iqtflow" and (made["Mode"], made["Product"]) == ("enhance", "T1w")
    assert all(len(digest) == 64 for digest in (*made["Models"].values(), made["SettingsSHA256"]))
    assert made["Settings"]["--average-mirrored"] is True
    assert not {"--nprocs", "--mem-gb", "--device", "--participant-label"} & made["Settings"].keys()


def test_other_settings_are_refused_and_the_message_says_which_differ_and_what_to_do(place):
    pretend_to_enhance(*place)
    with pytest.raises(UsageError) as caught:
        settle(*place, "participant", "--average-mirrored", "--tiling", "tiles")
    assert "--tiling auto" in caught.value.found and "--average-mirrored no" in caught.value.found
    assert "--tiling tiles" in caught.value.expected and "--average-mirrored yes" in caught.value.expected
    assert "--precision" not in str(caught.value)
    for option in ("--output-layout multiverse", "--overwrite"):
        assert option in caught.value.next_step
    settle(*place, "participant", "--average-mirrored", "--overwrite")


def test_another_model_is_refused_and_the_same_file_elsewhere_is_the_same_model(place, tmp_path):
    one = write_model(tmp_path / "one.safetensors", first_seed=1)
    other = write_model(tmp_path / "other.safetensors", first_seed=2)
    moved = shutil.copy(one, tmp_path / "moved.safetensors")
    pretend_to_enhance(*place, "--model", one)
    settle(*place, "participant", "--model", moved)
    with pytest.raises(UsageError, match=r"model one \(SHA-256.*model other \(SHA-256"):
        settle(*place, "participant", "--model", other)


@pytest.mark.parametrize("option", ["--nprocs 2", "--low-mem", "-vv", "--no-viewer", "--device cpu"])
def test_processors_memory_and_words_are_no_other_settings(place, option):
    pretend_to_enhance(*place)
    settle(*place, "participant", *option.split())


def test_scans_without_a_result_may_be_run_with_other_settings(place):
    pretend_to_enhance(*place)
    (place[1] / "sub-01/anat/sub-01_desc-iqt_T1w.nii.gz").unlink()
    settle(*place, "participant", "--average-mirrored")


def test_each_level_of_a_training_has_its_own_settings_and_each_model_its_own_name(place):
    prepared, model = "patches/sub-01_patches.safetensors", "models/first.safetensors"
    training = ("--mode", "train", "--segmentation", "ants")
    pretend_to_run(*place, "participant", *training, result=prepared)
    group = ("group", "--mode", "train", "--model-name")
    pretend_to_run(*place, *group, "first", "--filters", "8", result=model)
    settle(*place, *group, "second", "--filters", "4")
    settle(*place, *group, "first", "--filters", "8", "--steps", "3000", "--patience", "0")  # goes on
    with pytest.raises(UsageError, match=r"--filters 8.*--filters 4.*--model-name"):
        settle(*place, *group, "first", "--filters", "4")
    with pytest.raises(UsageError, match=r"-factor 4.*-factor 6"):
        settle(*place, "participant", *training, "-k", "6")
    # Subjects of one data set may have scans that are blurred along different axes.
    settle(*place, "participant", *training, "--slice-axes", "x,y")
    stated = json.loads((place[1] / "dataset_description.json").read_text())["GeneratedBy"][1:]
    assert [(one["Level"], one["Product"]) for one in stated] == [("participant", ""), ("group", "first")]


def test_a_multiverse_has_a_folder_for_each_choice_of_settings(place):
    def folders(*options: str) -> tuple[Path, Path]:
        paths = settle(*place, "participant", "--output-layout", "multiverse", *options)[0].paths
        return paths.output_dir, paths.work_dir

    pretend_to_enhance(*place)  # may stay where it is
    plain, mirrored = folders(), folders("--average-mirrored")
    assert plain == folders("--nprocs", "2")
    assert not set(plain) & set(mirrored)
    for output, work in (plain, mirrored):
        assert output.parent == place[1] and work.name == output.name
        assert output.name.startswith("iqtflow-")
