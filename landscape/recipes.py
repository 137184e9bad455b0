"""Recipes by name: the published settings that fill in what a user leaves out, and where a run departs from them.

A recipe is a table, read from the top: `settings` hold for all its runs, and a row's settings are added where all its
conditions hold, so that the data set, the loss and the optimizer decide what the source lets them decide. What a
user gives wins over both. A recipe speaks for the data sets of its source alone. The tables are in `recipe_tables`.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from landscape.errors import InputError
from landscape.recipe import Recipe, Settings, hold
from landscape.recipe_tables import RECIPES

__all__ = ["RECIPES", "Recipe", "departures", "filled", "published", "recipe_named"]


def published(config: Settings) -> dict[str, float]:
    """Return the test accuracies in percent, by class group, that a run's recipe is published with; empty for none."""
    if config.get("recipe") is None:
        return {}
    rows = (row for conditions, row in recipe_named(config["recipe"]).published if hold(conditions, config))
    return dict(next(rows, {}))


def recipe_named(name: str) -> Recipe:
    """Return a recipe by its name; an unknown one is an error that names the choices."""
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"recipe={name!r} is unknown: {hint}expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


def filled(given: Settings) -> dict[str, Any]:
    """Return the given settings with those of their recipe filled in below; without a recipe, as they are.

    Raises InputError where the recipe does not fit the data set, or does not record a setting that the run needs.
    """
    if given.get("recipe") is None:
        return dict(given)
    name, recipe = given["recipe"], recipe_named(given["recipe"])
    settings = recipe.values(given) | dict(given)
    if settings["dataset"] not in recipe.datasets:
        raise InputError(f"recipe={name} does not fit dataset={settings['dataset']!r}: it is for {', '.join(recipe.datasets)}; "
                         "leave the recipe out for other data, or give one of these")
    for conditions, setting, why in recipe.required:
        if setting not in settings and hold(conditions, settings):
            raise InputError(f"recipe={name} has no {setting} for dataset={settings['dataset']}, loss={settings['loss']}, "
                             f"opt={settings['opt']} ({why}): give --{setting}")
    for name in ("loss_options", "opt_options"):
        if isinstance(given.get(name), Mapping):
            settings[name] = recipe.values(given).get(name, {}) | dict(given[name])
    return settings


def departures(config: Settings) -> dict[str, tuple[Any, Any]]:
    """Return where a run departs from its recipe: {setting: (the recipe's value, the run's)}, in the recipe's order.

    Rows apply by what the run has chosen. A setting that the run's configuration does not hold is left out.
    """
    said = recipe_named(config["recipe"]).values(config)
    pairs = {name: (_plain(value), _plain(config[name])) for name, value in said.items() if name in config}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
