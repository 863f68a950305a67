"""The registry of model versions: which exist, which is live, and how that came about.

A version is an adapter with its evidence (:mod:`chatbot.manifest`), kept under the artifacts
folder; the registry is in SQL, so a promotion holds at once for every worker that asks
:meth:`Versions.live` before a reply. Exactly one version is live: the promotions run one at a
time, and a unique index holds whatever the application does.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from chatbot.errors import (
    AdapterInvalid,
    Conflict,
    NotFound,
    PromotionRefused,
    RequestRefused,
    VersionCorrupt,
)
from chatbot.manifest import ADAPTER, REPORT, REPORT_PAGE, Manifest, check_files, read_manifest
from chatbot.promotion import Decision, check_promotion
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import Promotion, Version
from chatbot.settings import Settings

VersionState = Literal["candidate", "live", "retired"]
PromotionKind = Literal["initial", "promote", "override", "rollback"]
SYSTEM = "frontdesk"  # the actor of what no person did


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A version as the registry knows it. Times are Unix ms. ``directory`` is relative to the
    artifacts folder and empty for the bare base model."""

    id: str
    state: VersionState
    base_model: str
    directory: str
    dataset_fingerprint: str
    manifest: dict[str, Any]
    created_at: int
    promoted_at: int | None
    promoted_by: str
    reason: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The report's main numbers, e.g. ``{"perplexity": 2.0}``; empty without a report."""
        return dict(self.manifest.get("metrics") or {})


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the live version. ``previous_id`` is empty for the first."""

    version_id: str
    previous_id: str
    kind: PromotionKind
    actor: str
    reason: str
    at: int


class Versions:
    """Every method may raise StoreUnavailable or StorageFull."""

    def __init__(self, database: Database, artifacts: Path, settings: Settings) -> None:
        self._database = database
        self._artifacts = artifacts
        self._settings = settings

    # -- what there is

    def list(self) -> Sequence[VersionInfo]:
        """The newest first."""
        with self._database.session() as session:
            rows = session.scalars(
                select(Version).order_by(Version.created_at.desc(), Version.id.desc())
            ).all()
            return [_info(row) for row in rows]

    def get(self, version_id: str) -> VersionInfo:
        """Raises NotFound."""
        with self._database.session() as session:
            return _info(_row(session, version_id))

    def live(self) -> VersionInfo:
        """The version that answers now. Raises NotFound before :meth:`ensure_base` ran."""
        with self._database.session() as session:
            row = _live_row(session)
            if row is None:
                raise NotFound("no version is live yet: start the server or the worker first")
            return _info(row)

    def history(self, version_id: str | None = None) -> Sequence[Change]:
        """Changes of the live version, the newest first; of one version when it is named."""
        query = select(Promotion).order_by(Promotion.id.desc())
        if version_id is not None:
            query = query.where(
                (Promotion.version_id == version_id) | (Promotion.previous_id == version_id)
            )
        with self._database.session() as session:
            return [_change(row) for row in session.scalars(query).all()]

    def report(self, version_id: str) -> dict[str, Any] | None:
        """The evaluation, or None for the bare base model.

        Raises:
            NotFound
            VersionCorrupt: the file is gone or not JSON.
        """
        info = self.get(version_id)
        return self._report(info) if info.directory else None

    def report_page(self, version_id: str) -> Path:
        """The evaluation as a self-contained page. Raises NotFound: there is none."""
        info = self.get(version_id)
        path = self._artifacts / info.directory / REPORT_PAGE
        if not info.directory or not path.is_file():
            raise NotFound(f"version {version_id} has no report page")
        return path

    def decision(self, version_id: str) -> Decision:
        """Whether the version may be promoted now, against what is live now. Raises NotFound."""
        with self._database.session() as session:
            row, live = _row(session, version_id), _live_row(session)
            return self._decide(_info(row), None if live is None else _info(live))

    # -- what comes in

    def ensure_base(self, base_model: str) -> VersionInfo:
        """Have the bare base model in the registry, live when nothing else of this base model
        is; gives the live version. A live version of another base model is retired, since the
        operator chose another base model and no worker could load it."""
        with self._database.exclusive_session("live-version") as session:
            base = session.get(Version, base_version_id(base_model))
            if base is None:
                base = _new_row(session, base_version_id(base_model), base_model, now_ms())
            live = _live_row(session)
            if live is not None and live.base_model == base_model:
                return _info(live)
            reason = "first start" if live is None else f"base model is now {base_model}"
            _make_live(session, base, live, "initial", SYSTEM, reason)
            return _info(base)

    def register(self, directory: Path) -> VersionInfo:
        """Take a finished version in as a candidate; again is no harm.

        Raises:
            VersionCorrupt: no manifest, or files that differ from it.
            AdapterInvalid: made for another base model than the configured one.
            RequestRefused: not in the artifacts folder.
            Conflict: another version has its id.
        """
        manifest = read_manifest(directory)
        check_files(directory, manifest.files)
        self._check_base(manifest.id, manifest.base_model)
        try:
            place = directory.resolve().relative_to(self._artifacts.resolve()).as_posix()
        except ValueError:
            raise RequestRefused(f"{directory} is not in {self._artifacts}") from None
        with self._database.exclusive_session("live-version") as session:
            row = session.get(Version, manifest.id)
            if row is None:
                row = _from_manifest(session, manifest, place)
            elif row.directory != place or row.manifest != manifest.model_dump(mode="json"):
                raise Conflict(f"there is another version {manifest.id} already")
            return _info(row)

    def verify(self, version_id: str) -> Path | None:
        """Compare every file with its sha256; gives the adapter's directory, or None for the
        bare base model.

        Raises:
            NotFound
            VersionCorrupt: names the file that is changed, missing or too many.
        """
        info = self.get(version_id)
        if not info.directory:
            return None
        directory = self._artifacts / info.directory
        manifest = read_manifest(directory)
        # the record's copy: a manifest that was changed along with the files proves nothing
        if manifest.model_dump(mode="json") != info.manifest:
            raise VersionCorrupt(
                f"the manifest in {directory} is not the registered one", file="manifest.json"
            )
        check_files(directory, manifest.files)
        return directory / ADAPTER

    # -- what is live

    def promote(
        self, version_id: str, actor: str, reason: str, override: bool = False
    ) -> VersionInfo:
        """Make a version live, from the next reply on. The live version again is no harm.

        Raises:
            NotFound
            PromotionRefused: its report does not pass; ``data["reasons"]`` says why.
            RequestRefused: ``override`` without a reason.
            VersionCorrupt, AdapterInvalid: it could not be loaded.
        """
        if override and not reason.strip():
            raise RequestRefused("an override needs a reason: it is recorded")
        info = self.get(version_id)
        self._check_base(info.id, info.base_model)
        self.verify(version_id)
        with self._database.exclusive_session("live-version") as session:
            row, live = _row(session, version_id), _live_row(session)
            if live is not None and live.id == row.id:
                return _info(row)
            decision = self._decide(_info(row), None if live is None else _info(live))
            if not decision.passed and not override:
                reasons = list(decision.reasons)
                raise PromotionRefused(
                    f"version {version_id} may not be promoted: {'; '.join(reasons)}",
                    reasons=reasons,
                )
            kind: PromotionKind = "promote" if decision.passed else "override"
            _make_live(session, row, live, kind, actor, reason, reasons=list(decision.reasons))
            return _info(row)

    def rollback(self, actor: str, reason: str) -> VersionInfo:
        """Make live what was live before; again goes further back.

        Raises:
            Conflict: nothing was live before.
            VersionCorrupt: its files changed since.
        """
        target = self.rollback_target()
        if target is None:
            raise Conflict("there is no earlier version to go back to")
        self.verify(target)
        with self._database.exclusive_session("live-version") as session:
            if self._rollback_target(session) != target:
                raise Conflict("another version was promoted meanwhile; look again")
            row = _row(session, target)
            _make_live(session, row, _live_row(session), "rollback", actor, reason)
            return _info(row)

    def rollback_target(self) -> str | None:
        """The version that :meth:`rollback` would make live; None when nothing was before."""
        with self._database.session() as session:
            return self._rollback_target(session)

    # -- inside

    def _rollback_target(self, session: Session) -> str | None:
        rows = session.scalars(select(Promotion).order_by(Promotion.id)).all()
        loadable = session.scalars(
            select(Version.id).where(Version.base_model == self._settings.base_model)
        ).all()
        earlier = [name for name in _path(rows)[:-1] if name in loadable]
        return earlier[-1] if earlier else None

    def _check_base(self, version_id: str, base_model: str) -> None:
        if base_model != self._settings.base_model:
            raise AdapterInvalid(
                f"version {version_id} was made for the base model {base_model}; this "
                f"installation runs {self._settings.base_model}"
            )

    def _report(self, info: VersionInfo) -> dict[str, Any]:
        path = self._artifacts / info.directory / REPORT
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise VersionCorrupt(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise VersionCorrupt(f"{path} is not JSON: {error}") from error
        if not isinstance(report, dict):
            raise VersionCorrupt(f"{path} is no report")
        return report

    def _decide(self, info: VersionInfo, live: VersionInfo | None) -> Decision:
        if not info.directory:
            return Decision(False, ["the bare base model has no report"])
        try:
            report = self._report(info)
        except VersionCorrupt as error:
            return Decision(False, [str(error)])
        return check_promotion(_against(report, live), self._settings)


def base_version_id(base_model: str) -> str:
    """The id of a bare base model, e.g. ``base-smollm2-135m``."""
    slug = re.sub(r"[^a-z0-9.]+", "-", base_model.lower()).strip("-.")[:48]
    # a path or owner/name loses something here: keep two of them apart
    mark = "" if slug == base_model else f"-{zlib.crc32(base_model.encode()):08x}"
    return f"base-{slug}{mark}"


def _against(report: dict[str, Any], live: VersionInfo | None) -> dict[str, Any]:
    """The report with the numbers of what is live now. Best are those that the report has of it,
    as they come from the same dialogues; else those of its own report."""
    if live is None:
        return report
    models = report.get("models") or {}
    for name in ("live", "base"):
        numbers = models.get(name) or {}
        if numbers.get("version") == live.id:
            return {**report, "live": numbers}
    return {**report, "live": live.metrics} if live.metrics else report


def _path(rows: Sequence[Promotion]) -> Sequence[str]:
    """The versions that led to the live one, which is the last: a rollback takes back the steps
    after the version it went to, so the next one goes further back."""
    path: list[str] = []
    for row in rows:
        if row.kind == "rollback" and row.version_id in path:
            while path[-1] != row.version_id:
                path.pop()
        elif not path or path[-1] != row.version_id:
            path.append(row.version_id)
    return path


def _make_live(
    session: Session,
    row: Version,
    live: Version | None,
    kind: PromotionKind,
    actor: str,
    reason: str,
    reasons: Sequence[str] = (),
) -> None:
    """Both state changes, the history and the audit row in the caller's transaction."""
    at = now_ms()
    if live is not None:
        live.state = "retired"
        session.flush()  # the index allows one live version at any moment
    row.state = "live"
    row.promoted_at, row.promoted_by, row.reason = at, actor, reason
    previous = "" if live is None else live.id
    session.add(
        Promotion(
            version_id=row.id, previous_id=previous, kind=kind, actor=actor, reason=reason, at=at
        )
    )
    record(
        session,
        actor,
        f"version.{kind}",
        row.id,
        reason=reason,
        data={"previous": previous, "reasons": list(reasons)},
    )


def _new_row(session: Session, version_id: str, base_model: str, created_at: int) -> Version:
    row = Version(
        id=version_id,
        state="candidate",
        base_model=base_model,
        directory="",
        dataset_fingerprint="",
        manifest={},
        created_at=created_at,
        promoted_by="",
        reason="",
    )
    session.add(row)
    session.flush()
    return row


def _from_manifest(session: Session, manifest: Manifest, place: str) -> Version:
    row = _new_row(session, manifest.id, manifest.base_model, manifest.created_at)
    row.directory = place
    row.dataset_fingerprint = manifest.dataset_fingerprint
    row.manifest = manifest.model_dump(mode="json")
    record(session, SYSTEM, "version.register", row.id, data={"directory": place})
    return row


def _row(session: Session, version_id: str) -> Version:
    row = session.get(Version, version_id)
    if row is None:
        raise NotFound(f"there is no version {version_id}")
    return row


def _live_row(session: Session) -> Version | None:
    return session.scalar(select(Version).where(Version.state == "live"))


def _info(row: Version) -> VersionInfo:
    names = VersionInfo.__dataclass_fields__
    return VersionInfo(**{name: getattr(row, name) for name in names})


def _change(row: Promotion) -> Change:
    return Change(**{name: getattr(row, name) for name in Change.__dataclass_fields__})
