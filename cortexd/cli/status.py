"""`cortexd status`: the fleet at a glance."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cortexd.cli import operators
from cortexd.cli.screen import Cell, Screen, counted

if TYPE_CHECKING:
    import aiohttp

    from cortexd.wire.fleet import Device, Fleet, Load, Model, Node

Row = list[Cell | str]

REDRAW: Final = 2.0  # seconds: the gateway knows nothing newer in between
BAR: Final = 20  # letters; half of it where the screen is not WIDE
WIDE: Final = 100
UNANSWERED: Final = 10.0  # seconds from which the age of the oldest unanswered request is shown
CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"

_NODES: Final = ("NODE", "STATE", "DEVICE", "MEMORY", "", "USE", "TEMP")
_MODELS: Final = ("MODEL", "NODE", "STATUS", "MEMORY", "ON", "IN FLIGHT", "REPORTED", "IDLE")
_LOADS: Final = ("LOAD", "NODE", "STATE", "", "", "FOR", "WAITING")
_NODE_STYLES: Final = {"up": "green", "down": "red", "draining": "yellow"}
_MODEL_STYLES: Final = {
    "loaded": "green",
    "reloading": "yellow",
    "loading": "yellow",
    "recovering": "yellow",
    "failed": "red",
}
_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "status",
        help="see the fleet: nodes, memory, models, loads",
        description="Show the nodes with their devices, which model is where and what it does, "
        "and the loads that are under way. Exit status 1 when no gateway answers.",
        epilog="example: cortexd status --watch",
    )
    parser.add_argument(
        "--watch", action="store_true", help=f"again every {REDRAW:g} s, until Ctrl-C"
    )
    operators.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when there was something to show."""
    screen = Screen.of(sys.stdout)
    clear = CLEAR if args.watch and sys.stdout.isatty() else ""

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        return await operators.get(gateway, "fleet")

    def said(answer: dict[str, Any]) -> str:
        from cortexd.wire.fleet import Fleet

        return clear + drawn(operators.understood(answer, Fleet), screen)

    if not args.watch:
        return operators.run(args, ask, said)
    with suppress(KeyboardInterrupt):
        while True:  # one that does not answer may come back
            operators.run(args, ask, said)
            sys.stdout.flush()
            time.sleep(REDRAW)
    return 0


def drawn(fleet: Fleet, screen: Screen) -> str:
    """The whole picture."""
    parts = [_headline(fleet)]
    if fleet.nodes:
        rows = [row for node in fleet.nodes for row in _node_rows(node, screen)]
        parts.append(screen.table(_NODES, rows, (2, 0)))
    placed = [(node, model) for node in fleet.nodes for model in node.models]
    if placed:
        # What works comes first; within that by name, so that copies stand together.
        placed.sort(key=lambda pair: (_rank(*pair), pair[1].id, pair[0].name))
        rows = [row for pair in placed for row in _model_rows(*pair)]
        parts.append(screen.table(_MODELS, rows, (0, 1)))
    if fleet.loads:
        rows = [_load_row(load, screen) for load in fleet.loads]
        parts.append(screen.table(_LOADS, rows, (0, 1)))
    return "\n\n".join(parts)


def _headline(fleet: Fleet) -> str:
    sums = fleet.totals
    if not sums.nodes:
        return "No neurons are configured; add a [[neurons]] table to the gateway's configuration."
    nodes = f"{sums.up} of {counted(sums.nodes, 'node')} up"
    if sums.draining:
        nodes += f", {sums.draining} drained"
    if not fleet.settled:
        nodes += ", some not asked yet"
    memory = f"{_gib(sums.used_mb)} of {_gib(sums.total_mb)} GiB in use"
    return (
        f"{nodes}; {counted(sums.devices, 'device')}, {memory}\n"
        f"{counted(sums.loaded, 'model')} loaded; {counted(sums.in_flight, 'request')} in flight, "
        f"{sums.waiting} waiting"
    )


def _node_rows(node: Node, screen: Screen) -> list[Row]:
    """A row for every device; what is to be said besides has one of its own."""
    remarks = []
    if node.trouble:
        remarks.append(node.trouble)
    if node.status == "down" and node.contact_seconds is not None:
        remarks.append(f"last seen {_age(node.contact_seconds)} ago")
    if node.status == "down" and node.draining:
        remarks.append("drained")
    if node.hardware and node.hardware.cuda_unavailable_reason:
        remarks.append(f"can load nothing: {node.hardware.cuda_unavailable_reason}")
    elif node.status != "down" and node.hardware is None:
        remarks.append("its devices are not known yet")
    devices = [] if node.status == "down" else node.devices
    rows = [_device_cells(device, screen) for device in devices]
    if remarks or not rows:
        rows.append([Cell("; ".join(remarks) or "it has no devices", "yellow")])
    names: list[Row] = [[Cell(node.name, "bold"), Cell(node.status, _NODE_STYLES[node.status])]]
    names += [["", ""]] * (len(rows) - 1)
    return [[*name, *row] for name, row in zip(names, rows, strict=True)]


def _device_cells(device: Device, screen: Screen) -> Row:
    used, total = device.used_mb, device.total_mb
    if used is None and total is not None and device.free_mb is not None:
        used = total - device.free_mb
    degree = "C" if screen.is_plain else "°C"
    return [
        " ".join(word for word in (str(device.index), device.name or device.kind) if word),
        screen.bar(used / total, _bar(screen)) if total and used is not None else "",
        Cell(f"{_gib(used)} / {_gib(total)} GiB", to_the_right=True),
        Cell(_known(device.utilization_pct, "%"), to_the_right=True),
        Cell(_known(device.temp_c, degree), to_the_right=True),
    ]


def _rank(node: Node, model: Model) -> int:
    if node.status == "down":
        return 2
    return 1 if model.status == "unloaded" else 0


def _model_rows(node: Node, model: Model) -> list[Row]:
    style, status = _MODEL_STYLES.get(model.status, "dim"), model.status
    remarks = []
    if model.unservable:
        style = "red"
        remarks.append(f"can't answer: {model.unservable}")
    if model.error:
        remarks.append(model.error)
    if model.gated:
        remarks.append("is being unloaded, and gets nothing new")
    oldest = model.oldest_unanswered_seconds
    if oldest is not None and oldest >= UNANSWERED:
        remarks.append(f"oldest unanswered request: {_age(oldest)}")
    if node.status == "down":
        style, status, remarks = "dim", f"{status}, but its node is down", []
    reported = "" if model.running is None else str(model.running)
    if model.queued:
        reported += f"+{model.queued}"
    idle = model.idle_seconds
    row: Row = [
        model.id,
        node.name,
        Cell(status, style),
        Cell(f"{_gib(model.vram_used_mb)} GiB" if model.vram_used_mb else "", "", True),
        ",".join(str(index) for index in model.devices or ()),
        Cell(str(model.in_flight or ""), "bold", True),
        Cell(reported, "", True),
        Cell("" if idle is None or model.in_flight else _age(idle), "", True),
    ]
    if node.status == "down":
        return [row[:3]]
    rows = [row]
    rows += [["", "", Cell(remark, "yellow")] for remark in remarks]
    return rows


def _load_row(load: Load, screen: Screen) -> Row:
    state = load.stage if load.stage and load.state == "loading" else load.state
    share = load.fraction
    return [
        load.model,
        load.node or "",
        Cell(state if load.ours else "awaited", "yellow"),
        "" if share is None else screen.bar(share, _bar(screen)),
        Cell("" if share is None else f"{share:.0%}", "", True),
        Cell(_age(load.seconds), "", True),
        Cell(str(load.waiting), "", True),
    ]


def _bar(screen: Screen) -> int:
    return BAR if screen.width is None or screen.width >= WIDE else BAR // 2


def _gib(mib: float | None) -> str:
    return "?" if mib is None else f"{mib / 1024:.1f}"


def _known(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


def _age(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "0 s"
