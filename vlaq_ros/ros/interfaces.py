"""
The messages and services of this package; the only importer of the generated half.

`rosidl` generates `vlaq_ros.msg` and `vlaq_ros.srv` when the package is built with colcon. From a
plain checkout, or after `pip install`, they do not exist, and the import below says so in one
sentence.
"""

from vlaq_ros.errors import MissingDependencyError

try:
    from vlaq_ros.msg import (
        ActionChunk,
        CalibrationProgress,
        DriftReport,
        EpisodeStatus,
        PolicyStatus,
        PrecisionState,
        ReferenceRequest,
    )
    from vlaq_ros.srv import SetPrecision
except ImportError as error:
    raise MissingDependencyError(
        f'the messages of vlaq_ros are not available ({error}): build the package '
        '(`make build`, or `colcon build --packages-select vlaq_ros`) and source its setup file '
        'in this shell; after a change of msg/ or srv/ build again'
    ) from error

__all__ = [
    'ActionChunk',
    'CalibrationProgress',
    'DriftReport',
    'EpisodeStatus',
    'PolicyStatus',
    'PrecisionState',
    'ReferenceRequest',
    'SetPrecision',
]
