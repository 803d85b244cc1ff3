"""A local federation: SuperLink, SuperNodes and an edge on one machine.

For a first try, for tests, and as the model of a federation on several machines. It
starts Flower's own programs and imports nothing of Flower.
"""

from flower_ext.deployment.certificates import (
    Certificates,
    make_certificates,
    make_node_key,
    make_tokens,
)
from flower_ext.deployment.federation import LocalFederation
from flower_ext.deployment.runs import Run, RunResult

__all__ = [
    "Certificates",
    "LocalFederation",
    "Run",
    "RunResult",
    "make_certificates",
    "make_node_key",
    "make_tokens",
]
