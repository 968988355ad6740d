"""Precision that changes under the trained policy: the same bytes, the same answers, no leak."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.srv', reason='needs the built services of vlaq_ros')

from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.ros.interfaces import SetPrecision
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.ros.precision_control import PrecisionControl
from vlaq_ros.ros.precision_parameters import DynamicPrecisionParameters

pytestmark = pytest.mark.ros
LEVELS = 'w4a8', 'w4a16', 'w8a8', 'w8a16'
PERIOD_NS = 150_000_000


@pytest.fixture(scope='module')
def nested():
    return load_policy('metaworld', precision='nested', threads=1)


def run(policy, choices, **dynamic):
    """Ask for levels before each inference; return the actions and the report."""
    config = PolicyParameters(
        lockstep=True, dynamic_precision=DynamicPrecisionParameters(**dynamic)
    )
    control = PrecisionControl(policy, config, lambda: None)
    observation = synthetic_observation(policy.spec, 'open the drawer')
    steps, names = [], []
    for count, (llm, expert) in enumerate(choices):
        now_ns = count * PERIOD_NS
        assert control.set_levels('', {'llm': llm, 'expert': expert}, now_ns)[0]
        control.decide(now_ns)
        chunk = control.infer(observation, now_ns)
        control.collect(now_ns)
        steps.append(chunk.actions)
        names.append(chunk.precision)
    control.close()
    policy.apply_precision(dict.fromkeys(policy.levels, policy.levels['llm'][-1]))
    return np.array(steps), names, control.report()


def random_choices(count):
    return np.random.default_rng(0).choice(LEVELS, (count, 2)).tolist()


def test_in_lockstep_the_level_asked_for_is_that_of_the_next_inference(nested):
    steps, names, report = run(nested, [('w4a8', 'w4a8'), ('w8a8', 'w4a8'), ('w8a16', 'w8a16')])
    assert names == ['w4a8', 'expert w4a8, llm w8a8', 'nested']
    assert (report.changes, report.rolled_back) == (3, 0)
    alone = load_policy('metaworld', precision='nested', threads=1)
    observation = synthetic_observation(alone.spec, 'open the drawer')
    assert np.array_equal(steps[-1], alone.infer(observation).actions)


def test_the_same_switches_give_the_same_actions(nested):
    choices = random_choices(6)
    first, names, _ = run(nested, choices)
    again, same_names, _ = run(nested, choices)
    assert np.array_equal(first, again)
    assert names == same_names


def test_the_node_says_what_a_nested_policy_can_switch_to_and_what_a_float_one_cannot(
    graph, make_robot
):
    robot = make_robot()
    for precision, accepted in (('nested', True), ('w8', False), ('fp32', False)):
        node = graph.policy(
            loader=load_policy, bundle='metaworld', precision=precision, self_test=False
        )
        assert node.trigger_configure(), node.failure
        request = SetPrecision.Request(level='w4a8')
        answer = graph.call(robot.node, SetPrecision, 'policy/set_precision', request)
        assert answer.accepted == accepted, answer.message
        assert ('llm w4a8' in answer.available) == accepted
        assert accepted or 'precision `nested`' in answer.message
        graph.nodes.remove(node)
        graph.executor.remove_node(node)
        node.destroy_node()


@pytest.mark.slow
def test_hundreds_of_switches_hold_no_more_memory(nested):
    def resident_bytes():
        return int(Path('/proc/self/statm').read_text().split()[1]) * 4096

    if not Path('/proc/self/statm').exists():
        pytest.skip('resident memory is read from /proc')
    run(nested, random_choices(50))
    before, held = resident_bytes(), nested.memory().weight_bytes
    *_, report = run(nested, random_choices(300))
    assert nested.memory().weight_bytes == held
    assert resident_bytes() - before < 0.05 * held + 2**21
    assert report.changes > 200
