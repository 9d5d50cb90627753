"""An HTTP server on loopback that answers as it is told, and records what it was asked."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Server:
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answers: deque[tuple[int, bytes, Mapping[str, str]] | None] = field(default_factory=deque)

    def will_answer(self, status: int, said: Any = None, **headers: str) -> None:
        content = said if isinstance(said, bytes) else b"" if said is None else json.dumps(said).encode()
        self.answers.append((status, content, {name.replace("_", "-"): value for name, value in headers.items()}))

    def will_hang_up(self) -> None:
        self.answers.append(None)


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            said = told.answers.popleft()
            if said is None:
                self.close_connection = True
                return
            status, content, headers = said
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        told.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield told
        http.shutdown()
        thread.join()
