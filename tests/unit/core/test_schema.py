"""A table has the columns and dtypes of its schema, or somebody hears of it."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from tl_l2norm.core.errors import InputError, InputTypeError
from tl_l2norm.core.schema import Column, Schema, ends, plain

SCHEMA = Schema(
    "speeds",
    "measure(...)",
    (
        Column("car", str, "its name"),
        Column("speed", float, "km/h"),
        Column("wheels", int, "how many"),
        Column("moves", bool, "whether"),
        Column("colour", str, "as painted", optional=True),
        Column("year", object, "of make", optional=True),
    ),
)
ENTRY = {"wheels": 4, "car": "a", "speed": 50, "moves": True}


def test_a_frame_has_the_columns_of_its_schema_in_their_order_and_dtypes() -> None:
    frame = SCHEMA.frame([ENTRY, {**ENTRY, "speed": 0.5}])
    assert list(frame) == ["car", "speed", "wheels", "moves"]
    assert frame.dtypes[["speed", "wheels", "moves"]].astype(str).tolist() == ["float64", "int64", "bool"]
    assert frame["speed"].tolist() == [50.0, 0.5]


def test_an_empty_one_has_them_too() -> None:
    empty, one = SCHEMA.frame([]), SCHEMA.frame([ENTRY])
    assert empty.empty and (empty.dtypes == one.dtypes).all()
    assert list(SCHEMA.frame((), by=["colour"])) == ["colour", *one]


def test_columns_and_constants_do_as_well_as_entries() -> None:
    columns = {"car": ["a", "b"], "speed": [1, 2], "wheels": [3, 4]}
    frame = SCHEMA.frame(columns, moves=False)
    pd.testing.assert_frame_equal(frame, SCHEMA.frame(pd.DataFrame(columns).assign(moves=False)))
    assert frame["wheels"].tolist() == [3, 4] and not frame["moves"].any()


def test_what_it_is_grouped_by_comes_first_in_the_order_that_is_asked_for() -> None:
    frame = SCHEMA.frame([{**ENTRY, "colour": "red", "year": 1999}], by=("year", "colour"))
    assert list(frame) == ["year", "colour", *SCHEMA.names]


@pytest.mark.parametrize(
    "entries", [[{**ENTRY, "horns": 2}], [{"car": "a"}], [{**ENTRY, "colour": "red"}]], ids=["more", "less", "not asked for"]
)
def test_a_maker_that_departs_from_its_schema_is_a_bug(entries: list[dict[str, object]]) -> None:
    with pytest.raises(KeyError, match="the table of speeds and its schema differ in"):
        SCHEMA.frame(entries)


@pytest.mark.parametrize(("name", "value"), [("wheels", float("nan")), ("speed", "fast")])
def test_a_value_of_another_kind_is_not_let_through(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"convert"):
        SCHEMA.frame([{**ENTRY, name: value}])


def test_a_reader_names_what_is_missing_and_who_makes_it() -> None:
    frame = SCHEMA.frame([ENTRY])
    assert SCHEMA.check(frame) is frame and SCHEMA.check(frame[["car"]], "car") is not None
    with pytest.raises(InputError, match=r"the table of speeds lacks the columns \['car', 'speed'\]: give what measure\(...\)"):
        SCHEMA.check(frame.drop(columns=["speed", "car"]))
    with pytest.raises(InputError, match=r"lacks the columns \['colour'\]"):
        SCHEMA.check(frame, "colour")
    with pytest.raises(KeyError, match="horns"):
        SCHEMA.check(frame.assign(horns=2), "horns")


def test_a_schema_grows_at_its_end() -> None:
    more = SCHEMA.plus(*ends("speed"), *ends("wheels", prefix=True))
    assert more.names == (*SCHEMA.names, "low", "high", "wheels_low", "wheels_high")
    assert "speed" in more["low"].meaning and more["wheels_high"].dtype is float


@pytest.mark.parametrize("given", [None, [ENTRY], ENTRY, pd.Series(ENTRY), "speeds.csv"])
def test_what_is_no_frame_is_refused(given: object) -> None:
    with pytest.raises(InputTypeError, match=r"the table of speeds is a DataFrame, what measure\(...\) returns, got "):
        SCHEMA.check(given)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("speed", ["fast", 1.0], "speed holds 'fast', which is no number"),
        ("wheels", ["4", "4"], "wheels holds '4', which is no number"),
        ("moves", [True, None], "moves has missing values"),
        ("moves", [1.0, float("nan")], "moves has missing values"),
    ],
)
def test_text_for_numbers_and_missing_truths_are_refused(column: str, values: list[object], says: str) -> None:
    frame = SCHEMA.frame([ENTRY, ENTRY]).assign(**{column: values})
    with pytest.raises(InputError, match=f"the table of speeds: {says}; give what measure"):
        SCHEMA.check(frame)
    assert SCHEMA.check(frame, "car") is frame, "which columns are not read is nobody's affair"


def test_a_table_that_was_a_csv_file_passes() -> None:
    for entries in ([ENTRY, {**ENTRY, "speed": float("nan")}], []):
        read = pd.read_csv(io.StringIO(SCHEMA.frame(entries).to_csv(index=False)))
        assert SCHEMA.check(read) is read
    mixed = SCHEMA.frame([ENTRY, ENTRY]).astype({"speed": object, "moves": object})
    pd.testing.assert_frame_equal(SCHEMA.check(mixed), SCHEMA.frame([ENTRY, ENTRY]))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("moves", [True, 0.5], "moves is 0 or 1, False or True, got 0.5"),
        ("wheels", [4, None], "wheels is missing in 1 of 2 entries"),
        ("wheels", pd.array([4, None], "Int64"), "wheels is missing in 1 of 2 entries"),
        ("moves", pd.array([True, None], "boolean"), "moves has missing values"),
        ("car", [["a"], ["b"]], r"car holds \['a'\], which is no single value"),
        ("speed", [1j, 2.0], "speed holds 1j, which is no number"),
        ("speed", pd.Categorical(["fast", "slow"]), "speed holds 'fast', which is no number"),
    ],
)
def test_what_can_not_be_read_is_refused_by_its_column(column: str, values: object, says: str) -> None:
    with pytest.raises(InputError, match=f"the table of speeds: {says}; give what measure"):
        SCHEMA.check(SCHEMA.frame([ENTRY, ENTRY]).assign(**{column: values}))


def test_pandas_own_dtypes_become_numpys_once() -> None:
    frame = SCHEMA.frame([ENTRY, {**ENTRY, "speed": float("nan"), "moves": False}])
    given = frame.assign(
        wheels=frame["wheels"].astype("Int64"),
        speed=pd.array([50, None], "Float64"),
        moves=pd.Categorical(frame["moves"]),
        car=pd.array(["a", None], "string"),
    )
    read = SCHEMA.check(given)
    assert read.dtypes[["speed", "wheels", "moves"]].astype(str).tolist() == ["float64", "int64", "bool"]
    pd.testing.assert_frame_equal(read[["speed", "wheels", "moves"]], frame[["speed", "wheels", "moves"]])
    assert read["car"][0] == "a" and isinstance(read["car"][1], float), "what is missing is NaN, of which a truth can be taken"


def test_an_index_that_is_called_like_a_column_is_left_behind_and_a_column_twice_is_refused() -> None:
    frame = SCHEMA.frame([ENTRY, ENTRY])
    assert SCHEMA.check(frame.set_index("car", drop=False)).groupby("car").size().tolist() == [2]
    with pytest.raises(InputError, match="the table of speeds has the column 'car' twice"):
        SCHEMA.check(pd.concat([frame, frame[["car"]]], axis=1))


def test_what_pandas_has_of_its_own_and_objects_of_numbers_become_numpys() -> None:
    frame = pd.DataFrame(
        {"i": pd.array([1, None], "Int64"), "b": pd.array([True, False], "boolean"), "f": pd.array([0.5, None])}
    )
    frame = frame.assign(o=frame["f"].astype(object), mixed=pd.Series(["late", 3], dtype=object), text=["a", pd.NA])
    made = plain(frame)
    assert [made[name].dtype for name in "ibfo"] == [np.float64, np.bool_, np.float64, np.float64]
    assert np.isnan(made["i"][1]) and made["mixed"].tolist() == ["late", 3]
    assert made["text"][0] == "a" and np.isnan(made["text"][1]) and plain(frame[["b"]].astype(bool)).dtypes["b"] == np.bool_
    already = pd.DataFrame({"x": [1.0], "y": ["a"]})
    assert plain(already) is already
