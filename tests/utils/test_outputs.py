"""An output never replaces an input or a foreign file; errors are reported before the work begins."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine, make_head, write_scan

from iqtflow.cli.commands import calibrate, enhance, evaluate, pairs, segment, simulate, train
from iqtflow.image.nifti import write_image, write_json, write_volume
from iqtflow.interfaces.enhance import EnhanceVolume
from iqtflow.interfaces.sink import SinkDerivative
from iqtflow.interfaces.train import JoinEnsemble
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.outputs import IMAGE, check_outputs, is_made_by
from iqtflow.workflows.train import init_train_wf

#: For each option that names an output: command, and arguments in which OUT stands for it. The inputs are
#: files named in.nii.gz, in.json, in.safetensors and in.npy.
MAPS = "--wm w.nii --gm g.nii"
TRAINING = "--validation v.npy --checkpoint-dir c --output"
OPTIONS = {
    "enhance": (enhance, "in.nii.gz OUT.nii.gz"),
    "enhance --std": (enhance, "in.nii.gz new.nii.gz --std OUT.nii.gz"),
    "enhance --spline": (enhance, "in.nii.gz new.nii.gz --spline OUT.nii.gz"),
    "enhance --mask-out": (enhance, "in.nii.gz new.nii.gz --mask-out OUT.nii.gz"),
    "enhance --json": (enhance, "in.nii.gz new.nii.gz --sidecar in.json --json OUT.json"),
    "simulate": (simulate, f"in.nii.gz OUT.nii.gz {MAPS}"),
    "simulate, a map": (simulate, "t1.nii.gz OUT.nii.gz --wm wm.nii.gz --gm in.nii.gz"),
    "simulate --json": (simulate, f"x.nii y.nii {MAPS} --from-json in.json --json OUT.json"),
    "simulate --json, a prior": (simulate, f"x.nii y.nii {MAPS} --prior in.json --json OUT.json"),
    "calibrate scan": (calibrate, "scan in.nii.gz OUT.json --wm in.json --gm in.json --mask in.json"),
    "calibrate fit": (calibrate, "fit in.json --output OUT.json"),
    "calibrate fit --figure": (calibrate, "fit in.json in.png --output new.json --figure OUT.png"),
    "evaluate --json": (evaluate, "in.nii.gz in.json --json OUT.json"),
    "train": (train, f"--train in.safetensors {TRAINING} OUT.safetensors"),
    "train, its start": (train, f"--train t.npy --start-from in.safetensors {TRAINING} OUT.safetensors"),
    "pairs": (pairs, "in.npy OUT.npy"),
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with inputs, in which commands run."""
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "in.nii.gz", make_head((24, 24, 8)), make_affine((2.0, 2.0, 6.0)))
    for name in ("in.json", "in.safetensors", "in.npy", "in.png"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("link", ["itself", "../HERE/itself", "symbolic", "hard"])
@pytest.mark.parametrize("option", OPTIONS)
def test_no_output_replaces_an_input_whatever_path_leads_to_it(here, capsys, option, link):
    command, line = OPTIONS[option]
    ending = line.partition("OUT")[2].split()[0]
    given = f"in{ending}"
    if link == "symbolic":
        Path(f"out{ending}").symlink_to(given)
        given = f"out{ending}"
    elif link == "hard":
        os.link(given, f"out{ending}")
        given = f"out{ending}"
    elif link != "itself":
        given = f"../{here.name}/{given}"
    before = contents(here)
    arguments = line.replace(f"OUT{ending}", given).split()
    assert command.main([*arguments, "--overwrite"]) == 2
    assert "an input is never replaced" in capsys.readouterr().err
    assert contents(here) == before


def test_tissue_maps_do_not_replace_the_image_or_the_maps_they_are_made_from(here, capsys):
    for name in ("s_desc-preproc_T1w.nii.gz", "s_label-WM_probseg.nii.gz"):
        os.rename(here / "in.nii.gz", here / name)
        assert segment.main([name, "--out-prefix", "s", "--overwrite"]) == 2
        assert "an input is never replaced" in capsys.readouterr().err
        os.rename(here / name, here / "in.nii.gz")


@pytest.mark.parametrize("prefix", ["", "maps/", ".", "maps/.."])
def test_tissue_maps_have_a_name_before_their_ending(here, capsys, prefix):
    before = contents(here)
    with pytest.raises(SystemExit) as ended:
        segment.main(["in.nii.gz", "--out-prefix", prefix])
    assert ended.value.code == 2 and "beginning of a name" in capsys.readouterr().err
    assert contents(here) == before


def test_two_outputs_are_two_files(here, capsys):
    assert enhance.main(["in.nii.gz", "x.nii.gz", "--std", f"../{here.name}/x.nii.gz"]) == 2
    assert "the same file as output" in capsys.readouterr().err
    assert not Path("x.nii.gz").exists()


@pytest.mark.parametrize(
    "name", ["x.mgz", "x.img", "x", "x.nii.bz2", "x.NII.GZ", "x.nii.gz.", "x.json", ".nii.gz", "/dev/null"]
)
def test_an_ending_that_is_not_written_is_told_before_the_work(here, capsys, name):
    assert enhance.main(["in.nii.gz", name]) == 2
    assert ".nii.gz or .nii" in capsys.readouterr().err


def test_a_folder_or_a_link_to_nothing_is_no_output_even_when_files_may_be_replaced(here):
    (here / "x.nii.gz").mkdir()
    (here / "y.nii.gz").symlink_to("nothing")
    os.mkfifo(here / "z.nii.gz")
    for name, words in (("x", "a folder"), ("y", "a link to nothing"), ("z", "no regular file")):
        with pytest.raises(UsageError, match=words):
            check_outputs("iqtflow-enhance", {"output": (f"{name}.nii.gz", IMAGE)}, overwrite=True)


def test_a_place_that_cannot_be_written_is_told_before_the_work(here, capsys):
    for name in (
        "in.json/sub/x.nii.gz",
        f"{'long' * 70}/x.nii.gz",
        f"{'long' * 70}.nii.gz",
        "/proc/x.nii.gz",
    ):
        assert enhance.main(["in.nii.gz", name]) == 73, name
        assert "error" in capsys.readouterr().err
    assert not [path for path in here.iterdir() if "long" in path.name or path.name.startswith(".")]


def test_a_file_of_somebody_else_is_replaced_only_when_asked_for(here, capsys):
    Path("mine.json").write_text('{"SliceThickness": 5}')
    write_scan(here / "mine.nii.gz", make_head((24, 24, 8)), make_affine((2.0, 2.0, 6.0)))
    before = contents(here)
    for arguments in (["in.nii.gz", "mine.nii.gz"], ["in.nii.gz", "x.nii.gz", "--json", "mine.json"]):
        assert enhance.main(arguments) == 2
        assert "--overwrite" in capsys.readouterr().err
    assert contents(here) == before
    check_outputs("iqtflow-enhance", {"output": ("mine.nii.gz", IMAGE)}, overwrite=True)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_command_knows_the_image_that_it_made_until_somebody_changes_it(tmp_path, name, kind):
    path = tmp_path / name
    write_image(path, kind(np.ones((3, 4, 5), np.float32), np.eye(4)), maker="iqtflow-enhance")
    assert is_made_by("iqtflow-enhance", path)
    assert not is_made_by("iqtflow-simulate", path)
    mask = nib.load(path)
    corrected = np.asarray(mask.dataobj).copy()
    corrected[0, 0, 0] = 0
    nib.save(kind(corrected, mask.affine, mask.header), path)  # with the header as it was
    assert not is_made_by("iqtflow-enhance", path)


def test_a_command_knows_the_json_file_that_it_made_until_somebody_changes_it(tmp_path):
    path = write_json(
        tmp_path / "prior.json", {"mean": [64.5, 54.14], "name": "ours"}, maker="iqtflow-calibrate"
    )
    assert is_made_by("iqtflow-calibrate", path)
    path.write_text(path.read_text().replace("54.14", "50"))
    assert not is_made_by("iqtflow-calibrate", path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"[" * 100_000, b"\xff", b'{"GeneratedBy": 3}'])
def test_a_file_that_cannot_be_read_is_not_ours(tmp_path, content):
    for name in ("x.json", "x.nii", "x.nii.gz", "x.png", "x.csv", "x.npy", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert not is_made_by("iqtflow-enhance", tmp_path / name), name
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(content))
    assert not is_made_by("iqtflow-enhance", tmp_path / "x.nii.gz")


def test_a_model_a_table_and_a_picture_are_known_by_what_is_in_them(tmp_path, untrained_model):
    assert is_made_by("iqtflow-train", untrained_model)
    (tmp_path / "curves.csv").write_text("step,train_loss,val_loss,learning_rate,seconds\n")
    assert is_made_by("iqtflow-train", tmp_path / "curves.csv")
    (tmp_path / "mine.csv").write_text("subject,age\n")
    assert not is_made_by("iqtflow-train", tmp_path / "mine.csv")


def test_the_same_command_again_replaces_its_own_files(here, untrained_model):
    arguments = [
        "in.nii.gz",
        "x.nii.gz",
        "--mask-out",
        "m.nii",
        "--json",
        "x.json",
        "--model",
        str(untrained_model),
    ]
    assert enhance.main(arguments) == 0
    assert enhance.main(arguments) == 0


def test_a_node_does_not_replace_its_input(here):
    node = EnhanceVolume(in_file="in.nii.gz", mask_file=str(here / "in.nii.gz"), overwrite=True)
    before = contents(here)["in.nii.gz"]
    with pytest.raises(Exception, match="an input is never replaced"):
        node.run()
    assert contents(here)["in.nii.gz"] == before


def test_what_a_node_is_told_reaches_the_command_as_it_is(here):
    """The command line passes through a shell."""
    line = EnhanceVolume(in_file="in.nii.gz", model="a model; touch bad").cmdline
    said = subprocess.run(
        f"printf '%s\n' {line}", shell=True, capture_output=True, text=True, check=True
    ).stdout
    assert "a model; touch bad" in said.splitlines()
    assert "--max-memory-gb 0.001" in EnhanceVolume(in_file="in.nii.gz", max_memory_gb=0.001).cmdline


@pytest.mark.parametrize("name", ["../x.nii.gz", "/tmp/x.nii.gz", "sub-1/../../x.nii.gz"])
def test_a_derivative_lies_within_the_output_folder(here, name):
    sink = SinkDerivative(in_file=str(here / "in.nii.gz"), base_directory=str(here / "out"), name=name)
    with pytest.raises(UsageError, match="within"):
        sink.run()


def test_a_models_name_is_no_path_for_workflows_and_nodes_either(here, untrained_model):
    with pytest.raises(UsageError, match="expected a name"):
        init_train_wf(model_name="../../x")
    with pytest.raises(UsageError, match="expected a name"):
        JoinEnsemble(members=[str(untrained_model)], name="../../x").run()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_voxel_that_is_not_finite_is_not_written(tmp_path, value):
    data = np.ones((3, 4, 5), np.float32)
    data[1, 2, 3] = value
    with pytest.raises(InputError, match=r"1 voxels that are not finite, the first at \[1, 2, 3\]"):
        write_volume(tmp_path / "x.nii.gz", data, np.eye(4))
    assert list(tmp_path.iterdir()) == []
