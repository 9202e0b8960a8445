"""What must stand beside every result."""

NOT_A_DEVICE = "not a medical device"
SYNTHETIC = "trained on synthetic data, not for patients"


def notice(*, synthetic: bool) -> str:
    """The words for a model; `synthetic` says whether it has learned from synthetic data alone."""
    return f"{NOT_A_DEVICE}; {SYNTHETIC}" if synthetic else NOT_A_DEVICE
