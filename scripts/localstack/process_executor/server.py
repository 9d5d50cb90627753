"""LocalStack's gateway on the addresses it is told, and no other: its own server takes the port of every address.

Whoever reaches the gateway can deploy a function, and so run a program as this user.
"""

from typing import override

from localstack.aws.serving.twisted import TLSMultiplexerFactory
from localstack.config import HostAndPort
from localstack.runtime.server.core import RuntimeServer, RuntimeServerPlugin
from localstack.runtime.server.twisted import TwistedRuntimeServer
from rolo.gateway import Gateway
from rolo.serving.twisted import TwistedGateway
from twisted.internet import reactor, ssl


class BoundServerPlugin(RuntimeServerPlugin):  # type: ignore[misc] # LocalStack is not in the development environment
    """What GATEWAY_SERVER=bound names."""

    name = "bound"

    @override
    def load(self, *_args: object, **_kwargs: object) -> RuntimeServer:
        return BoundServer()


class BoundServer(TwistedRuntimeServer):  # type: ignore[misc] # as above
    """LocalStack's default server, which leaves the host of GATEWAY_LISTEN out for IPv4."""

    @override
    def register(self, gateway: Gateway, listen: list[HostAndPort], ssl_creds: tuple[str, str] | None = None) -> None:
        factory = TwistedGateway(gateway)
        if ssl_creds:
            certificate, key = ssl_creds
            context = ssl.DefaultOpenSSLContextFactory(key, certificate)
            context.getContext().use_certificate_chain_file(certificate)
            factory = TLSMultiplexerFactory(context, False, factory)
        for address in listen:
            reactor.listenTCP(address.port, factory, interface=address.host)
