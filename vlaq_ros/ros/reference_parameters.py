"""
Every parameter of the reference node: type, default, unit, bounds, effect.

`config/reference_node.yaml` shows the same table with the same defaults; a test keeps them equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.policies.precision import DEFAULT, PRECISIONS
from vlaq_ros.ros.parameters import Applies, parameter


@dataclass(frozen=True)
class ReferenceParameters:
    """Parameters of the reference node."""

    policy: str = parameter(
        'policy', 'Name of the policy node whose questions are answered; with its namespace if any'
    )
    bundle: str = parameter(
        'metaworld',
        'Bundle of the full-precision policy: directory, or name of a shipped one. It must be the '
        'one that the policy node runs, or that its packed bundle was made of',
    )
    precision: str = parameter(DEFAULT, 'Precision of the weights', choices=PRECISIONS)
    head: str = parameter('', 'Action head; empty: the default of the bundle')
    threads: int = parameter(
        0, 'Threads of the tensor library; 0: left to the library', low=0, high=1024
    )
    self_test: bool = parameter(
        True, 'Refuse to configure when the loaded policy fails its self-test'
    )
    autostart: bool = parameter(
        False, 'Configure and activate without a lifecycle manager', applies=Applies.START
    )
    image_transport: str = parameter(
        'raw',
        'Subscribe to <camera>/image_raw (`raw`) or <camera>/image_raw/compressed (`compressed`); '
        'the same as the policy node, or the pixels differ',
        choices=('raw', 'compressed'),
    )
    image_wait_s: float = parameter(
        0.25,
        'How long a question waits for images that are still on their way',
        unit='s',
        low=0.0,
        high=60.0,
    )
    history_s: float = parameter(
        2.0, 'How long images are kept for questions to come', unit='s', low=0.01, high=600.0
    )
    history_mb: float = parameter(
        256.0,
        'Largest size of the images that are kept, as they arrived',
        unit='MB',
        low=0.001,
        high=1e6,
    )

    def contradictions(self) -> Iterator[str]:
        """Yield what the bounds of single parameters cannot say."""
        if not self.policy:
            yield "parameter 'policy' must not be empty"
        if self.image_wait_s >= self.history_s:
            yield (
                f"parameter 'image_wait_s' = {self.image_wait_s:g} s must be below 'history_s' = "
                f'{self.history_s:g} s: images would be forgotten before they are asked for'
            )
