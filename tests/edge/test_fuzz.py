"""Ten thousand messages that no honest device sends: all answered, none harmful."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformers import LlamaConfig, LlamaForCausalLM

from flower_ext.edge import EdgeServer, RemoteVerifier
from flower_ext.edge import edge_pb2 as pb
from flower_ext.edge.convert import draft_to_wire, opening_to_wire, score_to_wire
from flower_ext.speculative import (
    PROTOCOLS,
    Distribution,
    Draft,
    Drafter,
    Generation,
    Opening,
    Score,
    Verifier,
    speculate,
)
from tests.edge.conftest import metric
from tests.edge.raw import Conversation, hello

MESSAGES = 10_000
PER_STREAM = 250
VOCABULARY = 300
LENGTH = 128
TOKENS = {"victim": "v-secret", "stranger": "s-secret"}
# Two bytes per id on the wire: nobody hits upon it.
SECRET = (201, 222, 243, 264, 285, 299, 280, 261)
SECRET_BYTES = pb.Opening(prompt=SECRET).SerializeToString()[2:]
NAME = "the-victims-session"


def tiny(width: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
        )
    )


def serialized(message: pb.DeviceMessage) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class Stranger:
    """Makes messages, all of them by a seed."""

    def __init__(self, seed: int, fingerprint: str) -> None:
        self.random = random.Random(seed)
        self.fingerprint = fingerprint

    def message(self) -> bytes:
        make = self.random.choice(
            [self.noise, self.mutated, self.mutated, self.wrong, self.wrong, self.valid]
        )
        return make()

    def noise(self) -> bytes:
        return self.random.randbytes(self.random.randrange(60))

    def mutated(self) -> bytes:
        data = bytearray(self.valid())
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(data) + 1)
            kind = self.random.randrange(4)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << self.random.randrange(8)
            elif kind == 1:
                del data[at : at + self.random.randrange(8)]
            elif kind == 2:
                data[at:at] = self.random.randbytes(self.random.randrange(1, 8))
            else:
                other = self.valid()
                data[at:] = other[self.random.randrange(len(other)) :]
        return bytes(data)

    def name(self) -> str:
        return self.random.choice([NAME, "s", "t", "0", "1", "", "s" * 65, "ü"])

    def valid(self) -> bytes:
        kind = self.random.randrange(9)
        message = self.draft()
        if kind == 0:
            message = self.opening()
        elif kind == 1:
            message = pb.DeviceMessage(resume=pb.Resume(session=self.name()))
        elif kind == 2:
            ask = pb.Ask(round=self.small(), first=self.small(), count=self.small())
            message = pb.DeviceMessage(ask=ask)
        elif kind == 3:
            message = hello(self.fingerprint)
        elif kind == 4:
            message = self.score()
        return serialized(message)

    def small(self) -> int:
        return self.random.randrange(5)

    def opening(self) -> pb.DeviceMessage:
        prompt = tuple(self.random.choices(range(VOCABULARY), k=1 + self.small()))
        return opening_to_wire(
            Opening(
                *(self.name(), self.random.getrandbits(64), prompt),
                generated=self.random.randrange(2),
                protocol=self.random.choice(list(PROTOCOLS)),
                candidates=self.small(),
                temperature=self.random.choice([0, 1.0, 0.7]),
                top_k=self.random.choice([0, 0, 5]),
            )
        )

    def draft(self) -> pb.DeviceMessage:
        count = self.small()
        known = self.small()
        tokens = tuple(self.random.choices(range(VOCABULARY), k=count))
        sure = Distribution(np.ones(1, dtype=np.float32), (tokens or (0,))[:1])
        whole = self.random.random() < 0.3
        return draft_to_wire(
            Draft(
                *(1 + self.small(), known, tokens[: min(known, 1)], tokens),
                np.full(0 if whole else count, 0.5, dtype=np.float32),
                (sure,) * count if whole else (),
                bonus=self.random.random() < 0.5,
            )
        )

    def score(self) -> pb.DeviceMessage:
        tail = self.random.choices(range(VOCABULARY), k=self.random.randrange(2))
        return score_to_wire(Score(1 + self.random.randrange(2), tuple(tail)))

    def wrong(self) -> bytes:
        """Return a message that has its form, and something out of range."""
        huge = self.random.choice([VOCABULARY, 2**31, 2**32 - 1])
        odd = self.random.choice([np.nan, np.inf, -1.0, 0.0, 2.0, 1e-45, 5e-324, 1e308])
        kind = self.random.randrange(5)
        if kind < 2:
            return serialized(self.wrong_opening(huge, odd))
        if kind < 4:
            return serialized(self.wrong_draft(huge, odd))
        return serialized(self.wrong_score(huge))

    def wrong_opening(self, huge: int, odd: float) -> pb.DeviceMessage:
        message = self.opening()
        opening = message.opening
        change = self.random.randrange(8)
        if change == 0:
            opening.prompt.append(huge)
        elif change == 1:
            del opening.prompt[:]
        elif change == 2:
            opening.prompt.extend([1] * LENGTH)
        elif change == 3:
            opening.generated = huge
        elif change == 4:
            opening.protocol = "none"
        elif change == 5:
            opening.candidates = huge
        else:
            name = self.random.choice(["temperature", "top_p", "min_p"])
            setattr(opening, name, odd)
        return message

    def wrong_draft(self, huge: int, odd: float) -> pb.DeviceMessage:
        message = self.draft()
        draft = message.draft
        change = self.random.randrange(8)
        if change == 0:
            draft.tokens.append(huge)
        elif change == 1:
            draft.tail.append(huge)
        elif change == 2:
            draft.tokens.extend([1] * 300)
        elif change == 3:
            draft.round = self.random.choice([0, huge])
        elif change == 4:
            draft.confirmed = huge
        elif change == 5:
            draft.probabilities += b"\0" * self.random.randrange(1, 9)
        elif change == 6:
            with np.errstate(over="ignore", under="ignore"):
                value = np.array([odd]).astype("<f4").tobytes()
            draft.probabilities = value * len(draft.tokens)
        else:
            entry = draft.distributions.add(ids=[huge, 1, 1])
            entry.probabilities = np.ones(self.small(), dtype="<f4").tobytes()
        return message

    def wrong_score(self, huge: int) -> pb.DeviceMessage:
        message = self.score()
        change = self.random.randrange(4)
        if change == 0:
            message.score.confirmed = self.random.choice([0, huge])
        elif change == 1:
            message.score.tail.append(huge)
        elif change == 2:
            message.score.tail.extend([1] * 300)
        else:
            message.score.confirmed = huge
            message.score.tail.extend([1] * 100)
        return message


def is_close(data: bytes) -> bool:
    try:
        return bool(pb.DeviceMessage.FromString(data).HasField("close"))
    except DecodeError:
        return False


def text(
    drafter: LlamaForCausalLM, edge: RemoteVerifier | Verifier, seed: int
) -> Generation:
    return speculate(
        Drafter(drafter),
        edge,
        SECRET,
        max_new_tokens=30,
        protocol=list(PROTOCOLS)[seed % 3],
        generator=torch.Generator().manual_seed(seed),
        eos_token_ids=(),
    )


def trouble(address: str, stranger: Stranger) -> int:
    """Send one stream's messages, and return how many replies came."""
    messages = [stranger.message() for _ in range(PER_STREAM)]
    with Conversation(address, "s-secret") as stream:
        stream.send(hello("f", VOCABULARY))
        for message in messages:
            stream.send(message)
        stream.finish()
        replies, code = stream.read_all()

    assert code is grpc.StatusCode.OK
    assert len(replies) == 1 + len(messages) - sum(map(is_close, messages))
    for reply in replies:
        assert NAME.encode() not in reply
        assert SECRET_BYTES not in reply
    return len(replies) - 1


def test_ten_thousand_messages_of_strangers() -> None:
    small, large = tiny(4), tiny(8)
    over = threading.Event()

    def victim(edge: RemoteVerifier) -> list[Generation]:
        found: list[Generation] = []
        while not over.wait(0.1) or not found:
            found.append(text(small, edge, len(found)))
        return found

    server = EdgeServer(
        large, "f", plaintext=True, tokens=TOKENS, max_sessions_per_client=6
    )
    with ExitStack() as stack:
        stack.enter_context(server)
        edge = stack.enter_context(
            RemoteVerifier(
                server.address,
                tokenizer_fingerprint="f",
                vocab_size=VOCABULARY,
                plaintext=True,
                token="v-secret",
            )
        )
        waiting = stack.enter_context(Conversation(server.address, "v-secret"))
        waiting.send(hello("f", VOCABULARY))
        waiting.send(opening_to_wire(Opening(NAME, 7, SECRET)))
        assert waiting.read().HasField("welcome")
        assert waiting.read().HasField("opened")
        pool = stack.enter_context(ThreadPoolExecutor(1))
        texts = pool.submit(victim, edge)
        try:
            answered = sum(
                trouble(server.address, Stranger(seed, "f"))
                for seed in range(MESSAGES // PER_STREAM)
            )
        finally:
            over.set()

        # Nobody else has noticed anything.
        undisturbed = Verifier(large)
        for seed, found in enumerate(texts.result()):
            assert found.tokens == text(small, undisturbed, seed).tokens
            assert found.reconnections == 0
        nothing = np.zeros(0, dtype=np.float32)
        waiting.send(draft_to_wire(Draft(1, 0, (), (), nothing)))
        assert waiting.read().verdict.round == 1

    assert answered > 0.99 * MESSAGES  # Random bytes may close a session.
    assert metric(server, "refusals_total", code="INTERNAL") == 0
    assert metric(server, "refusals_total", code="NOT_FOUND") > 0
    refused = metric(server, "refusals_total", code="INVALID_ARGUMENT")
    assert MESSAGES / 2 < refused < MESSAGES
    assert metric(server, "rounds_total") > MESSAGES / 100
    assert metric(server, "texts_scored_total") > 10


@pytest.mark.parametrize(
    "message",
    [
        pb.Draft(distributions=[pb.Distribution()] * 2_000_000),
        pb.Draft(tokens=[1] * 4_000_000),
        pb.Draft(tail=[1] * 4_000_000),
        pb.Draft(tokens=[1], distributions=[pb.Distribution(ids=[1] * 4_000_000)]),
        pb.Score(confirmed=4_000_000, tail=[1] * 4_000_000),
    ],
    ids=["distributions", "tokens", "tail", "ids", "score"],
)
def test_a_message_of_four_megabytes_holds_nobody_up(
    message: pb.Draft | pb.Score,
) -> None:
    kind = "draft" if isinstance(message, pb.Draft) else "score"
    data = serialized(pb.DeviceMessage(**{kind: message}))
    begin = time.perf_counter()
    pb.DeviceMessage.FromString(data)
    reading = time.perf_counter() - begin  # What this machine takes for its bytes.
    over = threading.Event()

    with ExitStack() as stack:
        server = stack.enter_context(EdgeServer(tiny(4), "f", plaintext=True))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        health = health_pb2_grpc.HealthStub(channel)

        def slowest_check() -> float:
            slowest = 0.0
            while not over.is_set():
                begin = time.perf_counter()
                health.Check(health_pb2.HealthCheckRequest())
                slowest = max(slowest, time.perf_counter() - begin)
            return slowest

        pool = stack.enter_context(ThreadPoolExecutor(1))
        stream = stack.enter_context(Conversation(server.address))
        stream.send(hello("f", VOCABULARY))
        stream.send(opening_to_wire(Opening("s", 7, SECRET)))
        assert stream.read().HasField("welcome")
        assert stream.read().HasField("opened")
        bystander = pool.submit(slowest_check)
        try:
            stream.send(data)
            reply = stream.read()
        finally:
            over.set()

        assert reply.refusal.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert bystander.result() < 1 + 10 * reading
