"""A local endpoint that speaks as language models' providers do, and goes wrong as it is told.

For tests and demos: Bedrock's Converse and OpenAI's chat completions, with a ledger of what each request would cost.
"""

from model_endpoint.behaviour import Behaviour
from model_endpoint.client import ModelEndpoint, Request, serve

__all__ = ["Behaviour", "ModelEndpoint", "Request", "serve"]
