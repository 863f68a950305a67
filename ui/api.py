"""The console's only way to Frontdesk: the admin API over HTTP, one method per call."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from ui.answers import (
    AuditItem,
    ConversationDetail,
    ConversationHead,
    ConversationItem,
    ErasureItem,
    Erasures,
    Export,
    Exports,
    Hold,
    Holds,
    Login,
    Overview,
    Page,
    Person,
    PlaygroundLine,
    Preview,
    Progress,
    Receipt,
    Retention,
    RetentionOwn,
    Review,
    Run,
    Runs,
    Site,
    Sites,
    Staff,
    StaffMember,
    Version,
    VersionDetail,
    Versions,
)

PREFIX = "/v1/admin"
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0  # the training preview counts the tokens of every dialogue

A = TypeVar("A", bound=BaseModel)


class ApiError(Exception):
    """A call that did not succeed.

    ``code`` is the server's ``error.code``, or the console's own ``unreachable`` (no connection),
    ``timeout`` or ``unexpected_answer``; ``status`` the HTTP status, 0 when there was no answer;
    ``data`` what else the error held, e.g. ``reasons`` or ``run_id``. ``str(error)`` may be shown.
    """

    def __init__(
        self, code: str, message: str, status: int = 0, data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.data = dict(data or {})

    @property
    def login_ended(self) -> bool:
        return self.status == 401


def open_client(base_url: str) -> httpx.Client:
    """An HTTP client for the server at ``base_url``; connects on the first call."""
    return httpx.Client(
        base_url=base_url,
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        headers={"Accept": "application/json"},
    )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without those that say nothing."""
    return {name: value for name, value in values.items() if value not in (None, "")}


class AdminApi:
    """The calls of ``/v1/admin`` for one login. Cheap to make; shares ``client``.

    Every method raises :class:`ApiError`.
    """

    def __init__(self, client: httpx.Client, token: str = "") -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def address(self) -> str:
        return str(self._client.base_url).rstrip("/")

    # -- who am I

    def login(self, username: str, password: str) -> Login:
        body = {"username": username, "password": password}
        return self._ask(Login, "POST", "/login", json=body)

    def overview(self) -> Overview:
        return self._ask(Overview, "GET", "/overview")

    # -- conversations

    def conversations(
        self,
        *,
        status: str | None = None,
        site: str | None = None,
        q: str | None = None,
        version: str | None = None,
        rating: int | None = None,
        reviewed: bool | None = None,
        cursor: str | None = None,
        limit: int = 25,
    ) -> Page[ConversationItem]:
        """Newest first. ``q`` is searched in what visitors, agents and the bot wrote."""
        params = _given(
            {
                "status": status,
                "site": site,
                "q": q,
                "version": version,
                "rating": rating,
                "reviewed": None if reviewed is None else str(reviewed).lower(),
                "cursor": cursor,
                "limit": limit,
            }
        )
        return self._ask(Page[ConversationItem], "GET", "/conversations", params=params)

    def conversation(self, conversation_id: str) -> ConversationDetail:
        return self._ask(ConversationDetail, "GET", f"/conversations/{_part(conversation_id)}")

    def review(
        self,
        conversation_id: str,
        offset: int,
        *,
        verdict: str | None,
        correction: str | None,
        comment: str,
    ) -> Review:
        """Replace the review of the reply at ``offset``. ``correction`` None: none."""
        path = f"/conversations/{_part(conversation_id)}/reviews/{offset}"
        body = {"verdict": verdict, "correction": correction, "comment": comment}
        return self._ask(Review, "PUT", path, json=body)

    def exclude(self, conversation_id: str, excluded: bool, reason: str) -> ConversationHead:
        path = f"/conversations/{_part(conversation_id)}/exclusion"
        body = {"excluded": excluded, "reason": reason}
        return self._ask(ConversationHead, "PUT", path, json=body)

    # -- training

    def training_preview(self) -> Preview:
        return self._ask(Preview, "GET", "/training/preview")

    def start_run(self, request_id: str, settings: Mapping[str, Any]) -> Run:
        """Start a run, or get the one that this ``request_id`` started already.

        Raises:
            ApiError: ``run_active`` when another run is queued or running; ``data["run_id"]``.
        """
        body = {"request_id": request_id, **_given(settings)}
        return self._ask(Run, "POST", "/training/runs", json=body)

    def runs(self) -> list[Run]:
        """Newest first."""
        return self._ask(Runs, "GET", "/training/runs").items

    def run(self, run_id: str) -> Run:
        return self._ask(Run, "GET", f"/training/runs/{_part(run_id)}")

    def run_progress(self, run_id: str, after: int = 0) -> Progress:
        """Progress lines whose number is above ``after``."""
        path = f"/training/runs/{_part(run_id)}/progress"
        return self._ask(Progress, "GET", path, params={"after": after})

    def cancel_run(self, run_id: str) -> Run:
        return self._ask(Run, "POST", f"/training/runs/{_part(run_id)}/cancel")

    # -- models

    def versions(self) -> Versions:
        return self._ask(Versions, "GET", "/versions")

    def version(self, version_id: str) -> VersionDetail:
        return self._ask(VersionDetail, "GET", f"/versions/{_part(version_id)}")

    def report_html(self, version_id: str) -> str:
        return self._send("GET", f"/versions/{_part(version_id)}/report.html").text

    def promote(self, version_id: str, reason: str, override: bool = False) -> Version:
        """Make the version live.

        Raises:
            ApiError: ``promotion_refused`` with ``data["reasons"]`` unless ``override``.
        """
        body = {"reason": reason, "override": override}
        return self._ask(Version, "POST", f"/versions/{_part(version_id)}/promote", json=body)

    def roll_back(self, reason: str) -> Version:
        return self._ask(Version, "POST", "/versions/rollback", json={"reason": reason})

    # -- playground

    def playground(
        self, version: str, messages: list[dict[str, str]], system_prompt: str = ""
    ) -> Iterator[PlaygroundLine]:
        """Stream a reply line by line. An error line of the stream is raised as ApiError."""
        body = _given({"version": version, "messages": messages, "system_prompt": system_prompt})
        request = self._client.build_request(
            "POST", f"{PREFIX}/playground", json=body, headers=self._headers
        )
        with self._connection():
            response = self._client.send(request, stream=True)
        try:
            if response.is_error:
                with self._connection():
                    response.read()
                raise _error_of(response)
            with self._connection():
                for line in response.iter_lines():
                    if line.strip():
                        yield self._playground_line(line)
        finally:
            response.close()

    def _playground_line(self, line: str) -> PlaygroundLine:
        try:
            parsed = PlaygroundLine.model_validate_json(line)
        except ValidationError as error:
            raise _misunderstood("POST /playground", error) from None
        if parsed.type == "error":
            raise ApiError(parsed.code or "internal", parsed.message, 200)
        return parsed

    # -- sites, staff, audit

    def sites(self) -> list[Site]:
        return self._ask(Sites, "GET", "/sites").items

    def save_site(self, site: Site) -> Site:
        body = site.model_dump(exclude={"name"})
        return self._ask(Site, "PUT", f"/sites/{_part(site.name)}", json=body)

    def staff(self) -> list[StaffMember]:
        return self._ask(Staff, "GET", "/staff").items

    def add_staff(self, username: str, password: str, role: str) -> StaffMember:
        body = {"username": username, "password": password, "role": role}
        return self._ask(StaffMember, "POST", "/staff", json=body)

    def remove_staff(self, username: str) -> None:
        self._send("DELETE", f"/staff/{_part(username)}")

    def audit(self, cursor: str | None = None, limit: int = 50) -> Page[AuditItem]:
        params = _given({"cursor": cursor, "limit": limit})
        return self._ask(Page[AuditItem], "GET", "/audit", params=params)

    # -- data

    def retention(self, site: str) -> Retention:
        return self._ask(Retention, "GET", f"/sites/{_part(site)}/retention")

    def save_retention(self, site: str, own: RetentionOwn) -> Retention:
        path = f"/sites/{_part(site)}/retention"
        return self._ask(Retention, "PUT", path, json=own.model_dump())

    def find_person(self, query: Mapping[str, str]) -> Person:
        """``query``: site and subject, or visitor, or conversation_id."""
        return self._ask(Person, "POST", "/people/find", json=dict(query))

    def erase_person(self, request_id: str, site: str, visitor: str, reason: str) -> Receipt:
        """Erase; the caller has had the visitor's id typed."""
        body = {"request_id": request_id, "site": site, "visitor": visitor, "reason": reason}
        return self._ask(Receipt, "POST", "/people/erase", json={**body, "confirm": visitor})

    def erasures(self) -> list[ErasureItem]:
        return self._ask(Erasures, "GET", "/erasures").items

    def erasure(self, erasure_id: str) -> Receipt:
        return self._ask(Receipt, "GET", f"/erasures/{_part(erasure_id)}")

    def holds(self) -> list[Hold]:
        return self._ask(Holds, "GET", "/holds").items

    def place_hold(self, site: str, visitor: str, reason: str) -> Hold:
        body = {"site": site, "visitor": visitor, "reason": reason}
        return self._ask(Hold, "POST", "/holds", json=body)

    def lift_hold(self, hold_id: str, reason: str) -> Hold:
        return self._ask(Hold, "POST", f"/holds/{_part(hold_id)}/lift", json={"reason": reason})

    def exports(self) -> list[Export]:
        return self._ask(Exports, "GET", "/exports").items

    def start_export(
        self, request_id: str, format_name: str, redact: bool, wanted: Mapping[str, Any]
    ) -> Export:
        """Ask for a file; ``wanted`` is the filter. The same ``request_id`` is the same export."""
        body = {"request_id": request_id, "format": format_name, "redact": redact}
        return self._ask(Export, "POST", "/exports", json={**body, "filter": dict(wanted)})

    def export_file(self, export_id: str) -> bytes:
        return self._send("GET", f"/exports/{_part(export_id)}/file").content

    def delete_export(self, export_id: str) -> Export:
        return self._ask(Export, "DELETE", f"/exports/{_part(export_id)}")

    # -- transport

    def _ask(self, answer: type[A], method: str, path: str, **options: Any) -> A:
        response = self._send(method, path, **options)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise _misunderstood(f"{method} {path}", error) from None

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._connection():
            response = self._client.request(method, PREFIX + path, headers=self._headers, **options)
        if response.is_error:
            raise _error_of(response)
        return response

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Say in words what went wrong below HTTP."""
        try:
            yield
        except httpx.ConnectError as error:
            raise ApiError(
                "unreachable",
                f"No Frontdesk server answers at {self.address} ({error}). Start it with "
                "`frontdesk up` or `frontdesk server`; if it runs elsewhere, set "
                "FRONTDESK_PUBLIC_URL for the console.",
            ) from None
        except httpx.TimeoutException:
            raise ApiError(
                "timeout",
                f"The server at {self.address} did not answer in time. It may be busy: try "
                "again, and look at its log if this goes on.",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ApiError(
                "unreachable", f"The connection to {self.address} broke: {error or type(error)}."
            ) from None


def _part(value: str) -> str:
    """``value`` as one segment of a path."""
    return quote(value, safe="")


def _error_of(response: httpx.Response) -> ApiError:
    try:
        error = dict(response.json()["error"])
        code, message = str(error.pop("code")), str(error.pop("message"))
    except (ValueError, KeyError, TypeError):
        return ApiError(
            "unexpected_answer",
            f"The server answered {response.status_code} {response.reason_phrase} without an "
            "explanation. Its log says more.",
            response.status_code,
        )
    return ApiError(code, message, response.status_code, error)


def _misunderstood(call: str, error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "answer"
    return ApiError(
        "unexpected_answer",
        f"The server's answer to {call} is not what this console expects ({where}: "
        f"{first['msg']}). Are server and console of the same version?",
        200,
    )
