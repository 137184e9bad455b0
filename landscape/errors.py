"""Errors that a user can cause: the command line turns each into one line and exit status 2."""


class InputError(ValueError):
    """A value, name, file or configuration that cannot be used; the text names it, the accepted range and the way out."""


class DivergedError(InputError):
    """The training loss stopped being finite; the text names epoch and step."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, the kind of error where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException, longest: int = 200) -> str:
    """Return an error's whole text in one line of printable characters: it may quote a file of somebody else."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:longest]
