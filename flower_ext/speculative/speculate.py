"""The loop on the device: draft, send, take the verdict, go on.

The text has the target model's own law under the given sampling, whatever the drafter,
the protocol, the draft length and the link (Leviathan et al., ICML 2023, theorem 3.5).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.network.clocks import Clock, VirtualClock
from flower_ext.network.link import Link
from flower_ext.speculative.checks import Hierarchy, disclosed
from flower_ext.speculative.choices import Choices, KeyedChoices
from flower_ext.speculative.draft_length import (
    DraftLength,
    RoundTimes,
    as_draft_length,
)
from flower_ext.speculative.drafter import Drafter, Drafting
from flower_ext.speculative.ending import Ending
from flower_ext.speculative.errors import VerifierUnavailableError
from flower_ext.speculative.generation import DraftVerdict, FinishReason, Generation
from flower_ext.speculative.messages import (
    Ask,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.protocols import (
    Chooser,
    VerificationProtocol,
    protocol_named,
)
from flower_ext.speculative.sampling import Sampling
from flower_ext.speculative.session import (
    Edge,
    EdgeSession,
    LocalEdge,
    Traffic,
)
from flower_ext.speculative.verifier import Verifier

__all__ = ["speculate"]

MOST_QUESTIONS = 64  # Each asks for more; P_j itself comes long before.


class Streamer(Protocol):
    """What transformers' streamers (``TextStreamer`` and others) have."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt of shape [1, n], then tokens of shape [n]."""
        ...

    def end(self) -> None:
        """Take note that the text is over."""
        ...


def speculate(  # noqa: PLR0913 - what generate() takes, and where it runs
    drafter: Drafter,
    verifier: Verifier | Edge,
    prompt_ids: Sequence[int] | Hierarchy,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    protocol: str | VerificationProtocol = "dssd",
    draft_length: int | DraftLength = 4,
    link: Link | None = None,
    generator: torch.Generator | None = None,
    *,
    drafting_ahead: bool = False,
    eos_token_ids: Collection[int] | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: Streamer | None = None,
    if_edge_is_lost: Literal["raise", "draft"] = "raise",
    score: bool = False,
    clock: Clock | None = None,
    choices: Choices | None = None,
) -> Generation:
    """Generate a text that has the target model's law, drafted by the small one.

    Parameters
    ----------
    drafter : Drafter
        The device's model.
    verifier : Verifier | Edge
        The target, in this process; or an edge elsewhere, as
        ``flower_ext.edge.RemoteVerifier``.
    prompt_ids : Sequence[int] | PromptHierarchy
        The prompt, at least one id. The edge sees all of it.
    max_new_tokens : int
        The most tokens to generate, at least 1.
    sampling : Sampling | None (default: None)
        How tokens are drawn; None: ``Sampling()``, the models' own distributions.
    protocol : str | VerificationProtocol (default: "dssd")
        ``"dsd"``, ``"dssd"`` or ``"dssd-candidates"``, or an object of one.
    draft_length : int | DraftLength (default: 4)
        Tokens per draft, ``Fixed(length, in_flight)`` to set apart how many are drafted
        while a verdict is in flight, or ``Adaptive()``.
    link : Link | None (default: None)
        What messages to a verifier in this process travel over; None: they take no
        time. A remote edge has a link of its own.
    generator : torch.Generator | None (default: None)
        Gives the seed of all random choices, by one draw; None: seeded by the system.
    drafting_ahead : bool (default: False)
        Go on drafting while a verdict is in flight, as if the draft were accepted, and
        throw the guess away otherwise. The verifier then draws no bonus token after an
        accepted draft: it would contradict the guess; the next draft has the guess
        verified in its place.
    eos_token_ids : Collection[int] | None (default: None)
        Tokens that end the text; None: those of the target's configuration, or of the
        drafter's where that has none.
    stop_strings : str | Sequence[str] (default: ())
        Strings that end the text; they need ``tokenizer``.
    tokenizer : PreTrainedTokenizerBase | None (default: None)
        For stop strings alone.
    streamer : Streamer | None (default: None)
        Transformers' streamer: given the prompt, then tokens as they are confirmed.
    if_edge_is_lost : str (default: "raise")
        ``"raise"``, or ``"draft"``: the small model finishes the text alone, and
        ``Generation.fallback_tokens`` counts what it chose.
    score : bool (default: False)
        Whether the target tells in the end what it thinks of the text, in
        ``Generation.score``; neither the seconds nor the bytes of that are among the
        generation's. A text that the edge has lost has none.
    clock : Clock | None (default: None)
        What times are told by; None: the edge's own, and for a verifier in this
        process a virtual clock, on which the link takes no waiting and the verifier
        computes beside the device. ``WallClock()`` sleeps the link.
    choices : Choices | None (default: None)
        The random choices themselves, for tests that enumerate them; None: keyed by
        the generator's seed.

    Returns
    -------
    Generation
        The tokens and their statistics.

    Raises
    ------
    PrivateSegmentError
        If the prompt has a private segment.
    InvalidInputError
        If a parameter is out of range, or prompt and text are longer than a model
        takes.
    VerifierUnavailableError
        If the edge stays away, unless ``if_edge_is_lost="draft"``.
    """
    edge = _edge(verifier, link, clock)
    if edge.vocab_size != drafter.vocab_size:
        raise InvalidInputError(
            f"The drafter has {drafter.vocab_size} ids and the verifier "
            f"{edge.vocab_size}: pass vocab_size=... to both where one is padded "
            "(flower_ext.models.load_pair tells it), else choose models of one "
            "tokenizer."
        )
    if if_edge_is_lost not in ("raise", "draft"):
        raise InvalidInputError(
            f"if_edge_is_lost must be 'raise' or 'draft', got {if_edge_is_lost!r}."
        )
    sampling = sampling or Sampling()
    kind = protocol_named(protocol)
    if eos_token_ids is None:
        eos_token_ids = edge.eos_token_ids or drafter.eos_token_ids
    ending = Ending(max_new_tokens, eos_token_ids, stop_strings, tokenizer)
    seed = _seed(generator)
    if choices is None:
        choices = KeyedChoices(seed)
    drafting = drafter.start(disclosed(prompt_ids), sampling, choices)
    _check_length(len(drafting.tokens) + max_new_tokens, drafter, edge)
    opening = Opening(
        session=secrets.token_hex(8),
        seed=seed,
        prompt=tuple(drafting.tokens),
        protocol=kind.name,
        candidates=kind.candidates,
        temperature=float(sampling.temperature),
        top_k=sampling.top_k,
        top_p=float(sampling.top_p),
        min_p=float(sampling.min_p),
    )
    device = _Device(
        drafting, kind, as_draft_length(draft_length), choices, edge.clock, ending
    )
    device.drafting_ahead = drafting_ahead
    device.streamer = streamer
    device.scored = score
    return device.generate(edge, opening, alone=if_edge_is_lost == "draft")


class _Device:
    """One generation, as the device goes through it."""

    def __init__(
        self,
        drafting: Drafting,
        protocol: VerificationProtocol,
        draft_length: DraftLength,
        choices: Choices,
        clock: Clock,
        ending: Ending,
    ) -> None:
        self.drafting_ahead = False
        self.streamer: Streamer | None = None
        self.scored = False
        self._drafting = drafting
        self._protocol = protocol
        self._draft_length = draft_length
        self._choices = choices
        self._clock = clock
        self._ending = ending
        self._tokens: list[int] = []
        self._finish: FinishReason | None = None
        self._tail: tuple[int, ...] = ()  # Confirmed, and unknown to the edge.
        self._rounds = 0
        self._verdicts: list[DraftVerdict] = []
        self._drafted = self._examined = self._accepted = 0
        self._drafted_ahead = self._discarded = self._questions = 0
        self._fallback_tokens = 0
        self._drafting_seconds = 0.0
        # Of the tokens drafted since the last verdict.
        self._extended, self._extending_seconds = 0, 0.0
        self._seconds_per_token = 0.0

    def generate(self, edge: Edge, opening: Opening, alone: bool) -> Generation:
        """Generate until the text is over."""
        begin = self._clock.now()
        if self.streamer is not None:
            self.streamer.put(torch.tensor([self._drafting.tokens]))
        session = None
        try:
            try:
                session = edge.start(opening, self._choices)
                while self._finish is None:
                    self._round(session)
            except VerifierUnavailableError:
                if not alone:
                    raise
                self._finish_alone()
            if self.streamer is not None:
                self.streamer.end()
            generation = self._generation(session, self._clock.now() - begin)
            if self.scored and session is not None and not self._fallback_tokens:
                generation = replace(generation, score=self._score(session, alone))
        finally:
            if session is not None:
                session.close()
        return generation

    def _round(self, session: EdgeSession) -> None:
        """Draft, have it verified, and confirm."""
        drafting = self._drafting
        ahead = self.drafting_ahead
        # Without a rejection the edge adds a token, unless the device drafts ahead.
        room = self._ending.max_new_tokens - len(self._tokens)
        lengths = self._draft_length.choose(ahead)
        waited = min(lengths.waited, room if ahead else room - 1)
        while len(drafting.draft) < waited and not self._drafted_the_end():
            self._extend()
        length = len(drafting.draft)
        tokens = tuple(drafting.draft[:length])
        probabilities, distributions = self._protocol.describe(
            tokens, drafting.drafted_from[:length]
        )
        sent = self._clock.now()
        pending = session.send(
            Draft(
                self._rounds + 1,
                drafting.generated,
                self._tail,
                tokens,
                probabilities,
                distributions,
                bonus=not ahead,
            )
        )
        if ahead:
            most = length + min(lengths.in_flight, room - length)
            while (
                len(drafting.draft) < most
                and not self._drafted_the_end()
                and not pending.done()
            ):
                self._extend()
                self._drafted_ahead += 1
        verdict = pending.result()
        latency = self._clock.now() - sent
        self._confirm(session, verdict, length)
        self._learn(length, verdict.accepted, latency)

    def _extend(self) -> None:
        """Draft a token, and time it."""
        begin = self._clock.now()
        self._drafting.extend()
        self._extending_seconds += self._clock.now() - begin
        self._extended += 1

    def _drafted_the_end(self) -> bool:
        """Return whether there is no use in drafting further."""
        draft = self._drafting.draft
        return bool(draft) and draft[-1] in self._ending.eos_token_ids

    def _confirm(self, session: EdgeSession, verdict: Verdict, length: int) -> None:
        """Take what the verdict confirms."""
        drafting, accepted = self._drafting, verdict.accepted
        if not 0 <= accepted <= length:
            raise FlowerExtError(
                f"The edge accepted {accepted} of {length} drafted tokens: it is "
                "broken, or speaks another protocol."
            )
        token: int | None = verdict.token
        if accepted < length:
            replaced = token is None
            token = self._replacement(session, verdict)
            self._tail = (token,) if replaced else ()
        else:
            self._tail = ()
        if token is not None:
            self._discarded += len(drafting.draft) - length
        drafted = tuple(drafting.draft[:length])
        self._verdicts.append(DraftVerdict(drafted, accepted, token))
        begin = len(drafting.tokens)
        drafting.confirm(accepted, token)
        self._rounds += 1
        self._drafted += length
        self._accepted += accepted
        self._examined += accepted + (accepted < length)
        self._take(drafting.tokens[begin:])

    def _replacement(self, session: EdgeSession, verdict: Verdict) -> int:
        """Return the token in place of the rejected one."""
        drafting = self._drafting
        drafted_from = drafting.drafted_from[verdict.accepted]
        choice = Chooser(self._choices, drafting.generated + verdict.accepted)
        seen = 0
        for _ in range(MOST_QUESTIONS):
            found = self._protocol.correct(verdict, drafted_from, seen, choice)
            if not isinstance(found, Ask):
                return found
            seen += len(verdict.candidates)
            self._questions += 1
            verdict = session.send(found).result()
        raise FlowerExtError(
            f"No candidate was kept in {MOST_QUESTIONS} answers: the edge does not "
            "draw them from the probabilities that it sends."
        )

    def _take(self, tokens: Sequence[int]) -> None:
        """Add confirmed tokens to the text, as far as it goes."""
        new = []
        for token in tokens:
            self._tokens.append(token)
            new.append(token)
            self._finish = self._ending.reason(self._tokens)
            if self._finish is not None:
                break
        if self.streamer is not None and new:
            self.streamer.put(torch.tensor(new))

    def _learn(self, length: int, accepted: int, latency: float) -> None:
        """Tell the draft length what the round took."""
        if self._extended:
            self._seconds_per_token = self._extending_seconds / self._extended
        self._drafting_seconds += self._extending_seconds
        self._extended, self._extending_seconds = 0, 0.0
        self._draft_length.observe(
            RoundTimes(length, accepted, self._seconds_per_token, latency)
        )

    def _finish_alone(self) -> None:
        """Let the small model finish the text."""
        drafting = self._drafting
        before = len(self._tokens)
        while self._finish is None:
            if not drafting.draft:
                self._extend()
            token = drafting.draft[0]
            drafting.confirm(1)
            self._take([token])
        self._fallback_tokens = len(self._tokens) - before
        self._drafting_seconds += self._extending_seconds

    def _score(self, session: EdgeSession, alone: bool) -> Scored | None:
        """Return what the target thinks of the text, if it still is there."""
        # A text that has ended within a draft leaves out what was confirmed after that.
        cut = self._drafting.generated - len(self._tokens)
        tail = () if cut else self._tail
        try:
            return session.score(Score(len(self._tokens), tail))
        except VerifierUnavailableError:
            if not alone:
                raise
            return None

    def _generation(self, session: EdgeSession | None, seconds: float) -> Generation:
        """Return the text with its statistics."""
        assert self._finish is not None
        traffic = Traffic() if session is None else session.traffic
        return Generation(
            tokens=tuple(self._tokens),
            finish_reason=self._finish,
            rounds=self._rounds,
            drafted=self._drafted,
            examined=self._examined,
            accepted=self._accepted,
            drafted_ahead=self._drafted_ahead,
            discarded=self._discarded,
            questions=self._questions,
            fallback_tokens=self._fallback_tokens,
            opening_bytes=traffic.opening_bytes,
            uplink_bytes=traffic.uplink_bytes,
            downlink_bytes=traffic.downlink_bytes,
            drafting_seconds=self._drafting_seconds,
            verification_seconds=traffic.verification_seconds,
            transmission_seconds=traffic.transmission_seconds,
            seconds=seconds,
            reconnections=traffic.reconnections,
            verdicts=tuple(self._verdicts),
        )


def _edge(verifier: Verifier | Edge, link: Link | None, clock: Clock | None) -> Edge:
    """Return the edge that the verifier is or stands behind."""
    if isinstance(verifier, Verifier):
        return LocalEdge(verifier, link, clock or VirtualClock())
    if link is not None or clock is not None:
        raise InvalidInputError(
            "link and clock are for a verifier in this process: a remote edge is "
            "behind a link of its own, on the wall clock."
        )
    return verifier


def _seed(generator: torch.Generator | None) -> int:
    """Return a seed for all random choices of a text."""
    if generator is None:
        return secrets.randbits(63)
    if not isinstance(generator, torch.Generator):
        raise InvalidInputError(
            "generator must be a torch.Generator, as "
            f"torch.Generator().manual_seed(0), got {generator!r}."
        )
    device = generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def _check_length(length: int, drafter: Drafter, edge: Edge) -> None:
    """Raise if prompt and text are longer than a model takes."""
    for name, limit in (("drafter", drafter.max_length), ("target", edge.max_length)):
        if limit is not None and length > limit:
            raise InvalidInputError(
                f"The {name} takes at most {limit} tokens, and prompt and "
                f"max_new_tokens make {length}: shorten one of them."
            )
