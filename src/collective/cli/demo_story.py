"""How the demo tells what happens: in colour on a terminal, in plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn

__all__ = ["Story"]

PLAIN_STEP_PERCENT = 10  # without a terminal, playing is told this often


@dataclass
class Story:
    """Tells the demo on one console."""

    console: Console

    def act(self, title: str) -> None:
        """A new part begins."""
        self.console.print(f"\n[bold]{escape(title)}[/bold]")

    def say(self, text: str) -> None:
        self.console.print(f"  {escape(text)}")

    def command(self, line: str) -> None:
        """A command as a person would type it."""
        self.console.print(f"  [dim]$ {escape(line)}[/dim]")

    def figure(self, name: str, value: str) -> None:
        self.console.print(f"  {escape(name)}: [cyan]{escape(value)}[/cyan]")

    def good(self, text: str) -> None:
        self.console.print(f"  [green]{escape(text)}[/green]")

    def bad(self, text: str) -> None:
        self.console.print(f"  [red]{escape(text)}[/red]")

    @contextmanager
    def playing(self, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar while the film plays; gives the function that is told the position."""
        if not self.console.is_terminal:
            yield self._plain_position(total_bytes)
            return
        columns = (
            TextColumn("  playing"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("playing", total=total_bytes)
            yield lambda position: progress.update(task, completed=position)

    def _plain_position(self, total_bytes: int) -> Callable[[int], None]:
        told = 0

        def at(position: int) -> None:
            nonlocal told
            percent = 100 * position // max(1, total_bytes)
            if percent >= told + PLAIN_STEP_PERCENT:
                told = percent - percent % PLAIN_STEP_PERCENT
                self.say(f"playing: {told} %")

        return at
