"""Making a pandas UDF that is evaluated exactly once a row."""

from collections.abc import Callable
from typing import Any, cast

from pyspark.sql import functions as F
from pyspark.sql.types import DataType
from pyspark.sql.udf import UserDefinedFunction


def once_a_row(function: Callable[[Any], Any], returns: DataType) -> UserDefinedFunction:
    """Turns a function over iterators of pandas batches into a UDF.

    It is nondeterministic to the optimizer, which evaluates deterministic ones again for a filter or an
    explode above them.
    """
    make = cast(Callable[..., UserDefinedFunction], F.pandas_udf)
    return make(function, returns).asNondeterministic()
