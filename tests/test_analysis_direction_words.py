import pytest

from analysis.settings import SurfaceSettings, surface_name
from analysis.surfaces.direction_words import Word, read_words
from checkpoints import layout
from landscape.errors import InputError


@pytest.mark.parametrize("text, word", [
    ("random", Word("random", "random")), ("pca", Word("pca", "pca")), ("eigen", Word("eigen", "eigen")),
    ("tail:min", Word("tail:min", "eigenvector", "tail", "lower", 0)),
    ("class:12:max:3", Word("class:12:max:3", "eigenvector", "class:12", "upper", 3)),
    ("epoch:10", Word("epoch:10", "checkpoint", epoch=10)), ("epoch:last", Word("epoch:last", "checkpoint")),
    ("runs/a@b@epoch:0", Word("runs/a@b@epoch:0", "checkpoint", run="runs/a@b", epoch=0))])
def test_every_name_of_a_direction_is_read(text, word):
    assert Word.read(text) == word


@pytest.mark.parametrize("text", ["", "Random", "tail", "tail:mid", "tail:min:-1", "class:min", "epoch:-1", "epoch:", "@epoch:1",
                                  "few:max:1:2"])
def test_other_names_are_refused_with_the_choices(text):
    with pytest.raises(InputError, match=r"is unknown: expected one or two of random, eigen, pca, GROUP:min"):
        Word.read(text)


@pytest.mark.parametrize("directions, dims, found", [
    ("random", None, 2), ("pca", 1, 1), ("eigen", 2, 2), ("tail:min", None, 1), ("epoch:3", 1, 1), (("pca", "tail:min"), None, 2),
    (["epoch:1", "epoch:2"], 2, 2)])
def test_directions_say_how_many_they_are(directions, dims, found):
    assert read_words(directions, dims)[1] == found == SurfaceSettings(directions=directions, dims=dims).dims


@pytest.mark.parametrize("directions, dims, message", [
    ("tail:min", 2, "dims=2 is out of range: tail:min make a line; expected 1, or a second direction"),
    (("random", "pca"), 1, "dims=1 is out of range: random and pca make a plane; expected 2, or one direction"),
    ((), None, "expected one or two of"), (("pca",) * 3, None, "'pca pca pca' is out of range: expected one or two")])
def test_directions_that_do_not_make_the_dimensions_are_refused(directions, dims, message):
    with pytest.raises(InputError, match=message):
        SurfaceSettings(directions=directions, dims=dims)


@pytest.mark.parametrize("directions, batchnorm, span", [
    ("random", "fixed", 1.0), (("tail:min", "head:min"), "fixed", 1.0), ("pca", "recalibrated", None),
    (("tail:min", "epoch:1"), "recalibrated", None)])
def test_what_is_left_open_is_settled_by_where_directions_lead(directions, batchnorm, span):
    settings = SurfaceSettings(directions=directions)
    assert (settings.batchnorm, settings.span) == (batchnorm, span)
    asked = SurfaceSettings(directions=directions, batchnorm="batch", span=0.5)
    assert (asked.batchnorm, asked.span) == ("batch", 0.5)


@pytest.mark.parametrize("directions, group, name", [
    ("random", "tail", "epoch-0007-random-2d"), ("eigen", "class:3", "epoch-0007-class-3-eigen-2d"),
    (("head:min", "tail:min"), "tail", "epoch-0007-head-min_tail-min-2d"), ("epoch:10", "tail", "epoch-0007-epoch-10-1d"),
    ("../my runs/sgd@epoch:last", "tail", "epoch-0007-sgd-epoch-last-1d"),
    ("a" * 200 + "@epoch:1", "tail", "epoch-0007-" + "a" * 80 + "-1d")])
def test_a_surface_is_stored_under_its_directions(directions, group, name):
    found = surface_name(7, SurfaceSettings(directions=directions, group=group))
    assert found == name and layout.check_name(found)


def test_surfaces_name_the_spectra_that_they_need():
    assert SurfaceSettings(directions="eigen", group="few").spectra == ("few",)
    assert SurfaceSettings(directions=("head:min", "head:max")).spectra == ("head",)
    assert SurfaceSettings(directions=("epoch:1", "class:2:min")).spectra == ("class:2",)
    assert SurfaceSettings().spectra == ()


def test_surfaces_name_the_checkpoints_of_their_own_run():
    assert SurfaceSettings(directions=("epoch:1", "run@epoch:7")).epochs == (1,)
    assert SurfaceSettings(directions=("epoch:last", "epoch:0")).epochs == (0,) and SurfaceSettings(directions="pca").epochs == ()


@pytest.mark.parametrize("change, word", [
    (dict(batchnorm="own"), "batchnorm='own'"), (dict(normalization="weight"), "filter, layer, none"),
    (dict(ignore="bias"), "biasbn, none"), (dict(dtype="float16"), "float32, float64, bfloat16"), (dict(span=0.0), "span=0.0"),
    (dict(points=4), "odd"), (dict(batch_size=0), "batch_size=0")])
def test_bad_settings_are_named_with_their_range(change, word):
    with pytest.raises(InputError, match=word):
        SurfaceSettings(**change)


def test_names_known_without_torch_are_those_of_the_numerics():
    from analysis import settings
    from analysis.surfaces import directions, statistics
    assert settings.NORMALIZATIONS == tuple(directions.UNITS) and settings.IGNORED == directions.IGNORED
    assert settings.BATCHNORM == statistics.POLICIES
