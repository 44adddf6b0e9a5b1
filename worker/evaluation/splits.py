"""Which rows a detector is fitted on and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pgoutlier.detector import Recipe
from pgoutlier.worker.evaluation.table import EvaluationError

Order = Literal["random", "time"]
# With --split and without --test-size.
TEST_SIZE = 0.3
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Split:
    """test_size: share of the rows, above 0 and below 1, that are tested; the latest ones if the order is "time"."""

    order: Order
    test_size: float
    seed: int

    def parts(self, n_rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Places of the training and of the test rows, each ascending; rows are taken to be in time order.

        A random split is the one that scikit-learn's train_test_split makes of the rows with this seed, because
        that is what published figures rest on. Raises EvaluationError if a part would be empty.
        """
        from sklearn.model_selection import train_test_split

        # Rounded as train_test_split does.
        n_test = int(np.ceil(n_rows * self.test_size))
        if not 0 < n_test < n_rows:
            raise EvaluationError(f"--test-size {self.test_size:g} of {n_rows} rows leaves a part empty.")
        places = np.arange(n_rows)
        if self.order == "time":
            return places[:-n_test], places[-n_test:]
        training, test = train_test_split(places, test_size=n_test, random_state=self.seed)
        return np.sort(training), np.sort(test)


def chosen(
    recipe: Recipe, *, order: str | None = None, test_size: float | None = None, seed: int | None = None
) -> Split:
    """The split of these options. What is None is the recipe's own, but with an order given a test size of 0.3.

    Raises EvaluationError, naming the option, if a value is out of bounds.
    """
    if order is not None and order not in get_args(Order):
        raise EvaluationError(f"--split {order!r} is not known; write --split random or --split time.")
    if test_size is not None and not 0 < test_size < 1:
        raise EvaluationError(f"--test-size {test_size:g} must lie between 0 and 1, such as 0.3.")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise EvaluationError(f"--seed {seed} must lie between 0 and {MAX_SEED}.")
    if test_size is None:
        test_size = TEST_SIZE if order is not None else 1 - recipe.split.fit_fraction
    return Split(
        order="time" if (order or recipe.split.order) == "time" else "random",
        test_size=round(test_size, 12),
        seed=recipe.seed if seed is None else seed,
    )
