"""Directions by name, as a command line and a study spell them.

    random               Gaussian, normalized as asked, as many as there are dimensions
    eigen                the most negative and the largest eigenvector of the settings' group
    tail:min  all:max:2  an eigenvector of a group, unscaled: GROUP:min or GROUP:max, then its rank, 0 for the extreme one
    pca                  principal components of the run's stored checkpoints (Li et al. 2018, section 7)
    epoch:10  epoch:last through the run's checkpoint of that epoch
    RUN@epoch:10         through the checkpoint of another run of the same architecture
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from landscape.errors import InputError

_EIGENVECTOR = re.compile(r"(?P<group>all|head|tail|many|medium|few|class:\d+):(?P<end>min|max)(:(?P<rank>\d+))?")
_CHECKPOINT = re.compile(r"((?P<run>.+)@)?epoch:(?P<epoch>\d+|last)")
EXPECTED = "random, eigen, pca, GROUP:min, GROUP:max, GROUP:min:RANK, epoch:N or RUN@epoch:N"
_SEVERAL = ("random", "eigen", "pca")       # words that stand for as many directions as there are dimensions


@dataclass(frozen=True)
class Word:
    """One name of a direction, read."""

    text: str
    kind: str               # random | eigen | pca | eigenvector | checkpoint
    group: str = ""         # of an eigenvector
    end: str = ""           # lower | upper
    rank: int = 0
    run: str | None = None  # of a checkpoint: another run's folder; None: the run itself
    epoch: int | None = None    # None: the last

    @classmethod
    def read(cls, text: str) -> "Word":
        """Read a name; InputError lists what there is."""
        if text in _SEVERAL:
            return cls(text, text)
        if found := _EIGENVECTOR.fullmatch(str(text)):
            end = {"min": "lower", "max": "upper"}[found["end"]]
            return cls(text, "eigenvector", found["group"], end, int(found["rank"] or 0))
        if found := _CHECKPOINT.fullmatch(str(text)):
            return cls(text, "checkpoint", run=found["run"], epoch=None if found["epoch"] == "last" else int(found["epoch"]))
        raise InputError(f"directions={text!r} is unknown: expected one or two of {EXPECTED}")

    @property
    def leads_somewhere(self) -> bool:
        """Whether the direction leads through checkpoints, which a surface should then cover."""
        return self.kind in ("pca", "checkpoint")

    @property
    def slug(self) -> str:
        """The word as part of a file's name: of another run, its folder's name alone."""
        text = self.text if self.run is None else self.text[len(self.run.rstrip("/").rpartition("/")[0]):]
        return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def read_words(directions: str | Sequence[str], dims: int | None) -> tuple[tuple[Word, ...], int]:
    """Return one or two words, and the number of directions that they stand for; InputError where `dims` differs."""
    texts = (directions,) if isinstance(directions, str) else tuple(directions)
    if len(texts) not in (1, 2):
        raise InputError(f"directions={' '.join(map(str, texts))!r} is out of range: expected one or two of {EXPECTED}")
    words = tuple(map(Word.read, texts))
    if len(words) == 1 and words[0].kind in _SEVERAL:
        return words, 2 if dims is None else dims
    if dims not in (None, len(words)):
        raise InputError(f"dims={dims} is out of range: {' and '.join(texts)} make {('a line', 'a plane')[len(words) - 1]}; "
                         f"expected {len(words)}, or {('a second', 'one')[len(words) - 1]} direction")
    return words, len(words)
