"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input: one line that says what was got, what is allowed, and how to fix it. The command line exits with 2."""
