"""A seeded simulator of card transactions with a few frauds among them, for the demo, tests and benchmarks.

The normal part. Customers have a home, a usual spending level, preferred merchant categories, hours of the
day they shop in, a habit of buying online, and now and then a trip: for some days they pay far from home, often
abroad, with ten hours of travel before and after. Merchants belong to one of eight categories, which set the
price level and how often a purchase is online, and have a risk (the share of past disputes, as a bank would keep
it). Amounts are log-normal around customer and category. Customers and days both grow with the square root of
n_rows, at 2.5 transactions per customer and day.

The frauds come in episodes on a customer's card and are part of the sequence, so the derived columns see them:

kind                what happens
card_testing        10-20 online payments of under 3, seconds apart, to find out whether stolen numbers work
stolen_card         2-4 large purchases at night, 30-400 km from home, sometimes after wrong PINs
account_takeover    2-4 large online purchases from abroad, in the categories the customer uses least
amount_creep        5-8 payments to one merchant within days, each larger than the one before (skimming)
impossible_travel   1 purchase in person, within an hour of and 700-8,000 km from one of the customer's own

Derived columns use nothing later than the row itself: a mean or share starts from the customer's habit, standing
for the history before the simulated days, and moves with what is paid. One currency; times are UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

KEY, TIME, ENTITY = "transaction_id", "occurred_at", "customer_id"  # the key is for the table to make
FEATURES = (
    "amount",
    "amount_to_mean",  # this amount over the customer's mean so far
    "hour",  # of the day, 0 to 24
    "seconds_since_last",  # the customer's previous transaction, at most 30 days
    "transactions_last_hour",  # the customer's, without this one
    "transactions_last_24h",
    "distance_from_home_km",  # online: of the device
    "travel_speed_kmh",  # to get here from home or the previous place, whichever is nearer; at most 2,000
    "merchant_risk",  # share of disputed payments, 0 to 1
    "category_share",  # share of the customer's transactions so far in this merchant's category
    "is_online",
    "is_foreign",
    "card_age_days",
    "pin_attempts",  # 0 online
)
# Those that a detector can be given by what it finds of the rows before, and how that is said.
OVER_ROWS_BEFORE = {
    "amount_to_mean": "ratio(amount, 30d) by customer_id",
    "seconds_since_last": "since_last by customer_id",
    "transactions_last_hour": "count(1h) by customer_id",
    "transactions_last_24h": "count(24h) by customer_id",
}
FRAUD_SHARES = {
    "card_testing": 0.25,
    "stolen_card": 0.25,
    "account_takeover": 0.2,
    "amount_creep": 0.15,
    "impossible_travel": 0.15,
}
NORMAL = "normal"
LEAST_ROWS = 500
START = pd.Timestamp("2024-03-04T00:00:00Z")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_HOUR, _DAY = 3_600.0, 86_400.0
_PER_DAY = 2.5
_LONGEST_GAP = 30 * _DAY
_FASTEST_KMH = 2_000.0
_HABIT_WEIGHT = 20.0  # how many transactions the customer's habit counts for
# groceries, fuel, restaurants, services, clothing, health, electronics, travel
_PRICE = np.log(np.array([0.8, 1.1, 0.6, 0.9, 1.3, 0.9, 2.0, 2.6]))
_ONLINE = np.array([0.05, 0.0, 0.1, 0.6, 0.4, 0.2, 0.5, 0.7])
_TASTE = np.array([6.0, 2.0, 4.0, 2.0, 2.0, 1.5, 0.8, 0.6])


@dataclass(frozen=True)
class Simulation:
    """rows in the order of time, without a key; is_fraud and fraud_kind have one entry a row."""

    rows: pd.DataFrame
    is_fraud: Bools
    fraud_kind: npt.NDArray[Any]


@dataclass(frozen=True)
class _World:
    """The customers (first axis of the arrays named customer_...) and merchants."""

    n_customers: int
    span: float  # seconds
    activity: Floats  # cumulative share of the transactions
    level: Floats  # log of the usual amount
    peak_hour: Floats
    online: Floats
    taste: Floats  # (n_customers, n_categories), rows sum to one
    card_age: Floats
    trip: Floats  # (n_customers, 4): start and end in seconds, x and y from home in km
    category: Ints  # of each merchant, sorted
    first_merchant: Ints  # (n_categories + 1,)
    risk: Floats


def simulate(*, n_rows: int, seed: int, fraud_share: float = 0.004) -> Simulation:
    """n_rows transactions, a fraud_share of them frauds (at least one of each kind); the same for the same seed.

    Raises ValueError if n_rows is under 500 or fraud_share is not within 0 and 0.2.
    """
    if n_rows < LEAST_ROWS:
        raise ValueError(f"n_rows must be at least {LEAST_ROWS}, not {n_rows}")
    if not 0 <= fraud_share <= 0.2:
        raise ValueError(f"fraud_share must be between 0 and 0.2, not {fraud_share}")
    rng = np.random.default_rng(seed)
    counts = {kind: max(1, round(n_rows * fraud_share * share)) for kind, share in FRAUD_SHARES.items()}
    world = _make_world(rng, n_rows)
    normal = _normal(rng, world, n_rows - sum(counts.values()))
    frauds = [_FRAUDS[kind](rng, world, normal, n).assign(kind=kind) for kind, n in counts.items()]
    events = pd.concat([normal, *frauds], ignore_index=True)
    # Whole microseconds, as PostgreSQL keeps them, and no two the same.
    events = events.sort_values("t", ignore_index=True)
    order = np.arange(n_rows)
    microseconds = np.maximum.accumulate((events["t"].to_numpy() * 1e6).astype(np.int64) - order) + order
    events["t"] = microseconds / 1e6
    rows = _columns(rng, world, events, microseconds)
    kind = events["kind"].to_numpy(dtype=object)
    return Simulation(rows, np.asarray(kind != NORMAL, dtype=np.bool_), kind)


def _make_world(rng: np.random.Generator, n_rows: int) -> _World:
    n = max(50, round(3 * n_rows**0.5))
    n_merchants = max(80, n // 2)
    span = n_rows / (n * _PER_DAY) * _DAY
    activity = rng.gamma(4.0, size=n)
    trip_start = rng.uniform(-0.2, 1.0, n) * span
    trip_end = trip_start + rng.uniform(2, 8, n) * _DAY
    travels = rng.random(n) < 0.12
    trip_km = np.exp(rng.normal(np.log(500), 0.8, n)).clip(100, 5_000)
    angle = rng.uniform(0, 2 * np.pi, n)
    trip = np.column_stack([trip_start, trip_end, trip_km * np.cos(angle), trip_km * np.sin(angle)])
    trip[~travels] = 0.0
    category = np.sort(rng.integers(0, len(_PRICE), n_merchants))
    return _World(
        n_customers=n,
        span=span,
        activity=np.cumsum(activity) / activity.sum(),
        level=rng.normal(np.log(28), 0.35, n),
        peak_hour=rng.normal(14.5, 1.5, n),
        online=rng.beta(4, 4, n) * 2,
        taste=rng.dirichlet(_TASTE, n),
        card_age=rng.uniform(20, 1_400, n),
        trip=trip,
        category=category,
        first_merchant=np.searchsorted(category, np.arange(len(_PRICE) + 1)),
        risk=rng.beta(3, 300, n_merchants) + 0.01 * _ONLINE[category],
    )


def _normal(rng: np.random.Generator, world: _World, n: int) -> pd.DataFrame:
    customer = np.searchsorted(world.activity, rng.random(n)).clip(max=world.n_customers - 1)
    hour = world.peak_hour[customer] + 3.2 * rng.normal(size=n)
    hour = np.where(rng.random(n) < 0.01, rng.uniform(0, 24, n), hour) % 24
    t = _at_hour(rng, world, n, hour)
    trip = world.trip[customer]
    # Nobody pays during the ten hours of travel: such payments are made after the arrival.
    t = t + np.where((t >= trip[:, 0] - 10 * _HOUR) & (t < trip[:, 0]), 10 * _HOUR, 0)
    t = t - np.where((t >= trip[:, 1]) & (t < trip[:, 1] + 10 * _HOUR), 10 * _HOUR, 0)
    t = np.where((t < 0) | (t >= world.span), rng.uniform(0, world.span, n), t)
    away = (t >= trip[:, 0]) & (t < trip[:, 1])
    category = (rng.random(n)[:, None] > np.cumsum(world.taste[customer], axis=1)[:, :-1]).sum(axis=1)
    online = rng.random(n) < _ONLINE[category] * world.online[customer]
    km, angle = rng.gamma(1.5, 4.0, n), rng.uniform(0, 2 * np.pi, n)
    abroad = away & (np.hypot(trip[:, 2], trip[:, 3]) > 600)
    return _events(
        t=t,
        customer=customer,
        merchant=_merchant(rng, world, category),
        amount=np.exp(world.level[customer] + _PRICE[category] + 0.45 * rng.normal(size=n)),
        online=online,
        foreign=np.where(online, rng.random(n) < 0.03, abroad),
        x=km * np.cos(angle) + away * trip[:, 2],
        y=km * np.sin(angle) + away * trip[:, 3],
        pins=np.where(online, 0, 1 + (rng.random(n) < 0.01)),
    )


def _card_testing(rng: np.random.Generator, world: _World, normal: pd.DataFrame, n: int) -> pd.DataFrame:
    episode, step = _episodes(rng, n, 10, 20)
    customer = rng.integers(0, world.n_customers, n)[episode]
    t = rng.uniform(0, 0.95 * world.span, n)[episode] + step * rng.uniform(15, 60, n)[episode]
    shop = _risky_merchant(rng, world, n)
    return _fraud(rng, t, customer, shop, rng.uniform(0.3, 3, n), online=True, foreign=rng.random(n) < 0.3)


def _stolen_card(rng: np.random.Generator, world: _World, normal: pd.DataFrame, n: int) -> pd.DataFrame:
    episode, step = _episodes(rng, n, 2, 4)
    customer = rng.integers(0, world.n_customers, n)[episode]
    t = _at_hour(rng, world, n, rng.uniform(0, 4, n))[episode] + step * rng.uniform(300, 1_500, n)[episode]
    shop = _merchant(rng, world, rng.choice([1, 4, 6], n))
    amount = _large(rng, world, customer, times=5)
    km = rng.uniform(30, 400, n)[episode]
    pins = 1 + rng.binomial(2, 0.3, n)
    return _fraud(rng, t, customer, shop, amount, km=km, foreign=rng.random(n) < 0.1, pins=pins)


def _account_takeover(rng: np.random.Generator, world: _World, normal: pd.DataFrame, n: int) -> pd.DataFrame:
    episode, step = _episodes(rng, n, 2, 4)
    customer = rng.integers(0, world.n_customers, n)[episode]
    t = rng.uniform(0, 0.97 * world.span, n)[episode] + step * rng.uniform(120, 3_000, n)[episode]
    least_used = world.taste[customer].argsort(axis=1)[np.arange(n), rng.integers(0, 3, n)]
    shop, amount = _merchant(rng, world, least_used), _large(rng, world, customer, times=6)
    km = np.exp(rng.normal(np.log(900), 0.7, n))[episode]
    return _fraud(rng, t, customer, shop, amount, online=True, km=km, foreign=rng.random(n) < 0.8)


def _amount_creep(rng: np.random.Generator, world: _World, normal: pd.DataFrame, n: int) -> pd.DataFrame:
    episode, step = _episodes(rng, n, 5, 8)
    customer = rng.integers(0, world.n_customers, n)[episode]
    gap = rng.uniform(0.3, 1, n)[episode] * min(_DAY, world.span / 12)
    t = rng.uniform(0, 0.4 * world.span, n)[episode] + step * gap
    shop = _risky_merchant(rng, world, n)[episode]
    amount = np.exp(world.level[customer]) * 1.7 ** (step + 1) * np.exp(0.1 * rng.normal(size=n))
    return _fraud(rng, t, customer, shop, amount, online=True)


def _impossible_travel(rng: np.random.Generator, world: _World, normal: pd.DataFrame, n: int) -> pd.DataFrame:
    before = normal[~normal["online"]].iloc[rng.integers(0, int((~normal["online"]).sum()), n)]
    customer = before["customer"].to_numpy(dtype=np.int64)
    t = before["t"].to_numpy() + rng.uniform(600, 3_500, n)
    shop = _merchant(rng, world, rng.choice([2, 4, 6, 7], n))
    amount = _large(rng, world, customer, times=2.5)
    return _fraud(rng, t, customer, shop, amount, km=rng.uniform(700, 8_000, n), foreign=rng.random(n) < 0.8)


_FRAUDS = {
    "card_testing": _card_testing,
    "stolen_card": _stolen_card,
    "account_takeover": _account_takeover,
    "amount_creep": _amount_creep,
    "impossible_travel": _impossible_travel,
}


def _columns(
    rng: np.random.Generator, world: _World, events: pd.DataFrame, microseconds: Ints
) -> pd.DataFrame:
    """The table of the user's kind: events is in the order of time."""
    customer, t = events["customer"].to_numpy(), events["t"].to_numpy()
    merchant, amount = events["merchant"].to_numpy(), events["amount"].to_numpy().round(2).clip(0.01)
    history = _history(rng, world, events, amount)
    rows = {
        TIME: START + pd.to_timedelta(microseconds, unit="us"),
        ENTITY: customer + 1,
        "merchant_id": merchant + 1,
        "amount": amount,
        "hour": t % _DAY / _HOUR,
        "distance_from_home_km": np.hypot(events["x"].to_numpy(), events["y"].to_numpy()),
        "merchant_risk": world.risk[merchant],
        "is_online": events["online"].to_numpy(),
        "is_foreign": events["foreign"].to_numpy(),
        "card_age_days": np.floor(world.card_age[customer] + t / _DAY),
        "pin_attempts": events["pins"].to_numpy(),
        **history,
    }
    return pd.DataFrame(rows)[[TIME, ENTITY, "merchant_id", *FEATURES]]


def _history(
    rng: np.random.Generator, world: _World, events: pd.DataFrame, amount: Floats
) -> dict[str, Floats | Ints]:
    """What depends on the customer's earlier transactions, in the order of events."""
    order = np.lexsort((events["t"].to_numpy(), events["customer"].to_numpy()))
    e = events.iloc[order].reset_index(drop=True)
    customer, t, paid = e["customer"].to_numpy(), e["t"].to_numpy(), amount[order]
    n_before = e.groupby("customer").cumcount().to_numpy()
    first = n_before == 0

    gap = np.diff(t, prepend=0.0)
    usual_gap = rng.exponential(_DAY / _PER_DAY, len(t))
    gap = np.where(first, usual_gap, gap).clip(1, _LONGEST_GAP)

    # Customers are laid end to end on one time axis, too far apart to reach each other.
    axis = customer * (world.span + 3 * _DAY) + t
    place = np.arange(len(t))
    last_hour = place - np.searchsorted(axis, axis - _HOUR)
    last_day = place - np.searchsorted(axis, axis - _DAY)

    habit = (world.taste * np.exp(_PRICE)).sum(axis=1) * np.exp(world.level) * 1.1
    paid_before = pd.Series(paid).groupby(customer).cumsum().to_numpy() - paid
    mean = (paid_before + _HABIT_WEIGHT * habit[customer]) / (n_before + _HABIT_WEIGHT)
    category = world.category[e["merchant"].to_numpy()]
    n_alike = e.groupby(["customer", pd.Series(category, name="category")]).cumcount().to_numpy()
    share = (n_alike + _HABIT_WEIGHT * world.taste[customer, category]) / (n_before + _HABIT_WEIGHT)

    x, y = e["x"].to_numpy(), e["y"].to_numpy()
    # From home too: whose card was used far away is not suspicious for buying at home again.
    moved = np.minimum(np.hypot(np.diff(x, prepend=0.0), np.diff(y, prepend=0.0)), np.hypot(x, y))
    # Within minutes, where one is to a few km tells nothing of one's speed.
    speed = np.where(first, 0.0, moved / (np.maximum(gap, 600) / _HOUR)).clip(max=_FASTEST_KMH)
    back = np.empty_like(order)
    back[order] = place
    derived = {
        "amount_to_mean": paid / mean,
        "seconds_since_last": gap,
        "transactions_last_hour": last_hour,
        "transactions_last_24h": last_day,
        "travel_speed_kmh": speed,
        "category_share": share,
    }
    return {name: values[back] for name, values in derived.items()}


def _episodes(rng: np.random.Generator, n: int, shortest: int, longest: int) -> tuple[Ints, Ints]:
    """Each row's episode number and its place in the episode, for n rows; lengths are uniform."""
    lengths = rng.integers(shortest, longest + 1, n)
    episode = np.repeat(np.arange(n), lengths)[:n]
    starts = np.cumsum(lengths) - lengths
    return episode, np.arange(n) - starts[episode]


def _at_hour(rng: np.random.Generator, world: _World, n: int, hour: Floats) -> Floats:
    days = max(1, int(world.span // _DAY))
    return np.asarray(rng.integers(0, days, n) * _DAY + hour * _HOUR)


def _merchant(rng: np.random.Generator, world: _World, category: Ints) -> Ints:
    """A merchant of each category, the first ones of a category more often."""
    first, end = world.first_merchant[category], world.first_merchant[category + 1]
    picked = first + (rng.random(len(category)) ** 2 * (end - first)).astype(np.int64)
    return np.asarray(picked.clip(max=len(world.category) - 1))


def _risky_merchant(rng: np.random.Generator, world: _World, n: int) -> Ints:
    riskiest = world.risk.argsort()[-max(3, len(world.risk) // 10) :]
    return np.asarray(rng.choice(riskiest, n))


def _large(rng: np.random.Generator, world: _World, customer: Ints, *, times: float) -> Floats:
    return np.asarray(np.exp(world.level[customer] + 0.5 * rng.normal(size=len(customer))) * times)


def _fraud(
    rng: np.random.Generator,
    t: Floats,
    customer: Ints,
    merchant: Ints,
    amount: Floats,
    *,
    online: bool = False,
    foreign: Bools | bool = False,
    km: Floats | None = None,
    pins: Ints | int = 1,
) -> pd.DataFrame:
    """km: distance from home; without it the place is one of an ordinary purchase."""
    n = len(t)
    angle = rng.uniform(0, 2 * np.pi, n)
    far = rng.gamma(1.5, 4.0, n) if km is None else km
    return _events(
        t=t,
        customer=customer,
        merchant=merchant,
        amount=amount,
        online=np.full(n, online),
        foreign=np.broadcast_to(foreign, n),
        x=far * np.cos(angle),
        y=far * np.sin(angle),
        pins=np.zeros(n, np.int64) if online else np.broadcast_to(pins, n),
    )


def _events(**columns: npt.NDArray[Any]) -> pd.DataFrame:
    return pd.DataFrame(columns).assign(kind=NORMAL)
