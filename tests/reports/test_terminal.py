"""What a run prints: where each subject is, how long the run will take, and which scans failed."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from iqtflow.config import PathSettings, Settings
from iqtflow.reports.run_summary import Outcome, outcome_table
from iqtflow.reports.terminal import Ledger, PlainLines, Step, about, at_work, duration
from iqtflow.workflows.execution.progress import followed, step_of


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_ledger(n_subjects: int, **options) -> tuple[Ledger, Clock]:
    clock = Clock()
    steps = [
        Step(f"sub-{i:02d}", name, words, name, seconds)
        for i in range(1, n_subjects + 1)
        for name, words, seconds in (("segment", "tissue maps", 100.0), ("sink", "writing", 1.0))
    ]
    return Ledger(steps, clock=clock, **options), clock


def work(ledger: Ledger, clock: Clock, subject: str, name: str, seconds: float, **how) -> Step:
    ledger.start(subject, name)
    clock.now += seconds
    return ledger.end(subject, name, **how)


def test_time_left_is_unknown_until_a_step_of_its_kind_was_timed_on_this_machine():
    ledger, clock = make_ledger(3)
    assert ledger.seconds_left() is None and ledger.seconds_left("sub-01") is None
    ledger.start("sub-01", "segment")
    clock.now += 39
    assert ledger.seconds_left("sub-01") is None
    clock.now += 1
    ledger.end("sub-01", "segment")
    assert ledger.seconds_left("sub-01") == 1  # writing is short, whatever the machine
    assert ledger.seconds_left() == pytest.approx(2 * 40 + 3)
    work(ledger, clock, "sub-01", "sink", 2.0)
    assert ledger.seconds_left() == pytest.approx(2 * 42)
    ledger.start("sub-02", "segment")
    clock.now += 30
    assert ledger.seconds_left("sub-02") == pytest.approx(12)
    assert ledger.share("sub-02") == pytest.approx(30 / 42)


def test_subjects_at_work_together_share_the_time_left():
    ledger, clock = make_ledger(11, at_a_time=5)
    for name, seconds in (("segment", 40.0), ("sink", 1.0)):
        work(ledger, clock, "sub-01", name, seconds)
    assert ledger.seconds_left() == pytest.approx(10 * 41 / 5)
    alone, clock = make_ledger(2, at_a_time=5)
    work(alone, clock, "sub-01", "segment", 40.0)
    assert alone.seconds_left() == pytest.approx(41)


def test_what_was_found_in_the_cache_does_not_promise_that_the_rest_is_quick():
    ledger, clock = make_ledger(2)
    work(ledger, clock, "sub-01", "segment", 0.01)
    assert ledger.seconds_left("sub-02") is None


def test_a_training_of_three_seconds_is_timed_though_others_take_an_hour():
    clock = Clock()
    ledger = Ledger([Step(f"network {i}", "train", "training", "train", 3600.0) for i in (1, 2)], clock=clock)
    work(ledger, clock, "network 1", "train", 3.0)
    assert ledger.seconds_left() == pytest.approx(3)


def test_a_step_that_says_how_long_it_has_left_is_believed():
    ledger, clock = make_ledger(1, told_s=lambda step: 17.0 if step.kind == "segment" else None)
    ledger.start("sub-01", "segment")
    clock.now += 3
    assert ledger.seconds_left() == pytest.approx(18)
    assert ledger.share("sub-01") == pytest.approx(3 / 21)


def test_a_failed_subject_is_told_at_once_and_its_other_steps_are_not_waited_for():
    ledger, clock = make_ledger(2)
    lines: list[str] = []
    view = PlainLines(ledger, write=lines.append)
    view.changed(work(ledger, clock, "sub-01", "segment", 12.0, failed=True))
    view.changed(ledger.end("sub-01", "sink"))  # the scheduler announces a dropped step like an ended one
    assert ledger.state("sub-01") == "failed" and ledger.count("done") == 0
    assert ledger.seconds_left("sub-01") == 0
    assert len(lines) == 1
    assert "sub-01  FAILED after 0:12: tissue maps" in lines[0] and "0 of 2 done, 1 failed" in lines[0]


def test_a_quiet_log_has_a_line_for_the_long_step_and_one_for_the_end():
    ledger, clock = make_ledger(1)
    lines: list[str] = []
    view = PlainLines(ledger, write=lines.append)
    for name, seconds in (("segment", 65.0), ("sink", 1.0)):
        view.changed(ledger.start("sub-01", name))
        clock.now += seconds
        view.changed(ledger.end("sub-01", name))
        clock.now += 100  # other subjects are at work
    assert [re.sub(r"^  \S+  ", "", line) for line in lines] == [
        "sub-01  tissue maps",
        "sub-01  done in 1:06   (1 of 1 done)",
    ]


def test_durations_read_like_a_watch_and_promises_are_no_more_exact_than_they_can_be():
    assert [duration(s) for s in (7, 750, 11100)] == ["0:07", "12:30", "3:05:00"]
    assert [about(s) for s in (1, 43, 600, 3 * 3600)] == [
        "about 5 s left", "about 45 s left", "about 10 min left", "about 3.0 h left",
    ]  # fmt: skip
    assert about(None) == "time left unknown"


@pytest.mark.parametrize(
    ("path", "subject", "words"),
    [
        ("sub_01_ses_2_T1w.enhance", "sub-01", "enhancing"),
        ("sub_01_ses_2_T1w.simulate_draw03", "sub-01", "simulating low field"),
        ("report_01", "sub-01", "drawing the page"),
        ("sub_01__a_T1w.enhance", "sub-01+a", "enhancing"),
        ("sub_01_ses_2_T1w_combined.combine", "sub-01", "combining the scans"),
        ("report_01__a", "sub-01+a", "drawing the page"),
        ("train.train_m2", "network 2", "training"),
        ("train_fold3.train_m2", "fold 3, network 2", "training"),
        ("evaluate_07.enhance_m1", "sub-07", "enhancing"),
        ("evaluate_07.evaluate", "sub-07", "comparing with the high-field scan"),
        ("train.join", "model", "joining the networks"),
    ],
)
def test_every_node_belongs_to_someone(path, subject, words):
    step = step_of(path)
    assert (step.subject, step.words, step.name) == (subject, words, path)


def _fail_if(fail):
    if fail:
        raise ValueError("on purpose")
    return fail


def make_graph(base_dir: Path) -> Workflow:
    graph = Workflow("top", base_dir=os.fspath(base_dir))
    graph.config["execution"] = {"crashdump_dir": os.fspath(base_dir), "crashfile_format": "txt"}
    for label in ("01", "02"):
        one = Workflow(f"sub_{label}_T1w")
        first = Node(IdentityInterface(["fail"]), name="inputnode")
        segment = Node(Function(["fail"], ["out"], _fail_if), name="segment")
        sink = Node(Function(["fail"], ["out"], _fail_if), name="sink")
        first.inputs.fail = label == "02"
        one.connect([(first, segment, [("fail", "fail")]), (segment, sink, [("out", "fail")])])
        graph.add_nodes([one])
    return graph


def make_settings(tmp_path: Path) -> Settings:
    return Settings(paths=PathSettings(bids_dir=tmp_path, output_dir=tmp_path, work_dir=tmp_path))


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_a_graph_tells_who_is_done_and_who_failed_whatever_runs_it(tmp_path, capsys, plugin):
    graph = make_graph(tmp_path)
    with followed(graph, make_settings(tmp_path)) as callback, pytest.raises(RuntimeError):
        graph.run(
            plugin=plugin, plugin_args={"status_callback": callback, "n_procs": 2, "mp_context": "fork"}
        )
    out = capsys.readouterr().out
    assert re.search(r"sub-01  done", out) and re.search(r"sub-02  FAILED after \S+: tissue maps", out)
    assert "\x1b" not in out  # no terminal, no control characters


def shown_on_a_terminal(code: str) -> str:
    """What a terminal gets from a program."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", code], stdout=child, env=environment, check=True, timeout=60)
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    return shown


def test_a_command_for_one_scan_shows_on_a_terminal_what_it_does(capsys):
    code = """
import time
from iqtflow.reports.terminal import at_work
with at_work() as say:
    say("finding the brain")
    time.sleep(0.3)
    print("a line")
"""
    shown = shown_on_a_terminal(code)
    assert "finding the brain" in shown and "0:00:00" in shown and "a line" in shown
    with at_work() as say:
        say("finding the brain")
    assert capsys.readouterr().out == ""  # no terminal


def test_on_a_terminal_lines_are_redrawn_in_place_and_outcomes_stay(tmp_path):
    code = """
import time
from iqtflow.reports.terminal import Ledger, LiveLines, Step, choose_view
ledger = Ledger([Step("sub-01", "segment", "tissue maps", "segment", 100.0)])
view = choose_view(ledger)
assert isinstance(view, LiveLines)
with view:
    view.changed(ledger.start("sub-01", "segment"))
    time.sleep(0.7)
    view.changed(ledger.end("sub-01", "segment"))
"""
    shown = shown_on_a_terminal(code)
    assert "tissue maps" in shown and "of 1 done" in shown
    assert re.search(r"sub-01  done in 0:0[01]", shown)


def test_the_table_that_ends_a_run_puts_what_wants_attention_first(tmp_path):
    fields = {
        "UpsamplingFactor": 4,
        "VoxelSizeMm": [0.72, 0.72, 0.75],
        "Device": "cuda (NVIDIA H100)",
        "Seconds": 114.6,
    }
    unlike = {
        **fields,
        "OutOfDistribution": {"Flagged": True, "Score": 4.2},
        "Warnings": ["Out of distribution", "b"],
    }
    snr = {"SNR": {"WM": 31.04, "GM": 25.5}}
    for name, content in (("a", fields), ("b", unlike), ("c", snr)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    table = outcome_table([
        Outcome("sub-01_T1w", "enhanced", sidecar=tmp_path / "a.json"),
        Outcome("sub-02_T1w", "enhanced", sidecar=tmp_path / "b.json"),
        Outcome("sub-03_T1w", "skipped", "already near-isotropic"),
        Outcome("sub-04_T1w", "failed", "found " + 30 * "a file that cannot be read "),
    ]).splitlines()  # fmt: skip
    assert table[0].split() == ["scan", "outcome", "k", "voxel", "(mm)", "device", "main", "step", "remark"]
    assert [line.split()[0] for line in table[1:]] == ["sub-04_T1w", "sub-02_T1w", "sub-01_T1w", "sub-03_T1w"]
    assert "FAILED" in table[1] and len(table[1]) < 130 and table[1].endswith("...")
    told = "0.72 x 0.72 x 0.75  cuda  1:55  unlike the training data (score 4.2); 1 warning"
    assert " ".join(table[2].split()).endswith(" ".join(told.split()))
    assert len({line.index("enhanced") for line in table[2:4]}) == 1, "columns are aligned"
    measured = outcome_table([Outcome("sub-05_T1w", "measured", sidecar=tmp_path / "c.json")])
    heading, line = (" ".join(line.split()) for line in measured.splitlines())
    assert heading == "scan outcome SNR WM SNR GM" and line == "sub-05_T1w measured 31.0 25.5"


def test_the_table_of_a_large_run_is_short_and_leaves_out_no_failure():
    outcomes = [Outcome(f"sub-{i:03d}_T1w", "enhanced") for i in range(300)]
    outcomes[250] = Outcome("sub-250_T1w", "failed", "too dark")
    lines = outcome_table(outcomes).splitlines()
    assert len(lines) == 1 + 40 + 1
    assert lines[1].startswith("sub-250_T1w") and lines[-1] == "... and 260 more enhanced: see index.html"
