"""The examples in docstrings print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("landscape", "analysis", "checkpoints", "figures", "scripts")
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for package in PACKAGES
           for path in sorted((ROOT / package).rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted and not result.failed
