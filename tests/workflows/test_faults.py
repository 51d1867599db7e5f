"""Runs whose processes are killed, whose disk is full, or whose computer loses power."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import unified_diff
from pathlib import Path

import pandas as pd
import pytest
from clinics import ENVIRONMENT, dataset, iqtflow, python, write_mapped_scans, write_thick_scan

#: Power cuts in the test of them.
POWER_CUTS = int(os.environ.get("IQTFLOW_POWER_CUTS", "4"))
#: Fields of sidecars that tell of a run, not of its result.
TIMES = ("Seconds", "PeakMemoryGB", "PredictedMemoryGB", "FreeMemoryGB", "fingerprint")


def processes(session: int) -> dict[int, str]:
    """Command lines of all living processes of a session."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if entry.name.isdecimal() and int(fields[3]) == session and fields[0] != "Z":
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except (OSError, IndexError, ValueError):
            continue
    return found


class Run:
    """A run in a session of its own, which can be watched and killed."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "iqtflow.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        self.session = self.process.pid

    def wait_for(self, words: str, timeout_s: float = 240) -> int:
        """Wait for a process with these words in its command line."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for pid, command in processes(self.session).items():
                if words in command:
                    return pid
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.02)
        raise TimeoutError(words)

    def cut_the_power(self) -> None:
        """Kill all processes at the same time, as far as one can."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in processes(self.session):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        self.process.communicate()
        wait_until(lambda: not processes(self.session))

    def end(self, timeout_s: float = 400) -> tuple[int, str]:
        said = self.process.communicate(timeout=timeout_s)[0]
        return self.process.returncode, said


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def site(untrained_model, tmp_path):
    """Two scans, and the arguments that enhance them."""
    bids = dataset(tmp_path / "bids")
    for i in (1, 2):
        write_thick_scan(bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz", seed=i)
    out, work = tmp_path / "out", tmp_path / "work"
    return out, work, (bids, out, "participant", "--model", untrained_model, "-w", work, "--nprocs", "1")


def outputs(out: Path) -> dict[str, object]:
    """Content of a run's output: images, sidecars, summaries and pages, but for times, memory and paths."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.suffix in (".json", ".html", ".md", ".bib", ".tsv"):
            text = path.read_text()
            for folder in (out, out.with_name(out.name.replace("out", "work"))):
                text = text.replace(str(folder), folder.name.partition("-")[0]).replace(folder.name, "run")
            text = re.sub(rf'(?:"|&#34;)(?:{"|".join(TIMES)})(?:"|&#34;): \S+', "", text)
            if path.name == "group_iqt.tsv":
                text = pd.read_csv(path, sep="\t").drop(columns="seconds").to_csv()
            text = re.sub(r'<td[^>]*"Time \(s\)">[^<]*', "", text)
            found[str(path.relative_to(out))] = re.sub(r"[\d.:]+ (s|GB)\b", r"some \1", text)
        elif path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def differing(found: dict[str, object], expected: dict[str, object]) -> dict[str, object]:
    """Return the lines that differ of each file that differs; of other files the names alone."""
    lines: dict[str, object] = {}
    for name in sorted({*found, *expected}):
        one, other = expected.get(name), found.get(name)
        if one != other:
            texts = isinstance(one, str) and isinstance(other, str)
            lines[name] = list(unified_diff(one.splitlines(), other.splitlines(), n=0)) if texts else name
    return lines


def assert_all_whole(out: Path) -> None:
    """Nothing under a final name is half written."""
    for path in out.rglob("*") if out.exists() else ():
        if path.name.startswith(".") or not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            gzip.decompress(content)
        elif path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".html":
            assert content.rstrip().endswith(b"</html>"), path


def finished(work: Path) -> dict[Path, int]:
    """Results of nodes that have run to their end, with their times; nodes that store derivatives apart."""
    return {
        result: result.stat().st_mtime_ns
        for result in work.rglob("result_*.pklz")
        if "sink" not in result.name and (result.parent / "_digests.json").exists()
    }


@pytest.mark.slow
def test_a_killed_child_fails_its_scan_only(site):
    out, _, arguments = site
    run = Run(*arguments)
    os.kill(run.wait_for("iqtflow.cli.commands.enhance"), signal.SIGKILL)
    code, said = run.end()
    assert code == 1, said
    tail = "\n".join(said.splitlines()[-5:])
    assert "1 enhanced, 0 skipped, 1 failed" in tail
    assert "sub-1_T1w.nii.gz" in tail and "SIGKILL" in tail and "memory" in tail
    assert (out / "sub-2/anat/sub-2_desc-iqt_T1w.nii.gz").exists()
    assert iqtflow(*arguments).returncode == 0
    assert (out / "sub-1/anat/sub-1_desc-iqt_T1w.nii.gz").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_ends_everything_and_the_same_command_goes_on(site, number, expected):
    out, work, arguments = site
    run = Run(*arguments)
    run.wait_for("iqtflow.cli.commands.enhance")
    done = finished(work)
    assert done, "the scan was checked before"
    if number == signal.SIGINT:  # Ctrl-C reaches all processes of a terminal
        os.killpg(run.process.pid, number)
    else:
        run.process.terminate()
    code, said = run.end(60)
    assert code == expected, said
    assert "the same command goes on" in said.splitlines()[-1]
    assert "Traceback" not in said
    wait_until(lambda: not processes(run.session))
    if number == signal.SIGINT:
        assert iqtflow(*arguments).returncode == 0
        assert len(list(out.rglob("*_desc-iqt_T1w.nii.gz"))) == 2
        now = finished(work)
        assert {path: now[path] for path in done} == done


def test_children_end_when_the_run_is_killed(site):
    """No process is left that could end them, and they would fill the machine."""
    run = Run(*site[2])
    run.wait_for("iqtflow.cli.commands.enhance")
    run.process.kill()
    run.process.communicate()
    wait_until(lambda: not processes(run.session))


TAKEN_MEANWHILE = """
import sys
from iqtflow.cli.main import settle
from iqtflow.cli.parser import parse
settings, _ = settle(parse(sys.argv[1:]))
(settings.paths.output_dir / "sub-1.html/x").mkdir(parents=True)
from iqtflow.workflows.app.base import run_workflow
raise SystemExit(run_workflow(settings))
"""


def test_all_outcomes_are_printed_when_a_page_cannot_be_written(site):
    """A folder with the page's name is made after the run has checked its outputs."""
    _, _, (bids, *rest) = site
    for i in (1, 2):
        write_thick_scan(bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz", k=1, seed=i)
    done = python("-c", TAKEN_MEANWHILE, bids, *rest)
    assert done.returncode == 73, done.stdout + done.stderr
    assert "0 enhanced, 2 skipped, 0 failed" in done.stdout
    assert "failed: pages" in done.stdout and "sub-1.html: found a folder of this name" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_output_folder_that_vanishes_during_a_run_is_reported(site):
    """The first subject's results are gone at the end of the run; the same command brings them back."""
    out, _, arguments = site
    run = Run(*arguments)
    first = out / "sub-1/anat/sub-1_desc-iqt_T1w.nii.gz"
    wait_until(lambda: first.exists() or run.process.poll() is not None, 240)
    run.wait_for("iqtflow.cli.commands.enhance")
    out.rename(out.with_name("elsewhere"))
    code, said = run.end()
    assert code == 73, said
    tail = said[said.index("1 enhanced, 0 skipped, 1 failed") :]
    assert "sub-1_T1w.nii.gz" in tail and "found no such file" in tail
    assert "dataset_description.json: found no such file" in tail
    assert "Traceback" not in said
    assert iqtflow(*arguments).returncode == 0
    assert first.exists()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be made here (mount needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["out", "work"])
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(site, tmp_path, where):
    out, work, arguments = site
    with small_disk(out if where == "out" else work, "700k") as disk:
        code, said = Run(*arguments).end()
        assert code == 73, said
        tail = "\n".join(said.splitlines()[-8:])
        assert "full" in tail or "No space left" in tail
        assert "Traceback" not in tail
        assert_all_whole(out)
        assert not list(out.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = iqtflow(*arguments)
        assert again.returncode == 0, again.stdout + again.stderr
        assert_all_whole(out)
        assert len(list(out.rglob("*_desc-iqt_T1w.nii.gz"))) == 2


@pytest.mark.parametrize("mode", ["calibrate", pytest.param("enhance", marks=pytest.mark.slow)])
def test_after_power_cuts_the_results_are_those_of_an_undisturbed_run(site, tmp_path, mode):
    """The run is killed at random times and resumed each time; IQTFLOW_POWER_CUTS says how often."""
    bids, _, level, *options = site[2][:5]
    if mode == "calibrate":
        bids, maps = dataset(tmp_path / "thick"), tmp_path / "maps"
        write_mapped_scans(bids, maps, 2, k=4, size=1.8)
        options = ["--mode", "calibrate", "--segmentation", "derivatives", "--derivatives", maps]

    def command(name: str) -> tuple[Path, Path, list[object]]:
        out, work = tmp_path / f"out-{name}", tmp_path / f"work-{name}"
        return out, work, [bids, out, level, *options, "-w", work, "--nprocs", "2"]

    calm, _, undisturbed = command("calm")
    began = time.monotonic()
    assert iqtflow(*undisturbed).returncode == 0
    whole_run_s = time.monotonic() - began
    expected = outputs(calm)
    results = {"enhance": "_desc-iqt_T1w.nii.gz", "calibrate": "_snr.json"}[mode]
    assert len([name for name in expected if name.endswith(results)]) == 2
    rng = random.Random(0)
    cuts = complete = resumed = 0
    out, work, arguments = command("0")
    while cuts < POWER_CUTS:
        before = finished(work)
        run = Run(*arguments)
        try:
            code, said = run.end(rng.uniform(0.0, 0.8 * whole_run_s))
        except subprocess.TimeoutExpired:
            run.cut_the_power()
            cuts += 1
            resumed += bool(before)
            assert_all_whole(out)
        else:
            assert code == 0, said
            assert not differing(outputs(out), expected)
            assert not list(out.rglob("*.partial"))
            complete += 1
        now = finished(work)
        assert {path: now.get(path) for path in before} == before, "what was finished ran again"
        if run.process.returncode == 0:
            out, work, arguments = command(str(complete))
    before = finished(work)
    code, said = Run(*arguments).end()
    assert code == 0, said
    now = finished(work)
    assert {path: now.get(path) for path in before} == before
    assert not differing(outputs(out), expected)
    assert not list(out.rglob("*.partial"))
    print(
        f"{cuts} power cuts, {resumed} of them in runs that had gone on from others; {complete + 1} complete"
    )


def test_a_run_that_stops_at_the_first_failure_claims_nothing_of_the_rest(site):
    """The first scan is no image; of the second nothing is known."""
    out, _, arguments = site
    (Path(arguments[0]) / "sub-1/anat/sub-1_T1w.nii.gz").write_bytes(b"no image")
    done = iqtflow(*arguments, "--stop-on-first-crash")
    assert done.returncode == 1, done.stdout + done.stderr
    tail = done.stdout.splitlines()[-4:]
    assert "stopped at the first failure" in tail[-1]
    assert "sub-1_T1w.nii.gz" in tail[0]
    assert "enhanced," not in done.stdout
    assert not list(out.rglob("*_desc-iqt_T1w.nii.gz"))
