"""An app whose dependencies are Flower and flower-ext, as a user might write it."""

from __future__ import annotations

from pathlib import Path

_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "lists-flower-ext"
version = "0.1.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41", "flower-ext"]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "lists.app:server"
clientapp = "lists.app:client"

[tool.flwr.app.config]
"""

_APP = """\
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from flower_ext.coding import Uncoded

client = ClientApp()
server = ServerApp()


@server.main()
def main(grid, context):
    print("found", Uncoded.__name__)
"""


def write_app(folder: Path, more: str = "") -> Path:
    """Write the app, with something more in its ``pyproject.toml``."""
    (folder / "lists").mkdir(parents=True)
    (folder / "lists" / "__init__.py").touch()
    (folder / "lists" / "app.py").write_text(_APP)
    (folder / "pyproject.toml").write_text(_PROJECT + more)
    (folder / "LICENSE").write_text("Apache-2.0")
    return folder
