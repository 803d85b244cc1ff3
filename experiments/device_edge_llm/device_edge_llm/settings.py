"""The run-config of this app, checked once and typed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

from flower_ext.errors import InvalidInputError

GENERATED, TINY_SHAKESPEARE = "generated", "tinyshakespeare"
WEAKENED, UNTRAINED, SHIPPED = "weakened", "untrained", "shipped"
DISTILLATION, NEXT_TOKEN = "distillation", "next-token"
IN_PROCESS, GRPC = "in-process", "grpc"
DSSD, EDGEPROMPT, BOTH = "dssd", "edgeprompt", "both"
PRECISIONS = ("exact", "fp16", "bf16", "int8", "int4")
LONGEST_PUBLIC = 384
PROTOCOLS = ("dssd-candidates", "dssd", "dsd")
LONGEST_DRAFT = 256
MOST_NEW_TOKENS = 512
MOST_VERIFIED = 4

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

    num_server_rounds: int
    num_nodes: int
    num_partitions: int
    stragglers: int
    verify_replies: int
    partition_seconds: float
    speed_sigma: float
    upload_seconds: float
    straggler_probability: float
    straggler_slowdown: float
    start: str
    weakening: float
    loss: str
    learning_rate: float
    batch_size: int
    local_steps: int
    data: str
    data_dir: str
    texts_per_partition: int
    seed: int
    inference: str
    edge: str
    edge_tokens: str
    edge_certificate: str
    edge_plaintext: bool
    rtt_ms: float
    mbps: float
    protocol: str
    draft_length: int
    drafting_ahead: bool
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    prompts_per_node: int
    public_tokens: int
    precisions: str
    max_error: float
    store_dir: str
    target_acceptance: float
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
        for name, allowed in (
            ("start", (WEAKENED, UNTRAINED, SHIPPED)),
            ("loss", (DISTILLATION, NEXT_TOKEN)),
            ("data", (GENERATED, TINY_SHAKESPEARE)),
            ("inference", (DSSD, EDGEPROMPT, BOTH)),
            ("protocol", PROTOCOLS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise _refused_name(name, value, allowed)
        if not self.results_dir.strip():
            wanted = "the path of a folder"
            raise _refused("results_dir", "", wanted, "results/device_edge_llm")
        self._check_counts()
        self._check_numbers()
        if not 0 <= self.stragglers < self.num_nodes:
            wanted = f"at least 0 and less than num-nodes, which is {self.num_nodes}"
            raise _refused("stragglers", self.stragglers, wanted, self.num_nodes // 2)
        if self.verify_replies and self.inference == EDGEPROMPT:
            raise InvalidInputError(
                "Run-config key 'verify-replies' is for training, and "
                f"inference={EDGEPROMPT!r} trains nothing: leave it at 0."
            )
        self._check_data()
        self._check_edge()
        self._check_blocks()
        self._check_resumption()

    @property
    def saved_in(self) -> str:
        """The folder of the checkpoints; empty: there are none."""
        return self.checkpoint_dir or self.resume_from

    def _check_resumption(self) -> None:
        """Check that there is something to go on from."""
        if self.saved_in and self.inference == EDGEPROMPT:
            raise InvalidInputError(
                "Run-config keys 'checkpoint-dir' and 'resume-from' are for training, "
                f"and inference={EDGEPROMPT!r} trains nothing: leave them empty."
            )
        source = Path(self.resume_from).expanduser()
        if self.resume_from and not any(source.glob("round-*.json")):
            raise InvalidInputError(
                f"Run-config key 'resume-from' is {self.resume_from!r}, where no "
                f"checkpoint is (looked for in {source.absolute()}): name the "
                "checkpoint-dir of the run to go on from, best as an absolute path."
            )

    def _check_counts(self) -> None:
        """Check the integers."""
        for name, least, most, example in (
            ("num_server_rounds", 1, None, 6),
            ("num_nodes", 1, None, 8),
            ("num_partitions", 1, None, 12),
            ("verify_replies", 0, MOST_VERIFIED, 1),
            ("batch_size", 1, None, 8),
            ("local_steps", 1, None, 6),
            ("texts_per_partition", 1, None, 16),
            ("seed", 0, None, 0),
            ("draft_length", 0, LONGEST_DRAFT, 4),
            ("top_k", 0, None, 50),
            ("max_new_tokens", 1, MOST_NEW_TOKENS, 32),
            ("prompts_per_node", 1, None, 3),
            ("public_tokens", 16, LONGEST_PUBLIC, 256),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                upper = "" if most is None else f" and at most {most}"
                wanted = f"an integer of at least {least}{upper}"
                raise _refused(name, value, wanted, example)

    def _check_numbers(self) -> None:
        """Check the real numbers."""
        for name, low, high, example in (
            ("partition_seconds", 0, math.inf, 1.0),
            ("speed_sigma", 0, 3, 0.3),
            ("upload_seconds", 0, math.inf, 0.1),
            ("straggler_probability", 0, 1, 0.1),
            ("straggler_slowdown", 1, math.inf, 8.0),
            ("weakening", 0, 10, 1.0),
            ("learning_rate", 0, 1, 0.002),
            ("rtt_ms", 0, math.inf, 20.0),
            ("mbps", 1e-6, math.inf, 10.0),
            ("temperature", 0, 10, 1.0),
            ("top_p", 1e-6, 1, 0.9),
            ("max_error", 0, math.inf, 0.02),
            ("target_acceptance", 0, 1, 0.8),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                upper = "" if math.isinf(high) else f" and at most {high:g}"
                wanted = f"a finite number of at least {low:g}{upper}"
                raise _refused(name, value, wanted, example)

    def _check_data(self) -> None:
        """Check that the data-dir is one that every process finds."""
        if self.data == GENERATED:
            if self.data_dir:
                raise InvalidInputError(
                    f"Run-config key 'data-dir' is {self.data_dir!r}, which "
                    f'data="{GENERATED}" does not read. To train on it: '
                    f'-c \'data="{TINY_SHAKESPEARE}" data-dir="{self.data_dir}"\'.'
                )
            return
        if not self.data_dir or not Path(self.data_dir).expanduser().is_absolute():
            raise InvalidInputError(
                "Run-config key 'data-dir' must be the absolute path of the folder "
                f"with by_speaker.json, got {self.data_dir!r}: the app does not run in "
                f'your current folder. Set it by -c \'data="{self.data}" '
                'data-dir="/path/to/tinyshakespeare"\'.'
            )

    def _check_edge(self) -> None:
        """Check where the edge is, and how it is reached."""
        named = self.edge in (IN_PROCESS, GRPC)
        if not named and not self.edge.rpartition(":")[2].isdecimal():
            wanted = f'"{IN_PROCESS}", "{GRPC}" or "host:port"'
            raise _refused("edge", self.edge, wanted, IN_PROCESS)
        for name in ("edge_tokens", "edge_certificate"):
            value = getattr(self, name)
            if value and not Path(value).expanduser().is_absolute():
                wanted = "empty, or the absolute path of a file"
                raise _refused(name, value, wanted, "/path/to/file")
        if named and (self.edge_tokens or self.edge_certificate or self.edge_plaintext):
            raise InvalidInputError(
                "Run-config keys 'edge-tokens', 'edge-certificate' and "
                "'edge-plaintext' say how to reach an edge that runs already: set its "
                "address by -c 'edge=\"host:port\"', or leave them away."
            )
        if self.edge_certificate and self.edge_plaintext:
            raise InvalidInputError(
                "Run-config keys 'edge-certificate' and 'edge-plaintext' exclude each "
                "other: a certificate is for TLS. Set one of them."
            )

    def _check_blocks(self) -> None:
        """Check what blocks of the public text are fetched in, and where they stay."""
        for name in self.fetched_in:
            if name not in PRECISIONS:
                raise _refused_name("precisions", name, PRECISIONS)
        if self.store_dir and not Path(self.store_dir).expanduser().is_absolute():
            wanted = "empty, or the absolute path of a folder"
            raise _refused("store_dir", self.store_dir, wanted, "/path/to/folder")

    @property
    def fetched_in(self) -> tuple[str, ...]:
        """What blocks may be fetched in; none: every node computes them."""
        return tuple(name.strip() for name in self.precisions.split(",") if name)


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


def _refused_name(name: str, value: str, allowed: tuple[str, ...]) -> InvalidInputError:
    """Return the error for a name that is not known."""
    near = difflib.get_close_matches(value, allowed, n=1) or allowed[:1]
    return InvalidInputError(
        f"Run-config key '{_key(name)}' knows no {value!r}: choose from "
        f"{', '.join(allowed)}. Set it like this: -c '{_key(name)}=\"{near[0]}\"'."
    )
