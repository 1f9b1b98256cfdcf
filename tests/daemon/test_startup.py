"""The cheap start of a daemon, each test in a process of its own."""

from __future__ import annotations

import inspect
import os
import ssl
import subprocess
import sys

import msgspec
from aiohttp import connector


def said_by(program: str, **environment: str) -> dict[str, object]:
    """Return the JSON that a program prints."""
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=os.environ | environment,
        check=True,
    )
    found: dict[str, object] = msgspec.json.decode(run.stdout)
    return found


PROGRAM = """
import gc, json, os
from cortexd.daemon import loop, startup
startup.begin()
from aiohttp import connector
found = {
    "collects": gc.isenabled(),
    "authorities": connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"],
    "verifies": connector._SSL_CONTEXT_VERIFIED.verify_mode == 2,
    "file": os.environ.get("SSL_CERT_FILE"),
    "dir": os.environ.get("SSL_CERT_DIR"),
}
loop.settle()
found["collects_later"] = gc.isenabled()
print(json.dumps(found))
"""


def test_a_daemon_reads_no_certificates_that_it_does_not_use_and_collects_later() -> None:
    found = said_by(PROGRAM, SSL_CERT_FILE="/a/file")
    assert found == {
        "collects": False,
        "authorities": 0,
        "verifies": True,  # what it would be used for is refused, never trusted
        "file": "/a/file",
        "dir": os.environ.get("SSL_CERT_DIR"),
        "collects_later": True,
    }


def test_aiohttp_reads_the_default_certificates_at_import() -> None:
    """If it did not, `startup` would be useless."""
    source = inspect.getsource(connector)
    assert "\n_SSL_CONTEXT_VERIFIED = _make_ssl_context(True)\n" in source
    assert isinstance(connector._SSL_CONTEXT_VERIFIED, ssl.SSLContext)
