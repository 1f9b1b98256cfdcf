"""The engine alone: llama.cpp's server in a process of its own, without the harness."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVE = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.embedding = sys.argv[1], sys.argv[2] == "embedding"
params.hostnames, params.port, params.n_ctx = ["127.0.0.1"], 0, 512
params.n_parallel, params.cache_ram_mib, params.cpuparams.n_threads = 1, 0, 1
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
server = xllamacpp.Server(params)
print(server.listening_address, file=out, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def llama_cpp(model: Path, use: str = "text") -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model), use],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().strip()
        finally:
            child.kill()


def post(url: str, **body: Any) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
