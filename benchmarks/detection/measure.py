"""Measuring a method on a split, each method in a process of its own, so that none meets another's state."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import import_module

from benchmarks.detection.methods import Method, methods
from benchmarks.detection.sets import Split
from pgoutlier import detector
from pgoutlier.detector.metrics import confusion_at, ranking


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method on one split. The figures are None where error says why there are none.

    accuracy: share of test rows that the method's own threshold puts on the right side; None without one.
    card_precision, recall_1 to recall_3: of card transactions alone, see `benchmarks.detection.with_past`.
    fit_seconds, score_seconds: preprocessing included, imports not; score_seconds for all test rows.
    """

    set_name: str
    seed: int
    method: str
    n_fit: int
    n_test: int
    n_anomalies: int
    auroc: float | None = None
    average_precision: float | None = None
    precision_at_100: float | None = None
    accuracy: float | None = None
    card_precision: float | None = None
    recall_1: float | None = None
    recall_2: float | None = None
    recall_3: float | None = None
    fit_seconds: float | None = None
    score_seconds: float | None = None
    error: str | None = None


def measure_all(method: Method, splits: Sequence[Split]) -> Iterator[Measured]:
    """The method on one split after the other; what fails is measured as failed, with the reason."""
    if package := method.missing_package():
        yield from (_failed(method, split, f"the package {package} is not installed") for split in splits)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_quiet) as process:
        for i, split in enumerate(splits):
            seen = split if method.with_time else split.without_time()
            try:
                yield process.submit(_measure, method.name, seen).result()
            except BrokenProcessPool:
                why = "its process was ended by the system, as when memory runs out"
                yield _failed(method, split, why)
                # A pool whose process died takes no more work.
                yield from measure_all(method, splits[i + 1 :])
                return


def _quiet() -> None:
    # Progress bars and warnings of the peers, thousands of them for MCD, would drown our own progress.
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")


def _measure(name: str, split: Split) -> Measured:
    method = methods()[name]
    try:
        if method.ours:
            detector.load_tensorflow()
        for module in method.modules:
            import_module(module)
        if "torch" in method.modules:
            # Its networks are so small that threads wait for each other, on a busy machine most of the time.
            import_module("torch").set_num_threads(1)
        return measure(method, split)
    except Exception as error:  # whatever a peer raises belongs into the table
        first_line = next(iter(str(error).splitlines()), "")
        return _failed(method, split, f"{type(error).__name__}: {first_line}")


def measure(method: Method, split: Split) -> Measured:
    """Fit, score, and compare with the truth, in this process."""
    started = time.perf_counter()
    fitted = method.fit(split)
    fit_seconds = time.perf_counter() - started
    started = time.perf_counter()
    scores = fitted.score(split.test_rows)
    score_seconds = time.perf_counter() - started
    figures = ranking(split.is_anomaly, scores)
    accuracy = None
    if fitted.threshold is not None:
        accuracy = confusion_at(split.is_anomaly, scores, fitted.threshold).accuracy
    return replace(
        _unmeasured(method, split),
        auroc=figures.auroc,
        average_precision=figures.average_precision,
        precision_at_100=figures.precision_at_100,
        accuracy=accuracy,
        **({} if split.cards is None else split.cards.figures(scores)),
        fit_seconds=fit_seconds,
        score_seconds=score_seconds,
    )


def _failed(method: Method, split: Split, why: str) -> Measured:
    return replace(_unmeasured(method, split), error=why)


def _unmeasured(method: Method, split: Split) -> Measured:
    return Measured(
        set_name=split.set_name,
        seed=split.seed,
        method=method.name,
        n_fit=len(split.fit_rows),
        n_test=len(split.test_rows),
        n_anomalies=int(split.is_anomaly.sum()),
    )
