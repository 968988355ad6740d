"""
What is recorded, and what is kept with a bag about where it comes from.

Shared by the recorder node and `record.launch.py`, so that both record the same.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from vlaq_ros.policies.bundle import open_bundle

PROVENANCE_KEY = 'vlaq_ros'
PROVENANCE_FORMAT = 1
POLICY_TOPICS = (
    'delta_twist_cmds',
    'pose_target_cmds',
    'gripper_cmds',
    'action_chunk',
    'status',
    'precision',
    'drift',
)
"""Outputs of the policy node; those it does not publish are not in the bag."""


def camera_names(bundle: str) -> list[str]:
    """
    Return the cameras that a policy needs.

    Raises:
        BundleError: There is no such bundle.
    """
    return [camera.name for camera in open_bundle(bundle).spec.cameras]


def stream_names(
    cameras: Sequence[str], policy: str, image_transport: str, extra: Sequence[str] = ()
) -> list[str]:
    """Return the topics to record, as nodes name them before remapping."""
    suffix = '/compressed' if image_transport == 'compressed' else ''
    return [
        *(f'{camera}/image_raw{suffix}' for camera in cameras),
        'ee_pose',
        'joint_states',
        'instruction',
        'episode',
        *(f'{policy}/{topic}' for topic in POLICY_TOPICS),
        *extra,
    ]


def provenance(
    streams: Mapping[str, str],
    *,
    bundle: str,
    bundle_hash: str,
    precisions: Sequence[str],
    use_sim_time: bool,
    lost: Mapping[str, int],
) -> dict[str, Any]:
    """
    Return what is kept with a bag; nothing in it tells on which computer it was made.

    Args:
        streams: Stream -> topic of the bag.
        bundle: Name of the policy that ran; empty: none.
        bundle_hash: Sha256 of its manifest.
        precisions: Those it ran at, in order.
        use_sim_time: Whether receive times are simulated time.
        lost: Messages that could not be recorded, by topic.
    """
    return {
        'format': PROVENANCE_FORMAT,
        'vlaq_ros': package_version(),
        'bundle': bundle,
        'bundle_hash': bundle_hash,
        'precisions': list(precisions),
        'streams': dict(streams),
        'use_sim_time': use_sim_time,
        'lost': dict(lost),
    }


def custom_data(values: Mapping[str, Any]) -> str:
    """Return provenance as an argument of `ros2 bag record --custom-data`."""
    text = json.dumps(values, separators=(',', ':'))
    return f'{PROVENANCE_KEY}={text}'.replace('=', '\\u003d').replace('\\u003d', '=', 1)


def package_version() -> str:
    """Return the version of this package; empty when it was neither built nor installed."""
    try:
        return metadata.version('vlaq_ros')
    except metadata.PackageNotFoundError:
        return ''
