"""
Bundle -> policy: the family is read from the bundle, its adapter imported on first use.

A new family is one module with `load(bundle, precision, head, threads)` and one row here.
"""

from importlib import import_module
from pathlib import Path

from vlaq_ros.errors import BundleError, ConfigError, unknown_name
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.precision import DEFAULT, precisions
from vlaq_ros.policies.spec import PolicySpec

FAMILIES = {
    'reference': 'vlaq_ros.policies.reference',
    'toy': 'vlaq_ros.policies.toy',
}


def read_spec(bundle: str | Path) -> PolicySpec:
    """Return the spec of a bundle after verifying its files; loads no weights."""
    return open_bundle(bundle).spec


def load_policy(
    bundle: str | Path,
    *,
    precision: str = DEFAULT,
    head: str | None = None,
    threads: int | None = None,
) -> Policy:
    """
    Load a bundle and make it ready to infer.

    Args:
        bundle: Directory, or name of a shipped bundle.
        precision: One of `precisions(bundle)`; `default` is the first. A float bundle runs as it
            is (fp32, bf16) or is rounded to nearest while it is loaded: w8 (one scale per output
            channel) or w4 (per group), with inputs of 16 or, with `a8`, 8 bits. A packed bundle
            runs as it was stored (`packed`) or reads that many bits of its 8-bit channels.
        head: Action head; the first of the bundle when None.
        threads: Threads of the tensor library; left alone when None.

    Raises:
        BundleError: The bundle is missing, damaged or of an unknown family.
        ConfigError: Unknown precision or head, or a precision this bundle has not got.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f'threads={threads} must be at least 1')
    opened = open_bundle(bundle)
    spec = opened.spec
    if precision == DEFAULT:
        precision = precisions(opened)[0]
    if precision not in precisions(opened):
        kind = 'packed bundle' if opened.is_packed else 'bundle'
        what = f'precision of {kind} {spec.name!r}'
        raise ConfigError(unknown_name(what, precision, precisions(opened)))
    if spec.family not in FAMILIES:
        raise BundleError(unknown_name('policy family', spec.family, tuple(FAMILIES)))
    if head is not None and head not in spec.heads:
        raise ConfigError(unknown_name(f'head of bundle {spec.name!r}', head, spec.heads))
    adapter = import_module(FAMILIES[spec.family])
    return adapter.load(opened, precision, head or spec.heads[0], threads)
