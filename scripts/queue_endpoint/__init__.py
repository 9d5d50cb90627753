"""A local endpoint that takes SQS's SendMessageBatch, as fast as Python can, and goes wrong as it is told.

For benchmarks and fault tests: it keeps what it accepted as a list of ids, and delivers to nobody. Or, for drills, it
stands before an emulator's queues and passes on what it accepts.
"""

from queue_endpoint.client import Accepted, QueueEndpoint, Request, serve
from queue_endpoint.faults import Fault

__all__ = ["Accepted", "Fault", "QueueEndpoint", "Request", "serve"]
