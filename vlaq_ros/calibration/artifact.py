"""
What a packed bundle says about itself: its bit plan, and how it was made.

The plan is read from the weights file, where every stored channel has its width; nothing is kept
twice. How it was made stands in the `quantization` table of `config.json`: plain values without
paths, times or host names, so that the same calibration gives the same bytes anywhere.
"""

import errno
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlaq_ros.errors import BundleError, ConfigError
from vlaq_ros.nn.store_file import read_schema
from vlaq_ros.nn.surgery import layer_roles
from vlaq_ros.policies.bundle import MANIFEST, WEIGHTS, Bundle, open_bundle
from vlaq_ros.policies.reference import ROLES
from vlaq_ros.quant.layout import STORED_WIDTHS, MixedLayout
from vlaq_ros.quant.mixed import MixedWeight

SOFTWARE = ('vlaq_ros', 'torch', 'transformers', 'numpy')
_ORDER_BYTES = 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class LayerPlan:
    """
    How one layer is stored.

    Attributes:
        name: Of the layer in the network.
        role: Part of the policy it belongs to.
        layout: Sizes and widths of its weight.
        activation_bits: What its input is rounded to per token.
    """

    name: str
    role: str
    layout: MixedLayout
    activation_bits: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.layout.shape[0] * self.layout.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, without the numbers of the channels."""
        return self.layout.nbytes - _ORDER_BYTES * self.layout.kept

    @property
    def bits_per_weight(self) -> float:
        """Mean, scales included."""
        return 8.0 * self.nbytes / self.weights

    def channels(self) -> Counter[int]:
        """Return width -> number of output channels."""
        counts = Counter(dict(zip((*STORED_WIDTHS, 0), (*self.layout.counts, self.layout.pruned))))
        return +counts

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        channels = sorted(self.channels().items(), reverse=True)
        return {
            'role': self.role,
            'shape': list(self.layout.shape),
            'group_size': self.layout.group_size,
            'channels': {str(bits): count for bits, count in channels},
            'activation_bits': self.activation_bits,
            'bits_per_weight': self.bits_per_weight,
        }


def read_plan(bundle: Bundle) -> tuple[LayerPlan, ...]:
    """
    Return how the layers of a packed bundle are stored, without reading a weight.

    Raises:
        BundleError: The bundle is not packed, or its weights file is damaged.
    """
    if not bundle.is_packed:
        raise BundleError(f'{bundle.path} holds float weights: there is no bit plan to read')
    stored = read_schema(bundle.path / WEIGHTS)
    roles = layer_roles(tuple(stored), ROLES)
    return tuple(
        LayerPlan(name, roles[name], layer.layout, layer.activation_bits)
        for name, layer in stored.items()
    )


def plan_of(
    weights: Mapping[str, MixedWeight], activation_bits: Mapping[str, int]
) -> tuple[LayerPlan, ...]:
    """Return how these layers would be stored."""
    roles = layer_roles(tuple(weights), ROLES)
    return tuple(
        LayerPlan(name, roles[name], weight.layout, activation_bits.get(name, 16))
        for name, weight in weights.items()
    )


def mean_bits(plan: Iterable[LayerPlan]) -> float:
    """Return bits per weight, scales included, weighted by layer size."""
    plan = tuple(plan)
    return 8.0 * sum(layer.nbytes for layer in plan) / sum(layer.weights for layer in plan)


def channel_histogram(plan: Iterable[LayerPlan]) -> dict[int, int]:
    """Return width -> number of output channels, widest first."""
    total: Counter[int] = Counter()
    for layer in plan:
        total.update(layer.channels())
    return dict(sorted(total.items(), reverse=True))


def software_versions() -> dict[str, str]:
    """Return the versions that decide about the result."""
    found = {'python': platform.python_version()}
    for name in SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout that is built, not installed
            found[name] = 'unknown'
    return found


def check_destination(out: Path, overwrite: bool) -> list[str]:
    """
    Return what keeps a bundle from being written to `out`.

    Only a bundle is ever replaced, and only when asked: a mistyped path must not cost a folder.
    """
    if not out.exists():
        return []
    if out.is_dir() and not any(out.iterdir()):
        return []
    if not out.is_dir() or not (out / MANIFEST).is_file():
        return [f'--out {out}: there is something else than a bundle; choose another path']
    try:
        if not open_bundle(out).is_packed:
            return [f'--out {out}: there is a float bundle, which is never replaced']
    except BundleError:
        pass  # a damaged one may be replaced like a sound one
    if not overwrite:
        return [f'--out {out}: there is a bundle already; replace it with --overwrite']
    return []


def open_float_bundle(name: str, problems: list[str]) -> Bundle | None:
    """Return a float bundle of a family that can be quantized; say in `problems` why not."""
    try:
        bundle = open_bundle(name)
    except BundleError as error:
        problems.append(f'--bundle: {error}')
        return None
    if bundle.is_packed:
        origin = str(bundle.origin)[:12]
        problems.append(
            f'--bundle {name}: packed already; give the float bundle it was made of ({origin})'
        )
    elif bundle.spec.family != 'reference':
        problems.append(
            f'--bundle {name}: policies of family {bundle.spec.family!r} have no linear layers '
            "to quantize; use one of family 'reference', such as 'metaworld'"
        )
    elif bundle.golden() is None:
        problems.append(f'--bundle {name}: it has no golden.json to try a packed policy with')
    else:
        return bundle
    return None


@contextmanager
def writing_to(folder: Path, advice: str = '') -> Iterator[None]:
    """
    Explain why something cannot be written.

    Args:
        folder: Where it goes.
        advice: What else to say to a user whose disk is full.

    Raises:
        BundleError: Writing failed; nothing half-written is left at the place of a bundle.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        why = f'{place} cannot be written: {error.strerror or error}'
        if error.errno in _FULL:
            why += f'. Free some space there, or choose another --out{advice}'
        raise BundleError(why) from error


def refuse(problems: list[str]) -> None:
    """
    Raise one error with every problem.

    Raises:
        ConfigError: There is any.
    """
    if problems:
        raise ConfigError('nothing was run:\n  ' + '\n  '.join(problems))
