"""Logins kept over a reload."""

from ui.vault import MOST_LOGINS, TICKET_SECONDS, KeptLogin, Vault


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def login(expires_at: int = 2_000_000) -> KeptLogin:
    return KeptLogin("token", "ada", "admin", expires_at)


def test_a_key_finds_its_login_and_nothing_else_does() -> None:
    vault = Vault(Clock())
    key, ticket = vault.keep(login())
    assert vault.find(key) == login()
    assert vault.find(key + "x") is None
    assert vault.find(ticket) is None
    assert vault.find("") is None


def test_a_ticket_works_once() -> None:
    vault = Vault(Clock())
    key, ticket = vault.keep(login())
    assert vault.ticket_open(ticket)
    assert vault.redeem(ticket) == (key, 2_000_000)
    assert vault.redeem(ticket) is None
    assert not vault.ticket_open(ticket)


def test_a_ticket_and_a_login_expire() -> None:
    clock = Clock()
    vault = Vault(clock)
    key, ticket = vault.keep(login())
    clock.now += TICKET_SECONDS + 1
    assert vault.redeem(ticket) is None
    assert vault.find(key) is not None
    clock.now = 2000.0
    assert vault.find(key) is None


def test_a_forgotten_login_takes_its_ticket_along() -> None:
    vault = Vault(Clock())
    key, ticket = vault.keep(login())
    vault.forget(key)
    assert vault.find(key) is None
    assert vault.redeem(ticket) is None


def test_the_number_of_kept_logins_is_bounded() -> None:
    vault = Vault(Clock())
    first, _ = vault.keep(login())
    for _ in range(MOST_LOGINS):
        last, _ = vault.keep(login())
    assert vault.find(first) is None
    assert vault.find(last) is not None
