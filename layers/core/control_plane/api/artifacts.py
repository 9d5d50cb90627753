"""Artifacts: what decisions used, read in ranges, because an answer has a largest size."""

import re
from base64 import b64encode
from http import HTTPStatus
from typing import Final

from pydantic import Field

from control_plane.api.http import Refused, Response
from control_plane.api.routes import Call, QueryNumber, Strict
from control_plane.api.rows import read_one
from control_plane.platform.database import Database

MOST_BYTES: Final = 1 << 20
"""The most bytes of an artifact that one answer holds."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class ArtifactQuery(Strict):
    """Which bytes."""

    offset: QueryNumber = Field(0, ge=0, le=999_999_999, description="How many bytes of it to leave out.")
    length: QueryNumber = Field(MOST_BYTES, ge=1, le=MOST_BYTES, description="Most bytes of the answer.")


def show_artifact(database: Database, call: Call) -> Response:
    """Returns a range of an artifact's bytes, none from beyond its end. Raises Refused."""
    name, query = call.parameters["sha256"], call.query
    if _SHA256.fullmatch(name) is None:
        detail = f"sha256 is {name[:100]!r}: it must be 64 hexadecimal digits in lower case."
        raise Refused(HTTPStatus.BAD_REQUEST, detail)
    found = read_one(
        database,
        "artifact",
        f"There is no artifact {name}.",
        sha256=bytes.fromhex(name),
        offset=query.offset,
        length=query.length,
    )
    body = {
        "sha256": name,
        "kind": found["kind"],
        "size": found["size"],
        "offset": query.offset,
        "base64": b64encode(found["bytes"]).decode(),
    }
    return Response(HTTPStatus.OK, body)
