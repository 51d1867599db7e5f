"""Jobs of an array that share one output folder: nothing is lost, nothing is half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clinics import ENVIRONMENT, dataset, write_thick_scan

from iqtflow.utils.errors import EXIT_USAGE, OutputError, UsageError
from iqtflow.workflows.execution.lock import ALL, check_own, claimed, clean_work_dir, make_own

N_JOBS = 6


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Six jobs at the same time, each for one subject, into one output and one work directory.

    The scans are near-isotropic: to be skipped, so that all jobs come to the shared files at once.
    """
    folder = tmp_path_factory.mktemp("array")
    bids = dataset(folder / "bids")
    for i in range(N_JOBS):
        write_thick_scan(bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz", k=1, seed=i)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "iqtflow.cli", bids, folder / "out", "participant",
             "--participant-label", str(i), "-w", folder / "work"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
        )
        for i in range(N_JOBS)
    ]  # fmt: skip
    said = [job.communicate(timeout=500)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * N_JOBS, "\n".join(said)
    return folder / "out"


def test_shared_files_hold_the_subjects_of_all_jobs_and_are_whole(shared):
    index = (shared / "index.html").read_text()
    assert set(re.findall(r"sub-(\d)\.html", index)) == {str(i) for i in range(N_JOBS)}
    assert json.loads((shared / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert list(shared.rglob("*.partial")) == []


def write_one(out: str, label: str) -> None:
    from iqtflow.reports.assemble.index import write_pages

    write_pages(out, [{"subject": label, "input": f"/in/{label}", "status": "skipped", "message": "why"}])


def test_no_subject_is_lost_from_the_index_however_jobs_meet(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iqtflow.reports.assemble.index"])
    labels = [f"{i:02d}" for i in range(24)]
    with context.Pool(8) as pool:
        pool.starmap(write_one, [(os.fspath(tmp_path), label) for label in labels], chunksize=1)
    index = (tmp_path / "index.html").read_text()
    table = (tmp_path / "group_iqt.tsv").read_text()
    for text in (index, table):
        assert {label for label in labels if f"sub-{label}" in text} == set(labels)
    assert [p for p in Path(tmp_path).rglob("*.partial")] == []


HOLD = """
import sys, time
from iqtflow.workflows.execution.lock import claimed
with claimed(sys.argv[1], sys.argv[2:]):
    print("held", flush=True)
    time.sleep(100)
"""


@contextmanager
def held(work: Path, part: str) -> Iterator[None]:
    """Let another process hold a part of a graph."""
    command = [sys.executable, "-c", HOLD, work, part]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            yield
        finally:
            holder.kill()


def test_a_scan_in_a_work_directory_belongs_to_one_run_at_a_time(tmp_path):
    """Two runs would empty each other's folders; runs of other scans go on."""
    with held(tmp_path, "graph sub_1"):
        with claimed(tmp_path, ["graph sub_2", "graph sub_3"]):
            pass
        with pytest.raises(UsageError, match="sub_1"), claimed(tmp_path, ["graph sub_1"]):
            pass
    with claimed(tmp_path, ["graph sub_1"]):
        pass


@pytest.fixture
def used(tmp_path) -> Path:
    """A work directory as a training leaves it."""
    work = tmp_path / "work"
    work.mkdir(mode=0o755)
    (work / "settings.toml").touch()
    (make_own(work / "checkpoints") / "last.ckpt").write_bytes(b"hours of work")
    make_own(work / "iqtflow_0_1_0_train_group")
    return work


def test_a_work_directory_is_not_emptied_while_a_run_uses_it(used):
    with held(used, "graph train_m1"):
        with pytest.raises(UsageError, match="another run") as refused:
            clean_work_dir(used)
        assert refused.value.exit_code == EXIT_USAGE
        assert (used / "checkpoints/last.ckpt").exists()
    clean_work_dir(used)
    assert [path.name for path in used.iterdir()] == [".lock"]
    clean_work_dir(used)  # what is left is no reason to refuse


def test_a_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UsageError, match="found a folder"), claimed(tmp_path, ALL):
        pass


@pytest.mark.parametrize("where", ["", "checkpoints", "iqtflow_0_1_0_train_group"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_work_directory_that_others_may_write_is_refused(used, where, mode):
    (used / where).chmod(mode)
    with pytest.raises(UsageError, match=rf"others may write \(mode {mode:o}\).*-w .*chmod -R go-w"):
        check_own(used)
    (used / where).chmod(0o755)
    check_own(used)
    assert not [path for path in used.iterdir() if path.name.startswith(".iqtflow-")]


def test_a_new_folder_that_the_group_may_write_is_closed_to_it(tmp_path):
    """As mkdir makes it where the umask is 002, on many clusters."""
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o2775)
    check_own(work)
    assert work.stat().st_mode & 0o7777 == 0o2755
    work.chmod(0o777)
    with pytest.raises(UsageError, match="others may write"):
        check_own(work)


def test_in_a_folder_such_as_tmp_the_results_are_those_of_this_user(tmp_path):
    tmp_path.chmod(0o1777)
    make_own(tmp_path / "iqtflow_0_1_0_enhance_participant")
    check_own(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("where", ["", "iqtflow_0_1_0_train_group"])
def test_a_work_directory_of_somebody_else_is_refused_but_to_root(used, where):
    """In a container root is the user who started it, whose folders are mounted."""
    os.chown(used, 1234, 1234)
    os.chown(used / "iqtflow_0_1_0_train_group", 1234, 1234)
    check_own(used)
    for folder in used.parents:  # pytest's own are closed to others
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    os.chown(used / where, 4321, 4321)
    program = (
        "import os, sys; from pathlib import Path; from iqtflow.workflows.execution.lock import check_own;"
        "os.setgid(1234); os.setuid(1234); check_own(Path(sys.argv[1]))"
    )
    if where == "":
        used.chmod(0o1777)  # so that this user can write there at all
    done = subprocess.run([sys.executable, "-c", program, used], capture_output=True, text=True, check=False)
    assert "UsageError" in done.stderr and "the user with the number 4321" in done.stderr


def test_folders_of_results_are_made_for_this_user_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        assert make_own(tmp_path / "results").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_lock_that_cannot_be_opened_is_reported(tmp_path):
    (tmp_path / ".lock").touch(mode=0o400)
    with pytest.raises(OutputError, match="a lock that cannot be opened"), claimed(tmp_path, ALL):
        pass


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        make_own(tmp_path / "file" / "results")
