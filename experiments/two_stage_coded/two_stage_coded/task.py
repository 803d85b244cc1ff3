"""The model, its training and evaluation, and the delays of the nodes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from flower_ext.clients import BernoulliSlowdown, DelayModel, SpeedProfile
from flower_ext.network import DeviceDelays
from two_stage_coded.edge import make_devices
from two_stage_coded.settings import Settings

NUM_CLASSES = 10


class Net(nn.Module):
    """A small convolutional network.

    Parameters
    ----------
    channels : int
        Channels of the images.
    size : int
        Height and width of the images in pixels, at least 4.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * (size // 4) ** 2, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of shape (n, channels, size, size)."""
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(x.flatten(1))


def make_net(images: NDArray[np.float32]) -> Net:
    """Return the network for images of shape (n, channels, size, size)."""
    return Net(channels=images.shape[1], size=images.shape[2])


def train(
    net: Net, images: torch.Tensor, labels: torch.Tensor, settings: Settings
) -> float:
    """Train by plain SGD and return the mean loss.

    The order of the batches comes from torch's global generator, which a
    ``CodedClientApp`` seeds for every partition.
    """
    net.train()
    parameters = list(net.parameters())
    losses = []
    for _ in range(settings.local_epochs):
        for batch in torch.randperm(len(labels)).split(settings.batch_size):
            loss = cross_entropy(net(images[batch]), labels[batch])
            gradients = torch.autograd.grad(loss, parameters)
            # By hand: importing torch.optim takes longer than all of this training.
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(settings.learning_rate * gradient)
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net: Net, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    net.eval()
    batches = zip(images.split(1000), labels.split(1000), strict=True)
    loss, correct = 0.0, 0
    for x, y in batches:
        logits = net(x)
        loss += float(cross_entropy(logits, y, reduction="sum"))
        correct += int((logits.argmax(1) == y).sum())
    return loss / len(labels), correct / len(labels)


@lru_cache(maxsize=1)
def delay_model(settings: Settings) -> DelayModel:
    """Return the delays of the nodes, the same for every strategy.

    Nodes differ in speed (as the device profile says, else log-normal around
    ``partition-seconds``), and in every round each is a straggler with
    ``straggler-probability``. Uploads over traced links are the network's.
    """
    upload = 0.0 if settings.link_trace else settings.upload_seconds
    devices = make_devices(settings)
    if devices is not None:
        speeds: DelayModel = DeviceDelays(devices, upload=upload)
    else:
        rng = np.random.default_rng(settings.seed)
        spread = rng.lognormal(0.0, settings.speed_sigma, settings.num_nodes)
        speeds = SpeedProfile(
            (settings.partition_seconds * spread).tolist(), upload=upload
        )
    return BernoulliSlowdown(
        probability=settings.straggler_probability,
        slowdown=settings.straggler_slowdown,
        base=speeds,
        seed=settings.seed,
    )
