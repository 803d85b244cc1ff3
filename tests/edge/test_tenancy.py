"""Tenants: nothing that one is told depends on what another one keeps."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from flower_ext.edge import EdgeServer, load_tenant_secret
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.tenants import TenantKeys
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.hierarchy import Level
from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.segment_messages import header_code, segment_request
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import BlockHeader, Wanted
from flower_ext.edgeprompt.store import KVStore
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair
from tests.edge.conftest import Serve
from tests.edge.segment_edges import (
    SECRET,
    TOKENS,
    Raw,
    every,
    prefix_of,
    service_of,
)

PUBLIC, GROUP = 300, 300


def asked_by_address(prefix: SharedPrefix) -> list[bytes]:
    """Return requests for every block in two precisions, without the text."""
    return [
        segment_request(prefix, [wanted])
        for precision in (Precision.EXACT, Precision.INT8)
        for wanted in every(prefix, precision)
    ]


def counted(server: EdgeServer) -> dict[str, float]:
    """Return all counters but times."""
    return {
        f"{sample.name} {sample.labels}": sample.value
        for family in server.registry.collect()
        for sample in family.samples
        if "seconds" not in sample.name and not sample.name.endswith("_created")
    }


def probed(server: EdgeServer, service: SegmentService) -> tuple[Any, ...]:
    """Return all that one tenant can find out about another's text.

    He knows the text, the other's addresses and even the other's key.
    """
    keys = TenantKeys(SECRET)
    hers = prefix_of(service, PUBLIC, GROUP, keys.key("ann"))
    his = prefix_of(service, PUBLIC, GROUP, keys.key("bob"))
    before, passes = counted(server), service.passes
    seen: list[Any] = []
    with Raw(server, TOKENS["bob"]) as bob:
        seen.append(bob.key())
        seen += [bob.ask(m) for m in asked_by_address(hers) + asked_by_address(his)]
        for prefix in (hers, his):
            for precision in (Precision.INT8, Precision.EXACT):
                wanted = every(prefix, precision)
                seen.append(bob.ask(segment_request(prefix, wanted, 0, True)))
                seen.append((service.passes - passes, counted(server)))
        seen += [bob.ask(m) for m in asked_by_address(hers) + asked_by_address(his)]
    after = counted(server)
    changes = {name: after[name] - before.get(name, 0.0) for name in after}
    totals = [s for s in seen if isinstance(s, tuple) and isinstance(s[0], int)]
    seen = [s for s in seen if s not in totals]
    passed = [total[0] for total in totals]
    shown = [
        {name: now[name] - before.get(name, 0.0) for name in now} for _, now in totals
    ]
    return seen, changes, passed, shown


def test_what_another_tenant_keeps_changes_nothing(
    serve: Serve, pair: ModelPair
) -> None:
    found = []
    for is_there in (False, True):
        service = service_of(pair.draft)
        server = serve(
            model=pair.draft, segments=service, tokens=TOKENS, tenant_secret=SECRET
        )
        hers = prefix_of(service, PUBLIC, GROUP, TenantKeys(SECRET).key("ann"))
        with Raw(server, TOKENS["ann"]) as ann:
            # Public blocks are shared by design: in both runs she has had them made.
            public = [
                wanted
                for precision in (Precision.EXACT, Precision.INT8)
                for wanted in every(hers, precision)
                if hers.blocks[wanted.block].level == Level.PUBLIC
            ]
            ann.ask(segment_request(hers, public, 0, True))
            if is_there:
                for precision in (Precision.EXACT, Precision.INT8):
                    message = segment_request(hers, every(hers, precision), 0, True)
                    assert ann.ask(message)[1] is grpc.StatusCode.OK
                for message in asked_by_address(hers):
                    assert b"\x1a\x00" not in ann.ask(message)[0]
        assert service.passes == (4 if is_there else 2)
        found.append(probed(server, service))

    assert found[0] == found[1]
    seen, _, passed, _ = found[0]
    # Her addresses with the text are none of his; his own are computed, group alone.
    statuses = [probe[1] for probe in seen[1:]]
    assert statuses.count(grpc.StatusCode.FAILED_PRECONDITION) == 2
    assert passed == [0, 0, 2, 2]


def test_codes_are_under_the_tenants_key(serve: Serve, pair: ModelPair) -> None:
    service = service_of(pair.draft)
    server = serve(
        model=pair.draft, segments=service, tokens=TOKENS, tenant_secret=SECRET
    )
    with Raw(server, TOKENS["ann"]) as ann, Raw(server, TOKENS["bob"]) as bob:
        key = ann.key()
        assert len(key) == 32
        assert key == TenantKeys(SECRET).key("ann") != bob.key()
        prefix = prefix_of(service, 20, 20, key)
        wanted = every(prefix, Precision.INT8)
        parts = [
            pb.SegmentPart.FromString(part)
            for part in ann.ask(segment_request(prefix, wanted, 0, True))[0]
        ]
    headers = [part.header for part in parts if part.HasField("header")]
    for index, (header, used) in enumerate(zip(headers, (b"", key), strict=True)):
        digests = header.digests
        known = BlockHeader(
            service.identity.shape(20),
            Precision.INT8,
            header.error,
            tuple(header.sizes),
            tuple(digests[at : at + 32] for at in range(0, len(digests), 32)),
        )
        address = prefix.blocks[index].addresses[Precision.INT8].digest
        assert header.code == header_code(known, address, used)
        assert header.code != header_code(known, bytes(32), used)


def test_a_stranger_is_told_nothing(serve: Serve, pair: ModelPair) -> None:
    service = service_of(pair.draft)
    server = serve(model=pair.draft, segments=service, tokens=TOKENS)
    message = segment_request(prefix_of(service, 9), [Wanted(0, Precision.EXACT)])
    for token in (None, "c-secret"):
        with Raw(server, token) as stranger:
            assert stranger.code(message) is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stranger.key()


def test_one_tenant_takes_no_room_of_another(pair: ModelPair) -> None:
    identity = service_of(pair.draft).identity
    room = 100_000  # Bytes: not half of what she asks for.
    service = SegmentService(
        pair.draft,
        KVStore(memory_bytes=room),
        tenant_store=lambda name: KVStore(memory_bytes=room),
        identity=identity,
    )
    his = prefix_of(service, 8, 64)
    last = Wanted(1, Precision.INT8)
    service.block(his, last, "bob")
    for offset in range(5):
        hers = prefix_of(service, 8, 512 + offset, b"a" * 16)
        service.block(hers, Wanted(2, Precision.INT8), "ann")
    address = his.blocks[1].addresses[Precision.INT8]
    assert service.find(address, "bob") is not None
    assert service.find(address, "ann") is None


def test_the_same_store_for_all_still_keeps_tenants_apart(pair: ModelPair) -> None:
    store = KVStore()
    service = SegmentService(pair.draft, store, tenant_store=lambda name: store)
    prefix = prefix_of(service, 8, 8)
    service.block(prefix, Wanted(1, Precision.EXACT), "ann")
    address = prefix.blocks[1].addresses[Precision.EXACT]
    assert service.find(address, "ann") is not None
    assert service.find(address, "bob") is None
    assert service.passes == 2
    service.block(prefix, Wanted(1, Precision.EXACT), "bob")
    assert service.passes == 3  # His group block, and her public one.

    alone = SegmentService(pair.draft, KVStore())
    alone.block(prefix, Wanted(1, Precision.EXACT))
    with pytest.raises(InvalidInputError, match="'bob' is a second one"):
        alone.block(prefix, Wanted(1, Precision.EXACT), "bob")


def test_the_secret_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = load_tenant_secret(path)
    assert len(secret) == 32
    assert load_tenant_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]
    path.chmod(0o640)
    with pytest.raises(InvalidInputError, match="others may read it"):
        load_tenant_secret(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(InvalidInputError, match="has 5 bytes"):
        load_tenant_secret(path)
    with pytest.raises(InvalidInputError, match="nowhere"):
        load_tenant_secret(tmp_path / "nowhere" / "secret")
    with pytest.raises(InvalidInputError, match="needs 32 bytes"):
        TenantKeys(b"short")
    assert TenantKeys().key("ann") != TenantKeys().key("ann")
