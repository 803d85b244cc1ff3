"""What the rules find, and what they leave alone."""

import time

import pytest

from flower_ext.edgeprompt.detectors import (
    KINDS,
    Detector,
    RuleDetector,
    Span,
    first_sensitive,
)
from flower_ext.errors import InvalidInputError

PEM = """-----BEGIN RSA PRIVATE KEY-----
MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8Q
-----END RSA PRIVATE KEY-----"""

# The sensitive part is between « and ».
FOUND = {
    "email": [
        "write to «joe.doe+x@mail.example.co.uk».",
        "'«jürgen@müller.example»'",
        "<a href='mailto:«a@b.io»'>",
        "-«first.o'last@b.io»",
    ],
    "phone": ["call «+49 30 901820» today", "fax:«+1-202-555-0123»."],
    "card": [
        "card «4111 1111 1111 1111» 12/27",
        "card «4111-1111-1111-1111» 123",
        "«4111\u00a01111\u00a01111\u00a01111»",
        "«378282246310005», paid",
        "«3782 822463 10005»",
        "«5555555555554444»,737",
        "«6304 1234 5678 9012 008»",
        "row 1234 «4111 1111 1111 1111»",
        "«4١11111111111111»",
    ],
    "iban": [
        "to «DE89 3704 0044 0532 0130 00» and then",
        "«GB82WEST12345698765432».",
        "no12 34 «nl91abna0417164300»",
    ],
    "ip": [
        "from «192.168.0.17» to",
        "http://«203.0.113.9»/x",
        "«10.0.0.0»/8",
        "ping «2001:db8::1».",
        "IP:«2001:db8:0:0:1:0:0:1»",
        "«fe80::1»%eth0",
    ],
    "secret": [
        "id «AKIAIOSFODNN7EXAMPLE»",
        "«ghp_16C7e42F292c6912E7710c838347Ae178B4a»",
        "«github_pat_11ABCDEFG0123456789ab_cdefgh»",
        "«xoxb-123456789012-abcdefABCDEF»",
        "https://«hooks.slack.com/services/T00000000/B00000000/XXXXXXXX»",
        "«sk-proj-abcD1234efGH5678ijKL9012»",
        "«sk-1234567890abcdefABCDEFGH»",
        f"key:\n«{PEM}»\nbye",
        f"cut off: «{PEM[:60]}»",
        "«eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_»",
        'api_key = "«9f8a7b6c5d4e3f2a1b0c»"',
        '{"password": "«S3cr3t!pw99»"}',
        "export DB_PASSWD=«tr0ub4dor3x»",
        "aws_secret_access_key = «wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY»",
        "Authorization: Bearer «a1B2c3D4e5F6g7H8i9J0»",
        "postgres://app:«hunter2»@localhost/x",
    ],
}

HARMLESS = [
    "On 2024-05-17 at 12:34:56 version 1.2.3 was out; v1.2.3.4, section 4.3.2.1",
    "2024-05-17T12:34:56.789Z 17/05/2024 17.05.2024 05-17-2024 20240517123456",
    "version 1.2.3.4 and Version: 1.2.3.4 and Chrome/120.0.0.0 and 10.0.19041.1",
    "In 1999 and 2024 it cost $1,299.99 or 12.500,00 EUR or £1 000 000",
    "line 4111, column 12; lines 100-200, 100 200 300 400; pages 123-456",
    "std::vector<int> a::b abc::def :: ::1 127.0.0.1 0.0.0.0 12:34:56:78",
    "git@github.com:owner/repo.git logo@2x.png react@18.2.0 @app.route user@localhost",
    "max_tokens: 4096, token = get_token(user1), api_key = my_api_key_2",
    'api_key="your-api-key-1234" tokenizer = tokenizer2_fast_v1',
    "secret = config.secret_v2; password: password123; token: getAccessToken2",
    "api_key = ${API_KEY_V2} token=<token> secret: xxxxxxxxxxxx",
    "sk-fading-circle-container-12 sk-learn ghp_short AKIA",
    "1716000000000 978-3-16-148410-0 4006381333931 4111111111111112 411111111111111",
    "3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18",
    "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
    "3.14159265358979323846 0.4111111111111111 6.02214076e23 1920x1080 16:9 24/7",
    "doi:10.1145/3292500.3330701 arXiv:2504.11729 RFC 2606 ISO 8601 DE00 3704 0044",
    "The token is what the secretary keeps: nothing of the password changes.",
    "https://example.com:8080/a@b and http://user@host/ and 999.1.1.1",
    "-----BEGIN PUBLIC KEY----- MIIB -----END PUBLIC KEY-----",
]


@pytest.mark.parametrize(
    ("kind", "marked"), [(kind, text) for kind in FOUND for text in FOUND[kind]]
)
def test_what_is_sensitive_is_found_to_the_character(kind: str, marked: str) -> None:
    before, _, rest = marked.partition("«")
    inside, _, after = rest.partition("»")

    found = RuleDetector(kinds=[kind]).find(before + inside + after)

    assert found == [Span(len(before), len(before + inside), kind)]
    assert found[0] in RuleDetector().find(before + inside + after)


@pytest.mark.parametrize("region", [None, "US", "DE", "GB"])
@pytest.mark.parametrize("text", HARMLESS)
def test_dates_versions_prices_code_and_prose_pass(
    text: str, region: str | None
) -> None:
    assert RuleDetector(region).find(text) == []


def test_numbers_without_a_country_code_are_dialled_in_the_region() -> None:
    text = "call (415) 555-2671 now"

    assert RuleDetector("US").find(text) == [Span(5, 19, "phone")]
    assert RuleDetector().find(text) == []
    assert RuleDetector("DE", kinds=["phone"]).find("ruf 030 901820 an") == [
        Span(4, 14, "phone")
    ]


def test_only_the_kinds_that_are_asked_for_are_looked_for() -> None:
    text = "a@b.io, +49 30 901820 or 192.168.0.17"

    assert {s.kind for s in RuleDetector().find(text)} == {"email", "phone", "ip"}
    assert [s.kind for s in RuleDetector(kinds=["ip", "email"]).find(text)] == [
        "email",
        "ip",
    ]
    assert RuleDetector(kinds=[]).find(text) == []
    assert set(FOUND) == set(KINDS)


def test_spans_come_in_their_order() -> None:
    found = RuleDetector().find("192.168.0.17 a@b.io 192.168.0.18 c@d.io")

    assert [s.begin for s in found] == [0, 13, 20, 33]


@pytest.mark.parametrize(
    "text", ["a" * 50_000, "1:" * 5_000, "token" * 5_000, "://a:" * 5_000, "a." * 9_000]
)
def test_long_runs_take_no_time_that_grows_with_their_square(text: str) -> None:
    begin = time.process_time()

    assert RuleDetector().find(text) == []
    assert time.process_time() - begin < 5  # 0.1 s; where it grows so, 10 s and more.


@pytest.mark.parametrize("region", ["de", "Germany", "", "XX"])
def test_a_region_that_is_none_is_named(region: str) -> None:
    with pytest.raises(InvalidInputError, match=f"region='{region}'.*ISO 3166-1"):
        RuleDetector(region)


def test_a_kind_that_is_none_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"kinds=\['name'\].*email, phone"):
        RuleDetector(kinds=["email", "name"])


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (2, 2), (3, 2)])
def test_a_span_has_characters(begin: int, end: int) -> None:
    with pytest.raises(InvalidInputError, match=f"begin={begin} and end={end}"):
        Span(begin, end, "email")


class Fixed:
    """Finds what it is told to."""

    def __init__(self, *spans: Span) -> None:
        self.spans = spans

    def find(self, text: str) -> tuple[Span, ...]:
        return self.spans


def test_the_first_span_is_the_one_that_begins_first() -> None:
    detector: Detector = Fixed(Span(7, 8, "b"), Span(3, 9, "a"), Span(4, 5, "c"))

    assert first_sensitive("0123456789", detector) == Span(3, 9, "a")
    assert first_sensitive("0123456789", detector.find) == Span(3, 9, "a")
    assert first_sensitive("0123456789", Fixed()) is None


def test_a_span_behind_the_end_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="characters 3 to 11 of a text of 10"):
        first_sensitive("0123456789", Fixed(Span(3, 11, "a")))


def test_what_is_no_detector_is_named() -> None:
    with pytest.raises(InvalidInputError, match="A int is no detector"):
        first_sensitive("text", 7)  # type: ignore[arg-type]
