"""DSSD: split speculative decoding between device and edge (arXiv:2507.12000).

A small model on the device drafts, a large one at the edge verifies, and the
verification is split between them, so that no vocabulary distribution travels uplink
(and, with ``dssd-candidates``, none downlink either). The text has the large model's
own law. Pure algorithms: the verifier is in this process, behind a simulated link;
:mod:`flower_ext.edge` has it elsewhere.
"""

from flower_ext.speculative.choices import Choices, KeyedChoices, Purpose
from flower_ext.speculative.draft_length import (
    Adaptive,
    DraftLength,
    Fixed,
    Lengths,
)
from flower_ext.speculative.drafter import Drafter
from flower_ext.speculative.errors import (
    MemoryBudgetError,
    UnknownSessionError,
    VerifierUnavailableError,
)
from flower_ext.speculative.generation import (
    DraftVerdict,
    Generation,
    TokenOrigin,
    TracedToken,
)
from flower_ext.speculative.language_model import (
    LanguageModel,
    Row,
    TransformersModel,
)
from flower_ext.speculative.messages import (
    Ask,
    Distribution,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.protocols import (
    DSD,
    DSSD,
    PROTOCOLS,
    DSSDCandidates,
    VerificationProtocol,
    protocol_named,
)
from flower_ext.speculative.sampling import Sampling
from flower_ext.speculative.session import Edge, EdgeSession, Pending, Traffic
from flower_ext.speculative.speculate import speculate
from flower_ext.speculative.verifier import Verifier

__all__ = [
    "DSD",
    "DSSD",
    "PROTOCOLS",
    "Adaptive",
    "Ask",
    "Choices",
    "DSSDCandidates",
    "Distribution",
    "Draft",
    "DraftLength",
    "DraftVerdict",
    "Drafter",
    "Edge",
    "EdgeSession",
    "Fixed",
    "Generation",
    "KeyedChoices",
    "LanguageModel",
    "Lengths",
    "MemoryBudgetError",
    "Opening",
    "Pending",
    "Purpose",
    "Row",
    "Sampling",
    "Score",
    "Scored",
    "TokenOrigin",
    "TracedToken",
    "Traffic",
    "TransformersModel",
    "UnknownSessionError",
    "Verdict",
    "VerificationProtocol",
    "Verifier",
    "VerifierUnavailableError",
    "protocol_named",
    "speculate",
]
