"""What the demo says on the terminal: chapters with elapsed time, commands as a user would type them, live lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text


@dataclass(kw_only=True)
class Narrator:
    """Prints the story; remembers how long each chapter took."""

    console: Console
    start: float = field(default_factory=time.monotonic)
    chapters: list[dict[str, object]] = field(default_factory=list)

    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.start

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        begin = self.elapsed()
        self.console.rule(f"[bold]{title}[/]  [dim]{_clock(begin)}[/]", align="left")
        yield
        took = self.elapsed() - begin
        self.chapters.append({"title": title, "begin": round(begin, 1), "seconds": round(took, 1)})
        self.console.print(f"[green]✓[/] {title} [dim]({took:.0f} s)[/]\n")

    def command(self, words: list[str]) -> None:
        self.console.print(Text("$ " + " ".join(words), style="cyan"))

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    @contextmanager
    def live(self) -> Iterator[LiveLine]:
        """One line that changes in place; without a terminal it is printed at most every five seconds."""
        if self.console.is_terminal:
            with Live(Text(""), console=self.console, refresh_per_second=4, transient=True) as display:
                yield LiveLine(display=display)
        else:
            yield LiveLine(console=self.console)


@dataclass(kw_only=True)
class LiveLine:
    """Shows the latest state of something that takes a while."""

    display: Live | None = None
    console: Console | None = None
    last: float = 0.0
    text: str = ""

    def show(self, text: str) -> None:
        if text == self.text:
            return
        if self.display is not None:
            self.display.update(Text(text, style="dim"))
        elif self.console is not None and time.monotonic() - self.last > 5:
            self.console.print(Text("  " + text, style="dim"))
            self.last = time.monotonic()
        self.text = text


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
