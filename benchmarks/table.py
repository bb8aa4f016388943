"""Tables for a terminal, row by row as the rows come, and the same in Markdown for a file.

>>> table = Table(Column("fit", 6, "<"), Column("digits", 6))
>>> table.header()
fit     digits
──────────────
>>> table.row("Rat42", 9.5)
Rat42      9.5
>>> print(table.markdown())
| fit | digits |
| :-- | --: |
| Rat42 | 9.5 |
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32"}


def style(text: str, name: str) -> str:
    """Colour ``text`` where a person looks at it; leave it alone in a file or a pipe."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\033[{STYLES[name]}m{text}\033[0m"


def heading(text: str) -> None:
    print(f"\n{style(text, 'bold')}")


def waiting(text: str) -> None:
    """A line which the next one overwrites: what is being worked on. Only on a terminal."""
    if sys.stdout.isatty():
        print(f"\r\033[K{style(text, 'dim')}\r", end="", flush=True)


def visible(text: str) -> int:
    """The width of ``text`` without its colours."""
    return len(re.sub(r"\033\[\d+m", "", text))


def seconds(time: float | None) -> str:
    """A time in three digits, with the unit that fits it.

    >>> seconds(3.71e-5), seconds(0.0424), seconds(2.23)
    ('37.1 us', '42.4 ms', '2.23 s')
    """
    if time is None:
        return ""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if time < 999.5 * size:
            return f"{time / size:.3g} {unit}"
    return f"{time:.3g} s"


@dataclass(frozen=True)
class Column:
    """Heading, width, and the side to which the entries are aligned."""

    title: str
    width: int
    align: str = ">"

    def fit(self, text: str) -> str:
        blank = " " * (self.width - visible(text))
        return text + blank if self.align == "<" else blank + text


class Table:
    """Rows are printed when they are given and kept for `markdown`."""

    def __init__(self, *columns: Column, gap: int = 2):
        self.columns = columns
        self.gap = " " * gap
        self.rows: list[list[str]] = []

    def header(self) -> None:
        line = self._line([column.title for column in self.columns])
        print(f"{line}\n{self._rule()}")

    def rule(self) -> None:
        print(self._rule())

    def row(self, *entries: object) -> None:
        waiting("")
        self.rows.append(["" if entry is None else str(entry) for entry in entries])
        print(self._line(self.rows[-1]), flush=True)

    def markdown(self) -> str:
        marks = [":--" if column.align == "<" else "--:" for column in self.columns]
        lines = [[column.title for column in self.columns], marks, *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _rule(self) -> str:
        widths = [column.width for column in self.columns]
        return "─" * (sum(widths) + len(self.gap) * (len(widths) - 1))

    def _line(self, entries: list[str]) -> str:
        pairs = zip(self.columns, entries, strict=True)
        return self.gap.join(column.fit(entry) for column, entry in pairs).rstrip()


def put(text: str, name: str, path: str | Path) -> None:
    """Write ``text`` between the comments ``name: begin`` and ``name: end`` of a Markdown file."""
    path = Path(path)
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path} has no place for this table: {begin} ... {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
