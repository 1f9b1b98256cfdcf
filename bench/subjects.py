"""What is measured: gateways and proxies, each started in front of the same upstream."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import answers, peers
from bench.processes import Companion, Processes, free_port, wait_answering

EARLIER = "earlier cortexd"


@dataclass(frozen=True)
class Subject:
    """One gateway that runs. `exact`: it passes answers on byte for byte.

    slow: it gets one in so many of the requests, so that a run ends in time.
    """

    name: str
    pid: int
    port: int
    exact: bool = True
    slow: int = 1


def start_upstream(processes: Processes, *options: object) -> list[int]:
    """The fake node; the ports it listens on."""
    ports: list[int] = Companion(processes, "bench.upstream", *options).hear()
    return ports


def cortexd_config(listen: int, upstreams: Sequence[int]) -> str:
    """The gateway's configuration: the defaults, its nodes and one model that nobody has yet."""
    nodes = "".join(
        f'[[neurons]]\nname = "node-{number:03}"\nendpoint = "http://127.0.0.1:{port}"\n'
        for number, port in enumerate(upstreams)
    )
    listener = f'[gateway]\nlisten = "127.0.0.1:{listen}"\nadmin_listen = ""\nstate_dir = "state"\n'
    return f'{listener}{nodes}[[models]]\nid = "{answers.COLD}"\n'


def nginx_config(listen: int, upstream: int, place: Path) -> str:
    """One worker that buffers nothing and keeps its connections, for as long as a run lasts."""
    temporary = "".join(
        f"  {kind}_temp_path {place};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        ("user root;\n" if os.geteuid() == 0 else "")
        + f"""daemon off; worker_processes 1; worker_rlimit_nofile 20000;
pid {place}/nginx.pid; error_log stderr warn;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_body_buffer_size 1m; keepalive_requests 100000000;
{temporary}  upstream node {{
    server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{listen} backlog=4096;
    location / {{
      proxy_pass http://node; proxy_buffering off;
      proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""
    )


def start_nginx(processes: Processes, upstream: int, place: Path) -> Subject:
    """nginx, the floor. Raises FileNotFoundError when it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise FileNotFoundError("not installed (Debian: apt install nginx-light)")
    port, file = free_port(), place / "nginx.conf"
    file.write_text(nginx_config(port, upstream, place))
    command = [program, "-p", str(place), "-e", "stderr", "-c", str(file)]
    return _started(processes, "nginx", command, port, place)


def start_naive(processes: Processes, upstream: int, place: Path) -> Subject:
    """The naive aiohttp pump."""
    port = free_port()
    command = [sys.executable, "-m", "bench.naive", "--port", str(port)]
    command += ["--upstream", f"http://127.0.0.1:{upstream}"]
    return _started(processes, "naive aiohttp", command, port, place)


def start_cortexd(
    processes: Processes, upstreams: Sequence[int], place: Path, *, earlier: Path | None = None
) -> Subject:
    """The real gateway, as it is by default: access log, metrics, all of it.

    earlier: another checkout of cortexd, to start in its place.
    """
    name = "cortexd" if earlier is None else EARLIER
    port, file = free_port(), place / f"{name.replace(' ', '-')}.toml"
    file.write_text(cortexd_config(port, upstreams))
    command = [sys.executable, "-m", "cortexd", "serve", "--config", str(file)]
    environment = {}
    if earlier is not None:  # before what is installed, and in place of the current directory
        environment = {"PYTHONPATH": str(earlier.resolve()), "PYTHONSAFEPATH": "1"}
    return _started(processes, name, command, port, place, environment=environment)


def start_all(
    processes: Processes,
    upstream: int,
    place: Path,
    *,
    venv: Path | None,
    policy: str | None,
    only: Sequence[str],
    earlier: Path | None = None,
) -> Iterator[Subject]:
    """Every subject there is, one after the other; a note on stdout for one that can't start.

    venv: where the peers are installed; None: without them. policy: of the Rust routers; None:
    their own default. only: how the names begin that are wanted; all when empty. earlier: another
    checkout of cortexd to measure as well.
    """
    starts: dict[str, Callable[[], Subject]] = {
        "nginx": lambda: start_nginx(processes, upstream, place),
        "naive aiohttp": lambda: start_naive(processes, upstream, place),
        "cortexd": lambda: start_cortexd(processes, [upstream], place),
    }
    if earlier is not None:
        starts[EARLIER] = lambda: start_cortexd(processes, [upstream], place, earlier=earlier)
    if venv is not None:
        for peer in peers.PEERS:
            starts[peer.name] = partial(
                _start_peer, processes, upstream, place, peer, venv=venv, policy=policy
            )
    for name, start in starts.items():
        if only and not any(name.startswith(wanted) for wanted in only):
            continue
        try:
            yield start()
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{name} is left out: {error}")


def _start_peer(
    processes: Processes,
    upstream: int,
    place: Path,
    peer: peers.Peer,
    *,
    venv: Path,
    policy: str | None,
) -> Subject:
    program = venv / "bin" / peer.program
    if not program.exists():
        raise FileNotFoundError(f"there is no {program}")
    port = free_port()
    command = [str(program), *peer.arguments(port, upstream, place)]
    if policy and peer.is_router:
        command += ["--policy", policy]
    return _started(processes, peer.name, command, port, place, exact=peer.exact, slow=peer.slow)


def _started(
    processes: Processes,
    name: str,
    command: list[str],
    port: int,
    place: Path,
    *,
    exact: bool = True,
    slow: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Subject:
    log = place / f"{name.replace(' ', '-')}.log"
    process = processes.start(command, log=log, environment=environment)
    try:
        body = answers.question(answers.MODEL, stream=False)
        wait_answering(process, port, answers.PATH, body)
    except RuntimeError as error:
        processes.stop(process)
        said = log.read_text(errors="replace")[-400:].strip()
        raise RuntimeError(f"{error}; it said: {said}" if said else str(error)) from error
    return Subject(name, process.pid, port, exact, slow)
