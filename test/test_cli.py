"""The `vlaq` command: exit codes, messages instead of tracebacks, and quick help."""

import subprocess
import sys
import types

import pytest

from vlaq_ros import cli, doctor
from vlaq_ros.errors import BundleError


@pytest.fixture
def command(monkeypatch):
    """Install a subcommand `probe` whose `run` is given by the test."""
    module = types.ModuleType('vlaq_ros_probe')
    module.__spec__ = types.SimpleNamespace(name='vlaq_ros_probe')
    module.add_arguments = lambda parser: parser.add_argument('--level', type=int, default=0)
    monkeypatch.setitem(sys.modules, 'vlaq_ros_probe', module)
    monkeypatch.setitem(cli.COMMANDS, 'probe', ('vlaq_ros_probe', 'answer a test'))

    def install(run):
        module.run = run

    return install


def fails_with(error):
    def run(args):
        raise error

    return run


def test_the_exit_code_is_that_of_the_subcommand(command):
    command(lambda args: args.level)
    assert cli.main(['probe', '--level', '1']) == 1
    assert cli.main(['probe']) == 0


def test_an_error_the_user_can_mend_is_one_message_and_exit_code_2(command, capsys):
    command(fails_with(BundleError('no bundle here')))
    assert cli.main(['probe']) == 2
    assert capsys.readouterr().err == 'vlaq: no bundle here\n'


def test_any_other_error_keeps_its_traceback(command):
    command(fails_with(ZeroDivisionError('a defect')))
    with pytest.raises(ZeroDivisionError, match='a defect'):
        cli.main(['probe'])


def test_an_interrupt_is_exit_code_130(command, capsys):
    command(fails_with(KeyboardInterrupt()))
    assert cli.main(['probe']) == 130
    assert 'Traceback' not in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_remedy(command, capsys):
    command(fails_with(ModuleNotFoundError("No module named 'rclpy'", name='rclpy')))
    assert cli.main(['probe']) == 2
    message = capsys.readouterr().err
    assert "needs the Python package 'rclpy'" in message
    assert 'source a ROS 2 installation' in message


def test_a_missing_module_of_our_own_is_a_defect_not_a_remedy(command):
    command(fails_with(ModuleNotFoundError('No module', name='vlaq_ros.gone')))
    with pytest.raises(ModuleNotFoundError):
        cli.main(['probe'])


def test_an_unknown_command_lists_the_known_and_the_nearest(capsys):
    assert cli.main(['docter']) == 2
    message = capsys.readouterr().err
    assert "no command named 'docter'" in message
    assert "Did you mean 'doctor'?" in message


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 2
    assert 'doctor' in capsys.readouterr().out


def test_the_help_of_a_subcommand_is_its_own(command, capsys):
    command(lambda args: 0)
    with pytest.raises(SystemExit, match='0'):
        cli.main(['probe', '--help'])
    help_text = capsys.readouterr().out
    assert 'usage: vlaq probe' in help_text
    assert 'Answer a test.' in help_text


def test_a_command_without_its_module_is_not_listed(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, 'ghost', ('vlaq_ros.no_such_part.ghost', 'haunt'))
    assert 'ghost' not in cli.available_commands()
    assert 'doctor' in cli.available_commands()


def test_a_reader_that_goes_away_is_not_an_error():
    code = "import sys; from vlaq_ros import cli; sys.exit(cli.main(['--help']))"
    command = f'{sys.executable} -c "{code}" | true'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, check=False)
    assert 'Traceback' not in done.stderr


def test_a_probe_that_answers_is_ok():
    finding = doctor.examine(doctor.Probe('thing', 'print("1.0")', 'install it'))
    assert finding.line() == 'ok      thing         1.0'


@pytest.mark.parametrize(
    ('code', 'detail'),
    [
        ('import no_such_thing', "No module named 'no_such_thing'"),
        ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'crashed with signal 11'),
        ('raise SystemExit(1)', 'failed'),
    ],
    ids=['absent', 'crashes', 'silent'],
)
def test_a_probe_that_fails_says_why_and_what_to_do(code, detail):
    finding = doctor.examine(doctor.Probe('thing', code, 'install it'))
    assert not finding.is_there
    assert detail in finding.line()
    assert finding.line().endswith('-> install it')


def test_only_a_missing_requirement_makes_the_doctor_answer_no(monkeypatch, capsys):
    optional = doctor.Probe('extra', 'import no_such_thing', 'install it')
    monkeypatch.setattr(doctor, 'PROBES', (optional,))
    assert doctor.run(None) == 0
    required = doctor.Probe('core', 'import no_such_thing', 'install it', is_required=True)
    monkeypatch.setattr(doctor, 'PROBES', (optional, required))
    assert doctor.run(None) == 1
    assert 'MISSING core' in capsys.readouterr().out
