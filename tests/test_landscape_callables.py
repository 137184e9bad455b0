import sys

import pytest

from landscape.callables import call_named
from landscape.errors import InputError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working folder, which is not on the path, as under a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "landscape_test_sibling.py").write_text("value = 7\n")
    (tmp_path / "landscape_test_callables.py").write_text(
        "def add(a, b=0, *, c=0): return a, b, c\n"
        "def late(): import landscape_test_sibling; return landscape_test_sibling.value\n"
        "def fails(): raise LookupError('its own')\n"
        "number = 3\n"
        "bare = dict\n")
    yield "landscape_test_callables"
    for name in ("landscape_test_callables", "landscape_test_sibling"):
        sys.modules.pop(name, None)


def test_what_is_offered_is_given_only_where_the_signature_names_it(module):
    path = list(sys.path)
    assert call_named(f"{module}:add", {"a": 1}, {"c": 5, "d": 6}) == (1, 0, 5)
    assert sys.path == path


def test_the_working_folder_serves_until_the_call_returns(module):
    assert call_named(f"{module}:late", {}) == 7


def test_a_callable_without_a_signature_is_called_all_the_same(module):
    assert call_named(f"{module}:bare", {"a": 1}, {"c": 2}) == {"a": 1}


def test_an_error_raised_inside_is_the_callables_own_and_the_path_is_put_back(module):
    path = list(sys.path)
    with pytest.raises(LookupError, match="its own"):
        call_named(f"{module}:fails", {})
    assert sys.path == path


@pytest.mark.parametrize("target, arguments, message", [
    ("{}:absent", {}, "does not exist: landscape_test_callables has no 'absent'"),
    ("{}:number", {}, "is of type int: expected something to call"),
    ("{}:add", {}, r"cannot be called without arguments \(missing a required argument: 'a'\)"),
    ("{}:add", {"x": 1}, r"cannot be called with x \("),
    ("{}", {}, "is no module:callable"),
    ("{}_not:here", {}, r"cannot be imported \(No module named .*in the working folder"),
])
def test_a_target_that_cannot_be_called_is_one_clear_error(module, target, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        call_named(target.format(module), arguments)
    assert "\n" not in str(caught.value)
