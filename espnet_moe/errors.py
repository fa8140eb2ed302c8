"""The one exception every mistake of a user ends in."""


class UserError(ValueError):
    """Something a user can cause and mend: the message says what, what is legal, what to do."""
