"""The exceptions that surefoot defines."""


class InputError(ValueError):
    """Wrong input. The message is one sentence: the argument, file, column or day, the value seen, the value expected.

    The command line prints the message and exits with 2.
    """


class TrainingStopped(Exception):  # noqa: N818 - not an error of the training loop
    """Training has diverged and recovery has not helped.

    Raised to end a training loop that the user does not own, unless ``on_stop`` is given. All checkpoints are kept.
    """
