"""The embedded stack: real servers on loopback, supervised, with all their state in one folder."""
