"""completion: prints what a shell needs to complete acp's commands and options."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

PANEL = "The shell"
# `$1` and `words[1]` are the command as the user typed it, because acp is not on PATH.
_BASH = """\
_acp_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _ACP_COMPLETE=complete_bash "$1" 2>/dev/null) )
}
complete -o default -F _acp_completion acp
"""
_ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_acp_completion() {
    eval "$(_TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _ACP_COMPLETE=complete_zsh "${words[1]}" 2>/dev/null)"
}
compdef _acp_completion acp
"""


class Shell(StrEnum):
    """A shell for which completion exists."""

    BASH = "bash"
    ZSH = "zsh"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("completion", rich_help_panel=PANEL)(completion)


def completion(shell: Annotated[Shell, typer.Argument(show_default=False)]) -> None:
    """Print what completes acp's commands and options: eval "$(scripts/acp completion bash)"; nothing is installed."""
    sys.stdout.write(_BASH if shell is Shell.BASH else _ZSH)
