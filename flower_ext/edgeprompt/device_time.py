"""The time by which a device has done its work: on CUDA, calls return before that."""

from __future__ import annotations

import torch

from flower_ext.network.clocks import Clock

__all__ = ["device_time"]


def device_time(clock: Clock, device: torch.device) -> float:
    """Return the time once all that a device was given is done.

    Parameters
    ----------
    clock : Clock
        What tells it.
    device : torch.device
        Whose work is waited for; a CPU has done its own when a call returns.

    Returns
    -------
    float
        Seconds of the clock.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock.now()
