"""What a coded strategy's grid makes of Flower's own HTTP grid behind a proxy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from flower_ext.errors import FlowerExtError
from flower_ext.scheduling import CompletionHistory
from flower_ext.strategies.staged_grid import StagedGrid

LIMIT = 4_000  # bytes of a request


class Proxy(BaseHTTPRequestHandler):
    """A proxy that lets no large request pass to a SuperLink with two nodes."""

    nodes = (7, 8)
    protocol_version = "HTTP/1.1"
    stored: ClassVar[list[str]] = []
    refused: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(body) > LIMIT:
            self.refused.append(self.path)
            self._answer(413, b"")
        elif self.path.endswith("get-nodes"):
            nodes = [NodeInfo(node_id=i) for i in self.nodes]
            self._answer(200, GetNodesResponse(nodes=nodes).SerializeToString())
        elif self.path.endswith("push-object"):
            self.stored.append(PushObjectRequest.FromString(body).object_id)
            self._answer(200, PushObjectResponse(stored=True).SerializeToString())
        else:
            self._answer(200, self._taken(PushAppMessagesRequest.FromString(body)))

    def _taken(self, request: PushAppMessagesRequest) -> bytes:
        answer = PushAppMessagesResponse(
            message_ids=[
                m.metadata.message_id if m.metadata.dst_node_id in self.nodes else ""
                for m in request.messages_list
            ],
            objects_to_push=[
                each.object_id
                for tree in request.message_object_trees
                for each in iterate_object_tree(tree)
            ],
        )
        return bytes(answer.SerializeToString())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/protobuf")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def grid() -> Iterator[StagedGrid]:
    """Return a staged grid over Flower's, which talks to the proxy."""
    Proxy.stored.clear()
    Proxy.refused.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    flowers = HttpGrid(
        f"127.0.0.1:{server.server_port}", insecure=True, token="the run's"
    )
    flowers.set_run(Run.create_empty(run_id=1))
    staged = StagedGrid(
        flowers,
        virtual=False,
        history=CompletionHistory(),
        num_partitions=2,
        deadline=None,
        timeout=5.0,
    )
    yield staged
    staged.close()
    flowers.close()
    server.shutdown()
    server.server_close()
    serving.join()


def messages(size: int, *nodes: int) -> list[Message]:
    arrays = ArrayRecord({"weight": Array(np.zeros(size, np.uint8))})
    content = RecordDict({"arrays": arrays})
    return [Message(content, node, MessageType.TRAIN) for node in nodes]


@pytest.mark.parametrize("nodes", [(7,), (7, 8)])
def test_a_message_that_is_too_large_is_told_from_a_node_that_is_gone(
    grid: StagedGrid, nodes: tuple[int, ...]
) -> None:
    with pytest.raises(
        FlowerExtError, match=r"with 1\.2 MB of arrays to node 7.*client_max_body_size"
    ):
        grid.push(messages(1_200_000, *nodes), 1)

    assert set(Proxy.refused) == {"/v1/runtime/push-object"}
    assert grid.gone() == []


def test_a_node_that_is_gone_is_still_told(
    grid: StagedGrid, logged: pytest.LogCaptureFixture
) -> None:
    sent = grid.push(messages(1000, 7, 9), 1)

    assert [s.node_id if s else None for s in sent] == [7, None]
    assert grid.gone() == [9]
    assert "Node 9 is not known any more" in logged.text
    assert Proxy.stored


def test_messages_that_are_too_many_for_one_request_go_one_by_one(
    grid: StagedGrid,
) -> None:
    nodes = [7, 8] * 8
    sent = grid.push(messages(1000, *nodes), 1)

    assert [s.node_id if s else None for s in sent] == nodes
    assert Proxy.refused == ["/v1/runtime/push-messages"]
