"""Every setting once: name, type, default, help.

A setting ``name`` is read from the environment variable ``FRONTDESK_NAME``. A ``FRONTDESK_``
variable that is not a setting is an error at start-up that names it, with the nearest known name.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from chatbot.errors import SettingsError

PREFIX = "FRONTDESK_"


class Settings(BaseSettings):
    """All settings, immutable. Build with :func:`load_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    # -- where things are kept
    data_dir: Path = Field(
        Path("data"), description="Folder of the embedded stores, artifacts, keys and logs."
    )
    redis_url: str = Field(
        "",
        description="Redis or Valkey, e.g. redis://host:6379/0, or a cluster, "
        "redis+cluster://host:6379,host:6379. Empty: an embedded Valkey.",
    )
    queue_redis_url: str = Field(
        "",
        description="Redis of the training queue, which cannot be a cluster. Empty: redis_url.",
    )
    acknowledge: Literal["store", "disk"] = Field(
        "store",
        description="A message is acknowledged when the store has it, or has it on its disk.",
    )
    database_url: str = Field(
        "",
        description="SQLAlchemy URL, e.g. postgresql+psycopg://u:p@host/db. Empty: SQLite.",
    )
    # -- server
    host: str = Field("127.0.0.1", description="Address that the server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port that the server listens on.")
    console_port: int = Field(8501, ge=0, le=65535, description="Port of the staff console.")
    public_url: str = Field(
        "", description="Address under which browsers reach the server. Empty: http://host:port."
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Key that signs visitor and staff tokens. Empty: made once, kept in data_dir.",
    )
    visitor_token_hours: float = Field(24.0 * 30, gt=0, description="Life of a visitor's token.")
    staff_token_hours: float = Field(12.0, gt=0, description="Life of a staff member's login.")
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Proxies whose X-Forwarded-For says who asks: addresses or networks, separated "
        "by commas; * trusts everybody.",
    )
    # -- limits; the name of a setting is the name of its limit in the metrics
    max_message_chars: int = Field(
        8000, ge=1, description="Longest message a visitor or agent may send, in characters."
    )
    max_frame_bytes: int = Field(
        65536, ge=1024, description="Largest websocket frame accepted, in bytes."
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, description="Largest body of an HTTP request, in bytes."
    )
    max_conversation_events: int = Field(
        5000, ge=1, description="Events after which a visitor must begin a new conversation."
    )
    messages_per_minute: int = Field(
        30, ge=1, description="Messages one visitor may send in a minute."
    )
    messages_per_minute_per_address: int = Field(
        600, ge=1, description="Messages of all visitors at one address in a minute."
    )
    frames_per_minute: int = Field(
        1200, ge=12, description="Websocket frames one visitor may send in a minute."
    )
    frames_per_minute_per_address: int = Field(
        12000, ge=12, description="Websocket frames of all visitors at one address in a minute."
    )
    visitors_per_minute: int = Field(
        60, ge=1, description="Visitor's tokens given to one address in a minute."
    )
    conversations_per_address: int = Field(
        300, ge=1, description="Conversations begun from one address in conversations_hours."
    )
    conversations_hours: float = Field(
        12.0, gt=0, description="Hours that conversations_per_address counts over."
    )
    sockets_per_visitor: int = Field(20, ge=1, description="Open websockets of one visitor.")
    sockets_per_address: int = Field(3000, ge=1, description="Open websockets of one address.")
    sockets_per_site: int = Field(10000, ge=1, description="Open websockets of one site.")
    sockets_per_server: int = Field(
        10000, ge=1, description="Open websockets of one server process, desks included."
    )
    tokens_per_visitor: int = Field(
        500_000, ge=1, description="Tokens computed for one visitor in a day (UTC)."
    )
    tokens_per_site: int = Field(
        100_000_000, ge=1, description="Tokens computed for all visitors of a site in a day (UTC)."
    )
    queue_length: int = Field(
        512, ge=1, description="Replies that may wait for a worker; then visitors are told `busy`."
    )
    queue_seconds: float = Field(
        120.0, gt=0, description="Longest wait for a worker; then people are asked instead."
    )
    reply_seconds: float = Field(
        180.0, gt=0, description="Longest time to write one reply; it ends with what is there."
    )
    hello_seconds: float = Field(
        10.0, gt=0, description="Time in which a new websocket must send its hello."
    )
    slow_reader_seconds: float = Field(
        10.0, gt=0, description="A websocket that takes no frame for so long is dropped."
    )
    # -- calls
    call_sessions_per_minute: int = Field(
        300, ge=1, description="Calls of one site that may begin in a minute."
    )
    call_fragments_per_minute: int = Field(
        3000, ge=1, description="Transcript fragments of one call in a minute, partials included."
    )
    call_fragments_per_request: int = Field(
        200, ge=1, description="Transcript fragments in one request or frame."
    )
    call_open_partials: int = Field(
        16, ge=1, description="Utterances of one call that may wait for their finals."
    )
    call_partial_seconds: float = Field(
        60.0, gt=0, description="A partial whose final does not come is forgotten after so long."
    )
    panel_token_minutes: float = Field(60.0, gt=0, description="Life of a panel's token.")
    # -- Chatwoot
    chatwoot: SecretStr = Field(
        SecretStr(""),
        description='Sites that are agent bots of a Chatwoot, as JSON: {"site": {"url": ..., '
        '"account": 1, "token": ..., "secret": ...}}. Empty: none.',
    )
    chatwoot_stale_seconds: float = Field(
        300.0, gt=0, description="A webhook of Chatwoot that was signed before that is refused."
    )
    # -- worker and engine
    base_model: str = Field(
        "smollm2-135m",
        description="Base model: smollm2-135m, a Hugging Face id, or a local directory.",
    )
    engine: Literal["auto", "torch", "openvino", "remote"] = Field(
        "auto",
        description="Runtime that writes replies: torch, openvino (CPU, int8), remote, or auto.",
    )
    device: str = Field("auto", description="torch device: auto, cpu, cuda, cuda:0 ...")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Weights and cache of the torch runtime. auto: bfloat16 where native."
    )
    engine_threads: int = Field(
        0, ge=0, description="CPU threads of the engine. 0: as many as there are cores."
    )
    max_running: int = Field(64, ge=1, description="Replies written at once by one worker.")
    max_waiting: int = Field(64, ge=0, description="Replies that may wait in one engine.")
    api_max_waiting: int = Field(
        256, ge=1, description="API requests that may wait for a worker; the next one gets 429."
    )
    kv_cache_tokens: int = Field(
        65536,
        ge=1024,
        description="Tokens that the KV cache of one worker holds. On a CPU the torch runtime has "
        "those of running replies once more, at most as many for each set of weights in use.",
    )
    prefill_chunk_tokens: int = Field(
        256, ge=16, description="Most prompt tokens prefilled in one step beside running replies."
    )
    merged_versions: int = Field(
        2,
        ge=0,
        description="Versions that the openvino runtime adds to weights of their own, in the "
        "background: faster, for the memory of the base model each. Others run beside the base.",
    )
    openvino_weights: Literal["auto", "int8", "bfloat16"] = Field(
        "auto",
        description="Weights of the openvino runtime in memory. auto: bfloat16 where the processor "
        "multiplies it in tiles (AMX), faster there for twice the memory; else int8.",
    )
    prefill_stretch: float = Field(
        1.5,
        ge=0,
        description="How many times as long a step may take for a prompt of more than "
        "FRONTDESK_PREFILL_CHUNK_TOKENS beside running replies as without it. Less: smoother "
        "streams, later first words. 0: no such bound.",
    )
    max_context_tokens: int = Field(
        4096, ge=128, description="Longest prompt plus reply; older turns are left out beyond it."
    )
    max_draft_tokens: int = Field(
        8,
        ge=0,
        le=64,
        description="Most tokens guessed ahead for a reply in one step, where that is faster; "
        "the reply is the same. 0: none.",
    )
    reply_max_tokens: int = Field(192, ge=1, description="Longest reply, in tokens.")
    temperature: float = Field(0.0, ge=0, le=5, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling bound.")
    repetition_penalty: float = Field(1.0, ge=0.5, le=5, description="1 is none.")
    system_prompt: str = Field(
        "You are a friendly customer service assistant. Be short and precise.",
        description="System message of sites that have none of their own.",
    )
    # -- the remote runtime
    remote_url: str = Field(
        "",
        description="Model server (vLLM, llama-server, transformers serve, or OpenAI-compatible), "
        "e.g. http://host:8000. Set: engine=auto takes it.",
    )
    remote_key: SecretStr = Field(SecretStr(""), description="The model server's API key.")
    remote_model: str = Field(
        "", description="The base model's name on the model server. Empty: the only one it has."
    )
    remote_server: Literal["auto", "vllm", "llamacpp", "transformers", "openai"] = Field(
        "auto", description="Kind of model server. auto: asked for at start."
    )
    remote_data_dir: str = Field(
        "",
        description="Where the model server sees data_dir, to load adapters. Empty: the same path.",
    )
    remote_connect_seconds: float = Field(
        5.0, gt=0, description="Longest wait for a connection to the model server."
    )
    remote_first_token_seconds: float = Field(
        60.0, gt=0, description="Longest wait for a reply's first token from the model server."
    )
    remote_idle_seconds: float = Field(
        20.0, gt=0, description="Longest wait for a reply's next token from the model server."
    )
    remote_retries: int = Field(
        2, ge=0, description="Further calls for a reply whose call to the model server broke off."
    )
    lease_seconds: float = Field(
        10.0, gt=0, description="A reply whose worker is silent this long is taken over."
    )
    max_attempts: int = Field(
        3, ge=1, description="Workers that may try one reply before it fails and goes to people."
    )
    assist_running: int = Field(
        2, ge=0, description="Agents' questions that one worker drafts for at once. 0: no drafts."
    )
    worker_metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of the worker's own /metrics. 0: none."
    )
    # -- training
    train_data: str = Field(
        "", description="Transcript file that retraining from the console builds on. Empty: none."
    )
    train_eval_data: str = Field(
        "", description="Held-out transcript file for reports of runs from the console."
    )
    trainer_threads: int = Field(0, ge=0, description="CPU threads of a training run. 0: all.")
    # -- retention, where a site has no rule of its own
    idle_close_hours: int = Field(
        168, ge=0, description="An open conversation idle for so long is closed. 0: never."
    )
    log_days: int = Field(
        30, ge=1, description="Closed, recorded conversations leave Redis after so many days."
    )
    record_days: int = Field(
        0,
        ge=0,
        description="Conversations are deleted everywhere so long after their last event."
        " 0: never.",
    )
    export_hours: int = Field(72, ge=1, description="Exports made on the server are kept so long.")
    # -- the promotion rule
    promote_max_perplexity_ratio: float = Field(
        1.02, gt=0, description="Candidate's perplexity over the live version's, at most."
    )
    promote_min_stop_rate: float = Field(
        0.95, ge=0, le=1, description="Share of a candidate's replies that end by themselves."
    )
    # -- logs and traces
    otel_endpoint: str = Field(
        "",
        description="OTLP/HTTP address that spans are sent to, e.g. http://collector:4318 (needs "
        "frontdesk[otel]). Empty: none.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is logged."
    )
    log_json: bool = Field(False, description="Log lines as JSON.")


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise SettingsError for each FRONTDESK_ variable that is not a setting. Variables that
    start with FRONTDESK_TEST_ belong to the test suite and are left alone."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = [
        name
        for name in environ
        if name.startswith(PREFIX) and not name.startswith(PREFIX + "TEST_") and name not in known
    ]
    if not unknown:
        return
    lines = []
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, sorted(known), n=1)
        lines.append(f"unknown setting {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    raise SettingsError("; ".join(lines) + ". `frontdesk config` lists every setting.")


def load_settings(**overrides: object) -> Settings:
    """Settings from keyword overrides (those that are not None), then the environment, then
    the defaults.

    Raises:
        SettingsError: unknown variable or bad value; names each.
    """
    check_environment(os.environ)
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()
        ]
        raise SettingsError("; ".join(problems)) from None
