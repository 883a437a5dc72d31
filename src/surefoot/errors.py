"""What surefoot raises by names of its own."""


class InputError(ValueError):
    """One sentence that names the argument, file, column or day, the value seen and what was expected.

    The command line prints it and exits with 2.
    """


class TrainingStopped(Exception):  # noqa: N818 - no error of the loop that it goes through
    """Training has diverged, nothing that a recovery can do has helped, and the loop belongs to somebody else.

    Raised through a trainer that was not told in another way (``on_stop``); the checkpoints are all there.
    """
