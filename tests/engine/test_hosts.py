"""Who is asked to wait and who is given up: pure, with a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from lanmirror_sync.config import ConfigError, parse
from lanmirror_sync.hosts import FEW_REFUSED, MOST_REFUSED, Hosts, Refusal, host_of
from lanmirror_sync.wire import Rate

HOST = "mirror.example.org"


def refuse(hosts: Hosts, url: str, now: float, status: int = 503, retry_after: float = 0.0) -> float:
    return hosts.refused(hosts.began(HOST), Refusal(f"http://{HOST}/{url}", status, retry_after, "answers so"), now)


def test_one_bad_url_says_nothing_about_its_host() -> None:
    hosts = Hosts(jobs=16, retries=4, wait_seconds=1)
    for now in range(100):
        assert refuse(hosts, "bad", now) == 0
        assert hosts.wait(HOST, now) == 0


def test_bad_urls_among_good_ones_say_nothing_either() -> None:
    hosts = Hosts(jobs=4, retries=4, wait_seconds=1)
    for number in range(100):
        assert refuse(hosts, f"bad{number}", number) == 0
        hosts.served(hosts.began(HOST))


def paused(**settings: int) -> Hosts:
    """Return hosts of which one was just paused, for a second."""
    hosts = Hosts(**{"jobs": 4, "retries": 3, "wait_seconds": 1, **settings})
    told = [refuse(hosts, f"bad{number}", 0) for number in range(FEW_REFUSED)]
    assert told == [*[0] * (FEW_REFUSED - 1), 1]
    return hosts


def test_a_host_that_refuses_everything_is_paused_ever_longer_and_given_up() -> None:
    hosts = paused()
    waits, now = [1.0], 0.0
    while waits[-1] != math.inf:
        assert hosts.wait(HOST, now) == waits[-1]
        now += waits[-1]
        assert hosts.wait(HOST, now) == 0
        assert hosts.probe(HOST, now) == "", "it never served anything"
        waits.append(refuse(hosts, f"c{now}", now))
    assert waits == [1, 4, 16, math.inf]
    assert hosts.wait(HOST, now + 1e6) == math.inf
    assert hosts.why_given_up(HOST) == "answers so"


def test_a_host_that_was_never_there_is_asked_side_by_side() -> None:
    hosts = Hosts(jobs=4, retries=4, wait_seconds=1)
    for number in range(MOST_REFUSED - 1):
        assert refuse(hosts, f"index{number}", number, status=0) == 0
        assert hosts.wait(HOST, number) == 0, "with a slow resolver, one after the other takes minutes"
    assert refuse(hosts, "one more", MOST_REFUSED, status=0) == math.inf


def test_a_host_that_goes_away_is_paused() -> None:
    hosts = Hosts(jobs=4, retries=4, wait_seconds=1)
    hosts.served(hosts.began(HOST))
    assert [refuse(hosts, f"bad{number}", 1, status=0) for number in range(FEW_REFUSED)] == [0, 1]


def test_after_a_pause_one_request_finds_out() -> None:
    hosts = paused()
    assert hosts.wait(HOST, 2) == 0
    ticket = hosts.began(HOST)
    assert hosts.wait(HOST, 2) > 0, "the others wait for its outcome"
    hosts.served(ticket)
    assert hosts.wait(HOST, 2) == 0


def test_a_host_is_asked_for_what_it_served_before_it_is_called_ill() -> None:
    hosts, now = Hosts(jobs=4, retries=3, wait_seconds=1), 0.0
    hosts.served(hosts.began(HOST), "http://mirror.example.org/index")
    for number in range(MOST_REFUSED - 1):
        if refuse(hosts, f"bad{number}", now):
            assert hosts.probe(HOST, now) == "", "not during the pause"
            now += 1
            assert hosts.probe(HOST, now) == "http://mirror.example.org/index"
            hosts.served(hosts.began(HOST), "http://mirror.example.org/index", probe=True)
            assert hosts.wait(HOST, now) == 0
    assert refuse(hosts, "one too many", now) == math.inf


@pytest.mark.parametrize(("asked", "kept"), [(7.0, 7.0), (0.1, 1.0), (86400.0, 300.0)])
def test_429_is_a_word_of_the_host_and_retry_after_is_kept_within_reason(asked: float, kept: float) -> None:
    hosts = Hosts(jobs=16, retries=4, wait_seconds=1)
    assert refuse(hosts, "a", 0, status=429, retry_after=asked) == kept
    assert hosts.wait(HOST, 0) == kept
    assert hosts.wait("another.example.org", 0) == 0


def test_a_long_transfer_from_before_a_pause_does_not_prolong_it() -> None:
    hosts = Hosts(jobs=2, retries=3, wait_seconds=1)
    hosts.began(HOST)
    refuse(hosts, "a", 0, status=429)
    assert hosts.wait(HOST, 2) == 0
    ticket = hosts.began(HOST)
    assert hosts.wait(HOST, 2) > 0, "the others wait for the one that finds out"
    hosts.served(ticket)
    assert hosts.wait(HOST, 2) == 0


def test_refusals_that_were_under_way_do_not_count_twice() -> None:
    hosts = Hosts(jobs=2, retries=1, wait_seconds=1)
    tickets = [hosts.began(HOST) for _ in range(16)]
    told = [hosts.refused(ticket, Refusal(f"http://{HOST}/{ticket.number}", 503, 0, "busy"), 0.5) for ticket in tickets]
    assert told == [*[0] * (FEW_REFUSED - 1), 1, *[0] * (16 - FEW_REFUSED)]


def test_an_answer_that_was_under_way_does_not_end_a_pause() -> None:
    hosts = Hosts(jobs=4, retries=3, wait_seconds=1)
    ticket = hosts.began(HOST)
    assert refuse(hosts, "a", 0, status=429, retry_after=30) == 30
    hosts.served(ticket)
    assert hosts.wait(HOST, 1) == 29


def test_an_answer_to_a_former_request_does_not_outweigh_a_refusal() -> None:
    """Which of two requests is answered first is chance."""
    hosts = Hosts(jobs=4, retries=3, wait_seconds=1)
    ticket = hosts.began(HOST)
    assert refuse(hosts, "a", 0) == 0
    hosts.served(ticket)
    assert refuse(hosts, "b", 0) == 1


def test_an_answer_to_a_later_request_outweighs_a_refusal_that_comes_after_it() -> None:
    hosts = Hosts(jobs=4, retries=3, wait_seconds=1)
    ticket = hosts.began(HOST)
    hosts.served(hosts.began(HOST))
    assert hosts.refused(ticket, Refusal(f"http://{HOST}/a", 503, 0, "busy"), 0) == 0
    assert refuse(hosts, "b", 0) == 0
    assert refuse(hosts, "c", 0) == 1


def test_an_index_says_nothing_of_packages() -> None:
    hosts = Hosts(jobs=4, retries=3, wait_seconds=1)
    assert refuse(hosts, "a", 0) == 0
    hosts.served(hosts.began(HOST, payload=False))
    assert refuse(hosts, "b", 0) == 1


def test_indexes_do_not_make_up_for_packages_that_are_refused_one_and_all() -> None:
    hosts, now, waits = Hosts(jobs=4, retries=3, wait_seconds=1), 0.0, []
    for number in range(MOST_REFUSED):
        waits.append(refuse(hosts, f"package{number}", now))
        now += waits[-1]
        if waits[-1] < math.inf:
            hosts.served(hosts.began(HOST, payload=False), f"http://{HOST}/index")
    assert waits.index(math.inf) == MOST_REFUSED - 1


def test_a_host_is_known_without_its_credentials() -> None:
    assert host_of("https://lab:secret@mirror.example.org:8443/pkgs") == "mirror.example.org:8443"


@pytest.mark.parametrize(
    ("text", "rate"),
    [("5MB/s", 5_000_000), ("800 KiB/s", 819_200), ("50Mbit/s", 6_250_000), ("1.5m", 1_500_000), (4096, 4096), ("", 0)],
)
def test_rates_are_read_as_people_write_them(text: str | int, rate: int) -> None:
    assert parse({"limit_rate": text}, {}).limit_rate == rate


@pytest.mark.parametrize("text", ["fast", "-5MB/s", "0", "5 parsecs", True, [1]])
def test_other_rates_are_refused_by_name(text: object) -> None:
    with pytest.raises(ConfigError, match=r"limit_rate is .*5MB/s"):
        parse({"limit_rate": text}, {})


def test_a_rate_is_paid_for_with_sleep() -> None:
    now = [0.0]
    rate = Rate(1000, lambda: now[0])
    slept = 0.0
    for _ in range(100):
        rate.count(100)
        wait = rate.wait_seconds()
        now[0] += wait
        slept += wait
    assert slept == pytest.approx(10, rel=0.02)
