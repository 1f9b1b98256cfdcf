"""A parser that suggests what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Refuse unknown commands, choices and options with a suggestion, in the same words on every
    version of Python. Its subparsers do the same."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse does; exits with status 2 for what it can't parse."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            used: Parser = getattr(parsed, "parser", self)
            used.refuse(unknown)
        return parsed

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does; the result also has `parser`, that of the innermost command."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if not hasattr(parsed, "parser"):
            parsed.parser = self
        return parsed, unknown

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Exit with status 2: these arguments are not known."""
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
    """`; did you mean 'load'?` where a known word is like the one that was found, else nothing."""
    near = difflib.get_close_matches(found, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
