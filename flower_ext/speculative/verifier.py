"""The edge's side: one large model that verifies the drafts of many devices.

Drafts that arrive together are verified in one forward pass over ragged caches, each
row with the logits that it would have alone. A session's cache grows by what is
confirmed and is rolled back by what is rejected; under a memory budget the caches of
sessions that have been idle longest are dropped, with the logits and the distribution
kept beside them, and rebuilt from their tokens when they return. Every random choice is
keyed, so none of this changes a token.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative.checks import LONGEST_DRAFT, check_finite, check_length
from flower_ext.speculative.choices import Choices, KeyedChoices
from flower_ext.speculative.drafter import check_prompt
from flower_ext.speculative.errors import MemoryBudgetError, UnknownSessionError
from flower_ext.speculative.language_model import (
    LanguageModel,
    Row,
    TransformersModel,
    as_language_model,
)
from flower_ext.speculative.messages import (
    Ask,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.protocols import protocol_named
from flower_ext.speculative.sampling import Probabilities, Sampling
from flower_ext.speculative.verified_text import VerifiedText

__all__ = ["Verifier"]

# A row with more new tokens than this would pad all others; it is caught up alone.
_CAUGHT_UP_ALONE = 32


class Verifier:
    """A model that verifies drafts, for any number of sessions.

    Parameters
    ----------
    model : PreTrainedModel | LanguageModel
        The large model.
    vocab_size : int | None (default: None)
        The ids that the drafters have too, where a model is padded to a larger
        vocabulary; the target's law is then the one given that no other id comes.
        None: all of the model's.
    memory_budget : int | None (default: None)
        Bytes that all sessions may hold between calls, in caches and in the logits and
        distributions beside them; None: no limit. A call may hold a padded copy of its
        own rows' on top.

    Raises
    ------
    InvalidInputError
        If the model's cache cannot be rolled back, or the budget is not above 0.
    """

    def __init__(
        self,
        model: PreTrainedModel | LanguageModel,
        vocab_size: int | None = None,
        memory_budget: int | None = None,
    ) -> None:
        if memory_budget is not None and memory_budget <= 0:
            raise InvalidInputError(
                f"memory_budget must be above 0 bytes, got {memory_budget}."
            )
        self.model = as_language_model(model, vocab_size)
        self.memory_budget = memory_budget
        self.evictions = 0
        # From the longest idle to the last used.
        self._sessions: OrderedDict[str, VerifiedText] = OrderedDict()

    @property
    def vocab_size(self) -> int:
        """The ids it verifies."""
        return self.model.vocab_size

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text with its prompt, if the model has a limit."""
        model = self.model
        return model.max_length if isinstance(model, TransformersModel) else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, by the model's own configuration."""
        model = self.model
        return model.eos_token_ids if isinstance(model, TransformersModel) else ()

    @property
    def positions_processed(self) -> int:
        """The positions its model has computed so far, padding not counted."""
        return self.model.positions_processed

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    @property
    def cached_bytes(self) -> int:
        """The bytes that the caches hold, and what is kept beside them."""
        return sum(session.nbytes for session in self._sessions.values())

    def open(self, opening: Opening, choices: Choices | None = None) -> None:
        """Open a session, or open it anew, and compute its prompt.

        Parameters
        ----------
        opening : Opening
            What is generated, and how.
        choices : Choices | None (default: None)
            The random choices; None: those keyed by the opening's seed.

        Raises
        ------
        InvalidInputError
            If anything in the opening is out of range.
        MemoryBudgetError
            If the prompt's cache alone exceeds the budget.
        """
        tokens = check_prompt(opening.prompt, self.vocab_size)
        if not 0 <= opening.generated < len(tokens):
            raise InvalidInputError(
                f"generated must lie in [0, {len(tokens)}): some of the prompt's "
                f"tokens are no generated ones, got {opening.generated}."
            )
        check_length(len(tokens), self.max_length)
        session = VerifiedText(
            tokens,
            len(tokens) - opening.generated,
            Sampling(opening.temperature, opening.top_k, opening.top_p, opening.min_p),
            protocol_named(opening.protocol, opening.candidates),
            KeyedChoices(opening.seed) if choices is None else choices,
            self.vocab_size,
            self.max_length,
            round_base=opening.generated,
        )
        self._sessions[opening.session] = session
        try:
            self._catch_up(session)
        except BaseException:
            del self._sessions[opening.session]
            raise
        self._evict([session])

    def close(self, session: str) -> None:
        """Forget a session; one that is not there is forgotten already."""
        self._sessions.pop(session, None)

    def check(self, session: str, message: Draft | Ask | Score) -> None:
        """Raise what the message's own method would, and change nothing."""
        found = self._session(session)
        if isinstance(message, Ask):
            found.asked_about(message)
        elif isinstance(message, Score):
            found.scored(message)
        else:
            found.check(message)

    def verify(self, session: str, draft: Draft) -> Verdict:
        """Verify one draft.

        Parameters
        ----------
        session : str
            The session's name.
        draft : Draft
            The draft. The same round may be sent again: the verdict is the same.

        Returns
        -------
        Verdict
            How much of it is accepted, and what follows.

        Raises
        ------
        UnknownSessionError
            If there is no such session.
        InvalidInputError
            If the draft is malformed or does not follow the session's last round.
        MemoryBudgetError
            If the session's cache alone exceeds the budget.
        """
        found = self.verify_batch([(session, draft)])[0]
        if isinstance(found, FlowerExtError):
            raise found
        return found

    def verify_batch(
        self, requests: Sequence[tuple[str, Draft]]
    ) -> list[Verdict | FlowerExtError]:
        """Verify drafts of different sessions in one forward pass.

        Parameters
        ----------
        requests : Sequence[tuple[str, Draft]]
            Sessions and their drafts, at most one of each session.

        Returns
        -------
        list[Verdict | FlowerExtError]
            In the order of the requests; an error where :meth:`verify` would raise it.

        Raises
        ------
        InvalidInputError
            If two drafts are of the same session.
        """
        if len({name for name, _ in requests}) < len(requests):
            raise InvalidInputError(
                "verify_batch takes one draft per session at a time: verify the second "
                "after the first."
            )
        found: list[Verdict | FlowerExtError | None] = [None] * len(requests)
        ready: list[tuple[int, VerifiedText, Draft]] = []
        for index, (name, draft) in enumerate(requests):
            try:
                session = self._session(name)
                session.check(draft)
                session.begin(draft)
                self._catch_up(session, leave=_CAUGHT_UP_ALONE)
                ready.append((index, session, draft))
            except FlowerExtError as error:
                found[index] = error
        if ready:
            logits = self._logits([(session, draft) for _, session, draft in ready])
            for (index, session, draft), rows in zip(ready, logits, strict=True):
                try:
                    found[index] = session.judge(draft, rows)
                except FlowerExtError as error:
                    session.forget_cache()
                    found[index] = error
            self._evict([session for _, session, _ in ready])
        return [answer for answer in found if answer is not None]

    def answer(self, session: str, ask: Ask) -> Verdict:
        """Answer a device that kept none of the candidates.

        Raises
        ------
        UnknownSessionError
            If there is no such session.
        InvalidInputError
            If nothing was rejected in that round, or the numbers are out of range.
        MemoryBudgetError
            If the session's cache alone exceeds the budget.
        """
        found = self._session(session)
        position, target = found.asked_about(ask)
        if target is None:
            target = self._compute_again(found, position)
        verdict = found.protocol.answer(ask, target, position, found.choices)
        self._evict([found])
        return verdict

    @torch.inference_mode()
    def score(self, session: str, score: Score) -> Scored:
        """Tell what the target thinks of a text, by one pass over what is generated.

        Parameters
        ----------
        session : str
            The session's name.
        score : Score
            The text. It may be asked for again, and the session goes on as before.

        Returns
        -------
        Scored
            How likely the target finds the text, under its own distribution.

        Raises
        ------
        UnknownSessionError
            If there is no such session.
        InvalidInputError
            If the text is malformed, is none that the session can have or is longer
            than the model takes.
        MemoryBudgetError
            If the session's cache alone exceeds the budget.
        FlowerExtError
            If the target's logits are not finite.
        """
        found = self._session(session)
        tokens = found.scored(score)
        # The logits of generated position 0 are those after the prompt's last token.
        first, end = found.start - 1, len(tokens) - 1
        if found.cache is None:
            found.cache = self.model.new_cache()
        found.last_logits = None
        found.cache.roll_back(first)
        if found.cache.length < first:
            new = tokens[found.cache.length : first]
            self.model.extend([Row(found.cache, new, keep=1)])
        log_likelihood, agreeing = 0.0, 0
        # Not all at once: every position has the logits of a whole vocabulary.
        for begin in range(first, end, LONGEST_DRAFT):
            new = tokens[begin : min(begin + LONGEST_DRAFT, end)]
            row = Row(found.cache, new, keep=len(new))
            logits = self.model.extend([row])[0].float()
            chosen = torch.tensor(tokens[begin + 1 :][: len(new)], device=logits.device)
            logs = torch.log_softmax(logits, dim=-1).gather(1, chosen[:, None])
            log_likelihood += float(logs.double().sum())
            agreeing += int((logits.argmax(dim=-1) == chosen).sum())
        found.cache.roll_back(len(found.tokens))
        self._check_budget(found)
        self._evict([found])
        check_finite(math.isfinite(log_likelihood))
        return Scored(score.confirmed, log_likelihood, agreeing)

    def _session(self, name: str) -> VerifiedText:
        """Return a session, now the last used."""
        if name not in self._sessions:
            raise UnknownSessionError(
                f"There is no session {name!r}, or no longer: open it (again)."
            )
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def _compute_again(self, session: VerifiedText, position: int) -> Probabilities:
        """Return P_j of a rejected token, which was dropped with the cache."""
        self._catch_up(session)
        text = session.tokens[: session.start + position]
        session.cache.roll_back(len(text) - 1)
        row = Row(session.cache, text[session.cache.length :], keep=1)
        logits = self.model.extend([row])[0]
        target: Probabilities = session.sampling.probabilities(logits)[0]
        session.rejected = (position, target)
        return target

    def _catch_up(self, session: VerifiedText, leave: int = 0) -> None:
        """Compute all but the last token, if more than ``leave`` are to be computed."""
        if session.cache is None:
            session.cache = self.model.new_cache()
        new = session.tokens[session.cache.length : -1]
        if len(new) > leave:
            self.model.extend([Row(session.cache, new, keep=1)])
            self._check_budget(session)

    def _check_budget(self, session: VerifiedText) -> None:
        """Raise if one session's cache exceeds the budget by itself."""
        needed, budget = session.cache.nbytes, self.memory_budget
        if budget is not None and needed > budget:
            session.forget_cache()
            raise MemoryBudgetError(
                f"A text of {len(session.tokens)} tokens needs a cache of {needed} "
                f"bytes, and memory_budget is {budget}: raise the budget or shorten "
                "the prompt."
            )

    def _logits(
        self, requests: Sequence[tuple[VerifiedText, Draft]]
    ) -> list[torch.Tensor]:
        """Return logits after the last confirmed token and after each drafted one."""
        rows: list[Row] = []
        for session, draft in requests:
            new = [*session.tokens[session.cache.length :], *draft.tokens]
            keep = len(draft.tokens) + (session.last_logits is None)
            if new:
                rows.append(Row(session.cache, new, keep))
        computed = iter(self.model.extend(rows) if rows else ())
        found = []
        for session, draft in requests:
            parts = [] if session.last_logits is None else [session.last_logits]
            if draft.tokens or not parts:
                parts.append(next(computed))
            found.append(torch.cat(parts))
        return found

    def _evict(self, used: Sequence[VerifiedText]) -> None:
        """Drop the caches of the longest idle until the budget is kept."""
        if self.memory_budget is None:
            return
        held = self.cached_bytes
        # Those just used go last, and only as far as they must.
        for session in [
            *(s for s in self._sessions.values() if all(s is not u for u in used)),
            *used,
        ]:
            if held <= self.memory_budget:
                return
            if session.nbytes:
                held -= session.nbytes
                session.forget_cache()
                self.evictions += 1
