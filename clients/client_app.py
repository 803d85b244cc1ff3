"""CodedClientApp: Flower's ClientApp, ready for coded training."""

from __future__ import annotations

from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import DEFAULT_ACTION
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable, Mod

from flower_ext.clients.holdings import Declaration
from flower_ext.clients.mod import CodedMod, coded_mod
from flower_ext.errors import InvalidInputError

__all__ = ["CodedClientApp"]


class CodedClientApp(ClientApp):
    """A ``ClientApp`` whose train function can be used in coded training.

    The app's functions stay as they are. With a coded strategy, the train function is
    called once per partition that the node is assigned, each time with the received
    arrays and that partition's ``partition-id`` in the node-config, and the node
    replies with one linear combination of the changes. With any other strategy the app
    behaves as a ``ClientApp``, except that training is seeded by (run-config ``seed``,
    round, partition).

    Parameters
    ----------
    client_fn : None (default: None)
        Only there because it is the first argument of ``ClientApp``; legacy
        ``client_fn`` apps are not supported.
    mods : list[Mod] (default: None)
        Mods, run once per partition that is trained.
    partitions : str | int | Iterable[int] | Callable[[Context], ...] (default: None)
        The partitions that this node holds, that is, whose data the train function can
        load: ``"all"``, ``"0-3,7"``, ints, or a function of the context that returns
        one of these. If None, the node-config's ``partitions``, in the same notation;
        without that, the node's own ``partition-id`` alone.

    Raises
    ------
    InvalidInputError
        If a ``client_fn`` is given, ``partitions`` cannot be read, or ``mods`` has a
        coded mod or a ``LocalDpMod``, whose noise the server could predict from the
        seed.

    Examples
    --------
    ::

        app = CodedClientApp(partitions="all")

        @app.train()
        def train(msg: Message, context: Context) -> Message:
            partition = context.node_config["partition-id"]
            ...
            return Message(RecordDict({"arrays": arrays, "metrics": metrics}),
                           reply_to=msg)
    """

    def __init__(
        self,
        client_fn: None = None,
        mods: list[Mod] | None = None,
        *,
        partitions: Declaration | None = None,
    ) -> None:
        if client_fn is not None:
            raise InvalidInputError(
                f"CodedClientApp takes no client_fn, got {client_fn!r}: register a "
                "train function with @app.train(), and pass what the node holds as "
                "partitions=..."
            )
        mods = mods or []
        _check_mods(mods)
        super().__init__(mods=[CodedMod(partitions), *mods])

    def train(
        self, action: str = DEFAULT_ACTION, *, mods: list[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register a train function, as ``ClientApp.train`` does.

        Parameters
        ----------
        action : str (default: "default")
            The action name used to route messages.
        mods : list[Mod] (default: None)
            Mods of this function alone, run once per partition that is trained.

        Returns
        -------
        Callable[[ClientAppCallable], ClientAppCallable]
            A decorator that registers a train function with the app.

        Raises
        ------
        InvalidInputError
            If ``mods`` has a coded mod or a ``LocalDpMod``.
        """
        _check_mods(mods or [])
        return super().train(action, mods=mods)


def _check_mods(mods: list[Mod]) -> None:
    """Raise if a mod cannot run under the coded mod."""
    for mod in mods:
        if isinstance(mod, CodedMod) or mod is coded_mod:
            raise InvalidInputError(
                "A CodedClientApp has the coded mod already: take it off the mods, and "
                "pass what the node holds as CodedClientApp(partitions=...)."
            )
        if isinstance(mod, LocalDpMod):
            raise InvalidInputError(
                "LocalDpMod cannot be used in a CodedClientApp: training is seeded by "
                "numbers that the server knows, so it could take the noise off again."
            )
