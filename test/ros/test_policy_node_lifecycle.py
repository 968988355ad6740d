"""Transitions, bad parameters and bad bundles: the node says why and stays alive."""

import json
import shutil
import threading

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from std_srvs.srv import Trigger

from vlaq_ros.policies.bundle import SHIPPED
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros.interfaces import PolicyStatus

pytestmark = pytest.mark.ros


def change(graph, node, transition_id):
    request = ChangeState.Request(transition=Transition(id=transition_id))
    return graph.call(node, ChangeState, 'policy/change_state', request).success


def set_one(node, name, value):
    (result,) = node.set_parameters([Parameter(name, value=value)])
    return result


def test_a_manager_brings_the_node_up_and_down_again_and_again(graph, fake_policy):
    graph.policy(fake_policy)
    manager = graph.node('manager')
    for _ in range(3):
        for transition in (
            Transition.TRANSITION_CONFIGURE,
            Transition.TRANSITION_ACTIVATE,
            Transition.TRANSITION_DEACTIVATE,
            Transition.TRANSITION_CLEANUP,
        ):
            assert change(graph, manager, transition)
    state = graph.call(manager, GetState, 'policy/get_state').current_state
    assert state.label == 'unconfigured'
    assert not [t for t in threading.enumerate() if t.name == 'inference']


def test_an_impossible_transition_is_answered_and_the_node_lives(graph, fake_policy):
    graph.policy(fake_policy)
    manager = graph.node('manager')
    assert not change(graph, manager, Transition.TRANSITION_ACTIVATE)
    assert change(graph, manager, Transition.TRANSITION_CONFIGURE)


def test_autostart_needs_no_manager(graph, fake_policy):
    node = graph.policy(fake_policy, autostart=True)
    graph.spin_until(lambda: node.lifecycle == 'active', what='autostart')


def test_shutdown_from_active_stops_first(graph, fake_policy, make_robot):
    robot = make_robot()
    node = graph.policy(fake_policy)
    assert node.bring_up()
    graph.spin_until(node._outputs.has_listeners)
    node.trigger_shutdown()
    graph.spin_until(lambda: robot.sent, what='stop')
    assert robot.sent[-1][1].twist.linear.x == 0.0
    assert node.lifecycle == 'finalized'


def test_epoch_and_sequence_grow_when_the_node_is_configured_again(graph, fake_policy):
    """They began at 0 again, and consumers dropped every chunk as an old one."""
    node = graph.policy(fake_policy)
    assert node.bring_up()
    node._loop.sequence = 7
    node._loop.reset(0)
    epoch = node._loop.epoch
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.bring_up()
    assert node._loop.sequence == 7
    assert node._loop.epoch > epoch


def test_a_missing_bundle_is_named_and_can_be_corrected(graph):
    node = graph.policy(loader=load_policy, bundle='no-such-bundle')
    assert not node.bring_up()
    assert "no bundle at 'no-such-bundle': it is neither a directory nor" in node.failure
    assert node.lifecycle == 'unconfigured'
    assert set_one(node, 'bundle', 'toy').successful
    assert node.bring_up(), node.failure


def test_an_altered_bundle_is_refused(graph, tmp_path):
    shutil.copytree(SHIPPED / 'toy', tmp_path / 'toy')
    spec = json.loads((tmp_path / 'toy' / 'policy.json').read_text())
    spec['action_std'] = [9.0] * len(spec['action_std'])
    (tmp_path / 'toy' / 'policy.json').write_text(json.dumps(spec))
    node = graph.policy(loader=load_policy, bundle=str(tmp_path / 'toy'))
    assert not node.bring_up()
    assert 'policy.json' in node.failure


def test_a_failed_self_test_keeps_the_node_unconfigured(graph, fake_policy):
    fake_policy.self_test_passes = False
    node = graph.policy(fake_policy)
    assert not node.bring_up()
    assert node.failure == 'self-test failed:\nimages matter: the action is constant'
    assert set_one(node, 'self_test', False).successful
    assert node.bring_up(), node.failure


def test_an_unexpected_exception_is_a_failed_transition_with_its_reason(graph):
    def explode(bundle, **kwargs):
        raise RuntimeError('out of memory')

    node = graph.policy(loader=explode, bundle='toy')
    assert not node.bring_up()
    assert node.failure == 'RuntimeError: out of memory'
    assert node.lifecycle == 'unconfigured'


def test_the_precision_and_head_reach_the_loader(graph, fake_policy):
    asked = {}

    def load(bundle, **kwargs):
        asked.update(kwargs, bundle=bundle)
        return fake_policy

    node = graph.policy(loader=load, bundle='toy', precision='w8', threads=1)
    assert node.bring_up(), node.failure
    assert asked == {'bundle': 'toy', 'precision': 'w8', 'head': None, 'threads': 1}


@pytest.mark.parametrize(
    ('parameters', 'message'),
    [
        (
            {'precision': 'w5'},
            "parameter 'precision' = 'w5' is not known. Choose from: default, fp32, bf16, w8, "
            'w8a8, w4, w4a8, nested, packed.',
        ),
        ({'command__type': 7}, "parameter 'command.type' = 7 must be a text"),
        (
            {'command__rate_hz': 0.0},
            "parameter 'command.rate_hz' = 0.0 must be from 1 to 1000 Hz",
        ),
        (
            {'limits__max_linear_speed': float('nan')},
            "parameter 'limits.max_linear_speed' = nan must be finite",
        ),
        (
            {'limits__workspace_low': [0.0, float('inf'), 0.0]},
            "parameter 'limits.workspace_low' = [0.0, inf, 0.0] must be finite",
        ),
        (
            {'limits__workspace_low': [0.0, 0.0]},
            "parameter 'limits.workspace_low' = [0.0, 0.0] must have 3 values",
        ),
        (
            {'limits__workspace_low': [0.0, 2.0, 0.0]},
            "parameter 'limits.workspace_low' = [0.0, 2.0, 0.0] must be below "
            "'limits.workspace_high' = [0.5, 1.0, 0.5] on every axis",
        ),
        (
            {'state__scales': [1.0]},
            "parameter 'state.scales' has 1 values for 4 'state.sources': "
            'give one factor per source',
        ),
        (
            {'state__sources': ['ee_pose.roll'], 'state__scales': [1.0]},
            "parameter 'state.sources' names ['ee_pose.roll']: use ee_pose.x, ee_pose.y, "
            'ee_pose.z, ee_pose.qx, ee_pose.qy, ee_pose.qz, ee_pose.qw or joint.<name of a joint>',
        ),
        (
            {'state__sources': ['ee_pose.x'], 'state__scales': [1.0]},
            "parameter 'state.sources' has 1 values, bundle 'fake' needs 4: "
            'hand_x, hand_y, hand_z, gripper_opening',
        ),
        (
            {'command__rate_hz': 20.0},
            "parameter 'command.rate_hz' = 20 Hz must be at least 40 Hz, the rate of bundle "
            "'fake': slower skips actions",
        ),
        (
            {'execution_horizon': 9},
            "parameter 'execution_horizon' = 9 must be at most 8, the actions per chunk of bundle "
            "'fake'",
        ),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_a_bad_value_keeps_the_node_unconfigured_and_is_explained(
    graph, fake_policy, parameters, message
):
    node = graph.policy(fake_policy, **parameters)
    assert not node.bring_up()
    assert node.failure == message
    assert node.lifecycle == 'unconfigured'


def test_all_bad_values_are_listed_at_once(graph, fake_policy):
    node = graph.policy(fake_policy, precision='w5', replan='never', command__rate_hz=-1.0)
    assert not node.bring_up()
    assert [line.split("'")[1] for line in node.failure.splitlines()] == [
        'precision',
        'replan',
        'command.rate_hz',
    ]


def test_a_corrected_value_lets_the_node_configure(graph, fake_policy):
    node = graph.policy(fake_policy, precision='w5')
    assert not node.bring_up()
    assert set_one(node, 'precision', 'w8').successful
    assert node.bring_up(), node.failure


def test_a_whole_number_is_accepted_for_a_number(graph, fake_policy):
    node = graph.policy(fake_policy, command__rate_hz=50)
    assert node.bring_up(), node.failure


def test_lockstep_set_after_a_first_configure_makes_the_inputs_reliable(graph, fake_policy):
    """The QoS of the first configure stayed declared, so lockstep ran on lossy subscriptions."""
    node = graph.policy(fake_policy)
    topics = [f'/{name}' for name in ('front/image_raw', 'ee_pose', 'joint_states')]

    def has_all(reliability):
        infos = [info for t in topics for info in node.get_subscriptions_info_by_topic(t)]
        return [info.qos_profile.reliability for info in infos] == [reliability] * len(topics)

    assert node.bring_up(), node.failure
    graph.spin_until(lambda: has_all(ReliabilityPolicy.BEST_EFFORT), what='best effort')
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert set_one(node, 'lockstep', True).successful
    assert node.bring_up(), node.failure
    graph.spin_until(lambda: has_all(ReliabilityPolicy.RELIABLE), what='reliable')
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert set_one(node, 'lockstep', False).successful
    assert node.bring_up(), node.failure
    graph.spin_until(lambda: has_all(ReliabilityPolicy.BEST_EFFORT), what='best effort again')


def test_limits_change_while_active_and_a_bad_change_leaves_the_old_ones(graph, fake_policy):
    node = graph.policy(fake_policy)
    assert node.bring_up()
    assert set_one(node, 'limits.max_linear_speed', 0.25).successful
    assert node._loop.limits.max_linear_speed == 0.25
    assert not set_one(node, 'limits.max_linear_speed', float('nan')).successful
    refused = set_one(node, 'limits.workspace_high', [-1.0, 1.0, 0.5])
    assert 'must be below' in refused.reason
    assert node._loop.limits.max_linear_speed == 0.25


def test_what_is_read_at_configure_may_not_change_while_configured(graph, fake_policy):
    node = graph.policy(fake_policy)
    assert node.bring_up()
    refused = set_one(node, 'precision', 'w8')
    assert not refused.successful
    assert refused.reason == (
        "parameter 'precision' is read at configure: bring the node to `unconfigured` first "
        '(cleanup), set it, and configure again'
    )


def test_the_services_explain_when_they_cannot_act(graph, fake_policy):
    node = graph.policy(fake_policy)
    caller = graph.node('caller')
    answer = graph.call(caller, Trigger, 'policy/reset')
    assert (answer.success, answer.message) == (
        False,
        'nothing to reset: the node is unconfigured',
    )
    answer = graph.call(caller, Trigger, 'policy/self_test')
    assert answer.message == 'no policy is loaded: the node is unconfigured'
    node.trigger_configure()
    answer = graph.call(caller, Trigger, 'policy/self_test')
    assert (answer.success, answer.message) == (True, 'self-test passed: 1 checks')
    node.trigger_activate()
    answer = graph.call(caller, Trigger, 'policy/self_test')
    assert not answer.success
    assert answer.message.startswith('refused while active: deactivate first.')


def test_the_self_test_waits_for_the_last_inference(graph, fake_policy):
    """Right after deactivation two threads used the policy at once."""
    node = graph.policy(fake_policy)
    assert node.bring_up()
    caller = graph.node('caller')
    fake_policy.may_answer.clear()
    node._loop._worker._work = lambda request: fake_policy.may_answer.wait(20.0)
    node._loop._submit(0)
    node.trigger_deactivate()
    answer = graph.call(caller, Trigger, 'policy/self_test')
    assert not answer.success
    assert answer.message.startswith('refused while the last inference still runs')
    fake_policy.may_answer.set()
    graph.spin_until(lambda: not node._loop.is_inferring, what='the end of the inference')
    assert graph.call(caller, Trigger, 'policy/self_test').success


def test_the_status_is_never_without_a_time(graph, fake_policy, make_robot):
    """Without a policy, and before the first activation, the stamp was zero."""
    robot = make_robot()
    node = graph.policy(fake_policy, use_sim_time=False)
    graph.spin_until(lambda: robot.statuses, what='status')
    node.trigger_configure()
    graph.spin_until(lambda: robot.statuses[-1].bundle == 'fake', what='status when configured')
    assert all(status.header.stamp.sec > 0 for status in robot.statuses)


def test_the_command_rate_begins_anew_when_the_node_is_configured_again(graph, fake_policy):
    """The first rate after it was that of the new publishers less all that were sent before."""
    node = graph.policy(fake_policy)
    node._commands_before = 1000
    assert node.bring_up()
    assert node._commands_before == 0


def test_a_timer_that_was_ready_when_the_node_was_torn_down_does_nothing(graph, fake_policy):
    """The tick used the loop that was gone, and the exception ended the node."""
    node = graph.policy(fake_policy)
    node._on_tick()
    node._on_watch()


def test_the_latched_status_keeps_up_with_the_sequence_while_active(
    graph, fake_policy, make_robot
):
    """It was published on changes of state only and kept the sequence of then for ever."""
    robot = make_robot()
    node = graph.policy(fake_policy)
    assert node.bring_up()
    graph.spin_until(
        lambda: robot.statuses and '/clock' in robot.statuses[-1].reason, what='lasting reason'
    )
    node._loop.sequence = 7
    graph.spin_until(lambda: robot.statuses[-1].sequence == 7, timeout_s=5.0, what='sequence')


def test_the_status_names_bundle_and_hash_for_late_joiners(graph, fake_policy, make_robot):
    node = graph.policy(fake_policy)
    assert node.bring_up()
    robot = make_robot()
    graph.spin_until(lambda: robot.state == PolicyStatus.WAITING, what='latched status')
    assert (robot.statuses[-1].bundle, robot.statuses[-1].bundle_hash[:4]) == ('fake', 'f00d')
