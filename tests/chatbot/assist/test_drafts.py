"""How drafts of the model and of the past are ranked."""

from chatbot.assist.drafts import Draft, Written, rank
from chatbot.assist.retrieval import Match


def match(reply: str, share: float) -> Match:
    return Match(reply, share, 0.5, "c-1")


def own(text: str, probability: float) -> Written:
    return Written(Draft("m0", text, "model", 0.9, "v1"), probability)


def test_what_both_say_stands_first_and_once() -> None:
    ranked = rank(own("Which bank? ", 0.6), [match("Hello.", 0.5), match("Which bank?", 0.1)])
    assert [draft.text for draft in ranked] == ["Which bank?", "Hello."]
    assert ranked[0].agreed
    assert ranked[0].source == "model"
    assert ranked[0].confidence > 0.9


def test_the_past_leads_where_it_is_sure_and_the_model_where_it_wavers() -> None:
    sure = rank(own("mine", 0.4), [match("theirs", 0.9), match("other", 0.05)])
    assert [draft.text for draft in sure] == ["theirs", "mine", "other"]
    wavering = rank(own("mine", 0.4), [match("a", 0.2), match("b", 0.2), match("c", 0.2)])
    assert [draft.text for draft in wavering] == ["mine", "a", "b"]
    neither = rank(own("mine", 0.01), [match("a", 0.2), match("b", 0.2), match("c", 0.2)])
    assert [draft.text for draft in neither] == ["a", "b", "c"]


def test_wordings_of_one_thing_are_one_draft() -> None:
    ranked = rank(
        None,
        [
            match("Your order is on its way.", 0.3),
            match("What is your order number?", 0.25),
            match("What is your order number", 0.2),
            match("Goodbye.", 0.1),
        ],
    )
    wanted = ["What is your order number?", "Your order is on its way.", "Goodbye."]
    assert [draft.text for draft in ranked] == wanted


def test_nothing_and_blank_are_no_drafts() -> None:
    assert rank(None, []) == []
    assert rank(own("  ", 0.9), []) == []
