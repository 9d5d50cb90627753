"""Takes the network away from this process's Python code for a while, so that a replay shows that it needs none."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class NetworkRefused(Exception):
    """Raised where code asks for a socket or a name's address while the network is off.

    It is no OSError, so that whoever puts up with a broken network does not put up with this.
    """


class _Hook:
    """Python tells it of every socket. An audit hook cannot be taken off again, so that this one is switched."""

    def __init__(self) -> None:
        self.is_installed = False
        self.refused: list[list[str]] = []

    def __call__(self, event: str, _arguments: tuple[object, ...]) -> None:
        if self.refused and event.startswith("socket."):
            self.refused[-1].append(event)
            raise NetworkRefused(f"{event} was asked for, and the network is off")


_HOOK = _Hook()


@contextmanager
def network_off() -> Iterator[list[str]]:
    """Refuses every socket and look-up of Python code within the block, in all threads; yields what was refused.

    What was opened before stays usable, and C code that opens sockets of its own (libpq) is not seen.
    """
    if not _HOOK.is_installed:
        sys.addaudithook(_HOOK)
        _HOOK.is_installed = True
    refused: list[str] = []
    _HOOK.refused.append(refused)
    try:
        yield refused
    finally:
        _HOOK.refused.remove(refused)
