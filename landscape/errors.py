"""Errors that a user can cause: the command line turns each into one line and exit status 2."""


class InputError(ValueError):
    """A value, name, file or configuration that cannot be used; the text names it, the accepted range and the way out."""


class DivergedError(InputError):
    """The training loss stopped being finite; the text names epoch and step."""
