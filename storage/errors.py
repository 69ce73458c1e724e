"""The errors that a user is meant to see."""


class Problem(Exception):
    """Something went wrong that a person can mend: what happened, and what to do next.

    The command line prints it as one sentence and exits with 1; it never shows a stack trace.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}. {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class Unusable(Problem):
    """One thing is at fault, and not the server that has it: refused, too large, too slow, damaged, not there.

    Others of its kind may well be had.
    """
