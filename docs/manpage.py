"""Writes the manual page cortexd(1) from the parser: `python -m docs.manpage >cortexd.1`."""

from __future__ import annotations

import sys

from cortexd import __version__
from cortexd.cli.main import parser
from docs.generate import command_helps

HEAD = r"""NAME
cortexd \- one OpenAI- and Anthropic-compatible endpoint in front of every GPU host
"""

TAIL = """FILES
/etc/cortexd/cortex.toml     the gateway's configuration
/etc/cortexd/neuron.toml     the node agent's
/var/lib/cortexd             what outlives a restart; model files in models/

EXIT STATUS
0    done
1    it could not be done; the last line says why
2    the command line is wrong
78   the configuration can't be used
130  interrupted
141  the reader of its output left

SEE ALSO
/usr/share/doc/cortexd, systemctl(1), journalctl(1)
"""


def page() -> str:
    """Return the page in man(7) markup."""
    lines = [f'.TH CORTEXD 1 "" "cortexd {__version__}" "User Commands"', *_section(HEAD)]
    lines += [".SH SYNOPSIS", ".B cortexd", "COMMAND ...", ".SH DESCRIPTION"]
    lines += [_escaped(parser().description or ""), ".SH COMMANDS"]
    for name, text in command_helps():
        lines += [f".SS {_escaped(name)}", ".nf", *map(_escaped, text.splitlines()), ".fi"]
    for section in TAIL.split("\n\n"):
        title, *rest = section.splitlines()
        lines += [f".SH {title}", ".nf", *map(_escaped, rest), ".fi"]
    return "\n".join(lines) + "\n"


def _section(text: str) -> list[str]:
    title, *rest = text.splitlines()
    return [f".SH {title}", *rest]


def _escaped(line: str) -> str:
    """Return a line that troff prints as it is: a leading dot or quote would be a request to it."""
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return rf"\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    sys.stdout.write(page())
