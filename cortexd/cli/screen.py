"""Tables, bars and colours as far as the other end of stdout can show them.

Whatever a cell holds (a model's name, a node's words), a terminal never takes it for a command.
"""

from __future__ import annotations

import os
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TextIO

GAP: Final = "  "  # between two columns
NARROWEST: Final = 8  # of a column that gives way where the terminal is too narrow

_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


class Cell(NamedTuple):
    """A word in a table. `style`: one of bold, dim, red, green, yellow, or nothing."""

    text: str
    style: str = ""
    to_the_right: bool = False


class Screen(NamedTuple):
    """width: columns; None: as wide as it takes. is_plain: ASCII only."""

    width: int | None = None
    has_colours: bool = False
    is_plain: bool = False

    @classmethod
    def of(cls, out: TextIO, environ: Mapping[str, str] = os.environ) -> Screen:
        """What `out` can show; what it can't encode becomes `?` from now on."""
        encoding = (out.encoding or "ascii").lower().replace("-", "").replace("_", "")
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="replace")
        width = None
        if out.isatty():
            given = environ.get("COLUMNS", "")
            width = int(given) if given.isdecimal() and int(given) else _columns(out)
        has_colours = out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(width, has_colours, encoding not in {"utf8", "utf16", "utf32"})

    def paint(self, text: str, style: str) -> str:
        """The text in that style, where there are any."""
        if not style or not text or not self.has_colours:
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def bar(self, share: float, width: int) -> str:
        """A bar of `width` letters of which a share (0 to 1) is full."""
        full = round(width * min(max(share, 0.0), 1.0))
        on, off = "#-" if self.is_plain else "█░"
        return on * full + off * (width - full)

    def fitted(self, text: str) -> str:
        """Return a text cut to one line, a column less than the terminal has: it never wraps."""
        return text if self.width is None else self._cut(text, max(self.width - 1, 1))

    def wrapped(self, text: str) -> str:
        """A text in lines that fit."""
        text = plain(text)
        return text if self.width is None else textwrap.fill(text, max(self.width, NARROWEST))

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Cell | str]], flexible: Sequence[int]
    ) -> str:
        """Lines of columns; the last cell of a row that is shorter than the header goes on to the
        end of the line, and below it where it is longer than that.

        flexible: the columns that may be cut where the screen is too narrow; after them it is the
        right end of a line that is cut.
        """
        cells = [[Cell(name, "bold") for name in header]]
        cells += [[_plain(cell) for cell in row] for row in rows]
        widths = [0] * len(header)
        for row in cells:
            for column, cell in enumerate(row[: len(row) - (len(row) < len(header))]):
                widths[column] = max(widths[column], _width(cell.text))
        if self.width is not None:
            self._fit(widths, flexible, self.width)
        return "\n".join(line for row in cells for line in self._lines(row, widths))

    def _fit(self, widths: list[int], flexible: Sequence[int], width: int) -> None:
        while sum(widths) + len(GAP) * (len(widths) - 1) > width:
            widest = max(flexible, key=lambda column: widths[column])
            if widths[widest] <= NARROWEST:
                return
            widths[widest] -= 1

    def _lines(self, row: Sequence[Cell], widths: list[int]) -> list[str]:
        if len(row) == len(widths):
            return [self._line(row, widths)]
        *before, last = row
        widths = widths[: len(before)]
        parts = [last.text]
        if self.width is not None:
            room = self.width - sum(widths) - len(GAP) * len(widths)
            parts = textwrap.wrap(last.text, max(room, NARROWEST)) or [""]
        lines = []
        for part in parts:
            lines.append(self._line([*before, last._replace(text=part)], [*widths, _width(part)]))
            before = [Cell("")] * len(before)
        return lines

    def _line(self, row: Sequence[Cell], widths: Sequence[int]) -> str:
        parts, left = [], self.width
        for cell, width in zip(row, widths, strict=True):
            room = width if left is None else min(width, left)
            text = self._cut(cell.text, room)
            padding = " " * (room - _width(text))
            painted = self.paint(text, cell.style)
            parts.append(padding + painted if cell.to_the_right else painted + padding)
            if left is not None:
                left = max(0, left - room - len(GAP))
        return GAP.join(parts).rstrip()

    def _cut(self, text: str, room: int) -> str:
        if _width(text) <= room:
            return text
        kept = ""
        for letter in text:
            if _width(kept + letter) > room - 1:
                break
            kept += letter
        return (kept + ("~" if self.is_plain else "…"))[: max(0, room)]


def plain(text: str) -> str:
    """Without what a terminal takes for a command."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def counted(number: int, name: str, plural: str = "s") -> str:
    """`1 model`, `2 models`. plural: what the name ends in when there are more."""
    return f"{number} {name}{'' if number == 1 else plural}"


def _plain(cell: Cell | str) -> Cell:
    cell = Cell(cell) if isinstance(cell, str) else cell
    return cell._replace(text=plain(cell.text))


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def _columns(out: TextIO) -> int | None:
    try:
        return os.get_terminal_size(out.fileno()).columns or None
    except (OSError, ValueError):
        return None
