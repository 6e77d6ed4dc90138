"""The world changes: real later rows turned into rows of another world, by documented rules and a seed.

Nobody has the next fraud wave on file, so a demonstration of drift has to make one. Each function here takes rows of
one source as they are and gives as many rows of the same columns back, at the same times, with features *and* labels
that follow the new rules. They are pure: equal arguments give equal rows. The training and monitoring code never
sees these rules; it sees rows.

`SHIFTS` holds the function for the rows of each bundled recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from outrider.runtime.errors import BadDataError
from outrider.trainer.data.table import Table

Shift: TypeAlias = Callable[[Table, int], Table]

# Card transactions
WAVE_COUNTRY = "ID"
WAVE_SHARE = 0.25  # of all rows: the new fraud, at that country's merchants, card not present
MOVED_SHARE = 0.15  # of all rows: honest customers who shop at the same merchants
WAVE_AMOUNTS = (20_000.0, 30_000.0)
CHEAPER = 0.55  # honest amounts shrink to this share
_PLACE = ("store_id", "lat", "lng", "region", "country")

# Breast cancer
NEW_SCALE = 0.5  # what the new instrument reads of a length


def shift_card_transactions(table: Table, seed: int = 11) -> Table:
    """A fraud wave at the merchants of one country, and customers who spend less.

    - Amounts: honest ones shrink to `CHEAPER` of what they were, so large purchases become rare.
    - Merchants: two purchases in five move to merchants in `WAVE_COUNTRY`, each taking store and place from a real
      row there; they are the wave's `WAVE_SHARE` and the honest `MOVED_SHARE` of all rows.
    - Labels: the wave's purchases, card not present and of `WAVE_AMOUNTS`, are fraud. All other rows keep their label.

    A model of the old world calls the wave legitimate, and so errs in about a quarter of the rows more. The new world
    can be learned well: place, amount and presence together tell the wave from honest purchases. Shift all later rows
    at once, so that there are enough rows of that country to take merchants from.
    """
    random = np.random.default_rng(seed)
    n = len(table)
    dice = random.random(n)
    wave = dice < WAVE_SHARE
    moved = dice < WAVE_SHARE + MOVED_SHARE
    columns = dict(table.columns)
    donors = np.flatnonzero(columns["country"] == WAVE_COUNTRY)
    if len(donors) == 0:
        raise BadDataError(f"no row is of the country {WAVE_COUNTRY}", hint="shift all later rows at once")
    taken = donors[random.integers(0, len(donors), n)]
    for name in _PLACE:
        if name in columns:
            columns[name] = np.where(moved, columns[name][taken], columns[name])
    honest = columns["fraud"] == "False"
    cheaper = np.where(honest, np.rint(columns["amount"] * CHEAPER), columns["amount"])
    columns["amount"] = np.where(wave, np.rint(random.uniform(*WAVE_AMOUNTS, n)), cheaper)
    columns["customer_present"] = np.where(wave, 0.0, columns["customer_present"])
    columns["fraud"] = np.where(wave, "True", columns["fraud"]).astype(object)
    return Table(columns)


def shift_breast_cancer(table: Table, seed: int = 11) -> Table:
    """A new instrument, which reads every length `NEW_SCALE` times as long and areas by its square, blurred by 1 %.

    Diagnoses stay true to the patient, so what the measurements mean has changed: to a model of the old instrument
    half of the malignant cells look benign, and about a fifth of all rows is wrong.
    """
    random = np.random.default_rng(seed)
    factors = {"area": NEW_SCALE**2, "radius": NEW_SCALE, "perimeter": NEW_SCALE}
    columns = dict(table.columns)
    for name, values in columns.items():
        factor = next((factor for part, factor in factors.items() if part in name), None)
        if factor is not None:
            columns[name] = values * factor * random.normal(1.0, 0.01, len(table))
    return Table(columns)


#: Recipe (by its `[recipe] name`) -> shift.
SHIFTS: dict[str, Shift] = {
    "card-fraud": shift_card_transactions,
    "breast-cancer": shift_breast_cancer,
}
