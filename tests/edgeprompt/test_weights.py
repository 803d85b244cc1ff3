"""Weights that change unseen by PyTorch's own counts are seen."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from flower_ext.edgeprompt import EdgePrompt, identity_of
from flower_ext.edgeprompt.weights import ELEMENTS, WeightSamples
from flower_ext.errors import InvalidInputError
from flower_ext.models import default_pair
from tests.edgeprompt.test_engine import plainly, split
from tests.edgeprompt.tiny import FAMILIES, tiny

PROMPT = split([1 + i % 90 for i in range(40)], 30)


def own(family: str = "llama") -> PreTrainedModel:
    """Return a model that nobody else has."""
    return copy.deepcopy(tiny(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_write_to_the_data_of_any_tensor_is_seen(family: str) -> None:
    model = own(family)
    samples = WeightSamples(model)
    before = samples.state()
    assert samples.state() == before
    for parameter in model.parameters():
        version = parameter._version
        parameter.data.mul_(0.5).add_(0.1)
        assert parameter._version == version  # PyTorch counts nothing here.
        assert samples.state() != before
        before = samples.state()


def test_a_write_to_one_column_of_a_matrix_is_seen() -> None:
    model = own()
    samples = WeightSamples(model)
    for column in range(0, 48, 7):
        before = samples.state()
        matrix = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
        matrix.data[:, column : column + 7] += 1.0
        assert samples.state() != before


def test_tensors_of_all_shapes_layouts_and_kinds() -> None:
    model = own()
    for name, tensor in {
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0),
        "turned": torch.zeros(5, 300).t(),
        "part": torch.zeros(9, 40)[2:7, ::3],
        "rounded": torch.zeros(3, 33, dtype=torch.bfloat16),
        "whole": torch.arange(ELEMENTS + 1),
        "nan": torch.full((4,), float("nan")),
    }.items():
        model.register_buffer(name, tensor)
    samples = WeightSamples(model)
    before = samples.state()
    assert samples.state() == before
    for name in ("scalar", "turned", "part", "rounded", "whole", "nan"):
        model.get_buffer(name).data.fill_(7)
        assert samples.state() != before
        before = samples.state()
    model.register_buffer("scalar", torch.tensor(7.0))
    assert samples.state() != before


def test_no_text_comes_of_weights_that_are_gone() -> None:
    model = own()
    engine = EdgePrompt(model, default_pair().tokenizer)
    engine.generate(PROMPT, 8, do_sample=False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(0.5)
    found = engine.generate(PROMPT, 8, do_sample=False)
    assert found.report.computed == 1
    assert found.tokens == plainly(model, list(PROMPT.tokens), 8, do_sample=False)


def test_what_samples_miss_is_found_by_refresh() -> None:
    model = own()
    engine = EdgePrompt(model, default_pair().tokenizer)
    before = engine.identity
    matrix = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    matrix.data[0, 1] += 1.0
    assert engine.identity == before
    assert engine.refresh() == engine.identity == identity_of(model) != before
    before = engine.identity
    model.config.adapter = "switched on"
    assert engine.refresh() == engine.identity == identity_of(model) != before


def test_layers_of_peft_are_refused_until_they_are_merged() -> None:
    model = own()
    engine = EdgePrompt(model, default_pair().tokenizer)
    engine.generate(PROMPT, 2)
    # As PEFT's own layers are found: by where their class comes from.
    kind = type("Linear", (torch.nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    attention = model.get_submodule("model.layers.0.self_attn")
    plain = attention.get_submodule("q_proj")
    attention.add_module("q_proj", kind(48, 48, bias=False))
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"q_proj .* merge_and_unload"):
            engine.generate(PROMPT, 2)
    with pytest.raises(InvalidInputError, match="merge_and_unload"):
        EdgePrompt(model, default_pair().tokenizer)
    attention.add_module("q_proj", plain)
    assert engine.generate(PROMPT, 2).report.in_memory == 1
