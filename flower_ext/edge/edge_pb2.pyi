from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceMessage(_message.Message):
    __slots__ = ("hello", "opening", "resume", "draft", "ask", "close", "score")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    opening: Opening
    resume: Resume
    draft: Draft
    ask: Ask
    close: Close
    score: Score
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., opening: _Optional[_Union[Opening, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., score: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...

class EdgeMessage(_message.Message):
    __slots__ = ("welcome", "opened", "verdict", "refusal", "scored")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    opened: Opened
    verdict: Verdict
    refusal: Refusal
    scored: Scored
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., scored: _Optional[_Union[Scored, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "tokenizer_fingerprint", "vocab_size")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    version: int
    tokenizer_fingerprint: str
    vocab_size: int
    def __init__(self, version: _Optional[int] = ..., tokenizer_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("version", "vocab_size", "max_length", "max_message_bytes", "eos_token_ids")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    vocab_size: int
    max_length: int
    max_message_bytes: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_length: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("session", "seed", "prompt", "generated", "protocol", "candidates", "temperature", "top_k", "top_p", "min_p")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    session: str
    seed: int
    prompt: _containers.RepeatedScalarFieldContainer[int]
    generated: int
    protocol: str
    candidates: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    def __init__(self, session: _Optional[str] = ..., seed: _Optional[int] = ..., prompt: _Optional[_Iterable[int]] = ..., generated: _Optional[int] = ..., protocol: _Optional[str] = ..., candidates: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Distribution(_message.Message):
    __slots__ = ("probabilities", "ids")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    probabilities: bytes
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, probabilities: _Optional[bytes] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("round", "confirmed", "tail", "tokens", "probabilities", "distributions", "no_bonus")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    NO_BONUS_FIELD_NUMBER: _ClassVar[int]
    round: int
    confirmed: int
    tail: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    probabilities: bytes
    distributions: _containers.RepeatedCompositeFieldContainer[Distribution]
    no_bonus: bool
    def __init__(self, round: _Optional[int] = ..., confirmed: _Optional[int] = ..., tail: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., probabilities: _Optional[bytes] = ..., distributions: _Optional[_Iterable[_Union[Distribution, _Mapping]]] = ..., no_bonus: bool = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("round", "first", "count")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    round: int
    first: int
    count: int
    def __init__(self, round: _Optional[int] = ..., first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("round", "accepted", "token", "distribution", "candidates", "candidate_probabilities", "seconds")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    round: int
    accepted: int
    token: int
    distribution: Distribution
    candidates: _containers.RepeatedScalarFieldContainer[int]
    candidate_probabilities: bytes
    seconds: float
    def __init__(self, round: _Optional[int] = ..., accepted: _Optional[int] = ..., token: _Optional[int] = ..., distribution: _Optional[_Union[Distribution, _Mapping]] = ..., candidates: _Optional[_Iterable[int]] = ..., candidate_probabilities: _Optional[bytes] = ..., seconds: _Optional[float] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("confirmed", "tail")
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    confirmed: int
    tail: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, confirmed: _Optional[int] = ..., tail: _Optional[_Iterable[int]] = ...) -> None: ...

class Scored(_message.Message):
    __slots__ = ("tokens", "log_likelihood", "agreeing")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    AGREEING_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    log_likelihood: float
    agreeing: int
    def __init__(self, tokens: _Optional[int] = ..., log_likelihood: _Optional[float] = ..., agreeing: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "retry_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_seconds: float
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_seconds: _Optional[float] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("addresses", "have_layers", "model", "dtype", "blocks")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HAVE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    addresses: bytes
    have_layers: int
    model: bytes
    dtype: str
    blocks: _containers.RepeatedCompositeFieldContainer[BlockTokens]
    def __init__(self, addresses: _Optional[bytes] = ..., have_layers: _Optional[int] = ..., model: _Optional[bytes] = ..., dtype: _Optional[str] = ..., blocks: _Optional[_Iterable[_Union[BlockTokens, _Mapping]]] = ...) -> None: ...

class BlockTokens(_message.Message):
    __slots__ = ("level", "tokens")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    level: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, level: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class SegmentPart(_message.Message):
    __slots__ = ("header", "data", "unknown")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    header: SegmentHeader
    data: bytes
    unknown: Unknown
    def __init__(self, header: _Optional[_Union[SegmentHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., unknown: _Optional[_Union[Unknown, _Mapping]] = ...) -> None: ...

class SegmentHeader(_message.Message):
    __slots__ = ("layers", "heads", "tokens", "key_dim", "value_dim", "dtype", "precision", "error", "sizes", "digests", "code")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEY_DIM_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    layers: int
    heads: int
    tokens: int
    key_dim: int
    value_dim: int
    dtype: str
    precision: str
    error: float
    sizes: _containers.RepeatedScalarFieldContainer[int]
    digests: bytes
    code: bytes
    def __init__(self, layers: _Optional[int] = ..., heads: _Optional[int] = ..., tokens: _Optional[int] = ..., key_dim: _Optional[int] = ..., value_dim: _Optional[int] = ..., dtype: _Optional[str] = ..., precision: _Optional[str] = ..., error: _Optional[float] = ..., sizes: _Optional[_Iterable[int]] = ..., digests: _Optional[bytes] = ..., code: _Optional[bytes] = ...) -> None: ...

class Unknown(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TenantKeyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TenantKeyReply(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    def __init__(self, key: _Optional[bytes] = ...) -> None: ...
