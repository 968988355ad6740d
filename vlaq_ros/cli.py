"""
The `vlaq` command: finds the module of a subcommand and runs it.

A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`; it is imported only
when it is asked for, so that `vlaq --help` is quick and needs neither torch nor ROS. Exit codes: 0
done, 1 done with a negative answer, 2 the user can mend it (one message, no traceback), 130
interrupted.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

from vlaq_ros.errors import ConfigError, MissingDependencyError, VlaqError, unknown_name

# name -> (module, one line of help)
COMMANDS = {
    'demo': ('vlaq_ros.ros.demo', 'drive the simulated arm through ROS 2 with a quantized policy'),
    'eval': ('vlaq_ros.sim.evaluate', 'measure success and drift in the simulator'),
    'compare': ('vlaq_ros.analysis.compare', 'compare calibration methods in closed loop'),
    'drift-study': ('vlaq_ros.sim.drift_study', 'inject errors and see when drift notices them'),
    'collect': ('vlaq_ros.sim.collect', 'record demonstrations in the simulator'),
    'train': ('vlaq_ros.sim.train', 'train the reference policy on demonstrations'),
    'reproduce': ('vlaq_ros.sim.reproduce', 'make the shipped policy again, from nothing'),
    'calibrate': ('vlaq_ros.calibration.calibrate', 'quantize a policy with bags of the robot'),
    'quantize': ('vlaq_ros.calibration.quantize', 'pack a policy by rounding, without any data'),
    'stress': ('vlaq_ros.calibration.stress', 'make a synthetic variant with activation outliers'),
    'drift': ('vlaq_ros.analysis.drift', 'measure and draw the drift of a recorded run'),
    'inspect': ('vlaq_ros.calibration.inspect', 'show what a bundle is, or compare two'),
    'bench': ('vlaq_ros.bench.command', 'measure kernels, memory and whole models here'),
    'storm': ('vlaq_ros.ros.storm', 'change the precision all the time and watch the commands'),
    'doctor': ('vlaq_ros.doctor', 'show what this machine has and what is missing'),
}

# top-level package -> what to do when it is not there
REMEDIES = {
    'rclpy': 'source a ROS 2 installation, or work in a checkout with `make demo`',
    'launch': 'source a ROS 2 installation',
    'metaworld': "pip install 'vlaq_ros[sim]'",
    'mujoco': "pip install 'vlaq_ros[sim]'",
    'mcap': "pip install 'vlaq_ros[bags]'",
    'rosbags': "pip install 'vlaq_ros[bags]'",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except VlaqError as error:
        print(f'vlaq: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('vlaq: interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, e.g. `vlaq inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def available_commands() -> dict[str, tuple[str, str]]:
    """Return the subcommands whose module is installed."""
    return {name: entry for name, entry in COMMANDS.items() if _is_installed(entry[0])}


def _run(argv: list[str]) -> int:
    commands = available_commands()
    main_parser = _main_parser(commands)
    options = main_parser.parse_args(argv)
    if options.command is None:
        main_parser.print_help()
        return 2
    if options.command not in commands:
        raise ConfigError(unknown_name('command', options.command, commands))
    name, text = commands[options.command]
    module = _load(options.command, name)
    parser = argparse.ArgumentParser(prog=f'vlaq {options.command}', description=_sentence(text))
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_args(options.arguments))
    except ModuleNotFoundError as error:
        raise _missing(options.command, error) from error


def _main_parser(commands: dict[str, tuple[str, str]]) -> argparse.ArgumentParser:
    width = max(len(name) for name in commands)
    listing = '\n'.join(f'  {name:{width}}  {text}' for name, (_, text) in commands.items())
    parser = argparse.ArgumentParser(
        prog='vlaq',
        description='Quantized Vision-Language-Action policies on ROS 2 robots.',
        epilog=f'commands:\n{listing}\n\n`vlaq COMMAND --help` shows the options of one.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'vlaq_ros {_version()}')
    parser.add_argument('command', metavar='COMMAND', nargs='?', help='one of the commands below')
    parser.add_argument('arguments', metavar='...', nargs=argparse.REMAINDER, help='its options')
    return parser


def _load(command: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(command, error) from error


def _missing(command: str, error: ModuleNotFoundError) -> Exception:
    """Explain a missing package; a missing module of our own is a defect and stays as it is."""
    root = (error.name or '').partition('.')[0]
    if root in ('', 'vlaq_ros'):
        return error
    remedy = REMEDIES.get(root, f'install {root}, or vlaq_ros again with pip')
    return MissingDependencyError(
        f'`vlaq {command}` needs the Python package {root!r}, which is not installed: {remedy}'
    )


def _sentence(text: str) -> str:
    return f'{text[0].upper()}{text[1:]}.'


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not there
        return False


def _version() -> str:
    try:
        return metadata.version('vlaq_ros')
    except metadata.PackageNotFoundError:
        return '(version unknown: neither built nor installed)'


if __name__ == '__main__':
    sys.exit(main())
