"""Next steps: counted over the closest past moments."""

from chatbot.assist.hints import hints_of
from chatbot.assist.retrieval import ANY, ReplyIndex, Situation, examples_of
from chatbot.prompt import ChatMessage

LOOK_UP = '{"api": "orders", "query": {"id": 7}}'


def dialogue(*said: tuple[str, str]) -> list[ChatMessage]:
    return [{"role": role, "content": text} for role, text in said]  # type: ignore[typeddict-item]


def index() -> ReplyIndex:
    refund = dialogue(
        ("user", "I want a refund for my order"),
        ("assistant", "Which order is it?"),
        ("user", "order seven"),
        ("tool", LOOK_UP),
        ("assistant", "I have refunded it."),
        ("user", "thank you"),
        ("assistant", "You are welcome."),
    )
    weather = dialogue(("user", "will it rain tomorrow"), ("assistant", "It will be dry."))
    return ReplyIndex(
        example
        for number, messages in enumerate((refund, refund, weather))
        for example in examples_of(messages, f"c-{number}")
    )


def test_what_was_asked_and_what_came_after_it() -> None:
    near = index().nearest(Situation("I want a refund", "", ANY, ""))
    ask, then = hints_of(near)[:2]
    assert {(ask.kind, ask.text), (then.kind, then.text)} == {
        ("ask", "Which order is it?"),
        ("then", "I have refunded it."),
    }
    assert 0.5 < ask.share <= 1
    assert ask.origin in ("c-0", "c-1")


def test_a_look_up_is_found_though_the_call_has_none_yet() -> None:
    near = index().nearest(Situation("it is order seven", "Which order is it?", ANY, ""))
    assert ("look_up", "orders") in {(hint.kind, hint.text) for hint in hints_of(near)}


def test_there_is_no_hint_where_there_is_no_past() -> None:
    assert hints_of([]) == []
    assert ReplyIndex(()).nearest(Situation("x", "", ANY, "")) == []


def test_what_one_in_many_did_is_no_hint() -> None:
    common = dialogue(("user", "hello there"), ("assistant", "Hello."))
    rare = dialogue(("user", "hello there"), ("assistant", "Who is it?"))
    many = [common] * 19 + [rare]
    both = ReplyIndex(e for messages in many for e in examples_of(messages, "c"))
    assert hints_of(both.nearest(Situation("hello there", "", ANY, ""))) == []
