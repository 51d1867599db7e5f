"""What a person at the terminal is told of a run: where each subject is, how long it will take, what came
out.

The bookkeeping (`Ledger`) knows nothing of nipype and nothing of terminals; two views of it print. A
terminal gets one line for each subject at work, redrawn in place; a file or a pipe gets plain lines, one for
each thing that happened.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Steps that took less than this share of what was expected were found in the cache: they say nothing about
#: others.
CACHED_SHARE = 0.02


@dataclass
class Step:
    """One step of one subject.

    Attributes
    ----------
    subject
        Whose it is, as it is printed: ``sub-01``.
    name
        Unique among the steps of the subject.
    words
        What it does, in a few words.
    kind
        Steps of one kind are expected to take equally long.
    expected_s
        Seconds that a step of this kind takes on two processors; used until one has been timed.
    state
        ``waiting``, ``running``, ``done``, ``failed``, or ``dropped`` (it depended on one that failed).
    """

    subject: str
    name: str
    words: str
    kind: str
    expected_s: float = 1.0
    state: str = "waiting"
    began: float = 0.0
    took_s: float = 0.0


@dataclass
class Ledger:
    """Which steps of which subjects are done, and how long the rest will take.

    Attributes
    ----------
    steps
        All steps of the run.
    at_a_time
        Most subjects that can be at work together.
    clock
        Seconds that only ever grow.
    told_s
        Returns how many seconds a running step itself says that it has left, or None.
    """

    steps: Iterable[Step]
    at_a_time: int = 1
    clock: Callable[[], float] = time.monotonic
    told_s: Callable[[Step], float | None] = lambda step: None
    began: float = field(init=False)
    subjects: dict[str, dict[str, Step]] = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()
        self.subjects = {}
        self._timed: dict[str, list[float]] = {}
        for step in self.steps:
            self.subjects.setdefault(step.subject, {})[step.name] = step

    def start(self, subject: str, name: str) -> Step:
        """Note that a step begins."""
        step = self.subjects[subject][name]
        step.state, step.began = "running", self.clock()
        return step

    def end(self, subject: str, name: str, *, failed: bool = False) -> Step:
        """Note that a step is over.

        One that never began was found in the cache, or was dropped because another failed: schedulers
        announce both in this way.
        """
        step = self.subjects[subject][name]
        if step.state == "running":
            step.took_s = self.clock() - step.began
            step.state = "failed" if failed else "done"
            if not failed and step.took_s > CACHED_SHARE * step.expected_s:
                self._timed.setdefault(step.kind, []).append(step.took_s)
        elif step.state == "waiting":
            step.state = "failed" if failed else "dropped" if self.state(subject) == "failed" else "done"
        if step.state == "failed":
            for other in self.subjects[subject].values():
                other.state = "dropped" if other.state == "waiting" else other.state
        return step

    def state(self, subject: str) -> str:
        """``failed`` as soon as one step has; ``done`` when all are; else ``running`` or ``waiting``."""
        states = {step.state for step in self.subjects[subject].values()}
        if "failed" in states:
            return "failed"
        if states <= {"done", "dropped"}:
            return "done"
        return "running" if states & {"running", "done"} else "waiting"

    def count(self, state: str) -> int:
        """How many subjects are in a state."""
        return sum(self.state(subject) == state for subject in self.subjects)

    def running(self, subject: str) -> list[Step]:
        """Steps of a subject that are being worked on, the one that began first in front."""
        steps = (s for s in self.subjects[subject].values() if s.state == "running")
        return sorted(steps, key=lambda s: s.began)

    def elapsed_s(self, subject: str) -> float:
        """Seconds since the first step of a subject began, until the last one ended."""
        begun = [s for s in self.subjects[subject].values() if s.began]
        if not begun:
            return 0.0
        now = self.clock()
        ends = (now if s.state == "running" else s.began + s.took_s for s in begun)
        last = now if self.state(subject) == "running" else max(ends)
        return last - min(s.began for s in begun)

    def share(self, subject: str) -> float:
        """Share of a subject's work that is done, 0 to 1, by time."""
        steps = self.subjects[subject].values()
        total = sum(self._duration(s) for s in steps)
        return 1 - sum(self._left(s) for s in steps) / total if total else 1.0

    def seconds_left(self, subject: str | None = None) -> float:
        """Estimate how long a subject, or the whole run, will still take, in seconds.

        From the mean duration of steps of each kind that this run has timed, else from what is expected of
        them. The whole run shares its processors: the work left is divided by how many subjects run at a
        time.
        """
        if subject is not None:
            return sum(self._left(s) for s in self.subjects[subject].values())
        left = [self.seconds_left(s) for s in self.subjects]
        return max(sum(left) / max(min(self.at_a_time, len(left)), 1), max(left, default=0.0))

    def _duration(self, step: Step) -> float:
        timed = self._timed.get(step.kind)
        if timed:
            return sum(timed) / len(timed)
        # What has been timed of other kinds tells how fast this machine is.
        known = [(sum(t) / len(t), self._expected(kind)) for kind, t in list(self._timed.items())]
        speed = sum(took for took, _ in known) / sum(e for _, e in known) if known else 1.0
        return step.expected_s * speed

    def _expected(self, kind: str) -> float:
        return next(
            s.expected_s for steps in self.subjects.values() for s in steps.values() if s.kind == kind
        )

    def _left(self, step: Step) -> float:
        if step.state == "waiting":
            return self._duration(step)
        if step.state == "running":
            told = self.told_s(step)
            spent = self.clock() - step.began
            # A step that takes longer than thought is near its end, as far as anyone can tell.
            return max(self._duration(step) - spent, 0.05 * spent) if told is None else told
        return 0.0


class PlainLines:
    """A line for each subject that begins a long step, ends or fails; for files, pipes, and ``-v``.

    Parameters
    ----------
    ledger
        What to print from.
    detailed
        A line for every step, not for long ones only.
    write
        Prints a line.
    """

    #: Steps expected to take longer (s) are announced.
    LONG_S = 15.0

    def __init__(
        self,
        ledger: Ledger,
        *,
        detailed: bool = False,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.ledger, self.detailed, self.write = ledger, detailed, write
        self.width = max((len(s) for s in ledger.subjects), default=0)
        self._begun: set[str] = set()

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def changed(self, step: Step) -> None:
        """Print what there is to say after a step has begun or ended."""
        ends = {"done": f"done in {duration(step.took_s)}", "failed": "FAILED"}
        first = step.subject not in self._begun
        self._begun.add(step.subject)
        if step.state == "running" and (self.detailed or step.expected_s >= self.LONG_S):
            self._line(step.subject, step.words)
        elif step.state == "running" and first:
            self._line(step.subject, f"begun: {step.words}")
        elif self.detailed and step.state in ends:
            self._line(step.subject, f"{step.words}: {ends[step.state]}")
        outcome = outcome_line(self.ledger, step)
        if outcome:
            self._line(step.subject, f"{outcome}   ({overall(self.ledger)})")

    def _line(self, subject: str, words: str) -> None:
        self.write(f"  {time.strftime('%H:%M:%S')}  {subject:{self.width}}  {words}")


class LiveLines:
    """One line for each subject at work, redrawn in place, below those of subjects that are through.

    Parameters
    ----------
    ledger
        What to draw.
    """

    MOST = 12  #: lines of subjects at work; the rest are counted

    def __init__(self, ledger: Ledger) -> None:
        from rich.console import Console
        from rich.live import Live

        self.ledger = ledger
        self.width = max((len(s) for s in ledger.subjects), default=0)
        self.console = Console(highlight=False, emoji=False, markup=False)
        self.live = Live(
            console=self.console, get_renderable=self._draw, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> LiveLines:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def changed(self, step: Step) -> None:
        """Print the line of a subject that is through; the others are redrawn anyway."""
        outcome = outcome_line(self.ledger, step)
        if outcome:
            style = "red" if "FAILED" in outcome else "green"
            self.console.print(f"  {step.subject:{self.width}}  {outcome}", style=style)

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        ledger = self.ledger
        # A copy: the scheduler's thread may finish a step while this one draws.
        at_work = [s for s in list(ledger.subjects) if ledger.running(s)]
        table = Table.grid(padding=(0, 2))
        for subject in at_work[: self.MOST]:
            steps = ledger.running(subject)
            words = steps[0].words + (f" and {len(steps) - 1} more" if len(steps) > 1 else "")
            table.add_row(
                Text(f"  {subject}"),
                ProgressBar(total=1.0, completed=ledger.share(subject), width=20),
                Text(words),
                Text(
                    f"{duration(ledger.elapsed_s(subject))}, {about(ledger.seconds_left(subject))}",
                    style="dim",
                ),
            )
        more = len(at_work) - self.MOST
        last = Text(f"  {overall(ledger)}" + (f"; {more} more at work" if more > 0 else ""), style="dim")
        return Group(table, last)


def choose_view(ledger: Ledger, *, verbose: int = 0) -> PlainLines | LiveLines:
    """Return the view for where the output goes: redrawn lines on a terminal, plain ones elsewhere and with
    ``-v`` (whose log would tear the redrawn lines apart).
    """
    if verbose == 0 and sys.stdout.isatty():
        from rich.console import Console

        if not Console().is_dumb_terminal:
            return LiveLines(ledger)
    return PlainLines(ledger, detailed=verbose > 0)


def outcome_line(ledger: Ledger, step: Step) -> str:
    """What became of a subject, if this step was what decided it; else nothing."""
    if step.state == "failed":
        return f"FAILED after {duration(ledger.elapsed_s(step.subject))}: {step.words}"
    if step.state == "done" and ledger.state(step.subject) == "done":
        seconds = ledger.elapsed_s(step.subject)
        return f"done in {duration(seconds)}" if seconds >= 0.5 else "done before"
    return ""


def overall(ledger: Ledger) -> str:
    """The whole run in half a line."""
    failed, total = ledger.count("failed"), len(ledger.subjects)
    over = ledger.count("done") + failed
    left = ledger.seconds_left()
    parts = [f"{ledger.count('done')} of {total} done"]
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts) + (f"; {about(left)}" if over < total else "")


def duration(seconds: float) -> str:
    """``0:07``, ``12:30``, ``3:05:00``."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def about(seconds: float) -> str:
    """Time left, no more exact than it can be: ``about 2 min left``."""
    if seconds < 90:
        return f"about {max(5 * round(seconds / 5), 5)} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Table of plain text, columns as wide as they need; `right` names the columns of numbers by index."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def laid(line: Sequence[str]) -> str:
        cells = (
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([laid(lines[0]), "  ".join("-" * w for w in widths), *map(laid, lines[1:])])
