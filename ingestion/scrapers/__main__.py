"""The crawler: one crawl, as told in a JSON object on standard input, with the credentials of the environment.

It says what it does on standard output, a JSON object a line: ``{"say": …}`` or ``{"problem": [what, remedy]}``.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import Any

from scrapy.crawler import AsyncCrawlerProcess

from ingestion import wire
from ingestion.scrapers.frontier import Frontier
from ingestion.scrapers.manners import Turnstile
from ingestion.scrapers.spiders import SPIDERS
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings

MB = 1 << 20
_HERE = "ingestion.scrapers"

SETTINGS: dict[str, Any] = {
    "USER_AGENT": wire.AGENT,
    "DEFAULT_REQUEST_HEADERS": {
        "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Encoding": "gzip",
    },
    "ROBOTSTXT_OBEY": True,
    "ROBOTSTXT_USER_AGENT": "lyrebird",
    "AUTOTHROTTLE_ENABLED": True,
    "AUTOTHROTTLE_START_DELAY": 0.1,  # the rate is kept besides; from here on, latencies decide
    "CONCURRENT_REQUESTS": 4,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 2,
    "SCHEDULER": f"{_HERE}.landing.Scheduler",
    "DOWNLOADER_MIDDLEWARES": {
        f"{_HERE}.landing.Landing": 10,
        "scrapy.downloadermiddlewares.robotstxt.RobotsTxtMiddleware": None,
        f"{_HERE}.manners.Robots": 100,
        "scrapy.downloadermiddlewares.httpauth.HttpAuthMiddleware": None,
        "scrapy.downloadermiddlewares.retry.RetryMiddleware": None,  # Landing does it, for Retry-After
        "scrapy.downloadermiddlewares.httpcompression.HttpCompressionMiddleware": None,  # Wire unpacks
        "scrapy.downloadermiddlewares.redirect.MetaRefreshMiddleware": None,
        "scrapy.downloadermiddlewares.httpproxy.HttpProxyMiddleware": None,  # a proxy would resolve names for us
    },
    "SPIDER_MIDDLEWARES": {f"{_HERE}.landing.Following": 1000},
    "HTTPCACHE_ENABLED": True,
    "HTTPCACHE_POLICY": "scrapy.extensions.httpcache.RFC2616Policy",
    "HTTPCACHE_STORAGE": f"{_HERE}.manners.Cache",
    "TWISTED_DNS_RESOLVER": f"{_HERE}.manners.Resolver",
    "DOWNLOAD_HANDLERS": {
        "http": f"{_HERE}.manners.Wire",
        "https": f"{_HERE}.manners.Wire",
        **dict.fromkeys(("data", "file", "ftp", "s3")),
    },
    "DOWNLOAD_VERIFY_CERTIFICATES": True,
    "DOWNLOAD_TIMEOUT": 60,  # seconds, of a whole answer
    "DOWNLOAD_MAXSIZE": 64 * MB,
    "DOWNLOAD_WARNSIZE": 0,
    "REDIRECT_MAX_TIMES": 5,
    "COOKIES_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "REMOTE_CONTROL_ENABLED": False,
    "STATS_DUMP": False,
    "LOG_LEVEL": "WARNING",
}


def run(order: dict[str, Any]) -> Problem | None:
    """Crawl until nothing is left to ask for, or nothing can be had."""
    settings = Settings()
    process = AsyncCrawlerProcess(SETTINGS | {"ALLOWED_HOSTS": order["allowed"]})
    crawler = process.create_crawler(SPIDERS[order["spider"]])
    with closing(Frontier(settings, order["source"], order["resource"])) as frontier, frontier.alone(order["crawl"]):
        crawl = process.crawl(
            crawler,
            order=order,
            frontier=frontier,
            objects=Objects(settings),
            turnstile=Turnstile(settings, rate=order["rate"]),
        )
        process.start()
        if crawl.done():
            crawl.result()  # raises what kept it from beginning
        return getattr(crawler.spider, "problem", None)


def main() -> int:
    try:
        problem = run(json.load(sys.stdin))
    except Problem as error:
        problem = error
    if problem:
        sys.stdout.write(json.dumps({"problem": [problem.what, problem.remedy]}) + "\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
