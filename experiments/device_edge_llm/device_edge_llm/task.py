"""The drafter, its training, and the delays of the nodes."""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from device_edge_llm.data import models
from device_edge_llm.settings import DISTILLATION, SHIPPED, UNTRAINED, Settings
from flower_ext.clients import BernoulliSlowdown, DelayModel, SpeedProfile


def make_drafter(settings: Settings) -> PreTrainedModel:
    """Return the drafter that training starts from, a new one each time.

    ``"shipped"`` is the drafter that comes with flower-ext; ``"weakened"`` adds noise
    to each of its tensors, ``weakening`` times as strong as the tensor's own standard
    deviation; ``"untrained"`` is drawn anew.
    """
    shipped = models().draft
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.start == UNTRAINED:
            fresh: PreTrainedModel = AutoModelForCausalLM.from_config(shipped.config)
            return fresh
        drafter = copy.deepcopy(shipped)
        if settings.start == SHIPPED:
            return drafter
        with torch.no_grad():
            for parameter in drafter.parameters():
                noise = torch.randn_like(parameter) * parameter.std()
                parameter.add_(settings.weakening * noise)
    return drafter


def train(drafter: PreTrainedModel, windows: torch.Tensor, settings: Settings) -> float:
    """Train by Adam, and return the mean loss in nats per token.

    The order of the texts comes from torch's global generator, which a
    ``CodedClientApp`` seeds for every partition.

    Parameters
    ----------
    drafter : PreTrainedModel
        Trained in place.
    windows : torch.Tensor
        Ids of shape (texts, tokens).
    settings : Settings
        Say how, and for how many steps; texts are gone through again as needed.
    """
    drafter.train()
    drafter.requires_grad_(True)
    adam = torch.optim.Adam(drafter.parameters(), lr=settings.learning_rate)
    size = min(settings.batch_size, len(windows))
    passes = -(-settings.local_steps * size // len(windows))
    order = torch.cat([torch.randperm(len(windows)) for _ in range(passes)])
    losses = []
    for batch in order.split(size)[: settings.local_steps]:
        loss = loss_on(drafter, windows[batch], settings.loss)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def loss_on(drafter: PreTrainedModel, ids: torch.Tensor, kind: str) -> torch.Tensor:
    """Return a drafter's loss on texts, in nats per token.

    Parameters
    ----------
    drafter : PreTrainedModel
        The drafter.
    ids : torch.Tensor
        Texts of shape (texts, tokens).
    kind : str
        ``"distillation"``: KL(P‖Q), the divergence of the drafter's distributions from
        the target's. ``"next-token"``: cross-entropy with the text itself.
    """
    seen = ids[:, :-1]
    log_q = torch.log_softmax(drafter(input_ids=seen, use_cache=False).logits, dim=-1)
    if kind == DISTILLATION:
        with torch.no_grad():
            logits = models().target(input_ids=seen, use_cache=False).logits
            log_p = torch.log_softmax(logits, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return functional.nll_loss(log_q.flatten(0, 1), ids[:, 1:].flatten())


@lru_cache(maxsize=1)
def delay_model(settings: Settings) -> DelayModel:
    """Return the delays of training on the nodes.

    Nodes differ in speed, log-normally around ``partition-seconds``, and in every
    round each is a straggler with ``straggler-probability``.
    """
    rng = np.random.default_rng(settings.seed)
    spread = rng.lognormal(0.0, settings.speed_sigma, settings.num_nodes)
    return BernoulliSlowdown(
        probability=settings.straggler_probability,
        slowdown=settings.straggler_slowdown,
        base=SpeedProfile(
            (settings.partition_seconds * spread).tolist(),
            upload=settings.upload_seconds,
        ),
        seed=settings.seed,
    )
