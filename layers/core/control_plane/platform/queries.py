"""Loads the ``queries.sql`` files: named, described queries, each of which a test PREPAREs on Postgres.

A query starts with a line ``-- name: <name>``; the comment lines after it describe it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import takewhile
from typing import LiteralString

_HEADER = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Query:
    """One statement with psycopg's ``%(name)s`` placeholders."""

    name: str
    description: str
    sql: LiteralString


def load_queries(package: str) -> Mapping[str, Query]:
    """Returns the queries of ``<package>/queries.sql`` by name.

    Raises ValueError for a name that is given twice or has no SQL.
    """
    parts = _HEADER.split(resources.files(package).joinpath("queries.sql").read_text(encoding="utf-8"))
    queries: dict[str, Query] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in queries:
            raise ValueError(f"{package}/queries.sql names {name} twice")
        lines = body.strip().splitlines()
        comment = list(takewhile(lambda line: line.startswith("--"), lines))
        if len(comment) == len(lines):
            raise ValueError(f"{package}/queries.sql: {name} has no statement")
        description = " ".join(line.removeprefix("--").strip() for line in comment)
        # The text ships with the code, so it is as trustworthy as a literal.
        sql: LiteralString = "\n".join(lines[len(comment) :])
        queries[name] = Query(name, description, sql)
    return queries
