"""The tables of a trace store, the same on SQLite and on PostgreSQL.

``number`` is a trace's place within its task: it is taken from the task's row, which a writer holds until it commits,
so that numbers become visible in their order and none is used twice, on any database and after any restore.
``key`` is a digest of the id, keyed by the store: an index holds it whatever the id's length, and a tombstone says
nothing about the id. Texts are escaped (see ``escaping``), times are seconds since the epoch.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA = "1"
"""Version of the tables; another one in a database is refused."""

_ROWID = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up INTEGER PRIMARY KEY alone

tables = MetaData()

meta = Table("tracer_meta", tables, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

tasks = Table(
    "tracer_tasks",
    tables,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("through", BigInteger, nullable=False),  # the highest number ever given
    Column("generation", BigInteger, nullable=False),  # rises when rows go away: copies are void then
)

traces = Table(
    "tracer_traces",
    tables,
    Column("task", Integer, ForeignKey(tasks.c.id), primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=False),
    Column("id", Text, nullable=False),
    Column("text", Text),
    Column("label", Text, nullable=False),
    Column("teacher", Text),
    Column("prompt", Text),
    Column("time", Double),
    Column("origin", Text, nullable=False),
    Column("group", Text),
    Column("truth", Text),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("metadata", Text),
    Column("policy", Text),
    Column("seen_label", Text),
    Column("seen_handled", Boolean),
    Column("seen_score", Double),
    Column("recorded_at", Double),
    UniqueConstraint("task", "key"),
)

embedders = Table(
    "tracer_embedders",
    tables,
    Column("id", Integer, primary_key=True),
    Column("task", Integer, ForeignKey(tasks.c.id), nullable=False),
    Column("name", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("digest", Text, nullable=False),
)

vectors = Table(
    "tracer_vectors",
    tables,
    Column("embedder", Integer, ForeignKey(embedders.c.id), primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("vector", LargeBinary, nullable=False),  # float32, little endian
)

forgotten = Table(
    "tracer_forgotten",
    tables,
    Column("task", Integer, ForeignKey(tasks.c.id), primary_key=True, autoincrement=False),
    Column("key", LargeBinary, primary_key=True),
)

traffic = Table(
    "tracer_traffic",
    tables,
    Column("id", _ROWID, primary_key=True),
    Column("task", Integer, ForeignKey(tasks.c.id), nullable=False),
    Column("policy", Text),
    Column("started", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("facts", Text, nullable=False),
)

Index("tracer_traffic_started", traffic.c.task, traffic.c.started)
