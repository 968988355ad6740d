"""Demonstrations as a training set: every observation with the actions that follow it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.reference import images_to_tensor
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.sim.robot import CAMERAS

HORIZON = 8


@dataclass(frozen=True)
class TrainingSet:
    """All recorded observations with the chunk that follows each; images stay uint8."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    chunk: NDArray[np.float32]
    offsets: NDArray[np.float32]
    task: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.state)


def load_shards(folder: Path) -> TrainingSet:
    """Read every shard of `folder`; `ConfigError` when there is none."""
    paths = sorted(p for p in folder.glob('*.npz') if '.partial' not in p.name)
    if not paths:
        raise ConfigError(
            f'no demonstrations in {folder}: record some with `vlaq collect {folder}`'
        )
    columns: dict[str, list] = {k: [] for k in (*CAMERAS, 'state', 'chunk', 'offsets', 'task')}
    for path in tqdm(paths, desc='reading demonstrations', unit='shard'):
        with np.load(path) as shard:
            start = np.r_[0, np.cumsum(shard['length'])]
            episode, actions = shard['episode'], shard['actions']
            # Past the end of an episode its last action is repeated.
            rows = (start[episode] + shard['steps'])[:, None] + np.arange(HORIZON)
            columns['chunk'].append(actions[np.minimum(rows, start[episode + 1][:, None] - 1)])
            for name in (*CAMERAS, 'state', 'offsets', 'task'):
                columns[name].append(shard[name])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    images = {name: joined.pop(name) for name in CAMERAS}
    return TrainingSet(images=images, **joined)


def draw_batch(
    data: TrainingSet,
    rows: NDArray[np.int64],
    words: Tensor,
    spec: PolicySpec,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Assemble one augmented batch: brightness, colour cast, and noise on the state."""
    gain = torch.from_numpy(1.0 + 0.15 * rng.normal(size=(len(rows), 1, 1, 1))).float()
    cast = torch.from_numpy(0.1 * rng.normal(size=(len(rows), 3, 1, 1))).float()
    images = {
        name: images_to_tensor(images[rows]) * gain + cast for name, images in data.images.items()
    }
    jitter = 0.03 * np.array(spec.state.std) * rng.normal(size=data.state[rows].shape)
    task = torch.from_numpy(data.task[rows])
    return {
        'images': images,
        'state': torch.from_numpy(data.state[rows] + jitter).float(),
        'words': words[task, torch.from_numpy(rng.integers(words.shape[1], size=len(rows)))],
        'chunk': torch.from_numpy(data.chunk[rows]),
        'offsets': torch.from_numpy(data.offsets[rows]),
    }
