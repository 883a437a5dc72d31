"""The one error that means: what you gave cannot be used as it is."""


class InputError(ValueError):
    """One sentence that names the argument, file, column or day, the value seen and what was expected.

    The command line prints it and exits with 2.
    """
