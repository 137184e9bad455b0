import re
from pathlib import Path

from figures.glossary import QUANTITIES, WORDS, readme_rows

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readmes_table_is_the_glossary():
    section = README[README.index("## Which number to trust"):]
    lines = [line for line in section[:section.index("\n## ", 3)].splitlines() if line.startswith("|")]
    assert lines[2:] == readme_rows(), "README's table and figures/glossary.py define the same: change both alike"


def test_every_quantity_and_word_is_said_once_and_in_full():
    names = [row.name for row in QUANTITIES]
    assert len(set(names)) == len(names)
    assert all(text.rstrip().endswith(".") for text in WORDS.values())


def test_nothing_is_called_a_negative_ratio():
    texts = [*WORDS, *WORDS.values(), *(part for row in QUANTITIES for part in (row.name, row.meaning, row.uncertainty))]
    assert not any(re.search("negative ratio", text, re.I) for text in texts)
