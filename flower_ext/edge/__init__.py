"""The edge service: verification and segments over gRPC, and devices' ways to both."""

from flower_ext.edge.client import RemoteVerifier
from flower_ext.edge.errors import EdgeRefusedError
from flower_ext.edge.segment_source import RemoteSegments
from flower_ext.edge.server import EdgeServer
from flower_ext.edge.tenants import load_tenant_secret
from flower_ext.edge.tokens import load_tokens

__all__ = [
    "EdgeRefusedError",
    "EdgeServer",
    "RemoteSegments",
    "RemoteVerifier",
    "load_tenant_secret",
    "load_tokens",
]
