"""Dependencies point one way. Read from the code's own import statements, also those inside
functions, so that a lazy import cannot hide an arrow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# prefix of the importing module -> prefixes it must not import
FORBIDDEN = {
    "chatbot": ("finetune", "ui"),
    "finetune": ("ui", "chatbot.server", "chatbot.worker"),
    "ui": ("chatbot", "finetune"),
    "chatbot.protocol": ("asyncio", "fastapi", "redis", "torch", "sqlalchemy"),
    "chatbot.promotion": ("asyncio", "fastapi", "redis", "torch", "sqlalchemy"),
    "chatbot.prompt": ("asyncio", "fastapi", "redis", "torch", "sqlalchemy"),
    "chatbot.conversation.events": ("asyncio", "redis", "sqlalchemy", "torch"),
    "chatbot.conversation.rules": ("asyncio", "redis", "sqlalchemy", "torch"),
    "chatbot.conversation.interface": ("redis", "sqlalchemy", "torch"),
    "chatbot.conversation": ("chatbot.server", "chatbot.worker", "chatbot.engine", "torch"),
    "chatbot.completions": ("chatbot.server", "chatbot.worker", "chatbot.engine", "torch"),
    "chatbot.completions.wire": ("asyncio", "redis", "fastapi"),
    "chatbot.engine": (
        "chatbot.server",
        "chatbot.worker",
        "chatbot.conversation",
        "chatbot.record",
        "redis",
        "fastapi",
        "sqlalchemy",
    ),
    "chatbot.engine.torch.scheduler": ("torch", "transformers"),
    "chatbot.engine.torch.blocks": ("torch", "transformers"),
    "chatbot.server": ("chatbot.worker", "chatbot.engine", "torch", "transformers"),
    "chatbot.worker": ("chatbot.server", "fastapi"),
    "chatbot.rights": ("chatbot.server", "chatbot.worker", "chatbot.engine", "torch", "fastapi"),
    "chatbot.rights.rules": ("asyncio", "redis", "sqlalchemy"),
    "chatbot.redaction": ("asyncio", "redis", "sqlalchemy", "torch"),
    "chatbot.record": ("chatbot.server", "chatbot.worker", "chatbot.conversation", "redis"),
}


def _modules() -> dict[str, Path]:
    found = {}
    for package in ("chatbot", "finetune", "ui"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("prefix", sorted(FORBIDDEN))
def test_import_arrows_point_one_way(prefix: str) -> None:
    """No module under ``prefix`` imports what is forbidden for it."""
    modules = {name: path for name, path in _modules().items() if _under(name, prefix)}
    assert modules, f"no module {prefix}: mend the table"
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules.items()
        for imported in _imports(path)
        for forbidden in FORBIDDEN[prefix]
        if _under(imported, forbidden)
    ]
    assert not wrong


def test_files_stay_readable() -> None:
    """600 lines are a wall."""
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("chatbot", "finetune", "ui", "bench", "tests")
        for pattern in ("*.py", "*.js", "*.lua")
        for path in (ROOT / folder).rglob(pattern)
        if (count := len(path.read_text().splitlines())) > 600
    }
    assert not long
