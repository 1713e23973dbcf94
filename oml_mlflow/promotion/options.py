"""Options of a promotion: what it may do that it does not do by default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What a promotion may do that it does not do by default.

    Attributes:
        unverified: Also promote a pair that no runtime here can run, without a comparison.
        adopt: Adopt foreign models under the live names; they are kept, and never dropped.
        take_over: Names may change hands: to another registered model or registry, or from
            whoever loaded foreign models, which are adopted.
        accept_new_geometry: Also promote a version whose vectors can't be compared with those
            stored from the live one.
        reembed: Take stored vectors along: registered columns are made anew by the new models
            beside those in use, and change with the models.
        over_pin: Change a pinned name.
        retry: Retry what failed before.
        heal: Heal drift, whatever the target's policy is.
    """

    unverified: bool = False
    adopt: bool = False
    take_over: bool = False
    accept_new_geometry: bool = False
    reembed: bool = False
    over_pin: bool = False
    retry: bool = False
    heal: bool = False

    @property
    def adopts(self) -> bool:
        """Whether foreign models under the live names may be adopted."""
        return self.adopt or self.take_over


DEFAULTS = Options()
