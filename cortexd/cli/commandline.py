"""An argument parser that suggests the commands and options that were probably meant."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from cortexd.config.nearest import nearest


class Parser(argparse.ArgumentParser):
    """Refuses unknown commands, choices and options with a suggestion.

    The words are the same on every version of Python. Its subparsers do likewise.
    """

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the arguments; exit with status 2 for invalid ones."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            used: Parser = getattr(parsed, "parser", self)
            used.refuse(unknown)
        return parsed

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the known arguments; the result's `parser` is that of the innermost command."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if not hasattr(parsed, "parser"):
            parsed.parser = self
        return parsed, unknown

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Exit with status 2, naming unknown arguments."""
        option = next((each for each in unknown if each.startswith("--")), "")
        hint = suggestion(option.partition("=")[0], self._option_string_actions)
        self.error(f"unknown arguments: {' '.join(unknown)}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(each) for each in action.choices]
        if isinstance(action.choices, Mapping):  # of commands or actions
            hint = suggestion(str(value), known) or f"; there are: {', '.join(known)}"
            kind = str(action.metavar).lower()
            raise argparse.ArgumentError(None, f"unknown {kind} {str(value)!r}{hint}")
        allowed = f"{suggestion(str(value), known)} (allowed: {', '.join(known)})"
        raise argparse.ArgumentError(action, f"found {str(value)!r}{allowed}")


def suggestion(found: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'load'?` if a known word is like the one that was found, else ""."""
    near = nearest(found, known)
    return f"; did you mean {near!r}?" if near is not None else ""
