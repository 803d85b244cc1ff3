"""Texts on a public prompt, token by token, before training and after."""

from __future__ import annotations

import copy
from typing import Any

import torch
from flwr.app import ArrayRecord
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from device_edge_llm.data import models
from device_edge_llm.edge import make_link
from device_edge_llm.settings import PROTOCOLS, Settings
from device_edge_llm.task import make_drafter
from flower_ext.speculative import Drafter, Generation, Sampling, Verifier, speculate

PROMPT = "KING HENRY VI:\n"  # of nobody's own: everyone may see it
LENGTH = 48  # tokens


def make_samples(arrays: ArrayRecord, settings: Settings) -> list[dict[str, Any]]:
    """Have the server itself generate texts, in this process.

    Nodes tell nothing of their prompts and texts; these are the server's own, drafted
    by what it had at first and by what training has made of it, and verified by the
    target that ships.

    Parameters
    ----------
    arrays : ArrayRecord
        The weights of the drafter that was trained.
    settings : Settings
        Say how tokens are drawn, and over which simulated link.

    Returns
    -------
    list[dict[str, Any]]
        Each one's drafter, protocol, prompt, tokens with their origins, and what they
        took: one before training, then one for every protocol. Those with ``"shown"``
        are under the run's own protocol.
    """
    trained = copy.deepcopy(models().draft)
    trained.load_state_dict(arrays.to_torch_state_dict())
    after = f"after round {settings.num_server_rounds}"
    before = _sample(make_drafter(settings), settings.protocol, settings)
    return [
        {"drafter": "before training", "shown": True, **before},
        *(
            {
                "drafter": after,
                "shown": protocol == settings.protocol,
                **_sample(trained, protocol, settings),
            }
            for protocol in PROTOCOLS
        ),
    ]


def _sample(
    drafter: PreTrainedModel, protocol: str, settings: Settings
) -> dict[str, Any]:
    """Generate a text, with the same random choices each time."""
    pair = models()
    found = speculate(
        Drafter(drafter.eval(), pair.vocab_size),
        Verifier(pair.target, pair.vocab_size),
        pair.tokenizer(pair.tokenizer.bos_token + PROMPT)["input_ids"],
        max_new_tokens=LENGTH,
        sampling=Sampling(settings.temperature, settings.top_k, settings.top_p),
        protocol=protocol,
        draft_length=settings.draft_length or 4,
        drafting_ahead=settings.drafting_ahead,
        link=make_link(settings),
        generator=torch.Generator().manual_seed(settings.seed),
    )
    return {
        "protocol": protocol,
        "prompt": PROMPT,
        "tokens": _traced(found, pair.tokenizer),
        "length": len(found.tokens),
        "rounds": found.rounds,
        "examined": found.examined,
        "accepted": found.accepted,
        "uplink_bytes": found.uplink_bytes,
        "downlink_bytes": found.downlink_bytes,
        "drafting_seconds": found.drafting_seconds,
        "verification_seconds": found.verification_seconds,
        "transmission_seconds": found.transmission_seconds,
        "seconds": found.seconds,
    }


def _traced(
    found: Generation, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """Return a text's tokens as text, with where they come from."""
    return [
        {"text": tokenizer.decode([token]), "origin": origin}
        for token, origin in found.trace()
    ]
