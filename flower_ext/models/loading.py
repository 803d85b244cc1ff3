"""Loading one model and its tokenizer from a folder, the local cache or the package."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from flower_ext.errors import InvalidInputError
from flower_ext.models.default import (
    DEFAULT,
    DEFAULT_DRAFT,
    DEFAULT_TARGET,
    DEFAULT_TOKENIZER,
)
from flower_ext.models.vocabulary import shared_vocab_size

__all__ = ["LoadedModel", "Role", "Source", "load_model", "load_tokenizer"]

Source = str | PathLike[str]
Role = Literal["draft", "target"]


class LoadedModel(NamedTuple):
    """A model that is ready to be run, and its tokenizer.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode; no parameter asks for a gradient.
    tokenizer : PreTrainedTokenizerBase
        Has no id that the model lacks.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def vocab_size(self) -> int:
        """Number of ids that the model gives logits for, padded ones included."""
        return shared_vocab_size(self.tokenizer, model=self.model)


def load_model(
    source: Source,
    *,
    role: Role = "target",
    tokenizer: Source | PreTrainedTokenizerBase | None = None,
    fetch: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load one side of a pair: an edge needs the target only, a device the drafter.

    Parameters
    ----------
    source : str or path
        A folder that ``save_pretrained`` wrote, a Hugging Face id, or ``"default"``
        for the model that ships with the package.
    role : {"draft", "target"} (default: "target")
        Which model ``"default"`` is; error messages call the model by it.
    tokenizer : str, path or PreTrainedTokenizerBase (default: None)
        The model's tokenizer, or where it is; by default, beside the model.
    fetch : bool (default: False)
        Whether what is not in the local cache may be downloaded.
    dtype : torch.dtype (default: None)
        Precision of the parameters; by default the one that the checkpoint states.
    device : str or torch.device (default: "cpu")
        Where the model is put.

    Raises
    ------
    InvalidInputError
        There is no such model, or it has fewer logits than its tokenizer has ids.
    """
    if role not in ("draft", "target"):
        raise InvalidInputError(f"role={role!r} is unknown; give 'draft' or 'target'")
    if source == DEFAULT:
        source = DEFAULT_DRAFT if role == "draft" else DEFAULT_TARGET
    model: PreTrainedModel = _from_pretrained(
        *(AutoModelForCausalLM, "model", role, source, fetch),
        dtype="auto" if dtype is None else dtype,
    )
    if tokenizer is None:
        tokenizer = load_tokenizer(source, role=role, fetch=fetch)
    elif not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = load_tokenizer(tokenizer, role="tokenizer", fetch=fetch)
    shared_vocab_size(tokenizer, **{role: model})
    model.requires_grad_(False)
    # The library's wrapper around to() hides from type checkers that it is a method.
    model.to(device)  # type: ignore[arg-type]
    return LoadedModel(model, tokenizer)


def load_tokenizer(
    source: Source, *, role: str = "tokenizer", fetch: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model; parameters as in ``load_model``."""
    if source == DEFAULT or Path(source) in (DEFAULT_DRAFT, DEFAULT_TARGET):
        # The shipped models share one, which is stored once.
        source = DEFAULT_TOKENIZER
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(
        AutoTokenizer, "tokenizer", role, source, fetch
    )
    return tokenizer


def _from_pretrained(
    auto: Any, what: str, role: str, source: Source, fetch: bool, **options: Any
) -> Any:
    path = Path(source).expanduser()
    shown = f"{role}={str(source)!r}"
    if path.is_file():
        raise InvalidInputError(f"{shown} is a file; give the folder that it is in")
    # A folder, because an id opens a connection even where only local files count.
    folder = path if path.is_dir() else _cached_folder(str(source))
    try:
        if fetch and folder != path:
            return auto.from_pretrained(str(source), **options)
        if folder is not None:
            with _no_progress_bar():  # What is on disk is there in a moment.
                return auto.from_pretrained(folder, local_files_only=True, **options)
        error: Exception | None = None
    except (OSError, ValueError) as failure:
        error = failure
    reason = " ".join(str(error).split())
    if folder == path:
        problem = (
            f"{shown} is a folder without a {what} that can be loaded; write one there "
            f"with the {what}'s save_pretrained() ({reason})"
        )
    elif fetch:
        problem = (
            f"{shown} is no folder, and its {what} could not be fetched; check the "
            f"spelling and the connection ({reason})"
        )
    else:
        problem = (
            f"{shown} is neither a folder nor a {what} in the local Hugging Face "
            "cache; give the path of a folder, or fetch=True to download it"
        )
    raise InvalidInputError(problem) from error


def _cached_folder(id_: str) -> Path | None:
    """Return where the local Hugging Face cache holds a repository, if it does."""
    try:
        # One of them is in every repository of a model or of a tokenizer.
        for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
            found = try_to_load_from_cache(id_, file)
            if isinstance(found, str):
                return Path(found).parent
    except HFValidationError:
        pass  # such as a path, which is no id
    return None


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' bar out of the logs of nodes, which load for every message."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
