"""digits: the model, the data and the training."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy


class Net(nn.Module):
    """A small convolutional network with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        """Return the logits of a batch of images."""
        return self.head(self.features(x).flatten(1))


def load_data(partition_id, num_partitions):
    """Return the images and labels of one partition."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.array_split(np.arange(len(labels)), num_partitions)[partition_id]
    x = torch.tensor(images[chosen], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return x, torch.tensor(labels[chosen])


def train(net, x, y, lr):
    """Train for one epoch; return the mean loss."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for batch in torch.randperm(len(y)).split(32):
        optimizer.zero_grad()
        loss = cross_entropy(net(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net, x, y):
    """Return the loss and the accuracy."""
    net.eval()
    logits = net(x)
    accuracy = (logits.argmax(1) == y).float().mean()
    return cross_entropy(logits, y).item(), accuracy.item()
