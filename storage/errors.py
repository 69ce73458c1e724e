"""The one error that a user is meant to see."""


class Problem(Exception):
    """Something went wrong that a person can mend: what happened, and what to do next.

    The command line prints it as one sentence and exits with 1; it never shows a stack trace.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}. {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
