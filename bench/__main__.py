"""`python -m bench VERB …`: each verb prints one table."""

from __future__ import annotations

import argparse
import sys
from itertools import takewhile

from bench import burst, decide, fleet_sim, latency, poll, pumping, streams, waiters
from bench.processes import raise_file_limit

VERBS = {
    "chunks": (pumping.chunks, pumping.add_chunks),
    "requests": (pumping.requests, pumping.add_requests),
    "latency": (latency.run, latency.add_options),
    "burst": (burst.run, burst.add_options),
    "streams": (streams.run, streams.add_options),
    "waiters": (waiters.run, waiters.add_options),
    "poll": (poll.run, poll.add_options),
    "decide": (decide.run, None),
    "fleet": (fleet_sim.run, fleet_sim.add_options),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line, but that several verbs may stand one after the other."""
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measurements, on loopback, of real processes. `VERB --help` has the options; "
        "several verbs may be given, each then takes those of the options that it knows.",
        epilog="example: python -m bench chunks requests --only nginx cortexd",
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB …")
    for name, (run, add_options) in VERBS.items():
        said = (run.__doc__ or "").strip()
        verb = verbs.add_parser(name, help=said, description=said)
        if add_options:
            add_options(verb)
        verb.set_defaults(run=run)
    return top


def main() -> None:
    """Run the verbs in the order given."""
    top, given = parser(), sys.argv[1:]
    verbs = list(takewhile(VERBS.__contains__, given))
    if not verbs:
        top.parse_args(given)  # --help, or a mistake
        top.print_help()
        return
    options = given[len(verbs) :]
    parsed = [top.parse_known_args([verb, *options]) for verb in verbs]
    if strange := set.intersection(*(set(unknown) for _, unknown in parsed)):
        top.error(f"unrecognized arguments: {' '.join(sorted(strange))}")
    raise_file_limit()
    try:
        for args, _ in parsed:
            args.run(args)
            print()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
