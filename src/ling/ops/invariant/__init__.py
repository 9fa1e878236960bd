"""Twins whose result for a row does not depend on the other rows of the batch. Only ever forced by name.

A library's matrix product may add up in another order when the number of rows changes. It does not while that number
is a multiple of `ROWS` and the number of keys a multiple of `KEYS`; the engine probes this at its start, on the
machine, the number of threads and the shapes at hand (`engine/invariance.py`), and refuses to promise what does not
hold.
"""

ROWS = 8
"""Rows of every product, per expert too, are padded to a multiple of this."""
KEYS = 64
"""Keys that a query is compared with are padded to a multiple of this."""


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
