"""`python -m bench VERB…`: each verb prints one table."""

from __future__ import annotations

import sys

from bench import decide

VERBS = {"decide": decide.main}


def main() -> None:
    """Run the verbs in the order given; all of them when none is."""
    asked = sys.argv[1:] or list(VERBS)
    unknown = [verb for verb in asked if verb not in VERBS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join(VERBS)}")
    for verb in asked:
        VERBS[verb]()


if __name__ == "__main__":
    main()
