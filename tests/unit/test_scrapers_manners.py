"""Parts of the crawler without a crawl: its cache, its resolver, its environment, and what it is set to."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from requests_hardened.ip_filter import InvalidIPAddress
from scrapy.http import HtmlResponse, Request
from scrapy.utils.request import RequestFingerprinter

from ingestion.scrapers import crawling
from ingestion.scrapers.__main__ import SETTINGS
from ingestion.scrapers.manners import Cache, Resolver
from storage.settings import Settings, from_variables


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("LYREBIRD_HOME", str(tmp_path))
    found = Cache(None)
    found.open_spider(SimpleNamespace(crawler=SimpleNamespace(request_fingerprinter=RequestFingerprinter())))  # type: ignore[arg-type]
    return found


def test_the_cache_gives_back_what_it_was_given(cache: Cache) -> None:
    spider: Any = None
    request = Request("http://x.example/a")
    assert cache.retrieve_response(spider, request) is None
    given = HtmlResponse(request.url, 200, {"ETag": '"é"', "Set": ["a", "b"]}, b"<p>\n\x00\xff</p>")
    cache.store_response(spider, request, given)
    found = cache.retrieve_response(spider, request)
    assert found
    assert (found.url, found.status, found.body, found.headers) == (given.url, 200, given.body, given.headers)
    assert cache.retrieve_response(spider, Request("http://x.example/b")) is None


@pytest.mark.parametrize("keep", [0, 1, 30, -1])
def test_an_entry_that_was_cut_is_no_entry(cache: Cache, keep: int) -> None:
    spider: Any = None
    request = Request("http://x.example/a")
    cache.store_response(spider, request, HtmlResponse(request.url, 200, {"ETag": '"1"'}, b"<p>text</p>"))
    (path,) = cache._folder.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    assert cache.retrieve_response(spider, request) is None


def test_an_answer_that_is_cleared_away_while_it_is_kept_is_asked_for_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    spider: Any = None
    request = Request("http://x.example/a")
    replace = os.replace

    def cleared(old: str, new: Path) -> None:
        Path(old).unlink()
        replace(old, new)

    monkeypatch.setattr(os, "replace", cleared)
    cache.store_response(spider, request, HtmlResponse(request.url, 200, {}, b"<p>text</p>"))
    assert cache.retrieve_response(spider, request) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"])
def test_private_addresses_are_no_addresses(host: str) -> None:
    with pytest.raises(InvalidIPAddress):
        Resolver(None, ["127.0.0.1:81"])._look_up(host, 80)  # type: ignore[arg-type]
    assert (host, 80) in Resolver.refused


def test_hosts_that_are_allowed_are_found() -> None:
    resolver = Resolver(None, ["127.0.0.1:80", "LOCALHOST"])  # type: ignore[arg-type]
    assert resolver._look_up("127.0.0.1", 80) == "127.0.0.1"
    assert resolver._look_up("localhost", 8080) in ("127.0.0.1", "::1")


def test_the_crawler_knows_the_loaders_credentials_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of somebody else")
    variables = {"LYREBIRD_ROLE": "loader", "LYREBIRD_POSTGRES_PASSWORD": "secret", "LYREBIRD_POSTGRES_PORT": "5433"}
    settings = from_variables(variables)
    monkeypatch.setenv("LYREBIRD_MLFLOW_PASSWORD", "of somebody else")
    found = crawling._environment(settings)
    assert found["LYREBIRD_POSTGRES_PASSWORD"] == "secret"
    assert from_variables(found) == settings
    assert "of somebody else" not in found.values()
    assert set(found) - {f"LYREBIRD_{name.upper()}" for name in Settings.model_fields} <= {
        *crawling.KEPT,
        *crawling.KEPT_OURS,
        *crawling.QUIET,
    }


def test_it_is_polite_and_has_no_doors() -> None:
    on = {"ROBOTSTXT_OBEY", "AUTOTHROTTLE_ENABLED", "HTTPCACHE_ENABLED", "DOWNLOAD_VERIFY_CERTIFICATES"}
    off = {"TELNETCONSOLE_ENABLED", "REMOTE_CONTROL_ENABLED", "STATS_DUMP", "COOKIES_ENABLED"}
    assert {name for name in on if SETTINGS[name] is True} == on
    assert {name for name in off if SETTINGS[name] is False} == off
    assert SETTINGS["USER_AGENT"].startswith("lyrebird/")
