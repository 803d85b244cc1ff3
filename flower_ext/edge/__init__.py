"""The edge service: a verifier that devices reach over gRPC, and their way to it."""

from flower_ext.edge.client import RemoteVerifier
from flower_ext.edge.errors import EdgeRefusedError
from flower_ext.edge.server import EdgeServer
from flower_ext.edge.tokens import load_tokens

__all__ = ["EdgeRefusedError", "EdgeServer", "RemoteVerifier", "load_tokens"]
