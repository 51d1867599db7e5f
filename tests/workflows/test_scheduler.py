"""What the scheduler runs and what it does not, and which nodes fail when a process dies."""

from __future__ import annotations

import gc
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from jobs import Job, UseGpu, chain, graph
from nipype.pipeline.engine import Node

from iqtflow.utils.errors import EXIT_CANTCREAT, EXIT_CODES, EXIT_SUBJECT_FAILED, exit_code_of_failures
from iqtflow.workflows.execution.local import PRELOAD, LocalProcesses
from iqtflow.workflows.execution.nipype_config import configure_nipype
from iqtflow.workflows.execution.run import as_failure
from iqtflow.workflows.execution.scheduler import Limits, SchedulerPlugin, collector_off


@pytest.fixture(autouse=True)
def nipype_as_in_a_run(tmp_path):
    from nipype import config

    before = {section: dict(config._sections[section]) for section in config._sections}
    configure_nipype(crash_dir=str(tmp_path / "logs"), level="CRITICAL")
    yield
    config.update_config(before)


FOUR = Limits(4, 4.0)


def run(workflow, limits: Limits = FOUR, **options) -> SchedulerPlugin:
    plugin = SchedulerPlugin(LocalProcesses(), limits, **options)
    workflow.run(plugin=plugin)
    return plugin


def out(folder: Path, name: str, job: int = 2) -> str:
    return (folder / "graph" / name / f"job{job}" / "out.txt").read_text()


def ran(plugin: SchedulerPlugin) -> list[str]:
    return sorted(name.removeprefix("graph.") for name in plugin.executed)


def journal_of(path: Path) -> list[tuple[float, str, str]]:
    rows = (line.split(maxsplit=2) for line in path.read_text().splitlines())
    return [(float(when), what, who.strip()) for when, what, who in rows]


def most_at_a_time(journal: list[tuple[float, str, str]]) -> int:
    now = most = 0
    for _, what, _ in sorted(journal):
        now += 1 if what == "begin" else -1
        most = max(most, now)
    return most


def test_a_killed_worker_fails_its_own_chain_and_no_other(tmp_path):
    """The OOM killer's way; nipype's own scheduler never comes back from it."""
    done = run(graph(tmp_path, chain("a"), chain("b", fate="killed"), chain("c"), chain("d", fate="exit")))
    assert {crash.node for crash in done.crashes} == {"graph.b.job1", "graph.d.job1"}
    assert out(tmp_path, "a") == "a0 a1 a2 "
    assert out(tmp_path, "c") == "c0 c1 c2 "
    assert not (tmp_path / "graph/b/job2").exists()
    failures = {crash.node: as_failure(crash) for crash in done.crashes}
    killed = failures["graph.b.job1"]
    assert "SIGKILL" in killed.message and "memory" in killed.message and "--low-mem" in killed.message
    assert killed.log.is_file()
    assert "code 3" in failures["graph.d.job1"].message


@pytest.mark.parametrize(
    ("fate", "says"),
    [
        ("memory", "not enough memory: has .* about 0.1 GB .*--low-mem"),
        ("raise", "ValueError: a1  cannot be worked with$"),
    ],
)
@pytest.mark.parametrize("logs", ["folder", "file"])
def test_a_failing_node_gives_its_reason_and_stops_what_depends_on_it_only(tmp_path, fate, says, logs):
    """Also when the crash file cannot be written, because a file has the name of its folder."""
    if logs == "file":
        (tmp_path / "logs").write_text("")
    (crash,) = run(graph(tmp_path, chain("a", fate=fate), chain("b"))).crashes
    failure = as_failure(crash)
    assert re.match(says, failure.message), failure.message
    assert failure.exit_code == EXIT_SUBJECT_FAILED
    assert (failure.log is None) == (logs == "file")
    assert out(tmp_path, "b") == "b0 b1 b2 "


def test_what_ran_to_its_end_does_not_run_again_after_a_failure(tmp_path):
    run(graph(tmp_path, chain("a", fate="killed"), chain("b")))
    assert ran(run(graph(tmp_path, chain("a"), chain("b")))) == ["a.job1", "a.job2"]
    assert ran(run(graph(tmp_path, chain("a"), chain("b")))) == []


def test_a_changed_input_runs_what_depends_on_it(tmp_path):
    run(graph(tmp_path, chain("a"), chain("b")))
    assert ran(run(graph(tmp_path, chain("a", text="new "), chain("b")))) == ["a.job1", "a.job2"]
    assert out(tmp_path, "a") == "a0 new a2 "


def test_a_result_that_comes_out_the_same_runs_nothing_after_it(tmp_path):
    run(graph(tmp_path, chain("a", n=4)))
    shutil.rmtree(tmp_path / "graph/a/job1")
    assert ran(run(graph(tmp_path, chain("a", n=4)))) == ["a.job1"]


def test_results_that_were_deleted_are_made_again_when_they_are_needed(tmp_path):
    """Nipype takes a node for cached whose files are gone, and the next one fails for want of them."""
    run(graph(tmp_path, chain("a")))
    for job in (0, 1):
        (tmp_path / f"graph/a/job{job}/out.txt").unlink()
    again = run(graph(tmp_path, chain("a", text="new ")))
    assert again.crashes == []
    assert ran(again) == ["a.job0", "a.job1", "a.job2"]


@pytest.mark.parametrize(
    ("resources", "limits", "most"),
    [
        ({"n_procs": 2, "mem_gb": 0.1}, Limits(4, 8.0), 2),
        ({"n_procs": 1, "mem_gb": 3.0}, Limits(4, 8.0), 2),
        (
            {"n_procs": 8, "mem_gb": 99.0},
            Limits(4, 8.0),
            1,
        ),  # a node that wants more than there is runs alone
        ({"n_procs": 1, "mem_gb": 0.1, "use_gpu": True}, Limits(4, 8.0, n_gpu_procs=2), 2),
    ],
)
def test_no_more_processors_memory_and_gpus_are_taken_than_there_are(tmp_path, resources, limits, most):
    journal, use_gpu = tmp_path / "journal", resources.pop("use_gpu", False)
    jobs = [Job(text=f"{i}", seconds=0.3, journal=str(journal), use_gpu=use_gpu) for i in range(4)]
    nodes = [Node(job, name=f"j{i}", **resources) for i, job in enumerate(jobs)]
    run(graph(tmp_path, *nodes), limits)
    assert len(journal_of(journal)) == 8
    assert most_at_a_time(journal_of(journal)) <= most


def test_two_schedulers_on_one_machine_never_put_two_jobs_on_one_card(tmp_path, monkeypatch):
    """Two runs with four slots each know nothing of each other; the two cards' locks keep them apart."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-fake-a,GPU-fake-b")
    monkeypatch.setenv("IQTFLOW_LOCK_DIR", str(tmp_path / "locks"))
    journal = tmp_path / "journal"

    def schedule(name: str) -> None:
        jobs = [UseGpu(text=f"{name}{i}", seconds=0.2, journal=str(journal), use_gpu=True) for i in range(4)]
        nodes = [Node(job, name=f"{name}{i}", mem_gb=0.1) for i, job in enumerate(jobs)]
        done = run(graph(tmp_path / name, *nodes), Limits(4, 8.0, n_gpu_procs=4))
        assert done.crashes == []

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(schedule, ("one", "two")))
    rows = [row for row in journal_of(journal) if row[2].startswith("GPU-")]
    assert len(rows) == 16
    for card in ("GPU-fake-a", "GPU-fake-b"):
        mine = [row for row in rows if row[2] == card]
        assert mine, f"{card} was never used"
        assert most_at_a_time(mine) == 1


def test_all_that_a_run_started_ends_with_it(tmp_path):
    """After an interruption no job is left running."""
    journal = tmp_path / "journal"
    jobs = [Job(text=str(i), seconds=60, journal=str(journal)) for i in range(2)]
    nodes = [Node(job, name=f"s{i}", mem_gb=0.1) for i, job in enumerate(jobs)]

    class Impatient(LocalProcesses):
        def wait(self):
            while not journal.exists() or len(journal.read_text().splitlines()) < 2:
                time.sleep(0.05)
            self.processes = [process for process, _ in self._running.values()]
            raise KeyboardInterrupt

    executor = Impatient()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        graph(tmp_path, *nodes).run(plugin=SchedulerPlugin(executor, Limits(2, 4.0)))
    assert time.monotonic() - began < 50
    assert [process.exitcode for process in executor.processes] == [-15, -15]


def test_with_stop_on_first_crash_nothing_more_is_started(tmp_path):
    done = run(
        graph(tmp_path, chain("a", fate="raise"), *(chain(f"z{i}") for i in range(3))),
        Limits(1, 4.0),
        stop_on_first_crash=True,
    )
    assert len(done.crashes) == 1
    assert len(done.executed) < 5


def test_modules_that_the_fork_server_imports_are_there():
    """It says nothing about one that is missing."""
    assert [module for module in PRELOAD if find_spec(module) is None] == []


def test_the_exit_code_is_that_of_the_failure_that_concerns_all():
    assert exit_code_of_failures([]) == 0
    assert exit_code_of_failures([EXIT_SUBJECT_FAILED, EXIT_CANTCREAT, EXIT_SUBJECT_FAILED]) == EXIT_CANTCREAT


def test_the_documentation_lists_the_exit_codes_as_they_are():
    page = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()
    told = {
        int(code): meaning.replace("`", "")
        for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)
    }
    assert told == EXIT_CODES


DAMAGES = {
    "cut short": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "one bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *product(["out.txt", "result_*.pklz", "_digests.json"], ["cut short", "zeros", "one bit"]),
        ("_digests.json", "gone"),  # the power went before they were written
        ("_0x*.json", "empty"),  # nipype's note of the inputs
    ],
)
def test_a_damaged_result_is_made_again_and_only_that(tmp_path, capfd, kind, damage):
    """Even one whose size and time are as they were, as after a power cut."""
    run(graph(tmp_path, chain("a"), chain("b")))
    (file,) = (tmp_path / "graph/a/job1").glob(kind)
    before = file.stat()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = run(graph(tmp_path, chain("a"), chain("b")))
    assert again.crashes == []
    assert ran(again) == ([] if damage == "empty" else ["a.job1"])
    assert out(tmp_path, "a") == "a0 a1 a2 "
    assert "Traceback" not in "".join(capfd.readouterr())
    assert ran(run(graph(tmp_path, chain("a"), chain("b")))) == []


class SwapsScan(LocalProcesses):
    """Replace a file when its hash has been taken and nobody has read it yet."""

    def __init__(self, swap) -> None:
        super().__init__()
        self._swap = swap

    def submit(self, node: Node) -> None:
        if node.fullname == "graph.a.job0":
            self._swap()
        super().submit(node)


@pytest.mark.parametrize("swap", ["other", "gone", "touched"])
def test_a_scan_that_is_replaced_while_it_is_read_fails_its_own_step(tmp_path, swap):
    scan, other = tmp_path / "scan.txt", tmp_path / "other.txt"
    scan.write_text("scan ")
    other.write_text("that ")

    def parts():
        a = chain("a")
        a.get_node("job0").inputs.in_file = str(scan)
        return graph(tmp_path, a, chain("b"))

    swaps = {"other": lambda: os.replace(other, scan), "gone": scan.unlink, "touched": lambda: os.utime(scan)}
    plugin = SchedulerPlugin(SwapsScan(swaps[swap]), FOUR)
    parts().run(plugin=plugin)
    assert out(tmp_path, "b") == "b0 b1 b2 "
    if swap == "touched":
        assert plugin.crashes == []
        return
    (crash,) = plugin.crashes
    assert crash.node == "graph.a.job0"
    if swap == "other":
        message = as_failure(crash).message
        assert message.startswith(f"{scan}: found another content than before this step"), message
        assert "run the same command again" in message
    scan.write_text("scan ")
    again = run(parts())
    assert "a.job0" in ran(again), "what was made of the other scan is not taken for this one's"
    assert out(tmp_path, "a") == "scan a0 a1 a2 "


def test_the_garbage_collector_is_off_while_a_graph_is_built_and_on_while_it_runs(tmp_path):
    seen = []

    class Looks(LocalProcesses):
        def submit(self, node: Node) -> None:
            seen.append(gc.isenabled())
            super().submit(node)

    with collector_off():
        graph(tmp_path, chain("a")).run(plugin=SchedulerPlugin(Looks(), FOUR))
        assert not gc.isenabled()
    assert seen == [True] * 3
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    with pytest.raises(ValueError, match="no graph"), collector_off():
        raise ValueError("no graph")
    assert gc.isenabled()
