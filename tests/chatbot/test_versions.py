"""The registry: one live version, whoever promotes, and evidence behind each."""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from chatbot.errors import (
    AdapterInvalid,
    Conflict,
    NotFound,
    PromotionRefused,
    RequestRefused,
    VersionCorrupt,
)
from chatbot.record.database import Database
from chatbot.record.tables import Audit, Version
from chatbot.settings import Settings
from chatbot.versions import VersionInfo, Versions
from tests.chatbot.versions import make_version

BASE = "base-smollm2-135m"


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def versions(database: Database, artifacts: Path) -> Versions:
    registry = Versions(database, artifacts, Settings())
    registry.ensure_base("smollm2-135m")
    return registry


def _register(versions: Versions, artifacts: Path, name: str, **numbers: float) -> VersionInfo:
    return versions.register(make_version(artifacts, name, **numbers))  # type: ignore[arg-type]


def _live(database: Database) -> list[str]:
    with database.session() as session:
        return list(session.scalars(select(Version.id).where(Version.state == "live")))


def test_nothing_is_live_before_the_first_start(database: Database, artifacts: Path) -> None:
    with pytest.raises(NotFound, match="no version is live"):
        Versions(database, artifacts, Settings()).live()


def test_the_bare_base_model_is_live_first(versions: Versions) -> None:
    live = versions.live()
    assert (live.id, live.state, live.directory, live.metrics) == (BASE, "live", "", {})
    assert versions.verify(live.id) is None
    assert versions.report(live.id) is None
    assert [change.kind for change in versions.history()] == ["initial"]
    assert versions.ensure_base("smollm2-135m") == live
    assert len(versions.history()) == 1


def test_many_first_starts_at_once_make_one_live_version(
    database: Database, artifacts: Path
) -> None:
    registry = Versions(database, artifacts, Settings())
    _at_once([lambda: registry.ensure_base("smollm2-135m")] * 4)
    assert len(registry.history()) == 1
    assert _live(database) == [BASE]


def test_a_version_comes_in_as_a_candidate(versions: Versions, artifacts: Path) -> None:
    directory = make_version(artifacts, "v1")
    info = versions.register(directory)
    assert (info.state, info.directory, info.metrics["perplexity"]) == (
        "candidate",
        "versions/v1",
        2.0,
    )
    assert versions.register(directory) == info
    assert [version.id for version in versions.list()] == [BASE, "v1"]
    assert versions.verify("v1") == directory / "adapter"
    assert versions.report_page("v1").read_text().endswith("<title>v1</title>")
    report = versions.report("v1")
    assert report is not None
    assert report["models"]["candidate"]["stop_rate"] == 1.0


def test_an_unfinished_version_is_refused(versions: Versions, artifacts: Path) -> None:
    directory = make_version(artifacts, "v1")
    (directory / "manifest.json").unlink()
    with pytest.raises(VersionCorrupt, match=r"manifest\.json"):
        versions.register(directory)


def test_a_version_with_changed_files_is_refused(versions: Versions, artifacts: Path) -> None:
    directory = make_version(artifacts, "v1")
    (directory / "report.json").write_text("{}")
    with pytest.raises(VersionCorrupt, match=r"report\.json has changed"):
        versions.register(directory)
    assert [version.id for version in versions.list()] == [BASE]


def test_a_version_of_another_base_model_is_refused(versions: Versions, artifacts: Path) -> None:
    with pytest.raises(AdapterInvalid, match="gpt2"):
        versions.register(make_version(artifacts, "v1", base_model="gpt2"))


def test_a_version_elsewhere_is_refused(versions: Versions, tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match="is not in"):
        versions.register(make_version(tmp_path / "elsewhere", "v1"))


def test_two_versions_of_one_id_are_refused(versions: Versions, artifacts: Path) -> None:
    versions.register(make_version(artifacts, "v1"))
    with pytest.raises(Conflict, match="another version v1"):
        versions.register(make_version(artifacts / "more", "v1"))


@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "report.html"]
)
def test_a_corrupted_file_is_found_at_load(versions: Versions, artifacts: Path, name: str) -> None:
    _register(versions, artifacts, "v1")
    path = artifacts / "versions" / "v1" / name
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(VersionCorrupt) as caught:
        versions.verify("v1")
    assert caught.value.data["file"] == name
    with pytest.raises(VersionCorrupt):
        versions.promote("v1", "ada", "try")
    assert versions.live().id == BASE


def test_a_manifest_changed_along_with_its_files_is_found(
    versions: Versions, artifacts: Path
) -> None:
    from chatbot.manifest import read_manifest, write_manifest

    _register(versions, artifacts, "v1")
    directory = artifacts / "versions" / "v1"
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(b"evil")
    values = read_manifest(directory).model_dump(exclude={"files"})
    write_manifest(directory, **values)
    with pytest.raises(VersionCorrupt, match="not the registered one"):
        versions.verify("v1")


def test_a_directory_that_is_gone_is_named(versions: Versions, artifacts: Path) -> None:
    _register(versions, artifacts, "v1")
    (artifacts / "versions" / "v1").rename(artifacts / "gone")
    with pytest.raises(VersionCorrupt, match="No such file"):
        versions.verify("v1")
    assert not versions.decision("v1").passed
    with pytest.raises(VersionCorrupt):
        versions.report("v1")
    with pytest.raises(NotFound):
        versions.report_page("v1")


def test_promoting_retires_the_live_version(
    versions: Versions, artifacts: Path, database: Database
) -> None:
    _register(versions, artifacts, "v1")
    promoted = versions.promote("v1", "ada", "better numbers")
    assert (promoted.state, promoted.promoted_by, promoted.reason) == (
        "live",
        "ada",
        "better numbers",
    )
    assert versions.live() == promoted
    assert versions.get(BASE).state == "retired"
    change = versions.history()[0]
    assert (change.version_id, change.previous_id, change.kind, change.actor) == (
        "v1",
        BASE,
        "promote",
        "ada",
    )
    with database.session() as session:
        audit = session.scalars(select(Audit).where(Audit.action == "version.promote")).one()
    assert (audit.actor, audit.subject, audit.reason) == ("ada", "v1", "better numbers")
    assert 0 <= audit.at - change.at < 1000


def test_promoting_the_live_version_again_changes_nothing(
    versions: Versions, artifacts: Path
) -> None:
    _register(versions, artifacts, "v1")
    first = versions.promote("v1", "ada", "x")
    assert versions.promote("v1", "bob", "y") == first
    assert len(versions.history()) == 2


def test_a_version_that_does_not_pass_is_refused(versions: Versions, artifacts: Path) -> None:
    _register(versions, artifacts, "v1", stop_rate=0.5)
    assert not versions.decision("v1").passed
    with pytest.raises(PromotionRefused, match="stop rate") as caught:
        versions.promote("v1", "ada", "please")
    assert len(caught.value.data["reasons"]) == 1  # type: ignore[arg-type]
    assert versions.live().id == BASE
    assert len(versions.history()) == 1


def test_the_rule_looks_at_what_is_live_now(versions: Versions, artifacts: Path) -> None:
    """Both beat the base model they were compared with; the second is worse than the first."""
    _register(versions, artifacts, "v1", perplexity=2.0)
    _register(versions, artifacts, "v2", perplexity=2.5)
    assert versions.decision("v2").passed
    versions.promote("v1", "ada", "")
    with pytest.raises(PromotionRefused, match="perplexity"):
        versions.promote("v2", "ada", "")


def test_numbers_from_the_same_dialogues_count_most(versions: Versions, artifacts: Path) -> None:
    """v1's own report gave it 2.0; on v2's harder dialogues it got 3.0."""
    _register(versions, artifacts, "v1", perplexity=2.0)
    versions.promote("v1", "ada", "")
    seen = {"version": "v1", "perplexity": 3.0, "stop_rate": 1.0}
    versions.register(make_version(artifacts, "v2", perplexity=2.9, live=seen))
    assert versions.decision("v2").passed


def test_a_version_worse_than_the_live_base_model_is_refused(
    versions: Versions, artifacts: Path
) -> None:
    _register(versions, artifacts, "v1", perplexity=9.0)
    assert "perplexity" in versions.decision("v1").reasons[0]


def test_an_override_needs_a_reason_and_is_recorded(
    versions: Versions, artifacts: Path, database: Database
) -> None:
    _register(versions, artifacts, "v1", stop_rate=0.5)
    with pytest.raises(RequestRefused, match="needs a reason"):
        versions.promote("v1", "ada", "  ", override=True)
    versions.promote("v1", "ada", "demo tomorrow", override=True)
    assert versions.history()[0].kind == "override"
    with database.session() as session:
        audit = session.scalars(select(Audit).where(Audit.action == "version.override")).one()
    assert audit.reason == "demo tomorrow"
    assert "stop rate" in audit.data["reasons"][0]


def test_the_bare_base_model_has_no_report_to_pass(versions: Versions, artifacts: Path) -> None:
    _register(versions, artifacts, "v1")
    versions.promote("v1", "ada", "")
    with pytest.raises(PromotionRefused, match="no report"):
        versions.promote(BASE, "ada", "")
    assert versions.promote(BASE, "ada", "start over", override=True).id == BASE


def test_a_retired_version_may_come_back_by_the_same_rule(
    versions: Versions, artifacts: Path
) -> None:
    _register(versions, artifacts, "v1", perplexity=2.0)
    _register(versions, artifacts, "v2", perplexity=1.9)
    versions.promote("v1", "ada", "")
    versions.promote("v2", "ada", "")
    with pytest.raises(PromotionRefused):
        versions.promote("v1", "ada", "")


def test_rolling_back_goes_further_back_each_time(versions: Versions, artifacts: Path) -> None:
    for n in (1, 2):
        _register(versions, artifacts, f"v{n}", perplexity=2.0 - n / 10)
        versions.promote(f"v{n}", "ada", "")
    assert versions.rollback("bob", "complaints").id == "v1"
    assert versions.history()[0].kind == "rollback"
    assert versions.rollback("bob", "still").id == BASE
    with pytest.raises(Conflict, match="no earlier version"):
        versions.rollback("bob", "more")
    versions.promote("v2", "ada", "fixed")
    assert versions.rollback("bob", "no").id == BASE


def test_rolling_back_to_a_corrupt_version_is_refused(versions: Versions, artifacts: Path) -> None:
    for n in (1, 2):
        _register(versions, artifacts, f"v{n}", perplexity=2.0 - n / 10)
        versions.promote(f"v{n}", "ada", "")
    (artifacts / "versions" / "v1" / "report.json").unlink()
    with pytest.raises(VersionCorrupt):
        versions.rollback("bob", "")
    assert versions.live().id == "v2"


def test_another_base_model_takes_over_and_old_versions_stay_out(
    versions: Versions, artifacts: Path, database: Database
) -> None:
    _register(versions, artifacts, "v1")
    versions.promote("v1", "ada", "")
    other = Versions(database, artifacts, Settings(base_model="acme/tiny"))
    live = other.ensure_base("acme/tiny")
    assert live.base_model == "acme/tiny"
    assert live.id.startswith("base-acme-tiny-")
    assert _live(database) == [live.id]
    with pytest.raises(AdapterInvalid, match="smollm2"):
        other.promote("v1", "ada", "")
    with pytest.raises(Conflict, match="no earlier version"):
        other.rollback("ada", "")


def test_promotions_at_once_leave_one_live_version(
    versions: Versions, artifacts: Path, database: Database
) -> None:
    names = [f"v{n}" for n in range(4)]
    for name in names:
        _register(versions, artifacts, name)
    _at_once([lambda name=name: versions.promote(name, "ada", "race") for name in names])
    assert len(_live(database)) == 1
    changes = versions.history()
    assert len(changes) == 5
    assert changes[0].version_id == versions.live().id
    for newer, older in pairwise(changes):
        assert newer.previous_id == older.version_id


def test_a_second_registry_sees_a_promotion_at_once(
    versions: Versions, artifacts: Path, database: Database
) -> None:
    elsewhere = Database(database.url)
    worker = Versions(elsewhere, artifacts, Settings())
    assert worker.live().id == BASE
    _register(versions, artifacts, "v1")
    versions.promote("v1", "ada", "")
    assert worker.live().id == "v1"
    elsewhere.close()


def test_unknown_versions_are_not_found(versions: Versions) -> None:
    for call in (versions.get, versions.verify, versions.report, versions.decision):
        with pytest.raises(NotFound, match="v-none"):
            call("v-none")
    with pytest.raises(NotFound):
        versions.promote("v-none", "ada", "")
    with pytest.raises(NotFound):
        versions.report_page("v-none")


def _at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Run the calls in threads that start together; an exception fails the test."""
    barrier = threading.Barrier(len(calls))
    problems: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        barrier.wait(10)
        try:
            call()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert problems == []
