"""The data sets, cut into a part to fit on and a part to test on, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.detection import with_past
from benchmarks.detection.with_past import Cards, Cut
from pgoutlier.detector.arrays import BoolVector, Float64Matrix

TIME = "Time"
ADBENCH = {
    "annthyroid": "2_annthyroid",
    "campaign": "5_campaign",
    "cardio": "6_cardio",
    "mammography": "23_mammography",
    "pendigits": "28_pendigits",
    "satimage-2": "31_satimage-2",
    "shuttle": "32_shuttle",
    "thyroid": "38_thyroid",
}
CREDITCARD = ("creditcard-time", "creditcard-random")
ECG = "ecg5000"
CARDS = "card-transactions"
SERIES = tuple(with_past.SERIES_FEATURES)
SETS = (*CREDITCARD, CARDS, ECG, *SERIES, *ADBENCH)
GROUPS = {"creditcard": CREDITCARD, "series": SERIES, "adbench": tuple(ADBENCH)}
QUICK = ("cardio", "thyroid")


class MissingData(Exception):
    """A data file is not where it was looked for."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(
            f"There is no data file {path}; name the folder that holds creditcard.csv.gz, ecg5000.csv.gz and "
            "adbench/: make bench-detection DATA_DIR=..."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One cut of a data set.

    names: one for each column. fit_rows: (n_fit, n_columns) float64, normal rows only where that is known, in the
    order of the data. test_rows: (n_test, n_columns). is_anomaly: (n_test,). cards: of the test rows, where they are of
    cards.
    """

    set_name: str
    seed: int
    names: tuple[str, ...]
    fit_rows: Float64Matrix
    test_rows: Float64Matrix
    is_anomaly: BoolVector
    cards: Cards | None = None

    @staticmethod
    def of(cut: Cut, set_name: str, seed: int) -> Split:
        return Split(
            set_name=set_name,
            seed=seed,
            names=cut.names,
            fit_rows=cut.fit_rows,
            test_rows=cut.test_rows,
            is_anomaly=cut.is_anomaly,
            cards=cut.cards,
        )

    def without_time(self) -> Split:
        """The same rows without the Time column, if there is one."""
        kept = [i for i, name in enumerate(self.names) if name != TIME]
        return replace(
            self,
            names=tuple(self.names[i] for i in kept),
            fit_rows=self.fit_rows[:, kept],
            test_rows=self.test_rows[:, kept],
        )


def chosen(only: Sequence[str]) -> tuple[str, ...]:
    """The set names that `only` names, groups taken apart; all of them when it is empty. Raises KeyError."""
    wanted = [name for word in only for name in GROUPS.get(word, (word,))]
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise KeyError(unknown[0])
    return tuple(name for name in SETS if not wanted or name in wanted)


def required_files(names: Sequence[str], data_dir: Path) -> list[Path]:
    """The data files of these sets. Raises MissingData naming the first that is absent."""
    files = list(dict.fromkeys(_file_of(name, data_dir) for name in names if name not in SERIES))
    for path in files:
        if not path.is_file():
            raise MissingData(path=path)
    return files


def load(names: Sequence[str], data_dir: Path, *, seeds: Sequence[int]) -> Iterator[Split]:
    """The splits of these sets: one a seed of an ADBench set, one a series of those, else one, of the first seed."""
    required_files(names, data_dir)
    if card := [name for name in names if name in CREDITCARD]:
        table = read_creditcard(_file_of(card[0], data_dir))
        cuts: dict[str, Callable[[], Split]] = {
            "creditcard-time": lambda: time_ordered(table),
            "creditcard-random": lambda: random_rows(table, seed=seeds[0]),
        }
        yield from (cuts[name]() for name in card)
    if CARDS in names:
        yield Split.of(with_past.card_transactions(_file_of(CARDS, data_dir)), CARDS, seeds[0])
    for name in (name for name in names if name in SERIES):
        yield from (Split.of(with_past.series(name, seed), name, seed) for seed in range(with_past.N_SERIES))
    if ECG in names:
        values = pd.read_csv(_file_of(ECG, data_dir), header=None).to_numpy(dtype=np.float64)
        yield ecg_split(values, seed=seeds[0])
    for name in names:
        if name in ADBENCH:
            with np.load(_file_of(name, data_dir), allow_pickle=False) as arrays:
                features, labels = arrays["X"].astype(np.float64), arrays["y"] == 1
            yield from (normal_rows(name, features, labels, seed=seed) for seed in seeds)


def read_creditcard(path: Path) -> pd.DataFrame:
    """The table without exact duplicate rows, in the order of Time; Class is 1 for a fraud."""
    table = pd.read_csv(path)
    table["Class"] = table["Class"].astype(str).str.strip("'\"").astype(int)
    return table.drop_duplicates().sort_values(TIME, kind="stable", ignore_index=True)


def time_ordered(table: pd.DataFrame, *, fit_fraction: float = 0.7) -> Split:
    """Fit on the normal rows of the earliest part, test on all rows of the latest."""
    n_fit = int(len(table) * fit_fraction)
    return _cut("creditcard-time", 0, table, np.arange(n_fit), np.arange(n_fit, len(table)))


def random_rows(table: pd.DataFrame, *, seed: int, fit_fraction: float = 0.8) -> Split:
    """Fit on the normal rows of a random part, test on all rows of the rest."""
    first, second = _drawn(len(table), fit_fraction, seed)
    return _cut("creditcard-random", seed, table, first, second)


def ecg_split(values: Float64Matrix, *, seed: int, fit_fraction: float = 0.8) -> Split:
    """Fit on the normal rows of a random part, test on the rest; the last column is 1 for a normal row."""
    first, second = _drawn(len(values), fit_fraction, seed)
    is_normal = values[:, -1] == 1
    return Split(
        set_name=ECG,
        seed=seed,
        names=tuple(f"sample_{i}" for i in range(values.shape[1] - 1)),
        fit_rows=values[first[is_normal[first]], :-1],
        test_rows=values[second, :-1],
        is_anomaly=~is_normal[second],
    )


def normal_rows(
    name: str, features: Float64Matrix, is_anomaly: BoolVector, *, seed: int, fit_fraction: float = 0.7
) -> Split:
    """Fit on a random part of the normal rows, test on their rest and all anomalies."""
    normal = np.flatnonzero(~is_anomaly)
    first, _ = _drawn(len(normal), fit_fraction, seed)
    in_test = np.ones(len(features), dtype=bool)
    in_test[normal[first]] = False
    return Split(
        set_name=name,
        seed=seed,
        names=tuple(f"feature_{i}" for i in range(features.shape[1])),
        fit_rows=features[normal[first]],
        test_rows=features[in_test],
        is_anomaly=is_anomaly[in_test],
    )


def _file_of(name: str, data_dir: Path) -> Path:
    if name in CREDITCARD:
        return data_dir / "creditcard.csv.gz"
    if name == CARDS:
        return data_dir / with_past.CARDS_FILE
    return data_dir / ("ecg5000.csv.gz" if name == ECG else f"adbench/{ADBENCH[name]}.npz")


def _drawn(n_rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a random part and of the rest, each ascending."""
    order = np.random.default_rng(seed).permutation(n_rows)
    n_first = int(n_rows * fraction)
    return np.sort(order[:n_first]), np.sort(order[n_first:])


def _cut(name: str, seed: int, table: pd.DataFrame, first: np.ndarray, second: np.ndarray) -> Split:
    features = table.drop(columns="Class")
    values, is_fraud = features.to_numpy(dtype=np.float64), table["Class"].to_numpy() == 1
    return Split(
        set_name=name,
        seed=seed,
        names=tuple(features.columns),
        fit_rows=values[first[~is_fraud[first]]],
        test_rows=values[second],
        is_anomaly=is_fraud[second],
    )
