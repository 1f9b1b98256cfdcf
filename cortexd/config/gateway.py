"""The gateway's configuration, as etc/cortex.toml spells it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.config.logs import Logging
from cortexd.config.units import Amount, AutoDuration, Bound, Count, Duration, Size, Wait


class Gateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway]`: where it listens, and what it takes and tells.

    listen: host:port that clients talk to; ":8080" and "[::]:8080" are every interface, IPv4 and
        IPv6; port 0 takes a free one.
    admin_listen: host:port, or unix:/path, for what changes something; "" turns it off.
    metrics_listen: serve /metrics there instead of on `listen`.
    max_body: the largest request body.
    max_buffered: bytes of request bodies held at one time; above it requests are refused.
    shutdown_timeout: how long running answers may go on after SIGTERM.
    state_dir: for what must outlive a restart (default: $STATE_DIRECTORY, which systemd sets, else
        $XDG_STATE_HOME/cortexd, else ~/.local/state/cortexd).
    expose_route: tell callers the node, model and route in x-cortex-* headers.
    cors_origins: origins of web pages that may use the gateway from a browser, like
        "https://chat.example", "app://obsidian.md" or "http://localhost:*"; "*" is any.
    access_log: one log line per inference request.
    """

    listen: str = "0.0.0.0:8080"
    admin_listen: str = "127.0.0.1:8081"
    metrics_listen: str | None = None
    max_body: Annotated[Size, Bound(0, is_open=True)] = Size(64 << 20)
    max_buffered: Size = Size(512 << 20)
    shutdown_timeout: Duration = Duration(30)
    state_dir: str | None = None
    expose_route: bool = True
    cors_origins: tuple[str, ...] = ()
    access_log: bool = True


class Polling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[polling]`: how often each node is asked, and when it counts as down.

    interval: from one question to the next.
    timeout: how long an answer may take.
    unhealthy_after: failures in a row.
    """

    interval: Wait = Duration(2)
    timeout: Wait = Duration(5)
    unhealthy_after: Count = 3


class Loading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[loading]`: what requests for a model that is not loaded go through.

    timeout: how long a load may take before its waiters are told to come back.
    keepalive: how long a stream's caller hears nothing before the gateway says it still loads.
    max_waiting: requests that may wait for one model.
    """

    timeout: Duration = Duration(30 * 60)
    keepalive: Wait = Duration(10)
    max_waiting: Count = 1000


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[upstream]`: deadlines towards the nodes' inference endpoints.

    connect_timeout: until a connection is there.
    first_byte_timeout: streams on a loaded replica only; an answer that is not streamed has none.
    idle_timeout: between two bytes of an answer.
    dead_node_grace: how long a node may be unhealthy before requests that wait for its bytes are
        sent to another node, or end.
    silent_after: report a loaded model, in the log and in /health, that sent nothing for that long
        to a request; "0s" turns it off.
    keepalive: how long a stream is silent, on a model that is loaded, before the gateway sends a
        keep-alive event, and again until the answer begins; "0s": never.
    retries: further attempts while nothing of an answer has been sent to the client.
    ask_usage: have every stream report its token counts; clients that did not ask get none.
    ca_file: certificates to trust for https endpoints besides the system's.
    """

    connect_timeout: Wait = Duration(3)
    first_byte_timeout: Wait = Duration(600)
    idle_timeout: Wait = Duration(300)
    dead_node_grace: Duration = Duration(10)
    silent_after: Duration = Duration(60)
    keepalive: Duration = Duration(30)
    retries: Amount = 2
    ask_usage: bool = False
    ca_file: str | None = None


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[routing]`: which of a model's replicas serves.

    affinity: "prefix" sends what belongs to one conversation to one replica, among those that are
        equally busy, so that it finds its KV cache; "none" takes turns.
    """

    affinity: Literal["prefix", "none"] = "prefix"


class Eviction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[eviction]`: who makes room for a model that is asked for. A model at work never does.

    enabled: whether a model may be unloaded to make room for another.
    patience: how long a newcomer waits for busy models to become idle by themselves; then one of
        them gets no new requests any more.
    gate_timeout: how long that may last before another one or another node is tried.
    min_residency: how long a model stays after its first answer; "auto": the larger of 15 s and
        twice the time of its last load.
    idle_ttl: unload what nobody has asked for in that time (default: never).
    """

    enabled: bool = True
    patience: Duration = Duration(30)
    gate_timeout: Duration = Duration(120)
    min_residency: AutoDuration = AutoDuration(-1)
    idle_ttl: Duration | None = None


class Security(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[security]`: which hosts the gateway talks to, and under which names it is reached.

    allowed_inference_hosts: hosts besides a neuron's own that its endpoints may name.
    allowed_hosts: names of this gateway that browsers may use besides IP addresses, localhost, the
        machine's own name and names of the local network; "*" is any.
    """

    allowed_inference_hosts: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()


class Models(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[catalogue]`: a second file of models.

    path: a file of `[[models]]` that are added to those of this one; relative paths start here.
    """

    path: str | None = None


class Neuron(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[neurons]]` table: a node agent.

    name: how people and logs call the node.
    endpoint: where its neuron listens.
    token_file: holds its bearer token.
    weight: how much work it takes in proportion to the others.
    reserve_mb: MiB on each of its devices that are left alone, for a desktop or a game.
    ca_file: certificates to trust for this node besides the system's and those of [upstream].
    """

    name: str
    endpoint: str
    token_file: str | None = None
    weight: Annotated[float, Bound(0, is_open=True)] = 1.0
    reserve_mb: Amount = 0
    ca_file: str | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    aliases: other names for models: `"team/small" = "Qwen/Qwen3-1.7B"`.
    """

    gateway: Gateway = Gateway()
    polling: Polling = Polling()
    loading: Loading = Loading()
    upstream: Upstream = Upstream()
    routing: Routing = Routing()
    eviction: Eviction = Eviction()
    security: Security = Security()
    logging: Logging = Logging()
    catalogue: Models = Models()
    neurons: tuple[Neuron, ...] = ()
    models: tuple[Profile, ...] = ()
    aliases: dict[str, str] = {}
