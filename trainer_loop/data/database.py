"""The rows of one query of a database. A file of SQLite is read by Python, any other database by SQLAlchemy."""

import contextlib
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from trainer_loop.config.secrets import MASK, is_secret
from trainer_loop.data.given_rows import read_dicts
from trainer_loop.data.split import Split
from trainer_loop.data.wording import enumerate_names
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.host import expand_home

_SQLITE = "sqlite:///"
_HOST = re.compile(r"[^/:]*(:\d+)?(/|$)")
_LONGEST_MESSAGE = 300
_SHORTEST_PART = 3  # of an address, that is looked for in an error message


def read_query(sql: str, connection: str, *, columns: Collection[str] | None) -> Split:
    """The rows that a query returns, in its order.

    Args:
        sql: A query, as the database wants it.
        connection: The path of a file of SQLite, also as `sqlite:///reviews.db`, or an address that SQLAlchemy knows.
        columns: Those that are read; None for all.

    Raises:
        UserError: There is no such database, the query is wrong, or it returns no rows.
    """
    place = name_database(connection)
    is_sqlite = connection.startswith(_SQLITE) or "://" not in connection
    run = _run_sqlite(connection, sql) if is_sqlite else _run_sqlalchemy(connection, sql)
    with run as (names, rows):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{place}: the query returns several columns {enumerate_names(twice)}; name them by `as`")
        read = [place for place, name in enumerate(names) if columns is None or name in columns] or [0]
        dicts = [{names[place]: row[place] for place in read} for row in rows]
    if not dicts:
        raise UserError(f"{place}: the query returns no rows")
    return replace(read_dicts(dicts, place=place, columns=columns), columns=names)


def name_database(connection: str) -> str:
    """What a database is called in messages and model cards: without user, password and options.

    >>> name_database("postgresql://me:hunter2@db.lab/reviews?sslmode=require"), name_database("sqlite:///reviews.db")
    ('postgresql://db.lab/reviews', 'reviews.db')
    """
    if connection.startswith(_SQLITE):
        return connection.removeprefix(_SQLITE).partition("?")[0]
    scheme, address, rest = connection.partition("://")
    if not address:
        return "the database" if is_secret("connection", connection) else connection
    before, _, after = rest.rpartition("@")
    place = after.partition("?")[0]
    # A password may have a `?` in it that was to be written as %3F, or lack its `@`.
    is_clear = "?" not in before and _HOST.match(place) is not None
    return f"{scheme}://{place if is_clear else ''}"


@contextlib.contextmanager
def _run_sqlite(connection: str, sql: str) -> Iterator[tuple[list[str], Iterable[Sequence[Any]]]]:
    """The names of the columns, and the rows. The database is not changed."""
    name = name_database(connection)
    path = expand_home(name)
    if not path.is_file():
        raise UserError(
            f"{name}: there is no such file of SQLite; connection is its path, or an address: {_SQLITE}a.db"
        )
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute(sql)
            yield _name_columns([column[0] for column in found.description or ()], name), found
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise UserError(f"{name}: the query failed: {in_one_line(error)}; correct its sql or its connection") from error


@contextlib.contextmanager
def _run_sqlalchemy(connection: str, sql: str) -> Iterator[tuple[list[str], Iterable[Sequence[Any]]]]:
    """As `_run_sqlite`; what the query changes is not committed."""
    name = name_database(connection)
    try:
        import sqlalchemy
    except ImportError as error:
        raise UserError(f"{name}: it is read by the package sqlalchemy: pip install sqlalchemy") from error
    try:
        engine = sqlalchemy.create_engine(connection, poolclass=sqlalchemy.NullPool)
        # Without parameters, `:name` and `%` are ordinary characters of the query.
        with engine.connect().execution_options(no_parameters=True) as database:
            found = database.exec_driver_sql(sql)
            yield _name_columns(list(found.keys()) if found.returns_rows else [], name), found
    except ImportError as error:
        raise UserError(f"{name}: the package {error.name} is missing: pip install {error.name}") from error
    except (sqlalchemy.exc.SQLAlchemyError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        cause = getattr(error, "orig", None) or error  # the words of the database, without the query
        told = _without_parts(in_one_line(cause, at_most=10_000), connection)[:_LONGEST_MESSAGE]
        raise UserError(f"{name}: the query failed: {told}; correct its sql or its connection") from None


def _name_columns(names: list[str], database: str) -> list[str]:
    if not names:
        raise UserError(f"{database}: the sql returns no rows; write a query, such as select text, label from reviews")
    return names


def _without_parts(text: str, connection: str) -> str:
    """A message without the parts of an address that may be secret: users, passwords and options."""
    place = name_database(connection)
    kept = {part for part in re.split(r"\W+", place) if part}
    rest = connection.partition("://")[2]
    before, _, after = rest.rpartition("@")
    parts = [before, *re.split(r"[:@/?&=;]", f"{before}?{after.partition('?')[2]}")]
    text = text.replace(connection, place)
    for part in sorted({*parts, *map(unquote, parts)} - kept, key=len, reverse=True):
        text = text.replace(part, MASK) if len(part) >= _SHORTEST_PART else text
    return text
