"""Rows of a query: SQLite by Python, other databases by SQLAlchemy, and no password in anything that is written."""

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from columns import make_columns
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop import UserError, build, load_config
from trainer_loop.cli.run import main
from trainer_loop.config.load import flatten, public_values, spell_config
from trainer_loop.config.secrets import is_secret, mask_arguments, mask_secrets
from trainer_loop.data.database import name_database, read_query
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split
from trainer_loop.record.logs import Console

PASSWORD = "hunter2-of-mine"
ADDRESS = f"postgresql://me:{PASSWORD}@db.lab:5432/reviews?sslmode=require"
SQL = "select body as text, stars as label, id from reviews order by id"


@pytest.fixture
def reviews(folder: Path) -> Path:
    """A database of 12 rows in the current folder."""
    with closing(sqlite3.connect("reviews.db")) as database, database:
        database.execute("create table reviews (id integer, body text, stars integer)")
        rows = [(n, f"a {'good' if n % 2 else 'bad'} book {n}", n % 2) for n in range(12)]
        database.executemany("insert into reviews values (?, ?, ?)", rows)
    return folder / "reviews.db"


def load(sql: str = SQL, connection: str = "reviews.db", **keys: Any) -> tuple[dict[str, Split], list[str]]:
    given: dict[str, Any] = {"train": {"sql": sql, "connection": connection}, "columns": make_columns(), "seed": 42}
    splits, _, problems = read_splits(DataSection(**(given | keys)))
    return splits, problems


@pytest.mark.parametrize("connection", ["reviews.db", "sqlite:///reviews.db", "sqlite:///{folder}/reviews.db"])
def test_the_rows_of_a_query_are_read_in_its_order(reviews: Path, connection: str):
    splits, problems = load(connection=connection.format(folder=reviews.parent))
    assert problems == []
    assert splits["train"].rows.column_names == ["text", "label"]
    assert splits["train"].columns == ["text", "label", "id"]
    assert list(splits["train"].rows)[3] == {"text": "a good book 3", "label": 1}
    assert splits["train"].origins.place(3).endswith("reviews.db row 4")


def test_the_fingerprint_follows_what_was_read(reviews: Path):
    before = load()[0]["train"].fingerprint
    assert load()[0]["train"].fingerprint == before
    assert load(sql=SQL.replace("order by", "where true order by"))[0]["train"].fingerprint == before
    with closing(sqlite3.connect(reviews)) as database, database:
        database.execute("update reviews set body = 'another' where id = 5")
    assert load()[0]["train"].fingerprint != before


@pytest.mark.parametrize(
    ("sql", "connection", "told"),
    [
        ("select * from revews", "reviews.db", "the query failed: no such table: revews; correct its sql"),
        ("select 1; select 2", "reviews.db", "the query failed: You can only execute one statement at a time"),
        ("delete from reviews", "reviews.db", "the query failed: attempt to write a readonly database"),
        ("pragma user_version = 3", "reviews.db", "the query failed: attempt to write a readonly database"),
        ("", "reviews.db", "the sql returns no rows; write a query"),
        ("select * from reviews where id > 99", "reviews.db", "the query returns no rows"),
        ("select body, id as body from reviews", "reviews.db", "the query returns several columns body; name them by"),
        ("select 1", "revews.db", "revews.db: there is no such file of SQLite"),
        (SQL, "broken.db", "broken.db: the query failed: file is not a database"),
    ],
)
def test_a_query_that_fails_is_told(reviews: Path, sql: str, connection: str, told: str):
    Path("broken.db").write_text("no database " * 100)
    (problem,) = load(sql, connection)[1]
    assert problem.startswith("data.train: ")
    assert told in problem


def test_a_column_that_the_query_lacks_is_told_with_those_it_has(reviews: Path):
    query = json.dumps({"sql": "select id, body from reviews", "connection": "reviews.db"})
    model = "model={type: bert, tokenizer: train}"
    with pytest.raises(UserError) as caught:
        build(load_config(None, [model, f"data.train={query}", "run_dir=run"]), console=Console(enabled=False))
    assert "data.columns.text=text: data.train has no such column; it has id, body" in str(caught.value)


def test_several_sets_may_be_queries(reviews: Path):
    one = {"sql": f"{SQL} limit 3", "connection": "reviews.db"}
    splits, problems = load(validation=one, test={"first": one, "all": one | {"sql": SQL}})
    assert problems == []
    sizes = {name: len(split.rows) for name, split in splits.items()}
    assert sizes == {"train": 12, "validation": 3, "test.first": 3, "test.all": 12}


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("data.train={sql: select 1}", "connection is missing"),
        ("data.train={connection: a.db}", "sql is missing"),
        ("data.test={sql: select 1, conection: a.db}", "conection is not sql or connection"),
        ("data.test={one: {sql: select 1}}", "connection is missing"),
        ("data.mixture=[{name: a, weight: 1, train: {sql: select 1}}]", "train of a: connection is missing"),
        ("data={train: {sql: select 1, connection: a.db}, streaming: true}", "a database is not streamed"),
    ],
)
def test_a_query_that_is_written_wrong_is_refused(argument: str, told: str):
    with pytest.raises(UserError, match=told):
        load_config(None, ["model.type=bert", "train.steps=1", argument])


def test_a_query_can_be_a_source_of_a_mixture(reviews: Path):
    query = {"sql": "select body, stars from reviews", "connection": "reviews.db"}
    Path("more.csv").write_text("text,label\nfine,1\nawful,0\n")
    mixture = [
        {"name": "a", "weight": 1, "train": query, "columns": {"text": "body", "label": "stars"}},
        {"name": "b", "weight": 1, "train": "more.csv"},
    ]
    splits, problems = load(train=None, mixture=mixture)
    assert problems == []
    assert len(splits["train"].rows) == 14


# -------------------------------------------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    ("connection", "name", "hidden"),
    [
        ("reviews.db", "reviews.db", False),
        ("sqlite:////data/me@home.db", "/data/me@home.db", False),
        ("postgresql:///reviews", "postgresql:///reviews", False),
        (ADDRESS, "postgresql://db.lab:5432/reviews", True),
        ("mysql://db/reviews?password=hunter2", "mysql://db/reviews", True),
        ("mysql://me:hun/ter@2@db/reviews", "mysql://db/reviews", True),
        ("mysql://me:hun?ter2@db/reviews", "mysql://", True),
        ("mysql://me:hunter2/reviews", "mysql://", True),
        ("mysql://db:3306/reviews", "mysql://db:3306/reviews", False),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dhunter2", "mssql+pyodbc:///", True),
        ("host=db password=hunter2", "the database", True),
    ],
)
def test_a_database_is_named_without_its_password(connection: str, name: str, hidden: bool):
    assert name_database(connection) == name
    assert is_secret("connection", connection) == hidden


@given(st.text(alphabet="abc:/?@&=%;", max_size=12))
def test_no_password_is_part_of_the_name_of_a_database(noise: str):
    assert "XYZ" not in name_database(f"postgresql://me:XYZ{noise}@db.lab/reviews")
    assert is_secret("connection", f"postgresql://me:XYZ{noise}@db.lab/reviews")


def written(query: object, key: str) -> str:
    config = load_config(None, ["model.type=bert", f"{key}={json.dumps(query)}"])
    everything = [spell_config(config), str(public_values(config)), str(flatten(config)), repr(mask_secrets({"a": 1}))]
    return "\n".join([*everything, *mask_arguments([f"{key}={json.dumps(query)}"])])


@pytest.mark.parametrize("key", ["data.train", "data.validation", "data.test", "data.mixture"])
@pytest.mark.parametrize("address", [ADDRESS, f"mssql+pyodbc:///?odbc_connect=PWD%3D{PASSWORD}"])
def test_a_password_is_not_written_down(key: str, address: str):
    query: Any = {"sql": SQL, "connection": address}
    if key == "data.test":
        query = {"hard": query}
    if key == "data.mixture":
        query = [{"name": name, "weight": 1, "train": query} for name in ("a", "b")]
    text = written(query, key)
    assert PASSWORD not in text
    assert "select body as text" in text
    assert f"${{oc.env:{key.replace('.', '_').upper()}" in text


def test_a_connection_from_the_environment_keeps_its_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_DATABASE", ADDRESS)
    argument = f"data.train={{sql: '{SQL}', connection: '${{oc.env:MY_DATABASE}}'}}"
    config = load_config(None, ["model.type=bert", argument])
    assert config.data.train["connection"] == ADDRESS
    assert "connection: ${oc.env:MY_DATABASE}" in spell_config(config)


def test_an_address_in_the_place_of_a_file_is_refused_without_its_password():
    with pytest.raises(UserError, match="an address is no file; a database is read by a query") as caught:
        load_config(None, ["model.type=bert", f"data.train={ADDRESS}"])
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("key", ["data.train", "data.test"])
def test_an_error_about_a_query_does_not_show_a_password(key: str):
    with pytest.raises(UserError) as caught:
        load_config(None, ["model.type=bert", f"{key}={json.dumps({'sql': 1, 'conn': 'x', 'connection': ADDRESS})}"])
    assert "conn is not sql or connection" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(
        UserError, match=r"^postgresql://db.lab:5432/reviews: it is read by the package sqlalchemy: pip"
    ):
        read_query(SQL, ADDRESS, columns=None)


def test_other_databases_are_read_by_sqlalchemy(reviews: Path):
    pytest.importorskip("sqlalchemy")
    sql = "select body || ' 5%:x' as text, stars as label from reviews order by id"
    read = read_query(sql, "sqlite+pysqlite:///reviews.db", columns=["text", "label"])
    assert read.columns == ["text", "label"]
    assert read.rows[3] == {"text": "a good book 3 5%:x", "label": 1}
    for failing, told in (("selec", "near .selec.: syntax error"), ("create table a (b integer)", "returns no rows")):
        with pytest.raises(UserError, match=told):
            read_query(failing, "sqlite+pysqlite:///reviews.db", columns=None)
    with pytest.raises(UserError) as caught:
        read_query(SQL, f"nothing://me:{PASSWORD}@db.lab/reviews", columns=None)
    assert "nothing://db.lab/reviews: the query failed: Can't load plugin" in str(caught.value)
    with pytest.raises(UserError) as caught:
        read_query(SQL, f"postgresql://me:{PASSWORD}@db.lab:{PASSWORD}/reviews", columns=None)
    assert PASSWORD not in str(caught.value)


def test_a_run_on_a_database_leaves_no_password_behind(
    reviews: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("sqlalchemy")
    address = f"sqlite+pysqlite:///file:reviews.db?mode=ro&uri=true&password={PASSWORD}"
    arguments = [
        f"data.train={json.dumps({'sql': SQL, 'connection': address})}",
        "model={type: bert, tokenizer: train, vocab_size: 300, overrides: {hidden_size: 16, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 16}}",
        *("train.steps=1", "run_dir=run", "data.cache_dir=cache", "data.max_length=16"),
    ]
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    assert main(arguments) == 0
    texts = [path.read_bytes() for path in Path("run").rglob("*") if path.is_file()]
    shown = capfd.readouterr()
    assert len(texts) > 10
    assert not any(PASSWORD.encode() in text for text in [*texts, shown.out.encode(), shown.err.encode()])
    monkeypatch.setenv("DATA_TRAIN_CONNECTION", address)
    assert main(["config=run/config.yaml", "train.steps=2"]) == 0
    assert "step 2" in capfd.readouterr().out or json.loads(Path("run/status.json").read_text())["step"] == 2
