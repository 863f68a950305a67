"""Finding out what is at the address: the kind of server, its model, and whether that is ours."""

from pathlib import Path
from typing import Any

import structlog

from chatbot.engine.remote.client import Client
from chatbot.engine.remote.servers import KINDS, Facts, Server, model_cards
from chatbot.errors import BaseModelUnavailable, RequestRefused, SettingsError
from chatbot.settings import Settings

log = structlog.get_logger(__name__)

# Differs between tokenizers of different families, and between a base and one with other
# control tokens: numbers, accents, an emoji, indentation, another script.
PROBE = "Order 40917: naïve café, 日本語 🙂!\n\n    It's <|im_start|>user [INST] 3.14159"


async def connect(
    client: Client, settings: Settings, tokenizer: Any, end_ids: tuple[int, ...], vocabulary: int
) -> Server:
    """The server, with the base model's tokenizer compared.

    Raises:
        Broken: it cannot be reached.
        BaseModelUnavailable: it has another model, or none.
        SettingsError: it has several, and none is chosen.
    """
    cards = await model_cards(client)
    kind: str = settings.remote_server
    if kind == "auto":
        kind = await _kind(client, cards)
    model, card = _model(cards, settings.remote_model, kind)
    context = await _context(client, card, kind)
    server = KINDS[kind](client, Facts(model, context, tokenizer, end_ids, vocabulary))
    checked = await _compare(server, settings.base_model)
    log.info(
        "engine connected",
        url=client.shown,
        server=kind,
        model=model,
        model_root=card.get("root"),
        context=context,
        tokenizer=checked,
    )
    return server


async def _kind(client: Client, cards: dict[str, dict[str, Any]]) -> str:
    owners = {card.get("owned_by") for card in cards.values()}
    for kind in ("vllm", "llamacpp"):
        if kind in owners:
            return kind
    described = await client.get("/openapi.json")
    if isinstance(described, dict) and "/load_model" in described.get("paths", {}):
        return "transformers"
    return "openai"


def _model(cards: dict[str, dict[str, Any]], wanted: str, kind: str) -> tuple[str, dict[str, Any]]:
    """(id, card) of the model to ask for."""
    if wanted in cards:
        return wanted, cards[wanted]
    bases = [name for name, card in cards.items() if not card.get("parent")]
    if wanted and kind == "transformers":
        return wanted, {}  # loads what it is asked for
    if wanted:
        raise BaseModelUnavailable(
            f"FRONTDESK_REMOTE_MODEL={wanted}: the model server has no such model; it has "
            f"{', '.join(bases) or 'none'}"
        )
    if len(bases) == 1:
        return bases[0], cards[bases[0]]
    raise SettingsError(
        f"the model server has {len(bases)} models ({', '.join(bases)}): set "
        "FRONTDESK_REMOTE_MODEL to one of them"
    )


async def _context(client: Client, card: dict[str, Any], kind: str) -> int | None:
    if kind == "llamacpp":
        told = await client.get("/props") or {}
        found = told.get("default_generation_settings", {}).get("n_ctx")
    else:
        found = card.get("max_model_len")
    return None if found is None else int(found)


async def _compare(server: Server, base: str) -> str:
    """Let both tokenizers read the same text; says how far they could be compared."""
    tokenizer = server.facts.tokenizer
    ours = tokenizer.encode(PROBE, add_special_tokens=False)
    try:
        theirs = await server.count(PROBE)
    except RequestRefused as error:
        raise BaseModelUnavailable(
            f"the model server cannot answer with {server.facts.model}: {error}"
        ) from error
    if theirs is None:
        log.warning("engine tokenizer not compared", reason="the server does not tell tokens")
        return "not compared"
    if theirs not in (ours, len(ours)):
        raise BaseModelUnavailable(
            f"the model server's {server.facts.model} reads a text as other tokens than the base "
            f"model {base} does: both must be the same model. Set FRONTDESK_BASE_MODEL to the "
            "model that the server has (its name, or a directory with its tokenizer and config), "
            "or FRONTDESK_REMOTE_MODEL to the right one"
        )
    return "same tokens" if isinstance(theirs, list) else "same number of tokens"


def base_facts(directory: Path, tokenizer: Any) -> tuple[tuple[int, ...], int, int | None]:
    """(ids that end a reply, vocabulary, longest context) from a base model's directory."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise BaseModelUnavailable(f"{directory}: no configuration of a model ({error})") from error
    ends: list[Any] = [tokenizer.eos_token_id, config.eos_token_id]
    if (directory / "generation_config.json").is_file():
        ends.append(GenerationConfig.from_pretrained(directory).eos_token_id)
    ids = [id_ for end in ends for id_ in (end if isinstance(end, list) else [end])]
    context = getattr(config, "max_position_embeddings", None)
    known = tuple(sorted({int(id_) for id_ in ids if id_ is not None}))
    return known, max(len(tokenizer), int(config.vocab_size)), context
