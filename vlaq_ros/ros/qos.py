"""
QoS by purpose: one named profile per kind of stream, with the reason for it.

A best-effort publisher never reaches a reliable subscriber, and a volatile publisher never reaches
a subscriber that asks for latched samples. So subscribers here ask for as little as their purpose
allows. Where `overridable` is used, history, depth and reliability can be changed from a parameter
file under `qos_overrides.<topic>.<publisher|subscription>`. rclpy declares these parameters once,
with the first profile as default, and keeps them: another profile for the same topic needs an id,
which is appended to the name (`subscription_lockstep`, `subscription_latched`).
"""

from copy import copy
from typing import Any

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

__all__ = ['PublisherEventCallbacks', 'SubscriptionEventCallbacks', 'overridable']


def _profile(depth: int, *, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


# Matches every camera and every bag; an old image is worthless, so none is queued.
IMAGE_IN = _profile(1, reliable=False)
# Matches every driver; a few samples bridge a busy executor.
STATE_IN = _profile(5, reliable=False)
# The simulator waits for the answer to every sample, so none may be lost.
LOCKSTEP_IN = _profile(1, reliable=True)
# A plain request matches plain and latched publishers alike.
INSTRUCTION_IN = _profile(1, reliable=True)
# Second subscription: the sentence that was latched before the node started.
LATCHED_INSTRUCTION_IN = _profile(1, reliable=True, latched=True)
# A reference is asked about an image of a moment ago: none shall be replaced before it is taken.
IMAGES_IN = _profile(10, reliable=False)
# Questions and answers between a policy and its reference: few, small, and each one counts.
REFERENCE = _profile(10, reliable=True)
# What sensor publishers offer by REP 2003: reliable, so that every subscriber matches.
SENSOR_OUT = _profile(5, reliable=True)
# A late subscriber must never receive an old motion.
COMMAND = _profile(1, reliable=True)
# Only the newest chunk counts.
CHUNK = _profile(1, reliable=True)
# Every reading counts for who draws or records them.
DRIFT = _profile(10, reliable=True)
# Whoever joins late sees the present state.
LATCHED = _profile(1, reliable=True, latched=True)
# What aggregators and recorders expect.
DIAGNOSTICS = _profile(10, reliable=True)


def overridable(profile: QoSProfile, entity_id: str | None = None) -> dict[str, Any]:
    """Return the keywords of a publisher or subscription whose QoS a parameter file may change."""
    return {
        'qos_profile': copy(profile),  # rclpy writes the overrides into it
        'qos_overriding_options': QoSOverridingOptions.with_default_policies(entity_id=entity_id),
    }
