"""The engine: a prompt's shared part is loaded, its private part is spliced to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flower_ext.edgeprompt.blocks import ModelIdentity, SharedPrefix, identity_of
from flower_ext.edgeprompt.completion import Completion
from flower_ext.edgeprompt.hierarchy import PromptHierarchy
from flower_ext.edgeprompt.layout import LayoutRule
from flower_ext.edgeprompt.loader import LoadedPrefix, LoadReport, PrefixLoader
from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.rows import for_rows, padded, together
from flower_ext.edgeprompt.source import SegmentSource
from flower_ext.edgeprompt.splice import Layout, spliced, spliced_cache
from flower_ext.edgeprompt.spliceable import check_spliceable, longest_text
from flower_ext.edgeprompt.store import KVStore
from flower_ext.edgeprompt.weights import WeightSamples
from flower_ext.errors import InvalidInputError
from flower_ext.models.cache_argument import forward_cache, generation_cache
from flower_ext.network.clocks import Clock, WallClock

__all__ = ["EdgePrompt"]

# What a generation config may ask for that a spliced prompt cannot have.
_UNFIT = (
    "cache_implementation",
    "prompt_lookup_num_tokens",
    "return_dict_in_generate",
    "assistant_early_exit",
)
_OWN = (
    "input_ids",
    "inputs",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "cache",
    "past_key_values",
    "max_length",
    "assistant_model",
)


class EdgePrompt:
    r"""Generates from prompts whose shared part is computed once, by whomever.

    Implementation based on https://arxiv.org/abs/2504.11729

    Parameters
    ----------
    model : PreTrainedModel
        A decoder-only model with full attention in every layer, in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    store : KVStore | str | path | None (default: None)
        Where blocks are kept, or the folder of one; None: in memory, up to the store's
        usual size.
    source : SegmentSource | None (default: None)
        Where blocks that the store lacks are fetched from. None: they are computed.
    tenant_key : bytes (default: b"")
        What the server has assigned to the tenant; group segments need one.
    precisions : Sequence[Precision | str] (default: all but INT4)
        What may be fetched; what the store holds is used in any that is within
        ``max_error``.
    max_error : float (default: 0.02)
        The largest relative error of a block's KV that is used, at least 0; 0 for exact
        blocks only, and the whole prompt's very tokens. INT8 is
        below 0.02 and FP16 below 0.001 for the models that were measured; INT4 is at
        0.05 to 0.1.
    memory_bytes : int (default: 1 GiB)
        What loaded prefixes take together, at least 0; the one in use may take more.
    clock : Clock | None (default: None)
        What times are told by; with a source, that of the source. None: real time.

    Raises
    ------
    InvalidInputError
        If the model cannot be spliced, or a parameter is out of range.

    Notes
    -----
    Nothing of a private segment goes out: the source is asked for blocks of shared
    segments only, and for nothing any more once the private text is looked at. An
    engine is for one thread at a time.

    Examples
    --------
    >>> from flower_ext.edgeprompt import Level, PromptHierarchy
    >>> from flower_ext.models import default_pair
    >>> pair = default_pair()
    >>> engine = EdgePrompt(pair.target, pair.tokenizer)
    >>> prompt = PromptHierarchy.from_text(
    ...     [(Level.PUBLIC, "First Citizen:\nBefore we"), (Level.PRIVATE, " proceed")],
    ...     pair.tokenizer,
    ... )
    >>> completion = engine.generate(prompt, max_new_tokens=8)
    >>> len(completion.tokens)
    8
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        store: KVStore | str | PathLike[str] | None = None,
        source: SegmentSource | None = None,
        tenant_key: bytes = b"",
        precisions: Sequence[Precision | str] = (
            Precision.EXACT,
            Precision.FP16,
            Precision.BF16,
            Precision.INT8,
        ),
        max_error: float = 0.02,
        memory_bytes: int = 2**30,
        clock: Clock | None = None,
    ) -> None:
        _check_types(model, tokenizer, tenant_key)
        if isinstance(store, str | PathLike):
            store = KVStore(store)
        if not max_error >= 0:
            raise InvalidInputError(f"max_error must be at least 0, got {max_error}.")
        if not memory_bytes >= 0:
            raise InvalidInputError(
                f"memory_bytes must be at least 0, got {memory_bytes}."
            )
        check_spliceable(model)
        self.model = model
        self.tokenizer = tokenizer
        self._weights = WeightSamples(model)
        self._seen = self._weights.state()
        self._identity = identity_of(model)
        self._tenant_key = tenant_key
        self._clock = clock or WallClock()
        self._loader = PrefixLoader(
            model,
            self._clock,
            KVStore() if store is None else store,
            source,
            _precisions(precisions),
            max_error,
            memory_bytes,
        )
        config = model.config.get_text_config(decoder=True)
        self._vocab_size = int(config.vocab_size)
        self._rule = LayoutRule(int(config.num_attention_heads))

    @property
    def identity(self) -> ModelIdentity:
        """The model's; found anew when its weights are seen to have changed."""
        seen = self._weights.state()
        if seen != self._seen:
            self._seen, self._identity = seen, identity_of(self.model)
        return self._identity

    def refresh(self) -> ModelIdentity:
        """Read all of the model's weights, and its configuration, again.

        Needed after a change that samples of the weights may miss: a few elements
        written to through ``.data``, or another configuration. What a Python flag or a
        hook changes is in neither: give the configuration a field that tells it, too.

        Returns
        -------
        ModelIdentity
            As :attr:`identity` has it from now on.

        Raises
        ------
        InvalidInputError
            If the model has been given PEFT layers.
        """
        self._seen, self._identity = self._weights.state(), identity_of(self.model)
        return self._identity

    @property
    def store(self) -> KVStore:
        """Where blocks are kept."""
        return self._loader.store

    def shared_prefix(self, hierarchy: PromptHierarchy) -> SharedPrefix:
        """Return the shared part of a prompt as it may be asked for.

        Raises
        ------
        InvalidInputError
            If there is a group segment and no tenant's key, or a token that the model
            does not have.
        """
        if not isinstance(hierarchy, PromptHierarchy):
            raise InvalidInputError(
                f"A prompt must be a PromptHierarchy, got {type(hierarchy).__name__}: "
                "make one by PromptHierarchy.from_text or from_chat."
            )
        self._check_tokens([t for s in hierarchy.shared for t in s.tokens])
        return SharedPrefix(hierarchy.shared, self.identity, self._tenant_key)

    def publish(
        self,
        hierarchy: PromptHierarchy,
        precisions: Sequence[Precision] = (Precision.EXACT,),
    ) -> SharedPrefix:
        """Compute the KV of a prompt's shared segments, and keep it in the store.

        Parameters
        ----------
        hierarchy : PromptHierarchy
            With a shared segment at least; private ones are left alone.
        precisions : Sequence[Precision] (default: EXACT)
            What it is kept in.

        Returns
        -------
        SharedPrefix
            Its blocks, with their addresses.

        Raises
        ------
        InvalidInputError
            If nothing is shared, or as :meth:`shared_prefix`.
        """
        prefix = self.shared_prefix(hierarchy)
        if not prefix.blocks:
            raise InvalidInputError(
                "There is nothing to publish: the prompt has private segments only."
            )
        self._loader.compute(prefix, precisions)
        return prefix

    def load(self, hierarchy: PromptHierarchy) -> LoadReport:
        """Get a prompt's shared part into memory ahead of time.

        Raises
        ------
        InvalidInputError
            As :meth:`shared_prefix`.
        """
        prefix = self.shared_prefix(hierarchy)
        if not prefix.blocks:
            return LoadReport()
        return self._loader.load(prefix, whole=True).report

    def generate(
        self,
        hierarchy: PromptHierarchy | Sequence[PromptHierarchy],
        max_new_tokens: int,
        **options: Any,
    ) -> Any:
        """Generate from a prompt, or from several that share their shared part.

        Parameters
        ----------
        hierarchy : PromptHierarchy | Sequence[PromptHierarchy]
            One prompt, or a batch whose shared segments are the same.
        max_new_tokens : int
            The most tokens per prompt, at least 1.
        **options : Any
            Further arguments of transformers' ``generate()``, such as ``do_sample``,
            ``num_beams`` or ``streamer``. With those that look at the text before a
            token (``repetition_penalty``, ``logits_processor`` and their like), prompts
            of different lengths are generated from one length after the other, and a
            processor is given rows of one length at a time.

        Returns
        -------
        Completion | list[Completion]
            One per prompt; a list if a sequence was given.

        Raises
        ------
        InvalidInputError
            If prompts differ in what they share, a text would be longer than the model
            takes, or an option is given that the engine sets itself.
        """
        one = isinstance(hierarchy, PromptHierarchy)
        prompts = (
            [hierarchy] if isinstance(hierarchy, PromptHierarchy) else [*hierarchy]
        )
        self._check(prompts, max_new_tokens, options)
        _check_shared(prompts)
        begin = self._clock.now()
        beams = int(self._option(options, "num_beams") or 1)
        with self._ready(prompts, len(prompts) * beams, max_new_tokens) as ready:
            # Not before all is asked for: whether it is must not depend on them.
            for prompt in prompts:
                self._check_tokens(prompt.tokens, max_new_tokens)
            found: dict[int, Completion] = {}
            for rows in together(prompts, options, self.model.generation_config):
                of_rows = [prompts[row] for row in rows]
                own = for_rows(rows, options)
                written = self._generate(of_rows, max_new_tokens, ready, begin, own)
                found.update(zip(rows, written, strict=True))
        completions = [found[index] for index in range(len(prompts))]
        return completions[0] if one else completions

    def _generate(
        self,
        prompts: Sequence[PromptHierarchy],
        max_new_tokens: int,
        ready: _Ready,
        begin: float,
        options: dict[str, Any],
    ) -> list[Completion]:
        """Generate from prompts together."""
        ids, mask = padded(prompts, ready.length, self.model.device)
        first = _FirstToken(self._clock)
        processors = LogitsProcessorList([first])
        processors.extend(options.pop("logits_processor", None) or ())
        options.setdefault("pad_token_id", self._pad_token())
        if ready.cache is not None:
            ready.cache.reset()  # Of the tails of those before.
        with spliced(self.model):
            rows: Any = self.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                logits_processor=processors,
                **generation_cache(ready.cache),
                **options,
            )
        seconds = self._clock.now() - begin
        private = sum(getattr(layer, "nbytes", 0) for layer in _layers(ready.cache))
        found = []
        for row in rows[:, ids.shape[1] :].tolist():
            tokens = self._until_end(row, options)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            found.append(
                Completion(
                    tuple(tokens),
                    str(text),
                    first.at - begin,
                    seconds,
                    ready.layout,
                    ready.shared_bytes,
                    private,
                    ready.report,
                )
            )
        return found

    @torch.inference_mode()
    def logits(
        self, hierarchy: PromptHierarchy, continuation: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return the spliced prompt's logits over the private text and what follows.

        Parameters
        ----------
        hierarchy : PromptHierarchy
            The prompt.
        continuation : Sequence[int] (default: ())
            Tokens after it.

        Returns
        -------
        torch.Tensor
            Of shape [1 + private tokens + continuation, vocabulary]: row 0 is what
            follows the last shared token (without a shared part, row 0 is missing), the
            last row what follows the whole.
        """
        tail = [*hierarchy.private_tokens, *continuation]
        shared = sum(len(s) for s in hierarchy.shared)
        with self._ready([hierarchy], 1, 1, last_again=True) as ready:
            self._check_tokens([*hierarchy.tokens, *continuation])
            tokens = [*hierarchy.tokens[ready.length : shared], *tail]
            device = self.model.device
            ids = torch.tensor([tokens], device=device)
            places = torch.arange(ready.length, ready.length + len(tokens))
            with spliced(self.model):
                output = self.model(
                    ids,
                    position_ids=places[None].to(device),
                    use_cache=True,
                    **forward_cache(self.model, ready.cache),
                )
        found: torch.Tensor = output.logits[0]
        return found

    # -- what generate() is given -----------------------------------------------------

    @contextmanager
    def _ready(
        self,
        prompts: Sequence[PromptHierarchy],
        batch: int,
        steps: int,
        last_again: bool = False,
    ) -> Iterator[_Ready]:
        """Load what the prompts share, and make the cache."""
        prefix = self.shared_prefix(prompts[0])
        if not prefix.blocks or (last_again and len(prefix) == 1):
            yield _Ready(None, 0, None, 0, LoadReport())
            return
        loaded: LoadedPrefix = self._loader.load(prefix)
        lent: PrefixKV | None = None
        try:
            parts: list[PrefixKV] = list(loaded.parts)
            if last_again or not all(prompt.private_tokens for prompt in prompts):
                # Its logits are wanted, so the last shared token is processed again.
                parts = _without_last(parts)
            if not parts:
                yield _Ready(None, 0, None, 0, loaded.report)
                return
            layout, lent = self._rule.choose(parts, batch, steps)
            length = sum(part.length for part in parts)
            longest = max(len(prompt) for prompt in prompts) - length + steps
            yield _Ready(
                spliced_cache(parts, layout, longest),
                length,
                layout,
                loaded.nbytes,
                loaded.report,
            )
        except Exception:
            # A prompt that fails leaves the same as any other. Whoever interrupts one
            # is not kept waiting: the next load does it.
            loaded.settle()
            raise
        else:
            loaded.settle()
        finally:
            if lent is not None:
                lent.give_back()

    def _check(
        self,
        prompts: Sequence[PromptHierarchy],
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> None:
        if not prompts:
            raise InvalidInputError("There is no prompt to generate from: give one.")
        for name in _OWN:
            if name in options:
                raise InvalidInputError(
                    f"{name} is the engine's own matter: leave it out."
                )
        if (self._option(options, "num_return_sequences") or 1) != 1:
            raise InvalidInputError(
                "num_return_sequences must be 1: repeat the prompt in the batch."
            )
        if self._option(options, "use_cache") is False:
            raise InvalidInputError("use_cache=False leaves nothing to splice.")
        for name in _UNFIT:
            if found := self._option(options, name):
                raise InvalidInputError(
                    f"{name}={found!r:.80} of the generation config does not go with a "
                    "spliced prompt: unset it."
                )
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InvalidInputError(
                f"max_new_tokens must be at least 1, got {max_new_tokens}."
            )

    def _check_tokens(self, tokens: Sequence[int], more: int = 0) -> None:
        """Raise unless the model takes a text, and so many tokens more."""
        largest, longest = max(tokens, default=0), longest_text(self.model)
        if largest >= self._vocab_size:
            raise InvalidInputError(
                f"The prompt has token {largest}, but the model has {self._vocab_size} "
                "ids: use the model's own tokenizer."
            )
        if longest is not None and len(tokens) + more > longest:
            raise InvalidInputError(
                f"{len(tokens)} tokens of prompt and {more} new ones are more than the "
                f"model's {longest}."
            )

    def _option(self, options: dict[str, Any], name: str) -> Any:
        """Return an option of generate(), wherever it comes from."""
        if name in options:
            return options[name]
        config = options.get("generation_config") or self.model.generation_config
        return getattr(config, name, None)

    def _pad_token(self) -> int:
        for found in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(found, int):
                return found
        return 0

    def _until_end(self, row: list[int], options: dict[str, Any]) -> list[int]:
        """Return a row's tokens up to the one that ended it."""
        ends = self._option(options, "eos_token_id")
        ends = [ends] if isinstance(ends, int) else (ends or ())
        for index, token in enumerate(row):
            if token in ends:
                return row[: index + 1]
        return row


def _check_types(model: Any, tokenizer: Any, tenant_key: Any) -> None:
    """Raise unless they are what they should be."""
    if not isinstance(model, PreTrainedModel):
        raise InvalidInputError(
            f"model must be a Hugging Face model, got {type(model).__name__}: load it "
            "with AutoModelForCausalLM.from_pretrained or flower_ext.models.load_model."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InvalidInputError(
            f"tokenizer must be the model's tokenizer, got {type(tokenizer).__name__}."
        )
    if not isinstance(tenant_key, bytes):
        raise InvalidInputError(
            f"tenant_key must be bytes, got {type(tenant_key).__name__}: a source over "
            "gRPC tells it by tenant_key()."
        )


def _check_shared(prompts: Sequence[PromptHierarchy]) -> None:
    """Raise unless all prompts share the same."""
    for prompt in prompts:
        if not isinstance(prompt, PromptHierarchy):
            raise InvalidInputError(
                f"A prompt must be a PromptHierarchy, got {type(prompt).__name__}: "
                "make one by PromptHierarchy.from_text or from_chat."
            )
        if prompt.shared != prompts[0].shared:
            raise InvalidInputError(
                "Prompts of one batch must share their shared segments: generate from "
                "prompts with other ones in another call."
            )


def _precisions(given: Sequence[Precision | str]) -> tuple[Precision, ...]:
    """Return precisions, of which some may be named."""
    if isinstance(given, str | Precision):
        given = [given]
    known = ", ".join(precision.value for precision in Precision)
    try:
        return tuple(Precision(each) for each in given)
    except ValueError:
        raise InvalidInputError(
            f"precisions={list(given)!r:.80} must be among {known}."
        ) from None


class _Ready:
    """What a prompt's shared part comes to."""

    def __init__(
        self,
        cache: Any,
        length: int,
        layout: Layout | None,
        shared_bytes: int,
        report: LoadReport,
    ) -> None:
        self.cache = cache
        self.length = length
        self.layout = layout
        self.shared_bytes = shared_bytes
        self.report = report


class _FirstToken(LogitsProcessor):
    """Notes when the first logits were there."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at = float("nan")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        if self.at != self.at:
            if scores.device.type == "cuda":
                torch.cuda.synchronize(scores.device)
            self.at = self._clock.now()
        return scores


def _without_last(parts: Sequence[PrefixKV]) -> list[PrefixKV]:
    """Return a prefix without its last token."""
    *above, last = parts
    for layer in range(last.shape.layers):
        last.layer(layer)
    return [*above, last.head(last.length - 1)] if last.length > 1 else above


def _layers(cache: Any) -> list[Any]:
    return [] if cache is None else list(cache.layers)
