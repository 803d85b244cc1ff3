"""The run-config of this app, checked once and typed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

from flower_ext.errors import InvalidInputError

STRATEGIES = (
    "two-stage",
    "cyclic",
    "fractional",
    "heterogeneity-aware",
    "uncoded",
    "ignore-stragglers",
)
UNVERIFIED = ("uncoded", "ignore-stragglers")  # no partition is computed twice
MOST_VERIFIED = 4
DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10")
SPLITS = ("iid", "dirichlet")
CLOCKS = ("virtual", "wall")
SCHEDULERS = ("none", "lyapunov", "max-throughput", "round-robin", "random")
SYNTHETIC = "synthetic"

Value = str | int | float | bool


@dataclass(frozen=True)
class Settings:
    """One field per run-config key; README.md says what each means.

    Raises
    ------
    InvalidInputError
        If a value is out of range; the message names the key, what it may be, and how
        to set it.
    """

    strategies: str
    num_server_rounds: int
    num_nodes: int
    num_partitions: int
    stragglers: int
    verify_replies: int
    clock: str
    partition_seconds: float
    speed_sigma: float
    upload_seconds: float
    straggler_probability: float
    straggler_slowdown: float
    link_trace: str
    shared_carrier: bool
    device_profile: str
    battery_joules: float
    harvest_watts: float
    redundancy_price: float
    scheduler: str
    V: float
    dataset: str
    data_dir: str
    download: bool
    train_examples: int
    split: str
    dirichlet_alpha: float
    learning_rate: float
    batch_size: int
    local_epochs: int
    seed: int
    target_accuracy: float
    results_dir: str
    tensorboard_dir: str
    checkpoint_dir: str
    resume_from: str

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Value]) -> Settings:
        """Return the settings that a run-config holds.

        Parameters
        ----------
        run_config : Mapping[str, Value]
            The context's ``run_config``, with every key of the app.

        Returns
        -------
        Settings
            The checked settings.

        Raises
        ------
        InvalidInputError
            If a key is missing or unknown, or a value has the wrong type or is out of
            range.
        """
        types = get_type_hints(cls)
        keys = [_key(field.name) for field in fields(cls)]
        for key in run_config:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise InvalidInputError(
                    f"Unknown run-config key '{key}'.{hint} "
                    f"The keys are: {', '.join(keys)}."
                )
        values = {}
        for field in fields(cls):
            key = _key(field.name)
            if key not in run_config:
                raise InvalidInputError(
                    f"The run-config lacks '{key}': set it under "
                    "[tool.flwr.app.config] in the app's pyproject.toml."
                )
            values[field.name] = _typed(key, run_config[key], types[field.name])
        return cls(**values)

    def __post_init__(self) -> None:
        """Check every value."""
        self._check_names()
        for name, least in (
            ("num_server_rounds", 1),
            ("num_nodes", 1),
            ("num_partitions", 1),
            ("batch_size", 1),
            ("local_epochs", 1),
            ("train_examples", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise _refused(name, value, f"an integer of at least {least}", least)
        for name, low, high, example in (
            ("partition_seconds", 0, math.inf, 1.0),
            ("speed_sigma", 0, 3, 0.3),
            ("upload_seconds", 0, math.inf, 0.1),
            ("straggler_probability", 0, 1, 0.1),
            ("straggler_slowdown", 1, math.inf, 8.0),
            ("battery_joules", 0, math.inf, 55000.0),
            ("harvest_watts", 0, math.inf, 0.5),
            ("redundancy_price", 0, math.inf, 0.2),
            ("V", 1e-6, math.inf, 20.0),
            ("dirichlet_alpha", 1e-3, math.inf, 0.5),
            ("learning_rate", 0, math.inf, 0.1),
            ("target_accuracy", 0, 1, 0.9),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                upper = "" if math.isinf(high) else f" and at most {high:g}"
                wanted = f"a finite number of at least {low:g}{upper}"
                raise _refused(name, value, wanted, example)
        if not 0 <= self.stragglers < self.num_nodes:
            wanted = f"at least 0 and less than num-nodes, which is {self.num_nodes}"
            raise _refused("stragglers", self.stragglers, wanted, self.num_nodes // 2)
        if "fractional" in self.names and self.num_nodes % (self.stragglers + 1):
            fits = [s for s in range(self.num_nodes) if self.num_nodes % (s + 1) == 0]
            raise _refused(
                "stragglers",
                self.stragglers,
                "one less than a divisor of num-nodes for the strategy 'fractional', "
                f"that is one of {', '.join(map(str, fits))}",
                min(fits, key=lambda s: abs(s - self.stragglers)),
            )
        self._check_verification()
        self._check_data()
        self._check_edge()
        self._check_resumption()

    @property
    def saved_in(self) -> str:
        """The folder of the checkpoints; empty: there are none."""
        return self.checkpoint_dir or self.resume_from

    def _check_resumption(self) -> None:
        """Check that there is something to go on from."""
        source = Path(self.resume_from).expanduser()
        if self.resume_from and not any(source.glob("*/round-*.json")):
            raise InvalidInputError(
                f"Run-config key 'resume-from' is {self.resume_from!r}, where no "
                f"checkpoint is (looked for in {source.absolute()}): name the "
                "checkpoint-dir of the run to go on from, best as an absolute path."
            )

    def _check_names(self) -> None:
        """Check the values that are names."""
        for name, allowed in (
            ("clock", CLOCKS),
            ("dataset", DATASETS),
            ("split", SPLITS),
            ("scheduler", SCHEDULERS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise _refused_name(name, value, allowed, value)
        if not self.names:
            raise _refused_name("strategies", self.strategies, STRATEGIES, "")
        for strategy in self.names:
            if strategy not in STRATEGIES:
                raise _refused_name("strategies", strategy, STRATEGIES, strategy)
        if len(set(self.names)) < len(self.names):
            raise InvalidInputError(
                f"Run-config key 'strategies' names a strategy twice: "
                f"{self.strategies!r}. Name each once, separated by commas."
            )
        if not self.results_dir.strip():
            wanted = "the path of a folder"
            raise _refused("results_dir", "", wanted, "results/two_stage_coded")

    def _check_verification(self) -> None:
        """Check that the strategies can verify replies."""
        wanted = self.verify_replies
        if not 0 <= wanted <= MOST_VERIFIED:
            expected = f"an integer of at least 0 and at most {MOST_VERIFIED}"
            raise _refused("verify_replies", wanted, expected, 1)
        if not wanted:
            return
        if unfit := [name for name in self.names if name in UNVERIFIED]:
            rest = [name for name in self.names if name not in UNVERIFIED]
            raise InvalidInputError(
                f"Run-config key 'verify-replies' is {wanted}, but of the strategies "
                f"{' and '.join(unfit)} compute no partition twice, and have nothing "
                "to verify by. Leave them out: "
                f"-c 'strategies=\"{','.join(rest) or 'two-stage'}\"'."
            )
        if self.names != ("two-stage",) and self.stragglers < wanted:
            raise _refused(
                "verify_replies",
                wanted,
                f"at most stragglers, which is {self.stragglers}, for every strategy "
                "but 'two-stage'",
                self.stragglers,
            )

    def _check_data(self) -> None:
        """Check that the data-dir is one that every process finds."""
        if self.dataset == "digits":
            return
        if not self.data_dir or not Path(self.data_dir).expanduser().is_absolute():
            raise InvalidInputError(
                f"Run-config key 'data-dir' must be the absolute path of the folder "
                f"with {self.dataset}, got {self.data_dir!r}: the app does not run in "
                "your current folder. Set it by -c "
                f'\'dataset="{self.dataset}" data-dir="/path/to/data"\', and add '
                "download=true to let torchvision download the data there."
            )

    def _check_edge(self) -> None:
        """Check the links and devices."""
        if self.link_trace and self.clock != "virtual":
            raise _refused(
                "link_trace", self.link_trace, 'empty unless clock is "virtual"', ""
            )
        for name in ("link_trace", "device_profile"):
            value = getattr(self, name)
            for path in value.split(",") if value and value != SYNTHETIC else ():
                if not Path(path.strip()).is_absolute():
                    wanted = f'empty, "{SYNTHETIC}", or an absolute path'
                    raise _refused(name, value, wanted, SYNTHETIC)
        if (self.battery_joules or self.harvest_watts) and not self.device_profile:
            raise InvalidInputError(
                "Run-config keys 'battery-joules' and 'harvest-watts' need a "
                "'device-profile'. Set one: -c 'device-profile=\"synthetic\"'."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies to compare, in order."""
        return tuple(n.strip() for n in self.strategies.split(",") if n.strip())


def _key(field_name: str) -> str:
    """Return the run-config key of a field."""
    return field_name.replace("_", "-")


def _typed(key: str, value: Value, wanted: type) -> Value:
    """Return ``value`` if it has the wanted type; an int may stand for a float."""
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        example = {"str": '"text"', "int": "3", "float": "0.5", "bool": "true"}
        raise InvalidInputError(
            f"Run-config key '{key}' must be of type {wanted.__name__}, got "
            f"{value!r} of type {type(value).__name__}. Set it like this: "
            f"-c '{key}={example[wanted.__name__]}'."
        )
    return value


def _refused(
    name: str, value: object, wanted: str, example: Value
) -> InvalidInputError:
    """Return the error for a value out of range."""
    shown = f'"{example}"' if isinstance(example, str) else f"{example}"
    return InvalidInputError(
        f"Run-config key '{_key(name)}' must be {wanted}, got {value!r}. "
        f"Set it like this: -c '{_key(name)}={shown}'."
    )


def _refused_name(
    name: str, value: str, allowed: tuple[str, ...], given: str
) -> InvalidInputError:
    """Return the error for a name that is not known."""
    near = difflib.get_close_matches(given, allowed, n=1) or allowed[:1]
    return InvalidInputError(
        f"Run-config key '{_key(name)}' knows no {value!r}: choose from "
        f"{', '.join(allowed)}. Set it like this: -c '{_key(name)}=\"{near[0]}\"'."
    )
