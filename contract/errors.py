"""Errors whose message is for a person, and the exit codes that go with them."""

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


class UserError(ValueError):
    """A person's mistake or a broken input; the message is ready to print: found, expected, what to do next.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class WrongUsageError(UserError):
    """A setting that no model can satisfy, such as a temperature of nan: exit code 2, as for any wrong usage."""

    exit_code = 2
