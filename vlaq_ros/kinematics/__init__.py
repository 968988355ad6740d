"""Rigid-body motion: SO(3) and SE(3), the pose an action leads to, drift and smoothness."""
