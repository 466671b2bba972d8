"""Reads the rows of a database query: SQLite files with the standard library, other databases with SQLAlchemy."""

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
_SHORTEST_PART = 3  # of an address, in characters, that is masked in messages


def read_query(sql: str, connection: str, *, columns: Collection[str] | None) -> Split:
    """Return the rows of a query, in its order.

    Args:
        sql: A query in the dialect of the database.
        connection: Path of an SQLite file, also as `sqlite:///reviews.db`, or an address for SQLAlchemy.
        columns: Columns that are read; None: all.

    Raises:
        UserError: There is no such database, the query fails, or it returns no rows.
    """
    place = name_database(connection)
    is_sqlite = connection.startswith(_SQLITE) or "://" not in connection
    query = _run_sqlite(connection, sql) if is_sqlite else _run_sqlalchemy(connection, sql)
    with query as (names, rows):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{place}: the query returns several columns {enumerate_names(twice)}; name them by `as`")
        indices = [place for place, name in enumerate(names) if columns is None or name in columns] or [0]
        dicts = [{names[place]: row[place] for place in indices} for row in rows]
    if not dicts:
        raise UserError(f"{place}: the query returns no rows")
    return replace(read_dicts(dicts, place=place, columns=columns), columns=names)


def name_database(connection: str) -> str:
    """Return the name of a database for messages and model cards, without user, password and options.

    >>> name_database("postgresql://me:hunter2@db.lab/reviews?sslmode=require"), name_database("sqlite:///reviews.db")
    ('postgresql://db.lab/reviews', 'reviews.db')
    """
    if connection.startswith(_SQLITE):
        return connection.removeprefix(_SQLITE).partition("?")[0]
    scheme, address, rest = connection.partition("://")
    if not address:
        return "the database" if is_secret("connection", connection) else connection
    credentials, _, location = rest.rpartition("@")
    place = location.partition("?")[0]
    # If a password has a `?` (instead of %3F), or the `@` is missing, the place may hold a part of it.
    is_clear = "?" not in credentials and _HOST.match(place) is not None
    return f"{scheme}://{place if is_clear else ''}"


@contextlib.contextmanager
def _run_sqlite(connection: str, sql: str) -> Iterator[tuple[list[str], Iterable[Sequence[Any]]]]:
    """Yield the names of the columns, and the rows. The file is opened read-only."""
    name = name_database(connection)
    path = expand_home(name)
    if not path.is_file():
        raise UserError(
            f"{name}: there is no such file of SQLite; connection is its path, or an address: {_SQLITE}a.db"
        )
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            cursor = database.execute(sql)
            yield _check_columns([column[0] for column in cursor.description or ()], name), cursor
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise UserError(f"{name}: the query failed: {in_one_line(error)}; correct its sql or its connection") from error


@contextlib.contextmanager
def _run_sqlalchemy(connection: str, sql: str) -> Iterator[tuple[list[str], Iterable[Sequence[Any]]]]:
    """Like `_run_sqlite`. Changes that the query makes are not committed."""
    name = name_database(connection)
    try:
        import sqlalchemy
    except ImportError as error:
        raise UserError(f"{name}: it is read by the package sqlalchemy: pip install sqlalchemy") from error
    try:
        engine = sqlalchemy.create_engine(connection, poolclass=sqlalchemy.NullPool)
        # Without parameters, `:name` and `%` are ordinary characters of the query.
        with engine.connect().execution_options(no_parameters=True) as database:
            result = database.exec_driver_sql(sql)
            yield _check_columns(list(result.keys()) if result.returns_rows else [], name), result
    except ImportError as error:
        raise UserError(f"{name}: the package {error.name} is missing: pip install {error.name}") from error
    except (sqlalchemy.exc.SQLAlchemyError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        cause = getattr(error, "orig", None) or error  # the message of the database, without the query
        message = _mask_secrets(in_one_line(cause, at_most=10_000), connection)[:_LONGEST_MESSAGE]
        raise UserError(f"{name}: the query failed: {message}; correct its sql or its connection") from None


def _check_columns(names: list[str], database: str) -> list[str]:
    if not names:
        raise UserError(f"{database}: the sql returns no rows; write a query, such as select text, label from reviews")
    return names


def _mask_secrets(text: str, connection: str) -> str:
    """Mask the parts of an address in a message that may be secret: users, passwords and options."""
    place = name_database(connection)
    public_parts = {part for part in re.split(r"\W+", place) if part}
    rest = connection.partition("://")[2]
    credentials, _, location = rest.rpartition("@")
    parts = [credentials, *re.split(r"[:@/?&=;]", f"{credentials}?{location.partition('?')[2]}")]
    text = text.replace(connection, place)
    for part in sorted({*parts, *map(unquote, parts)} - public_parts, key=len, reverse=True):
        text = text.replace(part, MASK) if len(part) >= _SHORTEST_PART else text
    return text
