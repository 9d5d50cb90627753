"""Makes certificates of any kind, and puts TLS before a Postgres whose own build has none."""

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SSL_REQUEST, GSS_REQUEST = 80_877_103, 80_877_104


@dataclass(frozen=True)
class Certificate:
    """A server's certificate, with its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of our own; clients that have its ``pem`` trust it."""

    def __init__(self, folder: Path, name: str = "an authority of our own") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        root = self._sign(self._key.public_key(), self._name, now - timedelta(days=9), now + timedelta(days=9), ca=True)
        self.pem = root.public_bytes(serialization.Encoding.PEM).decode()
        self.file = folder / f"{root.serial_number}.pem"
        self.file.write_text(self.pem)

    def issue(self, *hosts: str, days: tuple[float, float] = (-1, 1)) -> Certificate:
        """Returns a certificate for these names; the days until it becomes valid and until it expires may be given."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0])])
        since, until = (now + timedelta(days=number) for number in days)
        certificate = self._sign(key.public_key(), name, since, until, hosts=hosts)
        paths = [self._folder / f"{certificate.serial_number}.{ending}" for ending in ("crt", "key")]
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Certificate(*paths)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        name: x509.Name,
        since: datetime,
        until: datetime,
        *,
        hosts: tuple[str, ...] = (),
        ca: bool = False,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder(self._name, name, key, x509.random_serial_number(), since, until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if hosts:
            names = [x509.DNSName(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class TlsFront:
    """Listens on loopback before a Postgres, and speaks TLS with a client that asks for it."""

    def __init__(self, port: int, certificate: Certificate) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    contextlib.suppress(OSError),
                    _negotiated(self.request, context) as client,
                    socket.create_connection(("127.0.0.1", port)) as server,
                ):
                    backward = threading.Thread(target=_pump, args=(server, client))
                    backward.start()
                    _pump(client, server)
                    backward.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def _negotiated(client: socket.socket, context: ssl.SSLContext) -> Any:
    while True:
        head = client.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL)
        code = struct.unpack("!II", head)[1] if len(head) == 8 else 0
        if code not in {SSL_REQUEST, GSS_REQUEST}:
            yield client
            return
        client.recv(8)
        client.sendall(b"S" if code == SSL_REQUEST else b"N")
        if code == SSL_REQUEST:
            with context.wrap_socket(client, server_side=True) as encrypted:
                yield encrypted
            return


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
