"""Redaction: what is personal goes, what the bot must learn stays."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.redaction import KINDS, find, redact
from finetune.transcripts.openai_chat import dialogue_from
from finetune.transcripts.redact import business_contacts, redact_dialogue

PERSONAL = [
    ("write to jo.smith+x@mail.example.co.uk.", "write to [EMAIL]."),
    ("<a_b-c@example.org>", "<[EMAIL]>"),
    ("MAIL ME: JO@EXAMPLE.COM, ok", "MAIL ME: [EMAIL], ok"),
    ("jürgen@müller.example", "[EMAIL]"),
    ("call +49 171 2345678 now", "call [PHONE] now"),
    ("+44 (0)20 7946 0958", "[PHONE]"),
    ("0044 20 7946 0958", "[PHONE]"),
    ("my number is (555) 234-5678.", "my number is [PHONE]."),
    ("555-234-5678", "[PHONE]"),
    ("555.234.5678", "[PHONE]"),
    ("1-800-555-0199", "[PHONE]"),
    ("ring 020 7946 0958", "ring [PHONE]"),
    ("0171/2345678", "[PHONE]"),
    ("06 12 34 56 78", "[PHONE]"),
    ("07911123456", "[PHONE]"),
    ("(0117) 496 0123", "[PHONE]"),
    ("my phone: 5552345678", "my phone: [PHONE]"),
    ("text me on 4155550123", "text me on [PHONE]"),
    ("card 4111 1111 1111 1111 exp 12/27", "card [CARD] exp 12/27"),
    ("5500-0055-5555-5559", "[CARD]"),
    ("378282246310005", "[CARD]"),
    ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [IBAN] please"),
    ("GB82WEST12345698765432", "[IBAN]"),
    ("from 192.168.1.17:8080", "from [IP]:8080"),
    ("2001:db8:85a3::8a2e:370:7334", "[IP]"),
    ("see https://joe:s3cret@example.com/x", "see [URL]"),
    ("ftp://a:b@host.example/f", "[URL]"),
    ("https://shop.example/reset?token=abc123&x=1 ok", "[URL] ok"),
    ("a@example.com and b@example.com", "[EMAIL] and [EMAIL]"),
]
HARMLESS = [
    "order 4412-998-7712",
    "order number 1234567890",
    "Order #5552345678 was sent",
    "invoice no. 020 7946 0958",
    "your order 1Z999AA10123456784",
    "JP-39120",
    "tracking number 00340434161094042557",
    "it costs $1,299.99 or 1.299,99 €",
    "£20.00 - £1250000",
    "on 2026-11-23 at 15:30",
    "on 23.11.2026 10:30",
    "01-02-2024 10:30",
    "12/05/2024",
    "version 10.0.19045.3570",
    "firmware 1.2.3.4",
    "v2.10.4.1",
    "300.1.2.3 is no address",
    "open 10:30 - 18:45",
    "size 38 40 42 44",
    "4111 1111 1111 1112 fails the check",
    "1234567890123456",
    "0000000000000000",
    "https://shop.example/returns?step=2",
    "http://example.com:8080/path",
    "follow @juniper on 1 site",
    "a@b",
    "1000000",
    "10 000 000",
    "isbn 9783161484100",
    "the 2nd of 3:4:5",
    "call me at 5",
    "room 12345 floor 67",
    '{"id": 48213377, "price": 3400}',
    "flat 3, 12 High Street, BS1 4ST",
]


@pytest.mark.parametrize(("text", "expected"), PERSONAL)
def test_personal_data_goes(text: str, expected: str) -> None:
    clean, counts = redact(text)
    assert clean == expected
    assert counts.total() == sum(expected.count(f"[{kind}]") for kind in KINDS)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact(text) == (text, {})


def test_kinds_are_counted() -> None:
    clean, counts = redact("a@example.com, +49 171 2345678, b@example.com, 4111111111111111")
    assert clean == "[EMAIL], [PHONE], [EMAIL], [CARD]"
    assert counts == {"EMAIL": 2, "PHONE": 1, "CARD": 1}


@given(st.text(alphabet="ab @.:+-()/0123456789[]#", max_size=80))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once, _ = redact(text)
    findings = find(text)
    assert all(a.end <= b.start for a, b in pairwise(findings))
    assert redact(once)[0].count("@") == once.count("@")


def conversation(user: str, agent: str) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": agent}]
    }


def test_every_message_of_a_dialogue_is_redacted() -> None:
    dialogue = dialogue_from(conversation("I am a@example.com", "Thanks, a@example.com!"))
    clean, counts = redact_dialogue(dialogue)
    assert [m["content"] for m in clean.messages] == ["I am [EMAIL]", "Thanks, [EMAIL]!"]
    assert counts == {"EMAIL": 2}


def test_the_business_own_contact_data_stays() -> None:
    hotline = [
        dialogue_from(conversation(f"question {n}", "Please call 0117 496 0123.")) for n in range(3)
    ]
    visitor = [
        dialogue_from(conversation(f"call me, {n}: 0117 496 0199", "I call 0117 496 0199 then."))
        for n in range(5)
    ]
    contacts = business_contacts([*hotline, *visitor])
    assert contacts == {"01174960123"}
    assert redact_dialogue(hotline[0], contacts)[0] == hotline[0]
    assert "[PHONE]" in redact_dialogue(visitor[0], contacts)[0].messages[1]["content"]
    assert business_contacts(hotline[:2]) == frozenset()
