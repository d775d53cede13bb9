"""The one exception for input that only the caller can put right."""


class UserError(ValueError):
    """Bad input. Its message says what is wrong and what to do, in one or two sentences."""
