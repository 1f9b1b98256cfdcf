"""Writes docs/cli.md and docs/configuration.md from the parser and the configuration's Structs.

`python -m docs.generate` writes them; `--check` only says whether they are as they should be.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import tomlkit

from cortexd.cli.main import parser
from cortexd.config import gateway, neuron
from cortexd.config.decode import bare, is_table, words
from cortexd.config.show import plain

PLACE = Path(__file__).parent
MADE = "<!-- Made by `make docs` from the code; edit that instead. -->\n"

CLI = """# The command line

`cortexd COMMAND`; `python -m cortexd COMMAND` is the same. Every command has `--help`.

| exit status | |
|---|---|
| 0 | done |
| 1 | it could not be done: a listener can't be opened, nobody answers, the gateway refused; the last line says why |
| 2 | the command line is wrong |
| 78 | the configuration can't be used; every mistake has a line of its own (systemd does not try again) |
| 130 | interrupted with Ctrl-C |
| 141 | whoever read the output left (`cortexd status \\| head`) |

Colours are only on a terminal, and not with `NO_COLOR` set. Names from elsewhere never reach a terminal as
commands to it.
"""

GATEWAY = """# Configuration

TOML, strictly: what is unknown, of a wrong type or leads nowhere is an error, and all errors are told at once, with
file, line, key, what was found and what is allowed. `cortexd check` tells them beforehand, `cortexd config show`
prints what is in effect and where each value came from. An empty file is a valid one: all defaults.

- Durations have a unit (`"500ms"`, `"10s"`, `"30m"`, `"2h"`), and so have sizes (`"512KiB"`, `"64MiB"`, `"1GiB"`).
- Relative paths start at the directory of the file, and `~` is the home directory of the user that runs cortexd.
- A name with a dot or a slash needs quotes: `"gpt-3.5-turbo" = "Qwen/Qwen3-8B"`.
- The keys of the single tables can be overridden by environment: `CORTEX_GATEWAY__LISTEN=127.0.0.1:8080`.
- `cortexd node add NAME URL` asks the node what it is and adds it, `node remove NAME` removes it; both keep comments,
  order, owner and mode of the file.

## Secrets

A token is the only line of a file of its own, named by `token_file`. It is refused when it is empty, can't be read,
or is open to every user of the machine (`chmod o= FILE`). A bare name (`token_file = "beast.token"`) is looked up
first among the credentials that systemd hands to the service, then beside the file. With this in the unit, only
root needs to be able to read the file, and nothing else changes:

```ini
[Service]
LoadCredential=beast.token:/etc/cortexd/beast.token
```

The environment variable `CORTEX_TOKEN__NAME` (the node's name in capitals, `_` for what is neither letter nor digit)
comes before the file. No secret is ever logged or shown.

## A second file

`[catalogue] path = "models.toml"` adds the `[[models]]` of that file, which holds nothing else. A model that stands
in both is an error that names both places.

## Logs

One line per event on stderr: text on a terminal, text with a syslog priority (`<4>`) under systemd, whose journal adds
the time, and JSON anywhere else or as `[logging] format` says (`--log-format` and `--log-level` of `serve` and `neuron`
come before it). The gateway never waits for its log: what a full disk or a pipe does not take in time is dropped, and a
line tells how many were lost. With `[gateway] access_log`, each inference request has one at the level `info`. As text it
begins with status, model, node and duration (`200 Qwen/Qwen3-8B beast 1.204s /v1/chat/completions …`, `-` for what is
unknown); the fields, as far as they are known, are `request_id`, `path`, `status`, `duration_s`, `client`, `code` (of a
refusal), `model`, `node`, `route`, `first_byte_s`, `prompt_tokens`, `completion_tokens`. Prompts, answers, keys and query
strings are in no line, at no level.

# The gateway: `cortex.toml`

`/etc/cortexd/cortex.toml`, else `./etc/cortex.toml`, else what `--config` names.
"""

NEURON = """# The node agent: `neuron.toml`

`/etc/cortexd/neuron.toml`, else `./etc/neuron.toml`, else what `--config` names. `cortexd check --neuron` checks it.
"""


def documents() -> dict[str, str]:
    """Name → content."""
    return {
        "cli.md": "\n".join([MADE + CLI, *_commands()]),
        "configuration.md": "\n".join(
            [MADE + GATEWAY, *_tables(gateway.Config), NEURON, *_tables(neuron.Config)]
        ),
    }


def _commands() -> Iterator[str]:
    # Its own help is laid out differently by each version of Python.
    yield f"```\n{parser().format_usage().strip()}\n```\n"
    for name, text in command_helps():
        mark = "###" if " " in name.removeprefix("cortexd ") else "##"
        yield f"{mark} {name}\n\n```\n{text}\n```\n"


def command_helps() -> list[tuple[str, str]]:
    """Yield every command and action with its help, 100 columns wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # as wide wherever it is made
    try:
        return [(each.prog, each.format_help().strip()) for each in _every(parser())]
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _every(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for _, command in _below(top):
        yield command
        yield from _every(command)


def _below(command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in command._actions:  # argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _tables(config: type[msgspec.Struct]) -> Iterator[str]:
    own = _words_for(config)[1]
    for field in msgspec.structs.fields(config):
        kind, _ = bare(field.type)
        if is_table(kind):
            yield _table(f"[{field.name}]", kind)
        elif kind.__origin__ is tuple:
            yield _table(f"[[{field.name}]]", kind.__args__[0])
        else:
            yield f"## `[{field.name}]`\n\n{_sentence(own[field.name])}\n"


def _table(title: str, kind: type[msgspec.Struct]) -> str:
    about, keys = _words_for(kind)
    rows = [f"## `{title}`\n\n{about}\n", "| key | default | | allowed |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(kind):
        if field.required:
            default = "required"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = f"`{_toml(field.default_factory())}`"
        elif field.default is None:
            default = "unset"
        else:
            default = f"`{_toml(plain(field.name, field.default))}`"
        cells = (f"`{field.name}`", default, keys[field.name], words(field.type))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _words_for(kind: type[msgspec.Struct]) -> tuple[str, dict[str, str]]:
    """What its docstring says of the whole, and of each key."""
    text = inspect.getdoc(kind) or ""
    names = "|".join(field.name for field in msgspec.structs.fields(kind))
    head, *rest = re.split(rf"^({names}): ", text, flags=re.MULTILINE)
    about = re.sub(r"^`\[+\w+\]+`:? ?", "", head.strip())
    keys = {key: " ".join(said.split()) for key, said in zip(rest[::2], rest[1::2], strict=True)}
    return _sentence(" ".join(about.split())), keys


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _toml(value: Any) -> str:
    return str(tomlkit.item(value).as_string()) if value != {} else "{}"


def main() -> int:
    """0 when they are as they should be."""
    stale = [
        name
        for name, content in documents().items()
        if not (PLACE / name).exists() or (PLACE / name).read_text() != content
    ]
    if "--check" in sys.argv:
        print(f"run `make docs`: {', '.join(stale)}" if stale else "docs are fresh")
        return int(bool(stale))
    for name in stale:
        (PLACE / name).write_text(documents()[name])
    print(f"written: {', '.join(stale) or 'nothing, all are fresh'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
