"""What the commands that edit the configuration have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable

APPLY = "Apply it with: cortexd reload"


def edited(edit: Callable[[], None], message: Callable[[], str]) -> int:
    """Do it and say so; 1 and the reason when it can't be done. Raises ConfigError."""
    from cortexd.config.edit import CantEdit

    try:
        edit()
    except CantEdit as error:
        print(f"Nothing was changed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"Nothing was changed: {where}{error.strerror}", file=sys.stderr)
        return 1
    print(message())
    return 0
