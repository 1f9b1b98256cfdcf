"""The documents say what the code does: paths, codes and metrics stand in both."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from cortexd.errors import KINDS, Kind
from cortexd.fleet.explain import Explanation, Verdict
from cortexd.fleet.snapshot import Ledger
from cortexd.fleet_gauges import FleetCollector
from cortexd.gateway.app import INFERENCE_PATHS
from cortexd.metrics import Metrics
from cortexd.series import Histogram
from cortexd.wire import fleet
from cortexd.wire.neuron import DeviceHealth, Health
from docs.generate import documents
from tests.fleet.fleet import fleet as fleet_of
from tests.fleet.fleet import node

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
BUSY = Health(devices=[DeviceHealth(0, 1, 2, 3, 4)])
ROWS = dict(re.findall(r"^\| `(\w+)` \| (\d{3} \| [^|]+) \|", API, re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_refusal_is_documented_as_it_is(kind: Kind) -> None:
    wait = "–" if kind.retry_after is None else str(kind.retry_after)
    if kind.code == "cold_load_failed":
        wait = "what is left of the back-off"
    assert ROWS[kind.code] == f"{kind.status} | {wait}"


def test_no_refusal_is_documented_that_does_not_exist() -> None:
    assert set(ROWS) == set(KINDS)


def test_every_inference_path_is_documented() -> None:
    assert re.findall(r"^- `(/[\w/]+)`$", API, re.MULTILINE) == list(INFERENCE_PATHS)


@pytest.mark.parametrize(
    "kind",
    [
        fleet.Fleet,
        fleet.Totals,
        fleet.Node,
        fleet.Device,
        fleet.Model,
        fleet.Load,
        Explanation,
        Verdict,
    ],
)
def test_every_field_that_operators_read_is_documented(kind: type[msgspec.Struct]) -> None:
    missing = [
        name for name in kind.__struct_fields__ if not re.search(rf"`{name}\b|\b{name}`", API)
    ]
    assert not missing


def test_every_metric_is_documented_with_its_labels() -> None:
    rows: dict[str, str] = {}
    table = re.findall(r"^\| (`cortexd_\w+`[^|]*) \|([^|]*)\|", OPERATIONS, re.MULTILINE)
    for names, labels in table:
        rows |= dict.fromkeys(re.findall(r"`(\w+)`", names), labels)
    metrics, snapshot = Metrics(), fleet_of(node("a", {"m": "loaded"}, health=BUSY, last_contact=1))
    metrics.register(FleetCollector(lambda: snapshot, Ledger(), dict, lambda: 0.0, lambda: 2.0))
    written = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in metrics.registry.collect()
        if family.name.startswith("cortexd_")
    }
    written["cortexd_build_info"] = written.pop("cortexd_build")
    assert rows.keys() == written.keys()
    for name, family in written.items():
        for sample in family.samples:
            assert re.findall(r"`(\w+)`", rows[name]) == [
                label for label in sample.labels if label != "le"
            ], name
    for counted in metrics._counted:
        name = counted._name if isinstance(counted, Histogram) else f"{counted._name}_total"
        assert re.findall(r"`(\w+)`", rows[name]) == list(counted._labels), name


def test_a_stranger_finds_every_document_that_is_linked() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def anchors(document: Path) -> set[str]:
    """Return the link targets after `#`: headings, as GitHub spells them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(text.replace(" ", "-"))
    return found


def test_every_heading_that_is_linked_exists() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
            target = document.parent / link if link else document
            assert anchor in anchors(target), f"{document.name}: {link}#{anchor}"


def test_a_unit_names_no_page_of_a_project_that_is_not_published() -> None:
    for unit in (ROOT / "systemd").iterdir():
        assert "Documentation=http" not in unit.read_text(), unit.name


@pytest.mark.parametrize("name", documents())
def test_what_is_made_from_the_code_is_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == documents()[name], "run `make docs`"


def test_every_key_has_words_of_its_own() -> None:
    for row in re.findall(r"^\| `(\w+)` \|(.*)$", documents()["configuration.md"], re.MULTILINE):
        assert all(cell.strip() for cell in row[1].removesuffix("|").split("|")), row


def test_every_command_shows_an_example() -> None:
    for command in re.findall(
        r"^## cortexd (.*?)(?=^## |\Z)", documents()["cli.md"], re.MULTILINE | re.DOTALL
    ):
        assert "example: cortexd" in command


LAYERS = (ROOT / "docs/architecture.md").read_text().partition("## Two rules")[0]


def test_architecture_lists_every_module_in_the_section_of_its_package() -> None:
    sections = {
        package: text
        for text in LAYERS.split("\n### ")[1:]
        for package in re.findall(r"`([a-z]+)/`", text)
    }
    for path in (ROOT / "cortexd").rglob("*.py"):
        if not path.stem.startswith("__"):
            assert f"`{path.stem}`" in sections.get(path.parent.name, LAYERS), path


def test_architecture_lists_no_module_that_does_not_exist() -> None:
    modules = {path.stem for path in (ROOT / "cortexd").rglob("*.py")}
    listed = set(re.findall(r"`([a-z_]+)`", LAYERS))
    assert listed - modules <= {"decide", "help", "localhost"}  # what modules do, or are for
