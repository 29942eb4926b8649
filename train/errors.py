"""The one error that a person is meant to read (the runtime has its own: train imports no other room)."""


class UserError(ValueError):
    """A person's mistake or a broken input; the message is ready to print: found, expected, what to do next.

    The command line prints it without a traceback and exits with `exit_code`, as for whatever has `for_people`.
    """

    for_people = True
    exit_code = 1
