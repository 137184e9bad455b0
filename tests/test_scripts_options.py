import argparse
import io
import json
import time

import numpy as np
import pytest

from landscape.errors import InputError
from scripts import progress
from scripts.options import Parser, Progress, add_common_arguments, emit_json, nearest, say


@pytest.fixture
def parser():
    parser = Parser(prog="landscape try")
    parser.add_argument("run")
    parser.add_argument("--imb_factor", type=float, default=100.0, help="n_max / n_min")
    parser.add_argument("--opt", choices=("sgd", "sam"), default="sgd", help="the optimizer")
    parser.add_argument("--groups", nargs="*", default=[])
    parser.add_argument("--loss_options", nargs="*", default=[])
    parser.add_argument("--epochs", default="all")
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--no_cosine", action="store_false", dest="cosine")
    add_common_arguments(parser, dry_run=True)
    return parser


def complaint(parser, words, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("spelling", ["--imb_factor", "--imb-factor"])
@pytest.mark.parametrize("words", [lambda name: [name, "50"], lambda name: [f"{name}=50"]])
def test_hyphens_and_underscores_are_the_same(parser, spelling, words):
    assert parser.parse_args(["r", *words(spelling)]).imb_factor == 50


def test_values_keep_their_hyphens_and_underscores(parser):
    assert parser.parse_args(["my-run_1", "--epochs=a-b_c"]).epochs == "a-b_c"
    assert parser.parse_args(["r", "--imb-factor", "-1"]).imb_factor == -1


def test_an_option_declared_with_hyphens_takes_underscores(parser):
    parser.add_argument("--weight-decay", type=float)
    assert parser.parse_args(["r", "--weight_decay", "0.1"]).weight_decay == 0.1


def test_an_unknown_option_is_one_line_with_the_nearest_known_one(parser, capsys):
    assert complaint(parser, ["--imb-facto", "3", "r"], capsys) == (
        "landscape try: error: option --imb-facto is unknown (did you mean --imb_factor?); see landscape try --help\n")


def test_options_are_not_abbreviated(parser, capsys):
    assert "option --imb is unknown" in complaint(parser, ["r", "--imb", "3"], capsys)


@pytest.mark.parametrize("words, message", [
    ([], "required: run"), (["r", "--opt", "adam"], "invalid choice: 'adam'"),
    (["r", "--imb_factor", "x"], "invalid float"),
    (["r", "s"], "unrecognized arguments: s"), (["r", "-z"], "unrecognized arguments: -z")])
def test_every_misuse_is_one_line(parser, capsys, words, message):
    assert message in complaint(parser, words, capsys)


def test_a_positional_behind_an_option_of_several_values_is_said_to_go_before_it(parser, capsys):
    assert "required: run: put run before the options" in complaint(parser, ["--groups", "tail", "r"], capsys)
    assert "put run" not in complaint(parser, ["--opt", "sam"], capsys)


def test_words_behind_a_double_dash_are_no_options(parser):
    assert parser.parse_args(["--", "--imb-facto"]).run == "--imb-facto"


def test_help_tells_defaults_that_mean_something(parser):
    text = " ".join(parser.format_help().split())
    assert "n_max / n_min (default: 100.0)" in text and "nothing else (default" not in text


def test_common_arguments_can_be_added_twice(parser):
    add_common_arguments(parser)
    args = parser.parse_args(["r", "--quiet", "--json", "--dry-run"])
    assert args.quiet and args.json and args.dry_run


def with_file(parser, tmp_path, text, words=()):
    path = tmp_path / "options.toml"
    path.write_text(text)
    return parser.parse_args(["r", "--config", str(path), *words])


def test_a_file_sets_options_of_every_kind(parser, tmp_path):
    args = with_file(parser, tmp_path, """
        imb-factor = 20
        opt = "sam"
        groups = ["head", "class:3"]
        epochs = [0, 60]
        augment = false
        no_cosine = false
        quiet = true
        json = false
        [loss_options]
        s = 30.5
        flip = true
    """)
    assert (args.imb_factor, args.opt, args.groups, args.epochs) == (20.0, "sam", ["head", "class:3"], "0,60")
    assert (args.augment, args.cosine, args.quiet, args.json) == (False, False, True, False)
    assert args.loss_options == ["s=30.5", "flip=true"] and args.run == "r"


def test_the_command_line_wins_over_the_file(parser, tmp_path):
    text = 'imb_factor = 20\nopt = "sam"\ngroups = ["head"]\naugment = false\n'
    args = with_file(parser, tmp_path, text, ["--imb-factor", "5", "--groups", "tail", "--augment"])
    assert (args.imb_factor, args.opt, args.groups, args.augment) == (5.0, "sam", ["tail"], True)


def test_a_key_may_be_the_name_behind_a_switch(parser, tmp_path):
    assert with_file(parser, tmp_path, "cosine = false").cosine is False
    assert with_file(parser, tmp_path, "cosine = true").cosine is True


def test_a_value_that_looks_like_an_option_stays_a_value(parser, tmp_path):
    assert with_file(parser, tmp_path, 'epochs = "--last"').epochs == "--last"


@pytest.mark.parametrize("text, message", [
    ("imb_facto = 3", r"options.toml: key 'imb_facto' is unknown \(did you mean imb_factor\?\)"),
    ("config = 'x'", "key 'config' is unknown"), ("help = true", "key 'help' is unknown"),
    ("run = 'x'", "key 'run' is unknown"),
    ("quiet = 'yes'", "quiet='yes' is out of range: expected true or false"),
    ("imb_factor =", "options.toml is not a TOML file"), ("\xff", "is not a TOML file")])
def test_a_bad_file_is_one_line_naming_it(parser, tmp_path, text, message):
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        parser.parse_args(["r", f"--config={path}"])


def test_choices_hold_in_a_file_too(parser, tmp_path, capsys):
    (tmp_path / "o.toml").write_text('opt = "adam"')
    assert "invalid choice: 'adam'" in complaint(parser, ["r", "--config", str(tmp_path / "o.toml")], capsys)


def test_results_are_said_or_emitted_but_never_both(capsys):
    for quiet, as_json, said, emitted in ((0, 0, 1, 0), (1, 0, 0, 0), (0, 1, 0, 1), (1, 1, 0, 1)):
        args = argparse.Namespace(quiet=bool(quiet), json=bool(as_json))
        say(args, "table")
        emit_json(args, {"a": 1})
        assert capsys.readouterr().out == "table\n" * said + '{\n  "a": 1\n}\n' * emitted


def test_emitted_json_is_strict_and_takes_arrays(capsys):
    document = {"nan": float("nan"), "list": (np.float32(0.5), -np.inf), "array": np.array([[1, 2]]),
                "flag": np.True_, 3: None}
    emit_json(argparse.Namespace(quiet=False, json=True), document)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "nan": None, "list": [0.5, None], "array": [[1, 2]], "flag": True, "3": None}


def test_without_a_terminal_progress_is_a_line_each_tenth(capsys):
    with Progress(200, "tail") as bar:
        for _ in range(200):
            bar.update()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 10
    assert lines[0].startswith("tail: 20/200 (10%)") and lines[-1].startswith("tail: 200/200 (100%)")


def test_progress_of_unknown_length_speaks_every_ten_seconds(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress, "time", argparse.Namespace(monotonic=lambda: next(clock)))
    with Progress(None, "download", unit="byte") as bar:
        for _ in range(5):
            bar.update(100)
    assert capsys.readouterr().err.splitlines()[0].startswith("download: 300 bytes, ")


def test_what_was_done_last_is_always_told(capsys):
    with Progress(100, "short") as bar:
        bar.update(3)
    assert capsys.readouterr().err.startswith("short: 3/100 (3%)")


def test_progress_stopped_at_once_says_nothing(capsys):
    with Progress(100, "nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_quiet_progress_is_silent(capsys):
    with Progress(10, quiet=True) as bar:
        bar.update(10)
        bar.set_description("x")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(10, "spectrum") as bar:
        bar.update(4)
        bar.set_description("tail")
        time.sleep(0.11)
        bar.update(6)
    assert "tail: 100%" in terminal.getvalue() and "10/10" in terminal.getvalue()


def test_what_was_done_before_counts_as_done_and_not_as_speed(capsys, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(progress, "time", argparse.Namespace(monotonic=lambda: next(clock)))
    with Progress(100, "tail", unit="product", initial=50) as bar:
        bar.recalled(30)
        bar.update(30)
        bar.update(10)
    recalled, going_on, new = capsys.readouterr().err.splitlines()
    assert recalled.startswith("tail: 80/100 (80%), ") and "left" not in recalled
    assert going_on == "tail: continuing at product 81 of 100"
    seconds = int(new.split("), ")[1].split(" s")[0])
    assert f"90/100 (90%), {seconds} s, about {seconds} s left" in new      # ten products took them, ten are left


def test_what_takes_no_work_is_no_speed_and_told_of_all_the_same(capsys, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(progress, "time", argparse.Namespace(monotonic=lambda: next(clock)))
    with Progress(100, "digits") as bar:
        bar.skip(80)
        bar.update(10)
    skipped, worked = capsys.readouterr().err.splitlines()
    assert skipped.startswith("digits: 80/100 (80%), ") and "left" not in skipped and "continuing" not in worked
    seconds = int(worked.split("), ")[1].split(" s")[0])
    assert f"90/100 (90%), {seconds} s, about {seconds} s left" in worked


@pytest.mark.parametrize("name", ["--radius", "--xyz", "--foo"])
def test_what_is_near_nothing_has_no_suggestion(name):
    assert nearest(name, ["--dims", "--directions", "--points", "--config", "--json"]) == ""
