"""The lifecycle base: steps in order, failures told, and a stop whatever happens."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from rclpy.lifecycle import TransitionCallbackReturn

from vlaq_ros.errors import ConfigError
from vlaq_ros.ros.lifecycle import ManagedNode, run_node

pytestmark = pytest.mark.ros


class Recorder(ManagedNode):
    """Writes down its steps; `broken` names those that fail."""

    def __init__(self, *broken, **options):
        self.steps = []
        self.broken = broken
        super().__init__('recorder', **options)

    def _take(self, step, error=ConfigError):
        self.steps.append(step)
        if step in self.broken:
            raise error(f'{step} is broken')

    def set_up(self):
        self._take('set up')

    def start(self):
        self._take('start')

    def halt(self, reason):
        self._take('halt')

    def tear_down(self):
        self._take('tear down', RuntimeError)


@pytest.fixture
def make(graph):
    return lambda *broken: graph.add(Recorder(*broken, context=graph.context))


def test_the_steps_of_a_whole_life(make):
    node = make()
    assert node.bring_up()
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.steps == ['set up', 'start', 'halt', 'tear down']


def test_a_failed_set_up_is_torn_down_and_its_reason_survives(make):
    node = make('set up', 'tear down')
    assert not node.bring_up()
    assert node.steps == ['set up', 'tear down']
    assert (node.lifecycle, node.failure) == ('unconfigured', 'set up is broken')
    node.broken = ()
    assert node.bring_up()
    assert node.failure == ''


def test_a_failed_start_is_halted_and_leaves_the_node_inactive(make):
    node = make('start')
    assert not node.bring_up()
    assert node.steps == ['set up', 'start', 'halt']
    assert (node.lifecycle, node.failure) == ('inactive', 'start is broken')


def test_a_failed_halt_tears_everything_down(make):
    node = make('halt')
    assert node.bring_up()
    assert node.trigger_deactivate() == TransitionCallbackReturn.ERROR
    assert node.steps == ['set up', 'start', 'halt', 'halt', 'tear down']
    assert node.lifecycle == 'unconfigured'


def test_shutting_down_while_active_halts_first(make):
    node = make()
    assert node.bring_up()
    node.trigger_shutdown()
    assert node.steps == ['set up', 'start', 'halt', 'tear down']


def test_an_exception_that_escapes_a_callback_stops_the_arm_and_ends_the_process(ros_domain):
    nodes = []

    def explode():
        raise RuntimeError('a bug')

    def make_node():
        node = Recorder()
        nodes.append(node)
        assert node.bring_up()
        node.create_timer(0.0, explode)
        return node

    assert run_node(make_node, []) == 1
    assert nodes[0].steps == ['set up', 'start', 'halt', 'tear down']
