"""On which line of a TOML text each key stands; tomllib knows, but does not tell.

A scanner, not a parser: it is only for text that tomllib has accepted, so it need not recognise
mistakes. Whatever is hard about keys (quotes, escapes) is left to tomllib.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

KeyPath = tuple[str | int, ...]  # ("neurons", 1, "endpoint")

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*+")
_KEY: Final = re.compile(r"""(?:"(?:[^"\\]|\\.)*+"|'[^']*+'|[^"'=\]])++""")
_STRING: Final = re.compile(
    # The last quotes of a multi-line string may follow one or two that belong to it.
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*+"{3,5}'''
    r"""|'{3}(?:[^']|'{1,2}(?!'))*+'{3,5}"""
    r'''|"(?:[^"\\]|\\.)*+"'''
    r"""|'[^']*+'""",
    re.DOTALL,
)
_BARE: Final = re.compile(r"[^,\]}\n#]++")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Valid TOML → the line, counted from 1, of every key, table header and array element.

    A table that only other keys imply (`a` in `a.b = 1`) has the line of the first of them.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line, self._counted = 1, 0  # the line of the position up to which lines are counted
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}  # array of tables → elements so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip(_BLANK) and self._at < len(self._text):
            if self._take("[["):
                table = self._element()
                self._take("]]")
            elif self._take("["):
                table = self._note((), self._key())
                self._lines[table] = self._line  # [a] may follow [a.b], which implied it
                self._take("]")
            else:
                self._pair(table)
        return self._lines

    def _pair(self, table: KeyPath) -> None:
        path = self._note(table, self._key())
        self._take("=")
        self._skip(_BLANK)
        self._value(path)

    def _element(self) -> KeyPath:
        """The header of an array's next table."""
        array = self._note((), self._key())
        if isinstance(array[-1], int):  # the element before this one
            array = array[:-1]
        index = self._elements.get(array, 0)
        self._elements[array] = index + 1
        return self._note(array, [index])

    def _value(self, path: KeyPath) -> None:
        if self._take("["):
            index = 0
            while self._skip(_BLANK) and not self._take("]"):
                self._value(self._note(path, [index]))
                index += 1
                self._skip(_BLANK)
                self._take(",")
        elif self._take("{"):
            while self._skip(_BLANK) and not self._take("}"):
                self._pair(path)
                self._skip(_BLANK)
                self._take(",")
        elif not self._skip(_STRING):
            self._skip(_BARE)

    def _key(self) -> list[str]:
        """A key's parts: `a."b.c"` → ["a", "b.c"]."""
        begin = self._at
        self._skip(_KEY)
        nested: Any = tomllib.loads(f"{self._text[begin : self._at].strip()} = 0")
        parts = []
        while isinstance(nested, dict):
            [(part, nested)] = nested.items()
            parts.append(part)
        return parts

    def _note(self, path: KeyPath, parts: list[str] | list[int]) -> KeyPath:
        """`path` and the parts below it, on this line unless they were met before."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        for part in parts:
            path = (*path, part)
            self._lines.setdefault(path, self._line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found is not None

    def _take(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True
