"""What Flower's commands read: node-configs, run-configs and the connection file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flower_ext.errors import InvalidInputError

__all__ = ["Value", "as_config", "write_connection"]

Value = str | int | float | bool


def as_config(values: Mapping[str, Value] | str) -> str:
    """Return values as ``--node-config`` and ``-c`` want them.

    Parameters
    ----------
    values : Mapping[str, str | int | float | bool] | str
        The values; a string is passed on as it is.

    Returns
    -------
    str
        ``key=value`` pairs with TOML values, separated by spaces.

    Raises
    ------
    InvalidInputError
        If a value has another type.

    Examples
    --------
    >>> as_config({"partition-id": 0, "role": "device", "fast": True})
    'partition-id=0 role="device" fast=true'
    """
    if isinstance(values, str):
        return values
    for key, value in values.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidInputError(
                f"{key!r} must be a string, a number or a truth value, got {value!r}."
            )
    # JSON's strings, numbers and truth values are TOML's.
    return " ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    )


def write_connection(
    home: Path, name: str, address: str, root_certificates: Path | None
) -> Path:
    """Write the file in which ``flwr`` looks up where a SuperLink is.

    Parameters
    ----------
    home : Path
        The folder that ``FLWR_HOME`` names.
    name : str
        Of the connection, and the default one.
    address : str
        Host and port of the SuperLink.
    root_certificates : Path | None
        PEM file that the SuperLink's certificate is checked against; None: plaintext.

    Returns
    -------
    Path
        The file.
    """
    home.mkdir(parents=True, exist_ok=True)
    security = (
        "insecure = true"
        if root_certificates is None
        else f"root-certificates = {json.dumps(str(root_certificates.absolute()))}"
    )
    file = home / "config.toml"
    file.write_text(
        f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\n'
        f'address = "{address}"\n{security}\n',
        encoding="utf-8",
    )
    return file
