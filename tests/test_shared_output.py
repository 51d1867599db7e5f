"""Jobs of an array that share one output folder: nothing is lost, nothing is half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from iqtflow.workflows.claims import claimed
from test_workflows import ENVIRONMENT, dataset, write_thick_scan

from iqtflow.errors import OutputError, UsageError

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


def test_the_index_lists_the_subjects_of_all_jobs(shared):
    index = (shared / "index.html").read_text()
    assert set(re.findall(r"sub-(\d)\.html", index)) == {str(i) for i in range(N_JOBS)}


def test_the_description_is_whole_and_nothing_unfinished_is_left(shared):
    assert json.loads((shared / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert list(shared.rglob("*.partial")) == []


def write_one(out: str, label: str) -> None:
    from iqtflow.report import write_pages

    write_pages(out, [{"subject": label, "input": f"/in/{label}", "status": "skipped", "message": "why"}])


def test_no_subject_is_lost_from_the_index_however_jobs_meet(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iqtflow.report"])
    labels = [f"{i:02d}" for i in range(24)]
    with context.Pool(8) as pool:
        pool.starmap(write_one, [(os.fspath(tmp_path), label) for label in labels], chunksize=1)
    index = (tmp_path / "index.html").read_text()
    assert {label for label in labels if f"sub-{label}" in index} == set(labels)
    assert [p for p in Path(tmp_path).rglob("*.partial")] == []


HOLD = """
import sys, time
from iqtflow.workflows.claims import claimed
with claimed(sys.argv[1], sys.argv[2:]):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_folder_in_the_place_of_the_locks_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    told = pytest.raises(OutputError, match=r"\.lock: found something that cannot be opened")
    with told, claimed(tmp_path, ["graph sub_1"]):
        pass


def test_a_scan_in_a_work_directory_belongs_to_one_run_at_a_time(tmp_path):
    """Two runs would empty each other's folders; others, of other scans, go on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path, "graph sub_1"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with claimed(tmp_path, ["graph sub_2", "graph sub_3"]):
            pass
        with pytest.raises(UsageError, match="at work on sub_1"), claimed(tmp_path, ["graph sub_1"]):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with claimed(tmp_path, ["graph sub_1"]):
        pass
