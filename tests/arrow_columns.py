"""A column of every type that Arrow has, and what it stands for: as a text, as a label, in JSON."""

import datetime
import decimal
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_DAY = datetime.date(2026, 1, 2)
_IDS = [uuid.UUID(int=1), uuid.UUID(int=2)]


@dataclass(frozen=True)
class Case:
    """Three rows, the second of them null. texts, labels: of the others, None where they are refused.

    json: of all rows. has_parquet: whether a parquet file can have the column.
    """

    array: pa.Array
    json: list[Any]
    texts: list[str] | None = None
    labels: list[Any] | None = None
    has_parquet: bool = True


def _texts(array: pa.Array, **options: Any) -> Case:
    return Case(array, ["a", None, "c"], texts=["a", "c"], labels=["a", "c"], **options)


def _integers(array: pa.Array, **options: Any) -> Case:
    return Case(array, [0, None, 1], labels=[0, 1], **options)


def _decimals(kind: pa.DataType) -> Case:
    values = [decimal.Decimal("1.00"), None, decimal.Decimal("2.00")]
    return Case(pa.array(values, kind), ["1.00", None, "2.00"], labels=[1, 2])


def _timestamps(unit: str, json: list[Any], zone: str | None = None) -> Case:
    return Case(pa.array([1, None, 3600], pa.timestamp(unit, tz=zone)), json)


_PLAIN = pa.array(["a", None, "c"])
_NUMBERS = pa.array([0, None, 1])

CASES: dict[str, Case] = {
    "null": Case(pa.nulls(3), [None] * 3),
    "bool": Case(pa.array([False, None, True]), [False, None, True], labels=[False, True]),
    **{str(kind): _integers(pa.array([0, None, 1], kind)) for kind in (
        pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
    )},
    **{str(kind): Case(pa.array([0.0, None, 1.0]).cast(kind), [0.0, None, 1.0], labels=[0, 1]) for kind in (
        pa.float16(), pa.float32(), pa.float64()
    )},
    "fractions": Case(pa.array([0.5, None, 1.0]), [0.5, None, 1.0]),
    "decimal32": _decimals(pa.decimal32(5, 2)) if hasattr(pa, "decimal32") else _decimals(pa.decimal128(5, 2)),
    "decimal64": _decimals(pa.decimal64(10, 2)) if hasattr(pa, "decimal64") else _decimals(pa.decimal128(10, 2)),
    "decimal128": _decimals(pa.decimal128(20, 2)),
    "decimal256": _decimals(pa.decimal256(50, 2)),
    "date32": Case(pa.array([_DAY, None, _DAY]), ["2026-01-02", None, "2026-01-02"]),
    "date64": Case(pa.array([_DAY, None, _DAY], pa.date64()), ["2026-01-02", None, "2026-01-02"]),
    "time32[s]": Case(pa.array([1, None, 3600], pa.time32("s")), ["00:00:01", None, "01:00:00"]),
    "time32[ms]": Case(pa.array([1, None, 60], pa.time32("ms")), ["00:00:00.001000", None, "00:00:00.060000"]),
    "time64[us]": Case(pa.array([1, None, 60], pa.time64("us")), ["00:00:00.000001", None, "00:00:00.000060"]),
    "time64[ns]": Case(pa.array([1, None, 60], pa.time64("ns")), ["00:00:00.000000001", None, "00:00:00.000000060"]),
    "timestamp[s]": _timestamps("s", ["1970-01-01T00:00:01", None, "1970-01-01T01:00:00"]),
    "timestamp[ms]": _timestamps("ms", ["1970-01-01T00:00:00.001000", None, "1970-01-01T00:00:03.600000"]),
    "timestamp[us]": _timestamps("us", ["1970-01-01T00:00:00.000001", None, "1970-01-01T00:00:00.003600"]),
    "timestamp[ns]": _timestamps("ns", ["1970-01-01T00:00:00.000000001", None, "1970-01-01T00:00:00.000003600"]),
    "timestamp with a zone": _timestamps("s", ["1970-01-01T00:00:01+00:00", None, "1970-01-01T01:00:00+00:00"], "UTC"),
    "timestamp with an offset": _timestamps(
        "us", ["1970-01-01T05:30:00.000001+05:30", None, "1970-01-01T05:30:00.003600+05:30"], "+05:30"
    ),
    "duration[s]": Case(pa.array([1, None, -3600], pa.duration("s")), ["PT1S", None, "-PT3600S"]),
    "duration[ns]": Case(pa.array([1, None, 10], pa.duration("ns")), ["PT0.000000001S", None, "PT0.000000010S"]),
    "interval": Case(
        pa.array([pa.MonthDayNano([1, 2, 3]), None, pa.MonthDayNano([0, 0, 0])]),
        [{"months": 1, "days": 2, "nanoseconds": 3}, None, {"months": 0, "days": 0, "nanoseconds": 0}],
        has_parquet=False,
    ),
    "binary": Case(pa.array([b"a", None, b"\xff"]), ["YQ==", None, "/w=="]),
    "large_binary": Case(pa.array([b"a", None, b"\xff"], pa.large_binary()), ["YQ==", None, "/w=="]),
    "fixed_size_binary": Case(pa.array([b"ab", None, b"cd"], pa.binary(2)), ["YWI=", None, "Y2Q="]),
    "binary_view": Case(pa.array([b"a", None, b"\xff"], pa.binary_view()), ["YQ==", None, "/w=="]),
    "string": _texts(_PLAIN),
    "large_string": _texts(_PLAIN.cast(pa.large_string())),
    "string_view": _texts(pa.array(["a", None, "c"], pa.string_view())),
    "list": Case(pa.array([[1], None, []]), [[1], None, []]),
    "large_list": Case(pa.array([[1], None, []], pa.large_list(pa.int64())), [[1], None, []]),
    "fixed_size_list": Case(pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)), [[1, 2], None, [3, 4]]),
    "list_view": Case(pa.array([[1], None, []], pa.list_view(pa.int64())), [[1], None, []]),
    "list of texts": Case(pa.array([["a"], None, ["c"]]), [["a"], None, ["c"]]),
    "list of dates": Case(pa.array([[_DAY], None, []]), [["2026-01-02"], None, []]),
    "struct": Case(pa.array([{"a": 1, "b": b"x"}, None, {"a": None, "b": None}]), [
        {"a": 1, "b": "eA=="}, None, {"a": None, "b": None}
    ]),
    "map": Case(pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())), [[["a", 1]], None, []]),
    "sparse union": Case(
        pa.UnionArray.from_sparse(
            pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), pa.array(["a", None, "c"])]
        ),
        [1, None, 3],
        has_parquet=False,
    ),
    "dense union": Case(
        pa.UnionArray.from_dense(
            pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32()), [pa.array([1, 2]), pa.array([None, "c"])]
        ),
        [1, None, 2],
        has_parquet=False,
    ),
    "dictionary of texts": _texts(_PLAIN.dictionary_encode()),
    "dictionary of large texts": _texts(_PLAIN.cast(pa.large_string()).dictionary_encode()),
    "dictionary with a null": _texts(
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["a", None, "c"])), has_parquet=False
    ),
    "dictionary of integers": _integers(_NUMBERS.dictionary_encode()),
    "dictionary of dates": Case(pa.array([_DAY, None, _DAY]).dictionary_encode(), ["2026-01-02", None, "2026-01-02"]),
    "runs of texts": _texts(pc.run_end_encode(_PLAIN), has_parquet=False),
    "runs of integers": _integers(pc.run_end_encode(_NUMBERS), has_parquet=False),
    "uuid": Case(
        pa.array([_IDS[0].bytes, None, _IDS[1].bytes], pa.uuid()), [str(_IDS[0]), None, str(_IDS[1])]
    ),
    "JSON": _texts(_PLAIN.cast(pa.json_())),
    "bool8": Case(
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, None, 1], pa.int8())),
        [False, None, True],
        labels=[0, 1],
    ),
    "opaque": _texts(pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "type", "vendor"), _PLAIN)),
    "tensor": Case(
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int64(), [2]), pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
        ),
        [[1, 2], None, [3, 4]],
    ),
}  # fmt: skip
