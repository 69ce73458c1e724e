"""Start one server so that it cannot outlive its supervisor: ``python -m infra.embedded.leash SPEC.json``.

The supervisor starts this instead of the server. It ends what an earlier life of the same server left behind (workers
of a killed parent would hold the port), drops root where the server refuses it, asks the kernel for a signal when the
supervisor dies (Linux), and becomes the server. What is secret of its environment comes out of a private file: no
command line and no supervisor configuration holds a password.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import signal
import sys
from pathlib import Path

from infra.embedded.leftovers import end_leftovers

PR_SET_PDEATHSIG = 1


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text())
    end_leftovers([Path(folder) for folder in spec["marks"]])
    os.umask(0o077)
    os.chdir(spec["cwd"])
    if spec["user"] and os.geteuid() == 0:
        account = pwd.getpwnam(spec["user"])
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    if sys.platform == "linux":  # after the change of user, which would clear it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.Signals[spec["last_signal"]].value)
    try:
        os.execve(spec["argv"][0], spec["argv"], os.environ | spec["env"])  # noqa: S606
    except OSError as error:
        sys.exit(f"{spec['argv'][0]}: {error.strerror}; run `make install` again")


if __name__ == "__main__":
    main(sys.argv[1])
