"""
The policy node on /diagnostics, once a second and when drift has another level, on its clock.

`diagnostic_updater` is not used: its frequency and time stamp tasks compare simulated stamps with
wall time. Each function answers one question an operator asks; nothing here stops the robot.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from vlaq_ros.control.drift_alarm import DriftLevel
from vlaq_ros.control.precision_account import Account, Outcome
from vlaq_ros.control.supervisor import ControlState
from vlaq_ros.policies.base import MemoryReport, Policy
from vlaq_ros.ros.control_loop import ControlLoop
from vlaq_ros.ros.conversions import image_bridge, to_stamp
from vlaq_ros.ros.drift_control import DriftControl
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.ros.outputs import Outputs
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.ros.precision_control import PrecisionControl

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_PRECISION, _REQUESTS, _UNDER_WAY = 'precision', 'requests', 'requests under way'


def status(
    name: str, level: bytes, message: str, values: Mapping[str, Any] | None = None
) -> DiagnosticStatus:
    """Return one status; values are shown in the order given."""
    shown = [KeyValue(key=key, value=str(value)) for key, value in (values or {}).items()]
    return DiagnosticStatus(name=name, level=level, message=message, values=shown)


def array(
    node_name: str, hardware_id: str, stamp_ns: int, statuses: Iterable[DiagnosticStatus]
) -> DiagnosticArray:
    """Return the message; every status is named `<node>: <subject>`."""
    msg = DiagnosticArray()
    msg.header.stamp = to_stamp(stamp_ns)
    for one in statuses:
        one.name = f'{node_name}: {one.name}'
        one.hardware_id = hardware_id
        msg.status.append(one)
    return msg


def control(lifecycle: str, failure: str, loop: ControlLoop | None) -> DiagnosticStatus:
    """Return whether the arm is commanded, and why not."""
    if loop is None:
        return status('control', ERROR if failure else OK, failure or lifecycle)
    supervisor = loop.supervisor
    level = {ControlState.HOLDING: WARN, ControlState.FAULT: ERROR}.get(supervisor.state, OK)
    if failure:
        level = ERROR
    text = f'{supervisor.state.name.lower()}: {supervisor.reason}'.rstrip(': ')
    values = {'lifecycle': lifecycle, 'epoch': loop.epoch, **dict(sorted(loop.counts.items()))}
    return status('control', level, failure or text, values)


def image_age(
    inputs: Inputs, config: PolicyParameters, now_ns: int, publishers: Mapping[str, int]
) -> DiagnosticStatus:
    """Return the age of every input; a silent one is shown with the number of its publishers."""
    problems, values = [], {}
    for stream, age_s in inputs.ages_s(now_ns).items():
        limit_s = config.age.state_s if stream == 'state' else config.age.image_s
        values[f'{stream} age [s]'] = 'nothing received' if age_s is None else f'{age_s:.3f}'
        if age_s is None or age_s > limit_s:
            problems.append(stream)
    for stream, topic in inputs.topics.items():
        values[f'publishers of {topic}'] = publishers[stream]
    for stream, why in inputs.trouble.items():
        values[f'{stream} dropped'] = f'{inputs.dropped[stream]}: {why}'
    if not inputs.enabled:
        return status('image age', OK, 'inputs are ignored while inactive', values)
    message = f'missing or stale: {", ".join(problems)}' if problems else 'all inputs are fresh'
    return status('image age', ERROR if problems else OK, message, values)


def instruction(inputs: Inputs) -> DiagnosticStatus:
    """Return the sentence in force."""
    text = inputs.instruction
    return status(
        'instruction',
        OK if text else WARN,
        text or 'none given',
        {'count': inputs.instruction_count},
    )


def latency(loop: ControlLoop, period_s: float) -> DiagnosticStatus:
    """Return the time of every stage; late when the worst total exceeds what a chunk bridges."""
    summary = loop.latency.summary()
    if summary is None:
        return status('inference latency', OK, 'no inference yet')
    values = {
        f'{stage} p50/p95/max [ms]': (
            f'{t.p50_s * 1e3:.2f} / {t.p95_s * 1e3:.2f} / {t.max_s * 1e3:.2f}'
        )
        for stage, t in summary.items()
    }
    total = summary['total']
    chunk = loop.player.chunk
    spare_s = (len(chunk.actions) if chunk else 1) * period_s
    is_late = total.p95_s > spare_s
    message = f'p95 {total.p95_s * 1e3:.1f} ms'
    if is_late:
        message += f' is longer than the chunk of {spare_s * 1e3:.0f} ms: the arm stops in between'
    return status('inference latency', WARN if is_late else OK, message, values)


def command_rate(
    outputs: Outputs, config: PolicyParameters, rate_hz: float, is_running: bool
) -> DiagnosticStatus:
    """Return the rate of arm commands, and warn when somebody else commands the same arm."""
    rivals = outputs.rivals()
    values = {'rate [Hz]': f'{rate_hz:.1f}', 'sent': outputs.sent, 'rivals': ', '.join(rivals)}
    values['topics'] = ', '.join(outputs.topics)
    if rivals:
        message = f'another node publishes our commands: {", ".join(rivals)}'
        return status('command rate', WARN, message, values)
    wanted_hz = config.command.rate_hz
    if is_running and not config.lockstep and rate_hz < 0.8 * wanted_hz:
        message = f'{rate_hz:.1f} Hz instead of {wanted_hz:g} Hz'
        return status('command rate', WARN, message, values)
    if is_running and not outputs.has_listeners():
        return status('command rate', WARN, 'nobody subscribes to the commands', values)
    return status('command rate', OK, f'{rate_hz:.1f} Hz', values)


def memory(report: MemoryReport) -> DiagnosticStatus:
    """Return the storage of the weights."""
    return status(
        'memory',
        OK,
        f'{report.weight_bytes / 2**20:.2f} MiB of weights',
        {
            'weights [byte]': report.weight_bytes,
            'quantized layers [byte]': report.quantized_bytes,
            'quantized layers': report.quantized_layers,
            'mean bits per weight': f'{report.mean_bits_per_weight:.2f}',
        },
    )


def precision(policy: Policy, kernel: str, control: PrecisionControl) -> DiagnosticStatus:
    """Return what the weights are multiplied with, and what has become of changes."""
    values = {'head': policy.head, 'kernel': kernel, 'images': image_bridge()[1]}
    if policy.levels:
        report = control.report()
        values |= {'changes': report.changes, 'rolled back': report.rolled_back}
        values |= {'last change': report.reason, 'requested': report.requested}
        account = report.account
        values |= {_REQUESTS: account.requests, _UNDER_WAY: account.under_way}
        values |= {f'{_REQUESTS} {outcome}': n for outcome, n in account.outcomes.items()}
        for name, share in report.share_of_inferences.items():
            values[f'inferences at {name} [%]'] = f'{100.0 * share:.1f}'
    if control.fault:
        return status(_PRECISION, ERROR, control.fault, values)
    return status(_PRECISION, OK, policy.precision, values)


def read_account(msg: DiagnosticArray) -> Account | None:
    """Return what `precision` has told about requests; None: nothing, as of another node."""
    for one in msg.status:
        values = {pair.key: pair.value for pair in one.values}
        if one.name.endswith(f': {_PRECISION}') and _REQUESTS in values:
            outcomes = {outcome: int(values[f'{_REQUESTS} {outcome}']) for outcome in Outcome}
            return Account(int(values[_REQUESTS]), int(values[_UNDER_WAY]), outcomes)
    return None


def drift(control: DriftControl, now_ns: int) -> DiagnosticStatus:
    """Return how far the policy is from its reference; no readings although asked is a warning."""
    if not control.is_on:
        return status('drift', OK, 'off')
    values = {'source': control.name}
    values |= {name: count for name, count in sorted(control.counts.items())}
    values['readings'] = control.readings
    level, message = OK, 'no reading yet'
    if (last := control.last) is not None:
        values |= {
            'level': last.level.name,
            'age of the last reading [s]': f'{(now_ns - last.observed_ns) * 1e-9:.3f}',
            'precision': f'{last.precision} against {last.reference_precision}',
            'position of the window [mm]': f'{last.window_m * 1e3:.3f}',
            'rotation of the window [rad]': f'{last.window_rad:.4f}',
            'gripper of the window [%]': f'{last.window_gripper * 100:.1f}',
            'jerk ratio': f'{last.jerk_ratio:.2f}',
        }
        level = {DriftLevel.WARN: WARN, DriftLevel.ERROR: ERROR}.get(last.level, OK)
        message = f'{last.level.name}: {last.reason}'
    if control.trouble:
        level = max(level, WARN)
        message = f'{control.trouble}; last: {message}'
    values['reaction'] = control.stop or control.floor or 'none'
    return status('drift', level, message, values)


def self_test(passed: bool | None, text: str) -> DiagnosticStatus:
    """Return the result of the last self-test; None: it was switched off."""
    level = OK if passed else WARN if passed is None else ERROR
    return status('self-test', level, text)


def qos(unmatched: Mapping[str, str]) -> DiagnosticStatus:
    """Return every topic that is cut off by incompatible QoS."""
    message = '; '.join(unmatched.values()) or 'no incompatible QoS'
    return status('qos', WARN if unmatched else OK, message)
