"""The one error that a person is meant to read."""


class UserError(ValueError):
    """A person's mistake or a broken input; the message is ready to print: found, expected, what to do next.

    The command line prints it without a traceback and exits with `exit_code`, as for whatever has `for_people`.
    """

    for_people = True
    exit_code = 1


class WrongUsageError(UserError):
    """A setting that no model could satisfy, such as a temperature of nan: exit code 2, as for any wrong usage."""

    exit_code = 2
