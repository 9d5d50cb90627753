"""A local endpoint for SQS's SendMessageBatch, as fast as Python can be, with faults on demand.

Benchmarks and fault tests use it: it keeps a list of the ids that it accepted and delivers nothing. Drills put it
before an emulator's queues, to which it passes on what it accepts.
"""

from queue_endpoint.client import Accepted, QueueEndpoint, Request, serve
from queue_endpoint.faults import Fault

__all__ = ["Accepted", "Fault", "QueueEndpoint", "Request", "serve"]
