"""Ratios of rows that were measured together; nothing here compares different rounds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = Mapping[str, Any]
FP32 = 'torch fp32'
BF16 = 'torch bf16'
INT8_LIBRARIES = (
    'torch dynamic int8 fbgemm',
    'torch dynamic int8 onednn',
    'torch _int_mm',
    'torch _weight_int8pack_mm',
    'onnxruntime W8A8',
    'onnxruntime dynamic int8',
    'openvino W8A8',
)
BF16_NAMES = (BF16, 'torch bf16 compiled, frozen', 'bf16 rows', 'openvino bf16')
MIXES = {
    'mix 0/4/8/16': {'all pruned': 0.05, 'W4A8': 0.70, 'W8A8': 0.20, 'bf16 rows': 0.05},
    'mix 2/4/8': {'W2A8': 0.20, 'W4A8': 0.60, 'W8A8': 0.20},
}
"""Mix -> uniform layer -> share of the channels."""


@dataclass(frozen=True)
class Point:
    """
    What was measured in the same rounds, by name.

    Attributes:
        inputs, outputs, tokens: The layer and the tokens of one call.
        rows: Name -> row with a time.
    """

    inputs: int
    outputs: int
    tokens: int
    rows: Mapping[str, Row]

    @property
    def shape(self) -> str:
        """The layer as INxOUT."""
        return f'{self.inputs}x{self.outputs}'

    def seconds(self, name: str) -> float | None:
        """Return the time of a contender; None when it was not measured."""
        return self.rows[name]['seconds'] if name in self.rows else None

    def ratio(self, name: str, baseline: str) -> float | None:
        """Return how many times faster `name` is than `baseline`."""
        own, other = self.seconds(name), self.seconds(baseline)
        return other / own if own and other else None

    def best_bf16(self) -> str | None:
        """Return the fastest way to multiply by a bf16 weight here."""
        return min((n for n in BF16_NAMES if n in self.rows), key=self.seconds, default=None)

    def best_int8(self) -> str | None:
        """Return the fastest library that multiplies by an int8 weight here."""
        return min((n for n in INT8_LIBRARIES if n in self.rows), key=self.seconds, default=None)

    def floor_share(self, name: str) -> float | None:
        """Return shortest possible time / time."""
        row = self.rows.get(name)
        return row['floor_s'] / row['seconds'] if row else None

    def mixing_overhead(self, mix: str) -> float | None:
        """Return time of a mix / weighted mean of its uniform layers, minus one."""
        parts = [(self.seconds(name), share) for name, share in MIXES[mix].items()]
        mixed = self.seconds(mix)
        if mixed is None or any(seconds is None for seconds, _ in parts):
            return None
        return mixed / sum(seconds * share for seconds, share in parts) - 1.0


def points(rows: Iterable[Row]) -> dict[tuple[int, str], list[Point]]:
    """Return (threads, instructions) -> points, in the order of the rows."""
    groups: dict[tuple[int, str], dict[tuple[int, int, int], dict[str, Row]]] = {}
    for row in rows:
        if row.get('seconds') is None:
            continue
        group = groups.setdefault((row['threads'], row['isa']), {})
        place = group.setdefault((row['in'], row['out'], row['tokens']), {})
        place[row['name']] = row
    return {
        key: [Point(*place, found) for place, found in group.items()]
        for key, group in groups.items()
    }


def typical(values: Iterable[float | None]) -> float | None:
    """Return the median of what is there; None when nothing is."""
    found = [value for value in values if value is not None]
    return median(found) if found else None
