"""The errors that a user sees: one base, and one class per exit code."""


class AcpError(Exception):
    """What was asked for failed. The message names the cause; `details` is the evidence, `remedy` what to do."""

    exit_code = 1

    def __init__(self, message: str, *, details: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.details = details.strip("\n")
        self.remedy = remedy

    def __str__(self) -> str:
        return "\n".join(part for part in (super().__str__(), self.details, self.remedy) if part)


class UsageError(AcpError):
    """The command was given something that it cannot understand: a malformed id, an unknown function."""

    exit_code = 2


class NotRunningError(AcpError):
    """The command needs the local cloud, and it is not up (or no longer whole)."""

    exit_code = 3


class BusyError(AcpError):
    """Another `acp` is changing the local cloud, and did not finish within the wait."""

    exit_code = 4
