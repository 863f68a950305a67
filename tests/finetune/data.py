"""Small made-up transcripts for tests of training."""

import json
from pathlib import Path
from typing import Any

ITEMS = ["shoes", "a lamp", "two chairs", "a kettle", "the blue coat", "a tent", "my order"]


def dialogue(number: int) -> dict[str, Any]:
    item = ITEMS[number % len(ITEMS)]
    messages = [
        {"role": "system", "content": "You are short and precise."},
        {"role": "user", "content": f"Where is {item}? It is order {number}."},
        {"role": "tool", "content": json.dumps({"order": number, "status": "sent"})},
        {"role": "assistant", "content": f"Order {number} was sent."},
        {"role": "user", "content": "thanks" if number % 2 else "Thank you, goodbye!"},
        {"role": "assistant", "content": "Goodbye!"},
    ]
    if number % 3 == 0:
        messages = messages[:4]
    kinds = [
        {"i": i, "kind": "template" if m["content"] == "Goodbye!" else "custom"}
        for i, m in enumerate(messages)
        if m["role"] == "assistant"
    ]
    return {"messages": messages, "meta": {"id": number, "agent_turns": kinds}}


def write_dialogues(path: Path, numbers: range) -> Path:
    path.write_text("".join(json.dumps(dialogue(n)) + "\n" for n in numbers), encoding="utf-8")
    return path
