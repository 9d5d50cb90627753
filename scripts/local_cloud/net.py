"""Ports of this machine."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a TCP port on which nothing listened a moment ago."""
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True
