"""The app of request_cost.py, unwrapped: Flask, SQLAlchemy and pandas, ten rows on a page.

Its heap holds more than 100,000 objects that the garbage collector looks at: some 95,000 come
with these three, 10,000 are rows that the app keeps. The database is a file that outlives a
worker, so that a restart costs what it costs in life: imports, not filling tables.
BENCH_DATABASE names it.
"""

from __future__ import annotations

import gc
import os

import pandas  # noqa: F401  # kept loaded, as an app does that reads its uploads with it
from flask import Flask
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

ROWS = 10
KEPT = 10_000
PAGE = """<!doctype html>
<title>Clients</title>
<table>
{% for client in clients %}
<tr><td>{{ client.id }}</td><td>{{ client.name }}</td><td>{{ client.city }}</td></tr>
{% endfor %}
</table>
"""


class Base(DeclarativeBase):
    pass


class Client(Base):
    __tablename__ = "clients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    city: Mapped[str]


def connect(path: str) -> Engine:
    """The database; filled, where it is new."""
    new = not os.path.exists(path)
    engine = create_engine(f"sqlite:///{path}")
    if new:
        Base.metadata.create_all(engine)
        rows = [{"name": f"Client {n}", "city": "Kiel" if n % 2 else "Jena"} for n in range(KEPT)]
        with Session(engine) as session:
            session.execute(insert(Client), rows)
            session.commit()
    return engine


engine = connect(os.environ["BENCH_DATABASE"])
app = Flask(__name__)
with Session(engine) as session:
    kept = [list(row) for row in session.execute(select(Client.id, Client.name, Client.city))]
engine.dispose()  # no connection may cross a fork
page = app.jinja_env.from_string(PAGE)


@app.get("/")
def clients() -> str:
    with Session(engine) as session:
        rows = session.scalars(select(Client).order_by(Client.id).limit(ROWS)).all()
        return page.render(clients=rows)


@app.get("/heap")
def heap() -> str:
    """How many objects the garbage collector knows, frozen ones included."""
    return str(len(gc.get_objects()) + gc.get_freeze_count())
