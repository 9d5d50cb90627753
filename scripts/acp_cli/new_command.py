"""new: makes the first files of a consumer or a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from local_cloud.cloud import Cloud

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PANEL = "The code"
_new = typer.Typer(no_args_is_help=True, help="Make the first files of a consumer or a migration.")
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_new, name="new", rich_help_panel=PANEL)


@_new.command("consumer")
def consumer(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Lower case with underscores: source_watch.", show_default=False)],
    *,
    topic: Annotated[str, typer.Option("--topic", help="Whose events it consumes: system.events.", show_default=False)],
    domain: Annotated[
        str | None, typer.Option("--domain", help="Which domain it belongs to; without it, the topic's.")
    ] = None,
    dry_run: _DryRun = False,
) -> None:
    """Make a consumer that acts on no event yet: its function with queue, dead-letter queue, role, alarms and test."""
    from scaffold.consumer import new_consumer  # noqa: PLC0415 - for this command alone

    checkout = _checkout(ctx)
    _write(checkout, new_consumer(checkout, name, topic, domain), dry_run=dry_run)
    if not dry_run:
        print(
            f"\nNext: write the effect in {name}/__init__.py, see docs/writing_a_consumer.md;\n"
            f"then scripts/test checks unit integration"
        )


@_new.command("migration")
def migration(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Lower case with underscores: source_watch.", show_default=False)],
    *,
    dry_run: _DryRun = False,
) -> None:
    """Make the next migration's file, and raise the schema version that the code needs."""
    from scaffold.migration import new_migration  # noqa: PLC0415 - for this command alone

    checkout = _checkout(ctx)
    _write(checkout, new_migration(checkout, name), dry_run=dry_run)


def _checkout(ctx: typer.Context) -> Path:
    assert isinstance(ctx.obj, Cloud), "the callback sets it"
    return ctx.obj.workspace.checkout


def _write(checkout: Path, files: Mapping[Path, str], *, dry_run: bool) -> None:
    for path, text in files.items():
        is_new = not (checkout / path).exists()
        verb = ("make" if is_new else "change") if dry_run else ("made" if is_new else "changed")
        if not dry_run:
            (checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (checkout / path).write_text(text, encoding="utf-8")
        print(f"{'would ' if dry_run else ''}{verb:8} {path}")
