"""The entry point of `lyrebird`. It is light: whenever somebody presses Ctrl-C, this is where it ends."""

from __future__ import annotations

import os
import sys

from infra.sentences import visible
from storage.errors import Problem


def main() -> None:
    """Run a command; a Problem is one sentence on stderr and exit code 1, Ctrl-C one and exit code 130."""
    try:
        from infra.commands import app

        app()
    except Problem as problem:
        print(f"lyrebird: {visible(str(problem))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        _interrupted()
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of Ctrl-C, without a word
            _interrupted()
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _interrupted() -> None:
    print("lyrebird: interrupted; run the same command again to go on", file=sys.stderr)


if __name__ == "__main__":
    main()
