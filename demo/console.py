"""The demo's output: one line a stage, with progress bars on a terminal and plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

# Without a terminal, a progress bar prints a line each time this share of the total has been added.
PLAIN_STEP = 0.25
PLAIN_WIDTH = 120


class ProgressBar:
    """The progress of one stage."""

    def __init__(self, console: "DemoConsole", progress: Progress | None, task: TaskID | None) -> None:
        self._console = console
        self._progress = progress
        self._task = task
        self._printed_share = 0.0
        self._printed_note = ""

    def update(self, done: float, total: float, note: str = "") -> None:
        """Set the progress to ``done`` of ``total``."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif done / total >= self._printed_share + PLAIN_STEP and done < total:
            self._printed_share = done / total
            self._console.print(f"  {done / total:.0%}{f' · {note}' if note else ''}")

    def note(self, text: str) -> None:
        """Show a note beside the bar, or as a line."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=text)
        elif text != self._printed_note:
            self._printed_note = text
            self._console.print(f"  {text}")


class DemoConsole:
    """Prints stages and records their durations."""

    def __init__(self, console: Console | None = None) -> None:
        self.rich = console or Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def print(self, text: str) -> None:
        """Print plain text, unwrapped: paths and ids are copied from it."""
        self.rich.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[ProgressBar]:
        """Show ``title`` while the stage runs, and record its seconds under ``name``."""
        started = time.monotonic()
        if self.rich.is_terminal:
            with self._progress() as progress:
                yield ProgressBar(self, progress, progress.add_task(title, total=None, note=""))
        else:
            self.print(f"{title} …")
            yield ProgressBar(self, None, None)
        self.seconds[name] = round(time.monotonic() - started, 1)
        self.print(f"✓ {title} ({self.seconds[name]:.1f} s)")

    def durations(self) -> dict[str, float]:
        """Seconds of each stage, and in total."""
        return {**self.seconds, "total": round(time.monotonic() - self._started, 1)}

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.rich,
            transient=True,
        )
