"""A process that is killed in the midst of a download leaves the next one the rest."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flower_ext.edge import EdgeServer, RemoteSegments
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edgeprompt import (
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
    identity_of,
)
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.precision import layer_nbytes
from flower_ext.edgeprompt.recording import Message, RecordingSource
from flower_ext.models import default_pair
from tests.edge.proxy import Proxy
from tests.edge.segment_edges import service_of, wide

PROCESSES = multiprocessing.get_context("spawn")
LAYERS = 16
BLOCKS = 2
PROMPT = PromptHierarchy(
    [
        Segment((7 * t % 251 for t in range(256 * BLOCKS)), Level.PUBLIC),
        Segment([3, 1, 4, 1, 5], Level.PRIVATE),
    ]
)
LAYER_SECONDS = 0.4  # Of a layer's 128 KiB, through the slow proxy.


def slim() -> Any:
    """Return a model of many small layers; every process makes the same."""
    model = wide(dim=64, layers=LAYERS)
    model.train(False)
    return model


class SlowProxy(Proxy):
    """A proxy through which so many bytes a second come down."""

    def __init__(self, target: str, rate: float) -> None:
        self._rate = rate
        super().__init__(target)

    def passes(self, data: bytearray, up: bool, connection: int) -> None:
        """Hold up what comes down."""
        if not up:
            time.sleep(len(data) / self._rate)


def answer(address: str, directory: Path, told: Any) -> None:
    """Answer the prompt in a process of its own, slower than any link."""
    torch.set_num_threads(1)
    model = slim()
    with RemoteSegments(address, identity=identity_of(model), plaintext=True) as remote:
        source = RecordingSource(remote)
        engine = EdgePrompt(
            model,
            default_pair().tokenizer,
            store=directory,
            source=source,
            precisions=[Precision.EXACT],
        )
        for tokens in (64, 128, 256):
            engine._loader.speed.computed(0, tokens, 1.0 * tokens)
        found = engine.generate(PROMPT, 8, do_sample=False)
    sent = [r.data for r in source.transcript if isinstance(r, Message) and r.up]
    told.put((found.tokens, found.report.bytes_fetched, found.report.computed, sent))


def start(address: str, directory: Path) -> tuple[Any, Any]:
    told = PROCESSES.Queue()
    process = PROCESSES.Process(
        target=answer, args=(address, directory, told), daemon=True
    )
    process.start()
    return process, told


@pytest.mark.faults
def test_the_next_process_fetches_the_rest_alone(tmp_path: Path) -> None:
    model = slim()
    service = service_of(model)
    prefix = SharedPrefix(PROMPT.shared, service.identity)
    last = prefix.blocks[-1].addresses[Precision.EXACT]
    layer = layer_nbytes(service.identity.shape(256), Precision.EXACT)

    def kept() -> int:
        found = KVStore(tmp_path).get_partial(last)
        return 0 if found is None else len(found[1])

    with EdgeServer(model, "any", port=0, plaintext=True, segments=service) as edge:
        with SlowProxy(edge.address, layer / LAYER_SECONDS) as proxy:
            process, _ = start(proxy.address, tmp_path)
            try:
                until = time.monotonic() + 120
                while not kept():
                    assert process.is_alive()
                    assert time.monotonic() < until
                    time.sleep(0.05)
            finally:
                process.kill()
                process.join()
        count = kept()
        assert 0 < count < LAYERS
        assert last not in KVStore(tmp_path)

        process, told = start(edge.address, tmp_path)
        try:
            tokens, nbytes, computed, sent = told.get(timeout=120)
        finally:
            process.kill()
            process.join()

    assert nbytes == (BLOCKS * LAYERS - count) * layer
    assert computed == 0
    assert pb.SegmentRequest.FromString(sent[0]).have_layers == count
    ids = torch.tensor([PROMPT.tokens])
    whole: Any = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert tokens == tuple(whole[0, ids.shape[1] :].tolist())
    assert kept() == 0
