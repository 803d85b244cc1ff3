"""Config keys of a DSSD evaluation: what is wrong is named, with the way out."""

from typing import Any

import pytest

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Adaptive, Sampling
from flower_ext.speculative.evaluation import DSSDRequest

LEAST = {"edge": "in-process", "drafter-weights": "node"}
REMOTE = {"edge": "grpc", "drafter-weights": "message", "address": "edge:50061"}


def test_what_is_left_out_has_its_default() -> None:
    request = DSSDRequest.from_config(LEAST)

    assert request == DSSDRequest("in-process", "node")
    assert request.to_config() == LEAST
    assert request.sampling == Sampling()


def test_a_request_survives_its_config() -> None:
    request = DSSDRequest.from_config(
        {
            **REMOTE,
            "draft-length": "adaptive",
            "temperature": 0,
            "prompts": ["One.", "Two."],
            "token": "secret",
            "root-certificate": b"pem",
        }
    )

    assert isinstance(request.drafting, Adaptive)
    assert request.sampling.greedy
    assert DSSDRequest.from_config(request.to_config()) == request


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({**LEAST, "draft-lenght": 4}, "'draft-lenght': did you mean 'draft-length'"),
        ({**LEAST, "max_new_tokens": 4}, "did you mean 'max-new-tokens'"),
        ({"edge": "in-process"}, "needs the config key 'drafter-weights'"),
        ({"drafter-weights": "node"}, "needs the config key 'edge'"),
        ({**LEAST, "edge": "local"}, "edge must be 'in-process' or 'grpc'"),
        ({**LEAST, "drafter-weights": "mine"}, "drafter-weights must be 'message' or"),
        ({**LEAST, "max-new-tokens": "64"}, "max-new-tokens must be int, got str"),
        ({**LEAST, "max-new-tokens": True}, "max-new-tokens must be int, got bool"),
        ({**LEAST, "max-new-tokens": 0}, "max-new-tokens must be at least 1"),
        ({**LEAST, "prompts": "One."}, "prompts must be list of str"),
        ({**LEAST, "draft-length": 0}, "draft_length must lie in"),
        ({**LEAST, "draft-length": "long"}, "draft-length must be 'adaptive'"),
        ({**LEAST, "top-p": 2.0}, "top_p must lie in"),
        ({**LEAST, "protocol": "dsss"}, "no protocol 'dsss'"),
        ({**LEAST, "address": "edge:1"}, "address is of no use with edge='in-process'"),
        ({**REMOTE, "address": ""}, "edge='grpc' needs address="),
        ({**REMOTE, "target": "default"}, "target='default' is of no use"),
        (
            {**REMOTE, "plaintext": True, "root-certificate": b"pem"},
            "root-certificate is of no use",
        ),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        DSSDRequest.from_config(config)


def test_a_token_is_never_shown() -> None:
    request = DSSDRequest.from_config({**REMOTE, "token": "secret"})

    assert "secret" not in repr(request)
    with pytest.raises(InvalidInputError) as raised:
        DSSDRequest.from_config({**REMOTE, "token": ["secret"]})
    assert "secret" not in str(raised.value)
