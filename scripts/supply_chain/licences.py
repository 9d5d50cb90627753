"""Reads the licences of installed packages as SPDX expressions."""

from __future__ import annotations

from importlib.metadata import metadata

from license_expression import ExpressionError, get_spdx_licensing

READ_IN_FILE = {
    "beautifulsoup4": "MIT",
    "cedarpy": "Apache-2.0",
    "multitasking": "Apache-2.0",
    "peewee": "MIT",
    "protobuf": "BSD-3-Clause",
    # New contributions are under both licences; those before 2017 under BSD alone.
    "python-dateutil": "Apache-2.0 AND BSD-3-Clause",
    "rfc8785": "Apache-2.0",
}
"""For packages that declare no SPDX expression, what their licence file says."""

_SPDX = get_spdx_licensing()


def licence(name: str) -> str:
    """Returns a package's licence. Raises LookupError if it declares none and its licence file was not read."""
    expression = declared(name) or READ_IN_FILE.get(name)
    if expression is None:
        msg = f"{name} declares no SPDX licence: read its licence file, and add it to READ_IN_FILE in {__name__}"
        raise LookupError(msg)
    return expression


def declared(name: str) -> str | None:
    """Returns the SPDX expression that a package declares; older metadata may have it in the field License."""
    found = metadata(name)
    for field in ("License-Expression", "License"):
        text = found.get(field)
        if text and is_spdx(text):
            return str(text)
    return None


def is_spdx(text: str) -> bool:
    """Whether a text is an SPDX expression, in SPDX's own spelling."""
    try:
        parsed = _SPDX.parse(text, validate=True, strict=True)
    except ExpressionError:
        return False
    return parsed is not None and str(parsed) == text


def licences_in(expression: str) -> set[str]:
    """Returns the identifiers in an expression."""
    return set(_SPDX.license_keys(expression))
