"""The known name that a mistyped one is nearest to."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.7    # of difflib's ratio; dashes in front count for nothing, since all options share them


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean NAME?)' for the known name that is nearest, or nothing."""
    bare = {word.lstrip("-"): word for word in known}
    found = difflib.get_close_matches(name.lstrip("-"), list(bare), n=1, cutoff=CUTOFF)
    return f" (did you mean {bare[found[0]]}?)" if found else ""
