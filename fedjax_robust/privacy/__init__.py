"""Participant-level differential privacy: noise on the average, and what it is worth."""

from fedjax_robust.privacy.accounting import privacy_spent, privacy_spent_poisson
from fedjax_robust.privacy.participants import participant_dp

__all__ = [
    "participant_dp",
    "privacy_spent",
    "privacy_spent_poisson",
]
