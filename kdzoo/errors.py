"""Errors that are meant for the person at the terminal: one sentence, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. The message names the thing, what is wrong and what to do.

    `kdzoo` prints it as one line and exits with `exit_code`; from Python it is an ordinary exception.
    """

    exit_code = 1


class UsageError(UserError):
    """The command line itself is wrong."""

    exit_code = 2


def near(name: str, names: Iterable[str]) -> str:
    """Say which of `names` look like `name`: `" Near: dkd, kd."`, or nothing."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Near: {', '.join(matches)}." if matches else ""
