"""Structs in arrays, as UDFs get them, the same from every Spark."""

from collections.abc import Mapping
from typing import Any


def with_integers(struct: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a struct with integers where its type has them.

    Spark 4.0 makes floats of a field's integers where one of the batch is null; newer ones do not.

    Args:
        struct: the struct's values by field.
        names: its integer fields; those that it lacks are left out.

    >>> with_integers({"start_frame": 3.0, "end_frame": None, "start_s": 0.5}, ("start_frame", "end_frame"))
    {'start_frame': 3, 'end_frame': None, 'start_s': 0.5}
    """
    whole = {name: int(struct[name]) for name in names if struct.get(name) is not None}
    return {**struct, **whole}
