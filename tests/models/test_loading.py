"""A model comes from a folder or the local cache; a network is used when asked for."""

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from flower_ext.errors import InvalidInputError
from flower_ext.models import load_model

Save = Callable[..., Path]
WORDS = ("a", "b", "c")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Put an empty Hugging Face cache in place of the user's."""
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub")
    )
    return tmp_path / "hub"


def test_a_folder_gives_a_model_that_is_ready_to_run(
    save: Save, attempts: list[object]
) -> None:
    model, tokenizer = load_model(save("model", 5, WORDS))

    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model(torch.tensor([tokenizer("a b")["input_ids"]])).logits.shape == (
        1,
        2,
        5,
    )
    assert not attempts


def test_an_id_in_the_cache_is_loaded_without_a_network(
    save: Save, cache: Path, attempts: list[object]
) -> None:
    repository = cache / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(save("model", 5, WORDS), repository / "snapshots" / ("0" * 40))

    loaded = load_model("somebody/tiny")

    assert loaded.vocab_size == 5
    assert not attempts


@pytest.mark.parametrize("source", ["somebody/tiny", "./no/such/folder"])
def test_what_is_nowhere_is_named_and_not_fetched(
    source: str, cache: Path, attempts: list[object]
) -> None:
    with pytest.raises(
        InvalidInputError, match=r"neither a folder.*fetch=True"
    ) as info:
        load_model(source, role="draft")

    assert f"draft={source!r}" in str(info.value)
    assert not attempts


def test_it_is_fetched_when_asked_for(
    cache: Path, attempts: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its retries
    with pytest.raises(InvalidInputError, match="could not be fetched"):
        load_model("somebody/tiny", fetch=True)

    assert attempts


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"without a model.*save_pretrained"):
        load_model(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(save: Save) -> None:
    with pytest.raises(InvalidInputError, match="without a tokenizer"):
        load_model(save("model", 5))


def test_a_file_is_not_a_folder(save: Save) -> None:
    with pytest.raises(InvalidInputError, match="is a file; give the folder"):
        load_model(save("model", 5, WORDS) / "config.json")


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="role='verifier'"):
        load_model("default", role="verifier")  # type: ignore[arg-type]
