"""
How a loaded policy's precision shall be decided: from parameters of the node, a file, or a bundle.

Everything is checked here against the levels that the policy really has, before anything changes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.motion import MotionScale, OnlineMotionScale
from vlaq_ros.policies.base import Policy
from vlaq_ros.ros.drift_parameters import MEASURING, DriftParameters
from vlaq_ros.ros.precision_parameters import DynamicPrecisionParameters
from vlaq_ros.types import POSITION_NAMES


def rules_of(
    config: DynamicPrecisionParameters, policy: Policy, drift: DriftParameters
) -> PrecisionParameters | None:
    """
    Return how precision is decided for a loaded policy; None: only ~/set_precision changes it.

    Raises:
        ConfigError: The file or the values are wrong, or the policy has not got the levels; every
            offender is listed.
    """
    if config.file:
        try:
            text = Path(config.file).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"parameter 'dynamic_precision.file' = {config.file!r} cannot be read: {error}"
            ) from error
        rules = PrecisionParameters.from_json(text, config.file)
        if 'drift' in rules.rules and not drift.is_measured:
            raise ConfigError(f"{config.file}: rule 'drift' {_unmeasured(drift)}")
    elif config.policy == 'static':
        return None
    elif config.policy == 'drift' and not drift.is_measured:
        raise ConfigError(f"parameter 'dynamic_precision.policy' = 'drift' {_unmeasured(drift)}")
    else:
        groups = _groups_of(config, policy)
        if not groups:
            raise ConfigError(
                f"parameter 'dynamic_precision.policy' = {config.policy!r} needs levels to choose "
                f'from, and precision {policy.precision} is fixed: {policy.level_limits}'
            )
        rules = PrecisionParameters(
            (config.policy,),
            groups,
            dyq=config.dyq_options(),
            drift=drift.rule_options(config.lower_after),
            safety=config.safety_options(),
        )
    problems = [
        unavailable(policy, name, level)
        for name, group in rules.groups.items()
        for level in group.menu.levels
        if level not in policy.levels.get(name, ())
    ]
    if problems:
        raise ConfigError('\n'.join(problems))
    return rules


def mismatches(
    config: DynamicPrecisionParameters, policy: Policy, drift: DriftParameters
) -> Iterator[str]:
    """Yield why precision cannot be decided like this for a loaded policy."""
    try:
        rules_of(config, policy, drift)
        motion_scale(config, policy)
    except ConfigError as error:
        yield from str(error).splitlines()


def _groups_of(
    config: DynamicPrecisionParameters, policy: Policy
) -> Mapping[str, GroupParameters]:
    """Return the levels of every module group, and for `dyq` the boundaries between them."""
    if config.levels_from == 'parameters':
        group = GroupParameters(PrecisionMenu.from_names(*config.levels), config.edges)
        return dict.fromkeys(policy.levels, group)
    measured = policy.measured_levels
    where = "parameter 'dynamic_precision.levels_from' = 'bundle'"
    if measured is None or policy.head not in measured.heads:
        lacks = 'no measured levels' if measured is None else f'none of head {policy.head!r}'
        raise ConfigError(
            f'{where}: bundle {policy.spec.name!r} holds {lacks}: calibrate it with `vlaq '
            "calibrate --method nested`, or set it to 'parameters' and give levels and boundaries"
        )
    found = measured.heads[policy.head]
    groups = found.precision.groups
    unfitted = [
        f'{where}: {name} has no boundaries, {found.fits[name].get("why", "nobody fitted them")}'
        for name, group in groups.items()
        if group.boundaries is None and config.policy == 'dyq'
    ]
    if unfitted:
        advice = "calibrate with more episodes, or set it to 'parameters' and give boundaries"
        raise ConfigError('\n'.join(f'{line}: {advice}' for line in unfitted))
    return groups


def _unmeasured(drift: DriftParameters) -> str:
    return (
        f"needs measured drift, and 'drift.source' is {drift.source}: set it to one of "
        f'{", ".join(MEASURING)}'
    )


def unavailable(policy: Policy, group: str, level: PrecisionLevel) -> str:
    """Say that a policy has not got this level, what it has, and why no more."""
    there = ', '.join(map(str, policy.levels.get(group, ()))) or 'nothing'
    groups = ', '.join(policy.levels) or 'none'
    why = f'; {policy.level_limits}' if policy.level_limits else ''
    return f'{group} {level} is not available: {group} has {there}; module groups: {groups}{why}'


def motion_scale(
    config: DynamicPrecisionParameters, policy: Policy
) -> MotionScale | OnlineMotionScale:
    """Return the normalizers that were given; those of motion that is not commanded are unused."""
    spec = policy.spec
    if config.levels_from == 'bundle' and policy.measured_levels is not None:
        return policy.measured_levels.motion or OnlineMotionScale(spec.action)
    if not config.translation_m and not config.rotation_rad:
        return OnlineMotionScale(spec.action)
    moves = any(name in POSITION_NAMES for name in spec.action.names)
    needed = {'translation_m': moves, 'rotation_rad': spec.action.has_rotation}
    missing = [name for name, is_used in needed.items() if is_used and not getattr(config, name)]
    if missing:
        raise ConfigError(
            f"parameter 'dynamic_precision.{missing[0]}' is 0 while the other normalizer is "
            f'given: give both, or none to learn them while the robot works'
        )
    return MotionScale(
        config.translation_m if moves else None,
        config.rotation_rad if spec.action.has_rotation else None,
    )
