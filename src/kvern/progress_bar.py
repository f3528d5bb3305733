"""A progress bar on standard error, when a person is looking at it; otherwise silence."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """``with ProgressBar("loading", in_bytes=True) as bar: bar(done, total)``; gone when the block ends.

    ``shown`` None: at a terminal only.
    """

    def __init__(self, title: str, *, shown: bool | None = None, in_bytes: bool = False) -> None:
        self._title, self._in_bytes = title, in_bytes
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

            amount = DownloadColumn(binary_units=True) if self._in_bytes else MofNCompleteColumn()
            console = Console(stderr=True)
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), amount, console=console, transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take it off the screen; further calls do nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
