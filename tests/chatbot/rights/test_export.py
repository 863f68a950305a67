"""What comes out, how it is kept, and when it goes."""

import csv
import io
import json
import stat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.errors import Conflict, NotFound
from chatbot.record.tables import Export
from chatbot.rights import export, export_jobs
from chatbot.rights.erasure import Eraser
from chatbot.rights.export import COLUMNS, Format, Wanted, _cleaned, batches, header, lines
from chatbot.rights.keeper import Keeper
from chatbot.rights.people import Person
from chatbot.rights.rules import safe_cell
from chatbot.services import Services
from tests.chatbot.recorded import record_conversation, reply, review, visitor
from tests.chatbot.rights.conftest import ANNA, Talk


def written(services: Services, form: Format, redact: bool = False, **wanted: Any) -> str:
    database = services.database
    text = header(form)
    for names in batches(database, Wanted(**wanted)):
        text += "".join(lines(database, names, form, redact))
    return text


def asked(services: Services, name: str = "r1", **options: Any) -> Export:
    given: dict[str, Any] = {"redact": False, "hours": 1} | options
    form: Format = given.pop("form", "jsonl")
    row, _ = export_jobs.request_export(
        services.database, "ada", name, Wanted(), form, redact=given["redact"], hours=given["hours"]
    )
    return row


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "\n=1"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    assert safe_cell(text) == "'" + text


@given(st.text())
def test_other_cells_are_as_they_are(text: str) -> None:
    assert safe_cell(text) in (text, "'" + text)
    assert safe_cell(text)[:1] not in tuple("=+-@\t\r\n")


def test_numbers_and_nothing() -> None:
    assert [safe_cell(value) for value in (-3, 1.5, None, "")] == ["-3", "1.5", "", ""]


def test_a_redacted_event_is_clean_to_its_last_draft() -> None:
    mail = "ann@example.org"
    event = {
        "type": "message.created",
        "text": mail,
        "suggestion": {"draft": {"text": mail}},
        "drafts": [{"text": mail, "origin": "v1"}],
        "tags": [mail],
        "at": 1,
    }
    cleaned = _cleaned(event, lambda text: text.replace(mail, "[EMAIL]"))
    assert mail not in json.dumps(cleaned)
    assert (cleaned["type"], cleaned["at"]) == ("message.created", 1)


def test_jsonl_has_everything_of_a_conversation(services: Services) -> None:
    record_conversation(services.database, "c1", visitor("hi\nthere é"), reply("hello"))
    review(services.database, "c1", 2, "bad", "good day")
    record_conversation(services.database, "c2", visitor("other"), site="shop")
    first, second = [json.loads(line) for line in written(services, "jsonl").splitlines()]
    assert (first["id"], second["id"]) == ("c1", "c2")
    assert [event["text"] for event in first["events"]] == ["hi\nthere é", "hello"]
    assert first["reviews"][0]["correction"] == "good day"
    [only] = written(services, "jsonl", site="shop").splitlines()
    assert json.loads(only)["id"] == "c2"


def test_csv_is_safe_and_whole(services: Services) -> None:
    record_conversation(
        services.database, "c1", visitor('=HYPERLINK("http://x")\n, "quoted"'), reply("-1 is it")
    )
    rows = list(csv.DictReader(io.StringIO(written(services, "csv"), newline="")))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["text"] for row in rows] == ['\'=HYPERLINK("http://x")\n, "quoted"', "'-1 is it"]
    assert [row["role"] for row in rows] == ["visitor", "bot"]


def test_personal_data_may_be_replaced(services: Services) -> None:
    record_conversation(services.database, "c1", visitor("I am jo@example.com"))
    for form in ("jsonl", "csv"):
        assert "jo@example.com" in written(services, form)  # type: ignore[arg-type]
        redacted = written(services, form, redact=True)  # type: ignore[arg-type]
        assert "jo@example.com" not in redacted
        assert "[EMAIL]" in redacted


def test_it_is_read_in_batches(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "BATCH", 2)
    for number in range(5):
        record_conversation(services.database, f"c{number}", visitor("x"))
    assert [len(names) for names in batches(services.database, Wanted())] == [2, 2, 1]
    assert export.count(services.database, Wanted(status="closed")) == 0


async def test_an_export_is_made_listed_downloaded_and_expires(services: Services) -> None:
    record_conversation(services.database, "c1", visitor("hi"))
    database, folder = services.database, services.settings.data_dir
    row = asked(services)
    assert asked(services).id == row.id
    with pytest.raises(Conflict, match="queued"):
        export_jobs.open_export(database, folder, row.id, "ada")
    await Keeper(services).make_exports()
    path = export_jobs.open_export(database, folder, row.id, "ada")
    assert json.loads(path.read_text())["id"] == "c1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [listed] = export_jobs.list_exports(database)
    assert (listed.state, listed.conversations, listed.size) == ("ready", 1, path.stat().st_size)
    with database.session() as session:
        session.get_one(Export, row.id).expires_at = 1
    assert export_jobs.expire(database, folder) == 1
    assert not path.exists()
    with pytest.raises(Conflict, match="expired"):
        export_jobs.open_export(database, folder, row.id, "ada")
    with pytest.raises(NotFound):
        export_jobs.get_export(database, "nothing")


async def test_a_person_s_exports_go_with_the_person(
    services: Services, eraser: Eraser, talk: Talk
) -> None:
    await talk("c1", "Canary")
    await talk("c2", person=Person("demo", "v-ben"))
    database, folder = services.database, services.settings.data_dir
    everybody = asked(services)
    await Keeper(services).make_exports()
    ben, _ = export_jobs.request_export(
        database, "ada", "r2", Wanted(visitor="v-ben"), "csv", redact=False, hours=1
    )
    await Keeper(services).make_exports()
    receipt = await eraser.erase(ANNA, actor="ada", reason="asked")
    assert receipt.exports == [everybody.id]
    with pytest.raises(Conflict, match="erased: it held words"):
        export_jobs.open_export(database, folder, everybody.id, "ada")
    assert export_jobs.open_export(database, folder, ben.id, "ada").is_file()
    for path in (folder / "exports").iterdir():
        assert "Canary" not in path.read_text()


async def test_an_export_that_is_being_written_stops_when_a_person_in_it_is_erased(
    services: Services, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk("c1", "Canary")
    await talk("c2", person=Person("demo", "v-ben"))
    monkeypatch.setattr(export, "BATCH", 1)
    database, folder = services.database, services.settings.data_dir
    row = asked(services)
    claimed = export_jobs.claim(database)
    assert claimed is not None
    assert export_jobs.claim(database) is None
    read = export.lines

    def slow(*args: Any) -> Any:
        yield from read(*args)
        assert export_jobs.erase_exports(database, folder, ["c1"]) == [row.id]

    monkeypatch.setattr(export, "lines", slow)
    assert export_jobs.write(database, folder, claimed) == "stopped"
    assert list((folder / "exports").iterdir()) == []
    assert export_jobs.get_export(database, row.id).state == "erased"


async def test_one_whose_writer_died_is_written_again(services: Services) -> None:
    record_conversation(services.database, "c1", visitor("hi"))
    row = asked(services)
    assert export_jobs.claim(services.database) is not None
    with services.database.session() as session:
        session.get_one(Export, row.id).heartbeat_at = 1
    await Keeper(services).make_exports()
    assert export_jobs.get_export(services.database, row.id).state == "ready"
    gone = export_jobs.delete_export(services.database, services.settings.data_dir, row.id, "ada")
    assert gone.state == "deleted"
    assert list((services.settings.data_dir / "exports").iterdir()) == []


async def test_a_folder_that_cannot_be_written_fails_and_says_so(services: Services) -> None:
    (services.settings.data_dir / "exports").write_text("a file in the way")
    row = asked(services)
    await Keeper(services).make_exports()
    found = export_jobs.get_export(services.database, row.id)
    assert found.state == "failed"
    assert "cannot be written" in found.error
