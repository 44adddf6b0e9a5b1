"""What a user would write instead: a batch script, and a task per row. Both with a Keras model of the same shape."""

from __future__ import annotations

import os

import pandas as pd
from sqlalchemy import BigInteger, Boolean, Double, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.ground import COLUMNS, FEATURES, N_FEATURES, Ground, seconds_of
from pgoutlier.db.engine import sqlalchemy_url

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def autoencoder() -> object:
    """The network of the `default` recipe as a plain Keras model; its weights do not matter for speed."""
    import keras

    return keras.Sequential(
        [
            keras.layers.Input((N_FEATURES,)),
            keras.layers.Dense(64, activation="elu"),
            keras.layers.Dense(16, activation="elu"),
            keras.layers.Dense(64, activation="elu"),
            keras.layers.Dense(N_FEATURES),
        ]
    )


def batch_script_rows_per_second(ground: Ground) -> float:
    """pandas read_sql, model.predict with its default batch, to_sql; over all rows, once."""
    model = autoencoder()
    engine = create_engine(sqlalchemy_url(ground.servers.database_url))
    model.predict(ground.rows[:64], verbose=0)  # type: ignore[attr-defined]

    def script() -> None:
        frame = pd.read_sql(f"SELECT id, {COLUMNS} FROM transactions", engine)
        features = frame[FEATURES].to_numpy()
        error = ((features - model.predict(features, verbose=0)) ** 2).mean(axis=1)  # type: ignore[attr-defined]
        scores = pd.DataFrame({"id": frame["id"], "reconstruction_error": error, "flagged": error > 1.0})
        scores.to_sql("script_scores", engine, if_exists="replace", index=False)

    seconds = seconds_of(script)
    engine.dispose()
    return len(ground.rows) / seconds


class Base(DeclarativeBase):
    pass


class Row(Base):
    """A row as the per-row task sees it, with the score in the row itself."""

    __tablename__ = "per_row_transactions"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    reconstruction_error: Mapped[float | None] = mapped_column(Double)
    flagged: Mapped[bool | None] = mapped_column(Boolean)


for _name in FEATURES:
    setattr(Row, _name, mapped_column(_name, Double))


def per_row_rows_per_second(ground: Ground, *, n_rows: int) -> float:
    """ORM load, model.predict, ORM update, commit; for each of n_rows rows."""
    model = autoencoder()
    engine = create_engine(sqlalchemy_url(ground.servers.database_url))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO per_row_transactions (id, {COLUMNS}) SELECT id, {COLUMNS} FROM transactions"
            f" ORDER BY id LIMIT {n_rows}"
        )
        keys = [r[0] for r in connection.exec_driver_sql("SELECT id FROM per_row_transactions ORDER BY id")]
    model.predict(ground.rows[:1], verbose=0)  # type: ignore[attr-defined]

    def tasks() -> None:
        for key in keys:
            with Session(engine) as session:
                row = session.get_one(Row, key)
                features = pd.DataFrame([{name: getattr(row, name) for name in FEATURES}]).to_numpy()
                predicted = model.predict(features, verbose=0)  # type: ignore[attr-defined]
                row.reconstruction_error = float(((features - predicted) ** 2).mean())
                row.flagged = row.reconstruction_error > 1.0
                session.commit()

    seconds = seconds_of(tasks)
    engine.dispose()
    return len(keys) / seconds
