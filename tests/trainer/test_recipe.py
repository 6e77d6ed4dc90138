"""Recipes: what is read, and how what is wrong is named."""

from __future__ import annotations

import pytest

from outrider.runtime.errors import BadRecipeError, UnsupportedError
from outrider.trainer.recipe import bundled_recipes, load_recipe, seconds


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_good(name):
    loaded = load_recipe(name)
    assert loaded.recipe.plan().outputs
    assert len(loaded.sha256) == 64


def test_the_bundled_recipes_are_known_by_name():
    assert bundled_recipes() == ["breast_cancer", "card_fraud"]


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        (
            'name = "shop"',
            'name = "shop"\ncolour = "red"',
            r"\[recipe\]: .*unknown field `colour`",
            "name, description",
        ),
        ("history = 0.3", "histroy = 0.3", r"\[split\]: .*`histroy`", "time, history, valid, test, recent"),
        ('kind = "number"', 'kind = "number"\nunit = "EUR"', r"\[columns\]: .*`unit`", "name, kind"),
        ('step = "log1p"', 'stpe = "log1p"', r"\[features\]: .*`stpe`", "name, step, inputs, params, keep"),
        ("[gate]", "[gates]", r"unknown field `gates`", "gate, compile, extends"),
        ('path = "rows.csv"', 'path = "rows.csv"\nsep = ";"', r"\[source\]: .*`sep`", "kind, path"),
        ('kind = "csv"', 'kind = "carrier-pigeon"', r"no known kind, but 'carrier-pigeon'", "card-transactions"),
        ('kind = "csv"\n', "", "no known kind, but None", "csv"),
        ("rounds = 30", "round = 30", r"\[model\]: .*`round`", "kind, rounds, early_stopping"),
        ('kind = "xgboost"', 'kind = "oracle"', "no known kind, but 'oracle'", "xgboost"),
        ("max_depth = 3", "nthread = 3", "must not hold 'nthread'", ""),
        ("rounds = 30", "rounds = 0", r"\[model\]: Expected `int` >= 1", ""),
        ('kind = "number"', 'kind = "colour"', r"\[columns\]: Invalid enum value 'colour'", ""),
        ("valid = 0.25", 'valid = "soon"', r"\[split\]", "valid"),
        ("history = 0.3", "history = 0", "learns from labels, but .* history is 0", "would|must"),
        ('column = "fraud"', 'column = "amount"', "would leak", ""),
        ('time = "at"', 'time = "card"', "no column of kind time", ""),
        ('classes = ["fine", "fraud"]', 'classes = ["a", "b", "c"]', "2 values, but other classes", ""),
        ("valid = 0.25", "valid = 0.75", "no rows to train on", ""),
        ("valid = 0.25", 'valid = "5d"', "must be shares where recent", ""),
        ('inputs = ["amount"]', 'inputs = ["amuont"]', "'amuont', which is no column", ""),
        ('inputs = ["amount"]', 'inputs = ["amount"]\nparams = { base = 2 }', "wrong parameter", "negative"),
        ("[recipe]", "[recipe", "cannot be read", ""),
        ('name = "shop"', 'name = "../shop"', r"\[recipe\]", ""),
    ],
)
def test_what_is_wrong_is_named(shop, old, new, message, hint):
    with pytest.raises(BadRecipeError, match=message) as caught:
        load_recipe(shop.edit(old, new))
    assert caught.value.exit_code == 1
    import re

    assert re.search(hint, str(caught.value))


def test_an_unknown_step_names_the_known_ones(shop):
    with pytest.raises(UnsupportedError, match=r"'sqrt'.*known steps: number, log1p"):
        load_recipe(shop.edit('step = "log1p"', 'step = "sqrt"'))


def test_a_recipe_that_is_not_there():
    with pytest.raises(BadRecipeError, match=r"no recipe nope.*breast_cancer or card_fraud"):
        load_recipe("nope")


def test_extends_replaces_whole_tables(shop):
    child = shop.recipe.with_name("child.toml")
    child.write_text('extends = "recipe.toml"\n[source]\nkind = "parquet"\npath = "x"\n[recipe]\nname = "child"\n')
    recipe = load_recipe(child).recipe
    assert recipe.source == {"kind": "parquet", "path": "x"}
    assert recipe.recipe.name == "child"
    assert recipe.split == load_recipe(shop.recipe).recipe.split
    child.write_text('extends = "card_fraud"\n[source]\nkind = "csv"\npath = "x"\n')
    assert load_recipe(child).recipe.recipe.name == "card-fraud"
    assert load_recipe(child).folder == child.parent


@pytest.mark.parametrize(
    ("base", "message"), [('"child.toml"', "extends itself"), ("3", "names a recipe"), ('"x"', "no recipe x")]
)
def test_extends_that_cannot_work(shop, base, message):
    child = shop.recipe.with_name("child.toml")
    child.write_text(f"extends = {base}\n")
    with pytest.raises(BadRecipeError, match=message):
        load_recipe(child)


def test_the_digest_is_of_the_content(shop):
    before = load_recipe(shop.recipe).sha256
    assert load_recipe(shop.edit("[gate]", "# a comment\n[gate]")).sha256 == before
    assert load_recipe(shop.edit("rounds = 30", "rounds = 31")).sha256 != before


def test_durations():
    assert [seconds(text) for text in ("90s", "1.5m", "2h", "1d")] == [90.0, 90.0, 7200.0, 86_400.0]
