"""The one composition root: opens the stores and closes them in the reverse order."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from redis.exceptions import RedisClusterException, RedisError

from chatbot.conversation.archive import Archive
from chatbot.conversation.log import RedisLog
from chatbot.conversation.store import always_synced
from chatbot.embedded_store import embedded_url
from chatbot.errors import SettingsError, StorageFull, StoreUnavailable
from chatbot.record.database import Database, sqlite_url
from chatbot.redis_client import is_cluster, open_redis
from chatbot.services import Services
from chatbot.settings import Settings
from chatbot.training_runs import TrainingRuns
from chatbot.versions import Versions


def artifacts_dir(settings: Settings) -> Path:
    """Where versions are kept."""
    return settings.data_dir / "artifacts"


def resolve_redis_url(settings: Settings) -> str:
    """The configured store, else the embedded one of the data directory.

    Raises:
        StoreUnavailable: neither is there; says what to do.
    """
    url = settings.redis_url or embedded_url(settings.data_dir)
    if not url:
        raise StoreUnavailable(
            f"no store: no embedded one is running for {settings.data_dir} (`frontdesk up` starts "
            "it), and FRONTDESK_REDIS_URL is not set"
        )
    return url


def resolve_queue_url(settings: Settings) -> str:
    """The store of the training queue: a single server, since RQ cannot use a cluster.

    Raises:
        SettingsError: none is set beside a cluster.
        StoreUnavailable: as :func:`resolve_redis_url`.
    """
    url = settings.queue_redis_url or resolve_redis_url(settings)
    if is_cluster(url):
        raise SettingsError(
            "training needs a Redis that is not a cluster for its queue: set "
            "FRONTDESK_QUEUE_REDIS_URL"
        )
    return url


def open_database(settings: Settings) -> Database:
    """The record, migrated. The caller closes it.

    Raises:
        StoreUnavailable, StorageFull
    """
    make_data_dir(settings.data_dir)
    database = Database(settings.database_url or sqlite_url(settings.data_dir))
    database.migrate()
    return database


def make_data_dir(data_dir: Path) -> None:
    """Create the data directory, readable by its owner only."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsError(f"data_dir {data_dir} cannot be made: {error.strerror}") from error


def open_versions(settings: Settings, database: Database) -> Versions:
    """The registry; on a fresh record the bare base model becomes the live version."""
    versions = Versions(database, artifacts_dir(settings), settings)
    versions.ensure_base(settings.base_model)
    return versions


def kept_secret(data_dir: Path, name: str) -> str:
    """A random secret kept in ``data_dir/name`` (mode 0600), made on first use. Processes that
    start at once agree on one: the file appears whole or not at all."""
    path = data_dir / name
    if not path.exists():
        draft = data_dir / f".{name}.{secrets.token_hex(8)}"
        try:
            draft.touch(mode=0o600, exist_ok=False)
            draft.write_text(secrets.token_urlsafe(32) + "\n")
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError as error:
            raise StorageFull(f"{path} cannot be written: {error.strerror}") from error
        finally:
            draft.unlink(missing_ok=True)
    return path.read_text().strip()


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open everything that server and worker share.

    Raises:
        StoreUnavailable: Redis or the database cannot be reached; nothing stays open.
    """
    make_data_dir(settings.data_dir)
    async with AsyncExitStack() as stack:
        redis_url = await asyncio.to_thread(resolve_redis_url, settings)
        redis = open_redis(redis_url)
        stack.push_async_callback(redis.aclose)
        try:
            await redis.ping()
        except (RedisError, RedisClusterException, OSError) as error:
            raise StoreUnavailable(
                f"the store at {_shown(redis_url)} does not answer: {error}"
            ) from error
        on_disk = settings.acknowledge == "disk"
        waits = on_disk and not await always_synced(redis)
        database = await asyncio.to_thread(open_database, settings)
        stack.callback(database.close)
        versions = await asyncio.to_thread(open_versions, settings, database)
        archive = Archive(database, settings.log_days)
        yield Services(
            settings=settings,
            redis=redis,
            log=RedisLog(
                redis,
                archive,
                lease_seconds=settings.lease_seconds,
                max_attempts=settings.max_attempts,
                wait_for_disk=waits,
            ),
            database=database,
            archive=archive,
            versions=versions,
            runs=TrainingRuns(database, settings.queue_redis_url or redis_url),
            secret_key=settings.secret_key.get_secret_value()
            or kept_secret(settings.data_dir, "secret-key"),
            admin_token=kept_secret(settings.data_dir, "admin-token"),
        )


def _shown(url: str) -> str:
    """The address without its password."""
    return url.rpartition("@")[2] if "@" in url else url
