"""Finding what should not have been in a shared text: addresses, numbers, keys.

A detector is a safeguard behind the levels that a prompt's pieces are given, no
substitute for them: rules know forms, not meanings, and no name or illness has one.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import phonenumbers
from stdnum import iban, luhn

from flower_ext.errors import InvalidInputError

__all__ = ["KINDS", "Detector", "RuleDetector", "Span", "first_sensitive"]


@dataclass(frozen=True)
class Span:
    """A run of a text's characters that is sensitive.

    Parameters
    ----------
    begin, end : int
        Of its first character, and of the one after its last; 0 ≤ begin < end.
    kind : str
        What it is, in the detector's own words.

    Raises
    ------
    InvalidInputError
        If it has no character, or begins before the text does.
    """

    begin: int
    end: int
    kind: str

    def __post_init__(self) -> None:
        """Check the characters."""
        if not 0 <= self.begin < self.end:
            raise InvalidInputError(
                "A span needs 0 <= begin < end, in characters of the text, got "
                f"begin={self.begin} and end={self.end}."
            )


class Detector(Protocol):
    """What finds sensitive spans.

    Wherever a detector is asked for, a plain function of a text that returns spans will
    do. So presidio-analyzer, which also knows names and places, is plugged in like
    this::

        engine = presidio_analyzer.AnalyzerEngine()

        def presidio(text: str) -> list[Span]:
            found = engine.analyze(text=text, language="en")
            return [Span(r.start, r.end, r.entity_type) for r in found]

        PromptHierarchy.from_text(pieces, tokenizer, detector=presidio)
    """

    def find(self, text: str) -> Sequence[Span]:
        """Return the sensitive spans of a text, in any order; they may overlap."""
        ...


class RuleDetector:
    """Finds what is sensitive by its form.

    ``"email"``
        Addresses of people, not ``git@host:path``.
    ``"phone"``
        Numbers that exist in a country's numbering plan: with a country code (+49 …)
        everywhere, without one in ``region``.
    ``"card"``
        Numbers of payment cards whose check digit is right.
    ``"iban"``
        Bank accounts whose check digits and length are right.
    ``"ip"``
        IPv4 and IPv6 addresses, but for loopback and unspecified ones.
    ``"secret"``
        Private keys in PEM, JSON web tokens, the keys of AWS, GitHub, GitLab, Google,
        Hugging Face, OpenAI, Slack and Stripe, passwords in URLs, and what looks random
        where a key, token or password is assigned.

    Parameters
    ----------
    region : str | None (default: None)
        Where a phone number without a country code would be dialled, in two capitals as
        ISO 3166-1 has them ("DE"). None: such numbers are not looked for.
    kinds : Iterable[str] (default: KINDS)
        Which of the above to look for.

    Raises
    ------
    InvalidInputError
        If a kind or the region is unknown.
    """

    def __init__(
        self, region: str | None = None, kinds: Iterable[str] | None = None
    ) -> None:
        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise InvalidInputError(
                f"region={region!r} is no country with a numbering plan: give two "
                "capitals as ISO 3166-1 has them, such as 'DE', or None."
            )
        chosen = KINDS if kinds is None else tuple(kinds)
        unknown = sorted(set(chosen) - set(KINDS))
        if unknown:
            raise InvalidInputError(
                f"kinds={unknown} are unknown: choose from {', '.join(KINDS)}."
            )
        self.region = region
        self.kinds = tuple(kind for kind in KINDS if kind in chosen)

    def find(self, text: str) -> list[Span]:
        """Return the sensitive spans of a text.

        Parameters
        ----------
        text : str
            Any.

        Returns
        -------
        list[Span]
            By their beginnings; they may overlap. Their kinds are among :data:`KINDS`.
        """
        found = [
            Span(begin, end, kind)
            for kind in self.kinds
            for begin, end in _RULES[kind](text, self.region)
        ]
        return sorted(found, key=lambda span: (span.begin, span.end))


def first_sensitive(
    text: str, detector: Detector | Callable[[str], Sequence[Span]]
) -> Span | None:
    """Return the span that begins first, if a detector finds any.

    Parameters
    ----------
    text : str
        Any.
    detector : Detector or callable
        With a method ``find``, or itself a function of a text.

    Raises
    ------
    InvalidInputError
        If it is neither, or finds something behind the text's end.
    """
    find = getattr(detector, "find", detector)
    if not callable(find):
        raise InvalidInputError(
            f"A {type(detector).__name__} is no detector: give an object with a method "
            "find, or a function, that turns a text into spans."
        )
    found = list(find(text))
    for span in found:
        if span.end > len(text):
            raise InvalidInputError(
                f"The detector found a {span.kind} at characters {span.begin} to "
                f"{span.end} of a text of {len(text)}: spans count the characters of "
                "the text that is given."
            )
    return min(found, key=lambda span: span.begin, default=None)


_Ends = Iterator[tuple[int, int]]

_EMAIL = re.compile(
    r"(?<!\w)(?!(?:git|hg|svn)@)\w[\w.+%'-]{0,63}@"
    r"(?!\d+x\.)"  # As in logo@2x.png.
    r"(?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)


def _emails(text: str, _: str | None) -> _Ends:
    return (match.span() for match in _EMAIL.finditer(text))


def _phones(text: str, region: str | None) -> _Ends:
    for match in phonenumbers.PhoneNumberMatcher(text, region):
        yield match.start, match.end


_GAP = "[ \u00a0\u202f\u2010-\u2015-]"
_CARDS = tuple(
    # A table of numbers may begin before the card does: look at each position.
    re.compile(rf"(?<![0-9A-Za-z])(?<!\d[.,])(?=({form})(?![0-9A-Za-z]|\.\d))")
    for form in (
        r"\d{14,19}",
        rf"\d{{4}}(?:{_GAP}\d{{4}}){{3}}",
        rf"\d{{4}}(?:{_GAP}\d{{4}}){{3}}{_GAP}\d{{1,3}}",
        rf"\d{{4}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}",
    )
)
# Of the networks, by first digits; no timestamp begins with any of them.
_NETWORK = re.compile(
    r"4|5[0-9]|6[0-9]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3(?:0[0-5]|[4-9])"
)


def _cards(text: str, _: str | None) -> _Ends:
    for form in _CARDS:
        for match in form.finditer(text):
            digits = "".join(str(int(c)) for c in match[1] if c.isdigit())
            if _NETWORK.match(digits) and luhn.is_valid(digits):
                yield match.span(1)


_IBAN = re.compile(
    r"(?<![0-9A-Za-z])(?=([A-Za-z]{2}[0-9]{2}(?:[ \u00a0-]?[0-9A-Za-z]){11,30}))"
)
_SHORTEST_IBAN = 15


def _ibans(text: str, _: str | None) -> _Ends:
    for match in _IBAN.finditer(text):
        # The words behind it look like more of it.
        for end in range(match.end(1), match.start() + _SHORTEST_IBAN - 1, -1):
            number = re.sub(r"[ \u00a0-]", "", text[match.start() : end])
            if text[end : end + 1].isalnum() or len(number) < _SHORTEST_IBAN:
                continue
            if iban.is_valid(number, check_country=False):
                yield match.start(), end
                break


_IPV4 = re.compile(r"(?<![\w.])(?<!\w/)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?:\.\d{1,3}){0,3}(?!\w)"
)
# 1.2.3.4 may be the number of a version or a section.
_NUMBERED = re.compile(
    r"(?:versions?|ver\.?|releases?|builds?|sections?|chapters?|clauses?|§)\s*[:=]?\s*$",
    re.IGNORECASE,
)
# Global unicast, unique local and link local; others look like names in code (a::b).
_IPV6_NETWORKS = tuple(
    map(ipaddress.IPv6Network, ("2000::/3", "fc00::/7", "fe80::/10", "::ffff:0:0/96"))
)


def _ips(text: str, _: str | None) -> _Ends:
    for match in _IPV4.finditer(text):
        if _NUMBERED.search(text[max(0, match.start() - 16) : match.start()]):
            continue
        try:
            ipv4 = ipaddress.IPv4Address(match[0])
        except ValueError:
            continue
        if not (ipv4.is_loopback or ipv4.is_unspecified):
            yield match.span()
    for match in _IPV6.finditer(text):
        written = match[0] if match[0].endswith("::") else match[0].rstrip(":")
        try:
            ipv6 = ipaddress.IPv6Address(written)
        except ValueError:
            continue
        if any(ipv6 in network for network in _IPV6_NETWORKS):
            yield match.start(), match.start() + len(written)


# Forms that nothing but a key has.
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.*?)(?:-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|\Z)"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"
    r"|\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_\w{22,255}\b"
    r"|\bglpat-[\w-]{20,}"
    r"|\bAIza[\w-]{35}"
    r"|\bsk-[A-Za-z0-9]{20,}\b"
    r"|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-\d-[A-Za-z0-9-]{10,}"
    r"|\bhooks\.slack\.com/services/T\w+/B\w+/\w+"
    r"|\b[rs]k_(?:live|test)_[A-Za-z0-9]{10,}\b"
)
# Forms that other things have too; the group is a key if it looks random.
_CANDIDATE = re.compile(
    r"\b(sk-[\w-]{20,})"
    r"|\bbearer\s{1,8}([\w.~+/-]{16,}=*)"
    r"|(?:api[_-]?key|private[_-]?key|access[_-]?key|account[_-]?key|secret|token"
    r"|passw(?:or)?d|passphrase|pwd|credentials?)"
    r"[\w-]{0,30}[\"']?\s{0,8}(?::=|=>|[:=])\s{0,8}[\"']?"
    r"([^\s\"'`,;<>(){}\[\]$]{8,512})",
    re.IGNORECASE,
)
_PASSWORD_IN_URL = re.compile(r"://[^\s/:@]{0,64}:([^\s/:@{}$<>]{1,128})@")


def _secrets(text: str, _: str | None) -> _Ends:
    for match in _KEY.finditer(text):
        yield match.span()
    for match in _CANDIDATE.finditer(text):
        group = match.lastindex or 0
        if _looks_random(match[group]):
            yield match.span(group)
    for match in _PASSWORD_IN_URL.finditer(text):
        yield match.span(1)


# A key of 8 different characters has 3 bits, "password2" has 2.9, and a word with a
# number behind it changes from one class of characters to another once.
_LEAST_ENTROPY = 2.75
_LEAST_CHANGES = 4
_JOINTS = re.compile(r"[\W_]+")


def _looks_random(value: str) -> bool:
    """Tell a key from a name: letters and digits are mixed, and few come twice."""
    shares = [count / len(value) for count in Counter(value).values()]
    if -sum(share * math.log2(share) for share in shares) < _LEAST_ENTROPY:
        return False
    # A capital before a small letter begins a word, as names in code have it.
    runs = re.findall(r"[0-9]+|[A-Z]?[a-z]+|[A-Z]+(?![a-z])", _JOINTS.sub("", value))
    return any(c.isdigit() for c in value) and len(runs) > _LEAST_CHANGES


_RULES: dict[str, Callable[[str, str | None], _Ends]] = {
    "email": _emails,
    "phone": _phones,
    "card": _cards,
    "iban": _ibans,
    "ip": _ips,
    "secret": _secrets,
}

KINDS = tuple(_RULES)
"""What :class:`RuleDetector` finds."""
