"""What a run prints while it works: where each subject is, and how long the run will take.

`Ledger` counts steps and times; it uses neither nipype nor a terminal. Two views print it. On a terminal,
each subject at work has one line that is redrawn. A file or a pipe gets plain lines, one for each event.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

#: A step that took less than this share of the expected time, and less than these seconds, was in the cache.
#: Its time is not used.
CACHED_SHARE, CACHED_S = 0.02, 0.5
#: Steps with a longer expected time (s) are announced. How long they take depends on scan and machine: it is
#: unknown until one has been timed.
LONG_S = 15.0


@dataclass
class Step:
    """One step of one subject.

    Attributes
    ----------
    subject
        As it is printed: ``sub-01``.
    name
        Unique among the steps of the subject.
    words
        What it does, in a few words.
    kind
        Steps of one kind should take the same time.
    expected_s
        Seconds that a step of this kind takes on two processors. If they are few, they are used until one has
        been timed.
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
        Largest number of subjects at work at the same time.
    clock
        Returns seconds.
    told_s
        Returns how many seconds a running step itself reports as left, or None.
    """

    steps: Iterable[Step]
    at_a_time: int = 1
    clock: Callable[[], float] = time.monotonic
    told_s: Callable[[Step], float | None] = lambda step: None
    subjects: dict[str, dict[str, Step]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._timed: dict[str, list[float]] = {}
        for step in self.steps:
            self.subjects.setdefault(step.subject, {})[step.name] = step

    def start(self, subject: str, name: str) -> Step:
        """Note that a step begins."""
        step = self.subjects[subject][name]
        step.state, step.began = "running", self.clock()
        return step

    def end(self, subject: str, name: str, *, failed: bool = False) -> Step:
        """Note that a step ends.

        A step that never began was in the cache, or was dropped because another one failed: schedulers
        report both in this way.
        """
        step = self.subjects[subject][name]
        if step.state == "running":
            step.took_s = self.clock() - step.began
            step.state = "failed" if failed else "done"
            if not failed and step.took_s > min(CACHED_SHARE * step.expected_s, CACHED_S):
                self._timed.setdefault(step.kind, []).append(step.took_s)
        elif step.state == "waiting":
            step.state = "failed" if failed else "dropped" if self.state(subject) == "failed" else "done"
        if step.state == "failed":
            for other in self.subjects[subject].values():
                other.state = "dropped" if other.state == "waiting" else other.state
        return step

    def state(self, subject: str) -> str:
        """Return ``failed`` if one step has failed, ``done`` if all are, else ``running`` or ``waiting``."""
        states = {step.state for step in self.subjects[subject].values()}
        if "failed" in states:
            return "failed"
        if states <= {"done", "dropped"}:
            return "done"
        return "running" if states & {"running", "done"} else "waiting"

    def count(self, state: str) -> int:
        """Return how many subjects are in a state."""
        return sum(self.state(subject) == state for subject in self.subjects)

    def running(self, subject: str) -> list[Step]:
        """Return the running steps of a subject, the first one that began in front."""
        steps = (s for s in self.subjects[subject].values() if s.state == "running")
        return sorted(steps, key=lambda s: s.began)

    def elapsed_s(self, subject: str) -> float:
        """Return the seconds in which a step of a subject was running: while it waits, its clock stands."""
        now, total, last = self.clock(), 0.0, 0.0
        for step in sorted((s for s in self.subjects[subject].values() if s.began), key=lambda s: s.began):
            end = now if step.state == "running" else step.began + step.took_s
            total += max(end - max(step.began, last), 0.0)
            last = max(end, last)
        return total

    def share(self, subject: str) -> float:
        """Return the share of a subject's work that is done, 0 to 1, by time."""
        steps = self.subjects[subject].values()
        parts = [(self._duration(step), self._left(step)) for step in steps]
        total = sum(whole for whole, _ in parts)
        return (
            1 - sum(whole if left is None else min(left, whole) for whole, left in parts) / total
            if total
            else 1.0
        )

    def seconds_left(self, subject: str | None = None) -> float | None:
        """Estimate how many seconds a subject, or the whole run, will still take.

        The mean duration of the steps of a kind is used. None: unknown, because a long step is left and none
        of its kind has been timed in this run. The subjects of a run share its processors: their work is
        divided by how many run at a time.
        """
        if subject is not None:
            steps = [self._left(step) for step in self.subjects[subject].values()]
            known = [left for left in steps if left is not None]
            return sum(known) if len(known) == len(steps) else None
        subjects = [self.seconds_left(one) for one in self.subjects]
        known = [left for left in subjects if left is not None]
        if len(known) < len(subjects):
            return None
        return max(sum(known) / max(min(self.at_a_time, len(known)), 1), max(known, default=0.0))

    def _mean(self, step: Step) -> float | None:
        """Return the mean duration of the steps of a kind; None: unknown."""
        timed = self._timed.get(step.kind)
        if timed:
            return sum(timed) / len(timed)
        return None if step.expected_s > LONG_S else step.expected_s

    def _duration(self, step: Step) -> float:
        """Return the duration of a step for a bar, which needs one for each: what is known, else a guess."""
        told = self.told_s(step) if step.state == "running" else None
        if told is not None:
            return self.clock() - step.began + told
        mean = self._mean(step)
        return step.expected_s if mean is None else mean

    def _left(self, step: Step) -> float | None:
        if step.state == "waiting":
            return self._mean(step)
        if step.state == "running":
            told, mean, spent = self.told_s(step), self._mean(step), self.clock() - step.began
            if told is not None or mean is None:
                return told
            return max(mean - spent, 0.05 * spent)  # one that takes longer than expected should end soon
        return 0.0


class PlainLines(AbstractContextManager):
    """A line for each subject that begins a long step, ends or fails; for files, pipes, and ``-v``.

    Parameters
    ----------
    ledger
        What to print.
    detailed
        A line for every step, not only for long ones.
    write
        Prints a line.
    """

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

    def __exit__(self, *_: object) -> None:
        pass

    def changed(self, step: Step) -> None:
        """Print lines about a step that has begun or ended."""
        ends = {"done": f"done in {duration(step.took_s)}", "failed": "FAILED"}
        first = step.subject not in self._begun
        self._begun.add(step.subject)
        lines = []
        if step.state == "running" and (self.detailed or step.expected_s >= LONG_S):
            lines.append(step.words)
        elif step.state == "running" and first:
            lines.append(f"begun: {step.words}")
        elif self.detailed and step.state in ends:
            lines.append(f"{step.words}: {ends[step.state]}")
        outcome = outcome_line(self.ledger, step)
        if outcome:
            lines.append(f"{outcome}   ({overall(self.ledger)})")
        for words in lines:
            self.write(f"  {time.strftime('%H:%M:%S')}  {step.subject:{self.width}}  {words}")


class LiveLines(AbstractContextManager):
    """One line for each subject at work, redrawn in place, below the lines of finished subjects.

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
        """Print the line of a finished subject; the others are redrawn anyway."""
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
        # A copy: the thread of the scheduler may end a step at the same time.
        at_work = [s for s in list(ledger.subjects) if ledger.running(s)]
        table = Table.grid(padding=(0, 2))
        for subject in at_work[: self.MOST]:
            steps = ledger.running(subject)
            words = steps[0].words + (f" and {len(steps) - 1} more" if len(steps) > 1 else "")
            times = f"{duration(ledger.elapsed_s(subject))}, {about(ledger.seconds_left(subject))}"
            bar = ProgressBar(total=1.0, completed=ledger.share(subject), width=20)
            table.add_row(Text(f"  {subject}"), bar, Text(words), Text(times, style="dim"))
        more = len(at_work) - self.MOST
        last = Text(f"  {overall(ledger)}" + (f"; {more} more at work" if more > 0 else ""), style="dim")
        return Group(table, last)


def choose_view(ledger: Ledger, *, verbose: int = 0) -> PlainLines | LiveLines:
    """Return redrawn lines on a terminal; plain lines elsewhere and with ``-v``, which prints a log between
    them.
    """
    if verbose == 0 and sys.stdout.isatty():
        from rich.console import Console

        if not Console().is_dumb_terminal:
            return LiveLines(ledger)
    return PlainLines(ledger, detailed=verbose > 0)


@contextmanager
def at_work() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done, and for how long; elsewhere, show nothing.

    Yields
    ------
    callable
        Takes what is being done now, in a few words.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(highlight=False, emoji=False, markup=False)
    # The bar has no end: most scans are enhanced in one pass, of which no part can be counted.
    columns = (BarColumn(20), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda words: shown.update(task, description=words)


def outcome_line(ledger: Ledger, step: Step) -> str:
    """Return the outcome of a subject if this step has decided it; else nothing."""
    if step.state == "failed":
        return f"FAILED after {duration(ledger.elapsed_s(step.subject))}: {step.words}"
    if step.state == "done" and ledger.state(step.subject) == "done":
        seconds = ledger.elapsed_s(step.subject)
        return f"done in {duration(seconds)}" if seconds >= 0.5 else "done before"
    return ""


def overall(ledger: Ledger) -> str:
    """Return the state of the whole run in half a line."""
    done, failed, total = ledger.count("done"), ledger.count("failed"), len(ledger.subjects)
    text = f"{done} of {total} done" + (f", {failed} failed" if failed else "")
    return text + (f"; {about(ledger.seconds_left())}" if done + failed < total else "")


def duration(seconds: float) -> str:
    """Return ``0:07``, ``12:30`` or ``3:05:00``."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def about(seconds: float | None) -> str:
    """Return the time left, rounded: ``about 2 min left``; None is unknown."""
    if seconds is None:
        return "time left unknown"
    if seconds < 90:
        return f"about {max(5 * round(seconds / 5), 5)} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()
) -> list[str]:
    """Return the lines of a table without borders or colours; the columns `numbers` are aligned right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=1000, color_system=None)
    with console.capture() as printed:
        console.print(table)
    return [line.rstrip() for line in printed.get().splitlines()]
