"""The one error of the files side: the command line turns it into one line and exit status 2."""


class RecordError(ValueError):
    """A file, run folder or record that cannot be used; the text names it, what is wrong and the way out."""
