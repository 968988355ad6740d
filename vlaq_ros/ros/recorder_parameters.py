"""
Every parameter of the recorder node: type, default, unit, bounds, effect.

`config/recorder_node.yaml` shows the same table with the same defaults; a test keeps them equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.ros.parameters import Applies, parameter


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder."""

    output: str = parameter(
        '',
        'Directory of the bag, which must not exist; empty: bag_<date>_<time> in the current one',
        applies=Applies.START,
    )
    bundle: str = parameter(
        'metaworld',
        'Policy bundle whose cameras are recorded: directory, or name of a shipped one',
        applies=Applies.START,
    )
    policy: str = parameter(
        'policy', 'Name of the policy node whose outputs are recorded', applies=Applies.START
    )
    image_transport: str = parameter(
        'raw',
        'Record <camera>/image_raw (`raw`) or <camera>/image_raw/compressed (`compressed`)',
        choices=('raw', 'compressed'),
        applies=Applies.START,
    )
    extra_topics: str = parameter(
        '', 'More topics to record, separated by spaces, e.g. `/tf_static`', applies=Applies.START
    )
    compression: str = parameter(
        'zstd', 'Compression inside the bag', choices=('zstd', 'none'), applies=Applies.START
    )
    flush_s: float = parameter(
        1.0,
        'At most this much is lost when the recorder is killed',
        unit='s',
        low=0.1,
        high=60.0,
        applies=Applies.START,
    )
    min_free_mb: float = parameter(
        512.0,
        'Recording ends while this much of the disk is still free',
        unit='MB',
        low=0.0,
        high=1e9,
        applies=Applies.START,
    )

    def contradictions(self) -> Iterator[str]:
        """Yield what the bounds of single parameters cannot say."""
        if not self.policy:
            yield "parameter 'policy' must not be empty"
