"""The one exception for mistakes that a person can mend."""


class UserError(ValueError):
    """A mistake in what was asked for, said in one sentence: what was asked, what was given, what is allowed, how to
    mend it.

    The command line prints the sentence alone and exits with status 2. Mistakes of the program itself stay `ValueError`
    or `TypeError`, and keep their traceback.
    """
