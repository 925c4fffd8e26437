"""What the demonstration shows: one line a stage, bars where there is a terminal, plain lines where there is none."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

# Without a terminal, a bar becomes a line at every such part of the whole.
PLAIN_STEP = 0.25
PLAIN_WIDTH = 120


class Bar:
    """How far a stage is."""

    def __init__(self, screen: "Screen", progress: Progress | None, task: TaskID | None) -> None:
        self._screen = screen
        self._progress = progress
        self._task = task
        self._said = 0.0

    def show(self, done: float, total: float, note: str = "") -> None:
        """Set it to ``done`` of ``total``."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif done / total >= self._said + PLAIN_STEP and done < total:
            self._said = done / total
            self._screen.say(f"  {done / total:.0%}{f' · {note}' if note else ''}")

    def note(self, text: str) -> None:
        """Say what is going on."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=text)
        else:
            self._screen.say(f"  {text}")


class Screen:
    """Writes to a console, and keeps how long each stage took."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """A line of plain text."""
        # Paths and ids must be whole to be copied.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[Bar]:
        """Show a stage while it lasts, and count its seconds under ``name``."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self._bars() as progress:
                yield Bar(self, progress, progress.add_task(text, total=None, note=""))
        else:
            self.say(f"{text} …")
            yield Bar(self, None, None)
        self.seconds[name] = round(time.monotonic() - started, 1)
        self.say(f"✓ {text} ({self.seconds[name]:.1f} s)")

    def timings(self) -> dict[str, float]:
        """Seconds of each stage and in total."""
        return {**self.seconds, "total": round(time.monotonic() - self._started, 1)}

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=True,
        )
