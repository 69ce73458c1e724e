"""Scraping, with Scrapy: pages made for people, of sites that have no interface for programs.

A crawl is a process of its own (``python -m ingestion.scrapers``), because Twisted's reactor starts once in a process.
It lands every page it was asked for and keeps what is to be asked for in the warehouse (:mod:`.frontier`), so that it
goes on where it was killed. A source starts it with :func:`ingestion.scrapers.crawling.crawl` and gives the landed
pages to the pipeline; what is in them is read by the source's ``parse``, which is pure.
"""
