"""The two ways a run ends badly, each with its exit code and one line that a user can act on."""


class UserError(Exception):
    """The user's input is wrong (exit code 2). The message names the field or file, what was given and is accepted."""

    exit_code = 2


class RunError(Exception):
    """The run cannot go on (exit code 3). The message says what was kept and what to do."""

    exit_code = 3


def reject(field: str, given: object, accepted: str) -> UserError:
    """What to raise for a bad value of `field`, in one line: what was given, and what is accepted."""
    shown = " ".join(repr(given).split()) if "\n" in repr(given) else repr(given)
    return UserError(f"{field}: given {shown if len(shown) <= 300 else shown[:300] + '..'}; accepted: {accepted}")
