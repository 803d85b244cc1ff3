"""How the parts of a local federation trust each other, as their programs' options."""

from __future__ import annotations

from pathlib import Path

from flower_ext.deployment.certificates import (
    make_certificates,
    make_node_key,
    make_tokens,
)
from flower_ext.deployment.settings import Value

__all__ = ["Plaintext", "Secured"]


class Plaintext:
    """No encryption, and nobody proves who they are: for one machine."""

    root_certificates: Path | None = None
    superlink: tuple[str, ...] = ("--insecure",)
    edge: tuple[str, ...] = ("--plaintext",)
    node_keys: tuple[Path, ...] = ()

    @property
    def edge_config(self) -> dict[str, Value]:
        """Return how an app reaches the edge, besides its address."""
        return {"edge-plaintext": True}

    def node(self, i: int) -> tuple[str, ...]:
        """Return the options of a SuperNode."""
        del i
        return ("--insecure",)


class Secured:
    """TLS; SuperNodes prove who they are by keys, and to the edge by tokens.

    Parameters
    ----------
    folder : Path
        Where certificates, keys and tokens are made.
    nodes : int
        How many nodes have a key and a token.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        made = make_certificates(folder)
        names = [f"node-{i}" for i in range(nodes)]
        tokens = make_tokens(folder / "tokens", names)
        self._private_keys = [make_node_key(folder, name) for name in names]
        self.root_certificates: Path | None = made.authority
        self.node_keys = tuple(folder / f"{name}.pub" for name in names)
        self.superlink: tuple[str, ...] = (
            *("--ssl-ca-certfile", str(made.authority)),
            *("--ssl-certfile", str(made.certificate)),
            *("--ssl-keyfile", str(made.key)),
            "--enable-supernode-auth",
        )
        self.edge: tuple[str, ...] = (
            *("--tls-cert", str(made.certificate), "--tls-key", str(made.key)),
            *("--token-file", str(tokens)),
        )
        self._tokens = tokens

    def node(self, i: int) -> tuple[str, ...]:
        """Return the options of a SuperNode."""
        return (
            *("--root-certificates", str(self.root_certificates)),
            *("--auth-supernode-private-key", str(self._private_keys[i])),
        )

    @property
    def edge_config(self) -> dict[str, Value]:
        """Return how an app reaches the edge, besides its address."""
        return {
            "edge-tokens": str(self._tokens),
            "edge-certificate": str(self.root_certificates),
        }
