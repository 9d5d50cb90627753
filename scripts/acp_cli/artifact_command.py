"""artifact: reads what a decision used, by its hash."""

from __future__ import annotations

import hashlib
import re
import sys
from base64 import b64decode
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated, Final

import typer

from acp_cli.asking import asking
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import visible_lines

if TYPE_CHECKING:
    from acp_client.client import Client

PANEL = "Decisions"
_PIECE: Final = 1 << 20
"""How many bytes are asked for at a time: the most that the API gives."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("artifact", rich_help_panel=PANEL)(artifact)


def artifact(
    ctx: typer.Context,
    sha256: Annotated[str, typer.Argument(help="Its hash, as acp decision ID --json has it.", show_default=False)],
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write it.", show_default="standard output"),
    ] = None,
) -> None:
    """Read an artifact: a prompt, a request, an answer, evidence, a policy. Its bytes are checked against its hash."""
    name = sha256.lower().removeprefix("\\x")
    if re.fullmatch(r"[0-9a-f]{64}", name) is None:
        msg = f"{sha256!r} is no SHA-256: it must be 64 hexadecimal digits."
        raise UsageError(msg, remedy="scripts/acp decision ID --json has those of its steps.")
    with asking(ctx) as client:
        content = _read(client, name)
    if hashlib.sha256(content).hexdigest() != name:
        msg = f"What came for {name} has another hash, so it is not the artifact."
        raise AcpError(msg, remedy="scripts/acp audit checks the whole record.")
    if output is not None:
        output.write_bytes(content)
        Progress().say(f"{output} has its {len(content):,} bytes.")
    elif sys.stdout.isatty():
        # What a model answered may hold what controls a terminal.
        sys.stdout.write(visible_lines(content.decode("utf-8", "replace")) + "\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)


def _read(client: Client, name: str) -> bytes:
    content = b""
    while True:
        piece = client.get(f"/artifacts/{name}", offset=len(content), length=_PIECE)
        content += (more := b64decode(piece["base64"]))
        if len(content) >= piece["size"] or not more:
            return content
