"""Other gateways for the same purpose, as their packages document how to start them.

They live in a virtual environment of their own, since their dependencies clash with ours:
`pip install sglang-router vllm-router smg 'litellm[proxy]'` there, then `--peers VENV`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import answers
from bench.processes import free_port


@dataclass(frozen=True)
class Peer:
    """program: in the environment's bin. arguments: from our port, the upstream's and a folder.

    is_router: takes `--policy`.
    """

    name: str
    program: str
    arguments: Callable[[int, int, Path], list[str]]
    exact: bool = True
    slow: int = 1
    is_router: bool = False


def _router(name: str, module: str) -> Peer:
    """The Rust routers share their command line: they come from one code base."""

    def arguments(port: int, upstream: int, place: Path) -> list[str]:
        return [
            *("-m", f"{module}.launch_router", "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream}"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        ]

    return Peer(name, "python", arguments, is_router=True)


def _litellm(port: int, upstream: int, place: Path) -> list[str]:
    file = place / "litellm.yaml"
    file.write_text(
        f"model_list:\n  - model_name: {answers.MODEL}\n    litellm_params:\n"
        f"      model: openai/{answers.MODEL}\n      api_key: none\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n"
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"  # on loopback
    )
    return ["--config", str(file), "--host", "127.0.0.1", "--port", str(port)]


PEERS = (
    _router("vllm-router", "vllm_router"),
    _router("sglang-router", "sglang_router"),
    _router("smg", "smg"),
    Peer("litellm", "litellm", _litellm, exact=False, slow=20),
)
