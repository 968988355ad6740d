"""Install the half that needs no ROS: the library and the `vlaq` command (see setup.cfg)."""

from setuptools import setup

setup()
