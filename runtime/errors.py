"""The one error that a person is meant to read."""


class UserError(ValueError):
    """A person's mistake or a broken input; the message is ready to print: what was found, what was expected, what to do next.

    The command line prints it without a traceback, for any exception that carries `for_people`, and exits with `exit_code`.
    """

    for_people = True
    exit_code = 1
