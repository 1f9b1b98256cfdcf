"""`python -m bench VERB …`: each verb prints one table."""

from __future__ import annotations

import argparse
import sys

from bench import decide, latency, poll, pumping, streams, waiters
from bench.processes import raise_file_limit


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measurements, on loopback, of real processes. `VERB --help` has the options.",
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB")
    for name, run, add_options in (
        ("chunks", pumping.chunks, pumping.add_chunks),
        ("requests", pumping.requests, pumping.add_requests),
        ("latency", latency.run, latency.add_options),
        ("streams", streams.run, streams.add_options),
        ("waiters", waiters.run, waiters.add_options),
        ("poll", poll.run, poll.add_options),
        ("decide", decide.run, None),
    ):
        said = (run.__doc__ or "").strip()
        verb = verbs.add_parser(name, help=said, description=said)
        if add_options:
            add_options(verb)
        verb.set_defaults(run=run)
    return top


def main() -> None:
    """Run one verb."""
    top = parser()
    args = top.parse_args()
    if not hasattr(args, "run"):
        top.print_help()
        sys.exit(0)
    raise_file_limit()
    try:
        args.run(args)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
