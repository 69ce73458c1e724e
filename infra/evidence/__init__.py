"""Makes docs/evidence: what the two commands printed on a fresh clone, and pictures of the pages."""
