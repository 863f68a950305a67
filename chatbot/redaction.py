"""Personal data out of text: e-mail, phone, card, IBAN, IP address, URL with credentials.

Each finding becomes a placeholder such as ``[EMAIL]``. The patterns are tried in the order of
``DETECTORS``, so that a part of one kind (the host in an e-mail address) is never taken for
another. Numbers with check digits are verified (Luhn, ISO/IEC 7812; mod 97, ISO 13616), and what
looks like an order number, a price, a date or a version is left alone: a bot must learn those.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# a number said right after one of these is the shop's own reference, not a telephone number
_REFERENCE = re.compile(
    r"(?:order|invoice|ticket|tracking|parcel|reference|ref|case|sku|article|item|serial|booking|"
    r"confirmation|account|customer|contract|policy|id|isbn)"
    r"(?:\s*(?:number|no|nr|id|code|num)\b)?[\s.:#\"']*(?:is\s+)?[A-Z]{0,4}[-#]?$|#\s*[A-Z]{0,4}-?$",
    re.IGNORECASE,
)
_DIALLED = re.compile(
    r"(?:phone|telephone|tel|mobile|cell|call|ring|text|reach|fax|whatsapp|handy|dial)"
    r"[^\d\n]{0,25}$",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:\d{1,2}([./-])\d{1,2}\1\d{2,4}|\d{4}([./-])\d{1,2}\2\d{1,2})(?!\d)")
_VERSION = re.compile(r"(?:\bv|version|release|firmware|build)[\s.:]*$", re.IGNORECASE)


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_card(text: str, before: str) -> bool:
    # 2 to 6 begin every card in use (ISO/IEC 7812-1 major industry identifiers)
    return text[0] in "23456" and _luhn(text) and not _REFERENCE.search(before)


def _is_iban(text: str, _before: str) -> bool:
    packed = re.sub(r"[\s-]", "", text).upper()
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


def _is_ip(text: str, before: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return not _VERSION.search(before)


def _is_phone(text: str, before: str) -> bool:
    digits = re.sub(r"\D", "", text)
    if _DATE.match(text.lstrip("(")) or _REFERENCE.search(before):
        return False
    if text.startswith(("+", "00")):
        return 8 <= len(digits) <= 15
    if not re.search(r"\D", text):  # bare digits: only where the words say so, or a trunk zero
        return (bool(_DIALLED.search(before)) and 7 <= len(digits) <= 15) or _is_trunk(digits)
    return 9 <= len(digits) <= 13 or (bool(_DIALLED.search(before)) and 7 <= len(digits) <= 15)


def _is_trunk(digits: str) -> bool:
    return len(digits) in (10, 11) and digits[0] == "0" and digits[1] in "123567"


def _always(_text: str, _before: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Detector:
    """A kind of personal data: what it looks like, and a check of the match and what is before."""

    kind: str
    pattern: re.Pattern[str]
    accepts: Callable[[str, str], bool] = _always


_GROUP = r"[ .\-/]{1,2}"
DETECTORS: tuple[Detector, ...] = (
    Detector(
        "URL", re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/@\"'<>]+@[^\s\"'<>]+", re.I)
    ),
    Detector(
        "URL",
        re.compile(
            r"\bhttps?://[^\s\"'<>]*[?&#](?:token|key|api_?key|secret|password|pwd|sig|signature|"
            r"access_token|auth|session|sid)=[^\s\"'<>]+",
            re.I,
        ),
    ),
    Detector(
        "EMAIL",
        re.compile(
            r"(?<![\w.+-])[\w.+'-]{1,64}@(?:[\w](?:[\w-]{0,61}[\w])?\.)+[^\W\d_]{2,24}(?![\w-])"
        ),
    ),
    Detector(
        "IBAN",
        re.compile(
            r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?"
            r"(?![A-Z0-9])",
            re.I,
        ),
        _is_iban,
    ),
    Detector("CARD", re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card),
    Detector("IP", re.compile(r"(?<![\d.\w])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"), _is_ip),
    Detector(
        "IP",
        re.compile(r"(?<![:.\w])(?:[0-9a-f]{1,4}:){2,7}(?::?[0-9a-f]{1,4}){0,7}(?![:.\w])", re.I),
        lambda text, before: text.count(":") > 2 and _is_ip(text, before),
    ),
    Detector(  # international: +49 171 234567, 0044 20 7946 0958
        "PHONE",
        re.compile(r"(?<![\w+])(?:\+|00)[1-9](?:[ .\-/()]{0,3}\d){6,14}(?![\d])"),
        _is_phone,
    ),
    Detector(  # North America: (555) 123-4567, 555-123-4567, 1-800-555-0199
        "PHONE",
        re.compile(
            r"(?<![\w$£€.,/-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"
            r"(?![\w]|[.,-]\d)"
        ),
        _is_phone,
    ),
    Detector(  # with a trunk zero: 020 7946 0958, 0171/2345678, 06 12 34 56 78, (0117) 496 0123
        "PHONE",
        re.compile(
            rf"(?<![\w$£€.,/-])(?:\(0\d{{1,5}}\) ?|0\d{{1,5}}{_GROUP})\d{{2,8}}"
            rf"(?:{_GROUP}\d{{2,5}}){{0,4}}(?![\w]|[.,]\d)"
        ),
        _is_phone,
    ),
    Detector(  # bare digits
        "PHONE",
        re.compile(r"(?<![\w$£€.,#/-])\d{7,15}(?![\w]|[.,-]\d)"),
        _is_phone,
    ),
)
KINDS = tuple(dict.fromkeys(detector.kind for detector in DETECTORS))


@dataclass(frozen=True, slots=True)
class Finding:
    """A piece of personal data in a text: its kind, and where it stands."""

    kind: str
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """Personal data in ``text``, without overlaps, in its order."""
    found: list[Finding] = []
    if not any(c in text for c in "0123456789@:"):
        return found
    for detector in DETECTORS:
        for match in detector.pattern.finditer(text):
            start, end = match.span()
            if any(start < other.end and other.start < end for other in found):
                continue
            if detector.accepts(match.group(), text[max(0, start - 40) : start]):
                found.append(Finding(detector.kind, start, end))
    return sorted(found, key=lambda finding: finding.start)


def redact(text: str, keep: Iterable[str] = ()) -> tuple[str, Counter[str]]:
    """``text`` with a placeholder for each finding, and how many of each kind were replaced.
    Values in ``keep`` (see :func:`normal_value`) stay: the business's own contact data."""
    kept, counts = frozenset(keep), Counter[str]()
    parts, last = [], 0
    for finding in find(text):
        if normal_value(text[finding.start : finding.end]) in kept:
            continue
        parts += [text[last : finding.start], f"[{finding.kind}]"]
        last = finding.end
        counts[finding.kind] += 1
    return "".join([*parts, text[last:]]), counts


def normal_value(text: str) -> str:
    """A finding's value, independent of spacing and case."""
    return re.sub(r"[\s().\-/]", "", text).lower() if "@" not in text else text.lower()
