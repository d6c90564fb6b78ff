"""The three ways in which this folder says no, each with the exit code the command line gives it."""


class PrivacyError(ValueError):
    """A mistake in the input, or a refusal: no epsilon can be given for this."""

    exit_code = 1


class BudgetError(PrivacyError):
    """The charge would cross the client's privacy budget; nothing was trained and nothing was charged."""

    exit_code = 3


class LedgerError(PrivacyError):
    """The ledger was edited, truncated, is in use, or the clock went backwards."""


def require(condition: bool, message: str) -> None:
    """Raise PrivacyError with this one line unless the condition holds."""
    if not condition:
        raise PrivacyError(message)
