"""LocalStack's gateway, limited to the addresses that it is told, and guarded against web pages.

Whoever reaches the gateway can deploy a function, and so run a program as this user. LocalStack's own server listens on
every address, and its own check of Origin lets any request pass that has none.
"""

from typing import override

from localstack.aws.serving.twisted import TLSMultiplexerFactory
from localstack.config import HostAndPort
from localstack.runtime.server.core import RuntimeServer, RuntimeServerPlugin
from localstack.runtime.server.twisted import TwistedRuntimeServer
from rolo.gateway import Gateway
from rolo.serving.twisted import TwistedGateway, TwistedRequestAdapter
from twisted.internet import reactor, ssl

from loopback_guard import is_cors, refusal


class BoundServerPlugin(RuntimeServerPlugin):  # type: ignore[misc] # LocalStack is not in the development environment
    """The plugin that GATEWAY_SERVER=bound selects."""

    name = "bound"

    @override
    def load(self, *_args: object, **_kwargs: object) -> RuntimeServer:
        return BoundServer()


class BoundServer(TwistedRuntimeServer):  # type: ignore[misc] # as above
    """LocalStack's default server, which ignores the host of GATEWAY_LISTEN for IPv4."""

    @override
    def register(self, gateway: Gateway, listen: list[HostAndPort], ssl_creds: tuple[str, str] | None = None) -> None:
        factory = TwistedGateway(gateway)
        # Every request passes the guard before LocalStack gets it, WebSockets included.
        factory.requestFactory = GuardedRequest
        if ssl_creds:
            certificate, key = ssl_creds
            context = ssl.DefaultOpenSSLContextFactory(key, certificate)
            context.getContext().use_certificate_chain_file(certificate)
            factory = TLSMultiplexerFactory(context, False, factory)
        for address in listen:
            reactor.listenTCP(address.port, factory, interface=address.host)


class GuardedRequest(TwistedRequestAdapter):  # type: ignore[misc] # as above
    """A request that the guard may refuse with 403, and whose answer has no CORS headers."""

    @override
    def process(self) -> None:
        headers = ((name, value) for name, values in self.requestHeaders.getAllRawHeaders() for value in values)
        reason = refusal(headers)
        if reason is None:
            super().process()
            return
        body = reason.encode()
        self.setResponseCode(403)
        self.setHeader(b"Content-Type", b"text/plain")
        self.setHeader(b"Content-Length", str(len(body)).encode())
        self.write(body)
        self.finish()

    @override
    def write(self, data: bytes) -> None:
        if not self.startedWriting:
            for name in [name for name, _ in self.responseHeaders.getAllRawHeaders() if is_cors(name)]:
                self.responseHeaders.removeHeader(name)
        super().write(data)
