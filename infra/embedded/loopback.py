"""The name of this machine, as the embedded Airflow files it."""


def hostname() -> str:
    """Airflow would ask the name server for the full host name; everything here is on loopback."""
    return "localhost"
