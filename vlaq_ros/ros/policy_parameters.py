"""
Every parameter of the policy node: type, default, unit, bounds, effect.

`config/policy_node.yaml` shows the same table with the same defaults; a test keeps them equal.
The groups `drift` and `dynamic_precision` are in `drift_parameters` and `precision_parameters`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.control.limits import CommandLimits
from vlaq_ros.data.messages import JOINT_PREFIX, POSE_SOURCES
from vlaq_ros.policies.precision import DEFAULT, PRECISIONS
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.ros.drift_parameters import DriftParameters
from vlaq_ros.ros.parameters import Applies, group, parameter
from vlaq_ros.ros.precision_parameters import DynamicPrecisionParameters


@dataclass(frozen=True)
class CommandParameters:
    """What is sent to the arm, and how often."""

    type: str = parameter(
        'twist',
        'Arm command: `twist` on ~/delta_twist_cmds or `pose` on ~/pose_target_cmds',
        choices=('twist', 'pose'),
    )
    rate_hz: float = parameter(
        50.0,
        'Rate at which the command that is due is sent again; at least the rate of the policy. '
        'MoveIt Servo halts when commands are older than 0.1 s',
        unit='Hz',
        low=1.0,
        high=1000.0,
    )
    base_frame: str = parameter('base', 'frame_id of commands expressed in the base of the arm')
    tool_frame: str = parameter('tool0', 'frame_id of commands expressed in the tool')


@dataclass(frozen=True)
class GripperParameters:
    """How the opening of the policy, 0 to 1, becomes the position of a joint."""

    joint: str = parameter('gripper', 'Name of the gripper joint in the command')
    travel: float = parameter(
        0.1,
        'Position of the gripper joint when fully open; 0 is closed',
        unit='m',
        low=1e-4,
        high=1.0,
    )
    min_change: float = parameter(
        0.001,
        'A new gripper command is sent when it differs by this much',
        unit='m',
        low=0.0,
        high=1.0,
    )
    repeat_s: float = parameter(
        0.5,
        'An unchanged gripper command is sent again after this time',
        unit='s',
        low=0.01,
        high=60.0,
    )


@dataclass(frozen=True)
class StateParameters:
    """Where the state vector of the policy comes from, in its order."""

    sources: tuple[str, ...] = parameter(
        ('ee_pose.x', 'ee_pose.y', 'ee_pose.z', 'joint.gripper'),
        'One per state of the policy: `ee_pose.<x|y|z|qx|qy|qz|qw>` from topic ee_pose, '
        '`joint.<name>` from topic joint_states',
    )
    scales: tuple[float, ...] = parameter(
        (1.0, 1.0, 1.0, 10.0), 'Factor from each source to the unit the policy expects'
    )


@dataclass(frozen=True)
class AgeParameters:
    """How old inputs may be; beyond it the arm is stopped."""

    image_s: float = parameter(
        0.25,
        'Oldest usable image, by its header stamp',
        unit='s',
        low=0.001,
        high=60.0,
        applies=Applies.CONFIGURE,
    )
    state_s: float = parameter(
        0.25,
        'Oldest usable ee_pose and joint_states, by header stamp',
        unit='s',
        low=0.001,
        high=60.0,
    )
    spread_s: float = parameter(
        0.25,
        'Longest time between the inputs of one observation; the state is taken at the stamp of '
        'the first camera. At least the period of the slowest camera',
        unit='s',
        low=0.0,
        high=60.0,
    )
    silence_s: float = parameter(
        1.0,
        'Longest time without any message of a stream, on a steady clock: it also notices when '
        'the simulated clock stands still',
        unit='s',
        low=0.01,
        high=600.0,
    )


@dataclass(frozen=True)
class LimitParameters:
    """What a command may ask for; these are no safety functions of the robot."""

    max_linear_speed: float = parameter(
        1.4,
        'Highest linear speed of the end effector. The default is the diagonal of the simulated '
        'arm, 0.8 m/s on each axis: set much less for a real one',
        unit='m/s',
        low=1e-4,
        high=100.0,
        applies=Applies.LIVE,
    )
    max_angular_speed: float = parameter(
        1.0,
        'Highest angular speed of the end effector',
        unit='rad/s',
        low=1e-4,
        high=100.0,
        applies=Applies.LIVE,
    )
    use_workspace: bool = parameter(
        False, 'Keep the end effector inside the box below; needs topic ee_pose'
    )
    workspace_low: tuple[float, ...] = parameter(
        (-0.5, 0.35, 0.0),
        'Lowest x, y, z of the end effector in the base frame',
        unit='m',
        size=3,
        applies=Applies.LIVE,
    )
    workspace_high: tuple[float, ...] = parameter(
        (0.5, 1.0, 0.5),
        'Highest x, y, z of the end effector in the base frame',
        unit='m',
        size=3,
        applies=Applies.LIVE,
    )
    on_exceed: str = parameter(
        'clamp',
        'A command over a limit is reduced to it (`clamp`), or refused and the arm stopped until '
        '~/reset (`refuse`)',
        choices=('clamp', 'refuse'),
        applies=Applies.LIVE,
    )

    def to_limits(self) -> CommandLimits:
        """Return the check that uses these values."""
        low, high = self.workspace_low, self.workspace_high
        return CommandLimits(
            self.max_linear_speed,
            self.max_angular_speed,
            low if self.use_workspace else None,
            high if self.use_workspace else None,
            on_exceed=self.on_exceed,
        )


@dataclass(frozen=True)
class PolicyParameters:
    """The parameters of the policy node."""

    bundle: str = parameter(
        'metaworld', 'Directory of the policy bundle, or name of a shipped one'
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
    lockstep: bool = parameter(
        False,
        'Answer every complete observation exactly once, stamped with it, instead of commanding '
        'in real time; for simulators that wait for the answer. Needs use_sim_time',
    )
    replan: str = parameter(
        'horizon',
        'Infer again after `execution_horizon` actions (`horizon`) or as often as possible '
        '(`continuous`)',
        choices=('horizon', 'continuous'),
    )
    execution_horizon: int = parameter(
        0,
        'Actions executed before the next inference; 0: the default of the bundle',
        low=0,
        high=10000,
    )
    image_transport: str = parameter(
        'raw',
        'Subscribe to <camera>/image_raw (`raw`) or <camera>/image_raw/compressed (`compressed`)',
        choices=('raw', 'compressed'),
    )
    max_inference_errors: int = parameter(
        3, 'Failed inferences in a row before the arm is stopped until ~/reset', low=1, high=1000
    )
    stop_repeat_s: float = parameter(
        1.0,
        'How long a stop command is repeated',
        unit='s',
        low=0.0,
        high=60.0,
        applies=Applies.LIVE,
    )
    command: CommandParameters = group(CommandParameters)
    gripper: GripperParameters = group(GripperParameters)
    state: StateParameters = group(StateParameters)
    age: AgeParameters = group(AgeParameters)
    limits: LimitParameters = group(LimitParameters)
    dynamic_precision: DynamicPrecisionParameters = group(DynamicPrecisionParameters)
    drift: DriftParameters = group(DriftParameters)

    def contradictions(self) -> Iterator[str]:
        """Yield a sentence for each combination of values that cannot work."""
        yield from self.dynamic_precision.contradictions()
        yield from self.drift.contradictions()
        low, high = self.limits.workspace_low, self.limits.workspace_high
        if not all(a < b for a, b in zip(low, high)):
            yield (
                f"parameter 'limits.workspace_low' = {list(low)} must be below "
                f"'limits.workspace_high' = {list(high)} on every axis"
            )
        if len(self.state.sources) != len(self.state.scales):
            yield (
                f"parameter 'state.scales' has {len(self.state.scales)} values for "
                f"{len(self.state.sources)} 'state.sources': give one factor per source"
            )
        unknown = [s for s in self.state.sources if not _is_source(s)]
        if unknown:
            yield (
                f"parameter 'state.sources' names {unknown}: use {', '.join(POSE_SOURCES)} or "
                f'{JOINT_PREFIX}<name of a joint>'
            )

    def mismatches(self, spec: PolicySpec) -> Iterator[str]:
        """Yield a sentence for each value that does not fit the loaded bundle."""
        rate_hz = 1.0 / spec.action.period_s
        if self.command.rate_hz < rate_hz - 1e-6 and not self.lockstep:
            yield (
                f"parameter 'command.rate_hz' = {self.command.rate_hz:g} Hz must be at least "
                f'{rate_hz:g} Hz, the rate of bundle {spec.name!r}: slower skips actions'
            )
        if self.execution_horizon > spec.horizon:
            yield (
                f"parameter 'execution_horizon' = {self.execution_horizon} must be at most "
                f'{spec.horizon}, the actions per chunk of bundle {spec.name!r}'
            )
        if len(self.state.sources) != len(spec.state.names):
            yield (
                f"parameter 'state.sources' has {len(self.state.sources)} values, bundle "
                f'{spec.name!r} needs {len(spec.state.names)}: {", ".join(spec.state.names)}'
            )
        if not spec.action.delta:
            yield (
                f'bundle {spec.name!r} commands absolute poses; this node sends increments as '
                'twists or target poses'
            )


def _is_source(source: str) -> bool:
    return (
        source in POSE_SOURCES
        or len(source) > len(JOINT_PREFIX)
        and source.startswith(JOINT_PREFIX)
    )
