"""
A damaged file of packed layers is refused or loads what it says; it never does anything else.

The suite runs a few thousand mutated files. More of them, from another seed and on another core:

    python3 test/nn/test_store_fuzz.py 1000000 --seed 1

Every case depends on its number alone; `--only 4711` repeats one.
"""

import argparse
import copy
import io
import json
import random
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from vlaq_ros.errors import BundleError, SchemeError
from vlaq_ros.nn.store_file import load_model, save_model
from vlaq_ros.nn.surgery import quantize_linears
from vlaq_ros.quant.scheme import LayerScheme

STRANGE = (-1, 0, 1, 2, 3, 7, 15, 16, 17, 64, 255, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, 1e308)
STRANGE += (float('nan'), True, None, '', 'F32', 'U8', 'order', [], [0], [1, 2, 3], {}, {'a': 1})


@cache
def _template():
    with torch.device('meta'):
        return nn.ModuleDict(
            {
                'a': nn.Linear(37, 11),
                'b': nn.Linear(16, 5, bias=False),
                'patch': nn.Conv2d(2, 6, 2, 2),
                'norm': nn.LayerNorm(3),
            }
        )


def float_model():
    """Return a small model with all kinds of layers that a file can hold."""
    return copy.deepcopy(_template())


def sound_file():
    """Return the bytes of a file that `float_model` loads."""
    torch.manual_seed(0)
    model = float_model().to_empty(device='cpu')
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    plan = {
        'a': LayerScheme((16, 8, 4, 2, 0, 8, 4, 2, 16, 4, 8), 16, 8),
        'b': LayerScheme(4),
        'patch': LayerScheme(8),
    }
    quantize_linears(model, plan)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.safetensors'
        save_model(model, path)
        return path.read_bytes()


def _flip_bits(data, rng):
    header = 8 + int.from_bytes(data[:8], 'little')
    first, last = rng.choice([(0, 8), (8, header), (header, len(data)), (0, len(data))])
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        changed[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _change_length(data, rng):
    if rng.random() < 0.7:
        return data[: rng.randrange(len(data))]
    return data + rng.randbytes(rng.choice([1, 2, 8, 64]))


def _move_a_piece(data, rng):
    size = rng.randrange(1, 64)
    source, target = (rng.randrange(len(data) - size) for _ in range(2))
    return data[:target] + data[source : source + size] + data[target + size :]


def _fill_a_piece(data, rng):
    """All ones are NaN, infinities' neighbours, -1 and full pad bits."""
    size, start = rng.choice([1, 2, 4, 8]), rng.randrange(8, len(data) - 8)
    piece = rng.choice([b'\xff', b'\x00', b'\x7f', b'\x80', b'\x7c'])
    return data[:start] + piece * size + data[start + size :]


def _edit_header(data, rng):
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + length])
    schema = json.loads(header['__metadata__']['vlaq'])
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.5:
            schema = _edit(schema, rng)
        else:
            header = _edit(header, rng)
    if isinstance(header, dict) and isinstance(header.get('__metadata__'), dict):
        header['__metadata__']['vlaq'] = json.dumps(schema)
    text = json.dumps(header).encode()
    if rng.random() < 0.02:
        text = b'[' * rng.choice([10, 100_000]) + text
    return len(text).to_bytes(8, 'little') + text + data[8 + length :]


def _edit(tree, rng):
    """Change one thing in a tree of tables and lists."""
    places = list(_places(tree))
    if not places:
        return rng.choice(STRANGE)
    node, key = rng.choice(places)
    action = rng.random()
    if action < 0.5:
        node[key] = copy.deepcopy(rng.choice(STRANGE))
    elif action < 0.7:
        other, other_key = rng.choice(places)
        node[key], other[other_key] = copy.deepcopy((other[other_key], node[key]))
    elif action < 0.85 and isinstance(node, dict):
        node[rng.choice([key + 'x', 'order', 'a.order', 'a.bias'])] = node.pop(key)
    elif isinstance(node[key], int):
        node[key] += rng.choice([-16, -1, 1, 16])
    else:
        del node[key]
    return tree


def _places(tree):
    keys = tree if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


MUTATIONS = (_flip_bits, _flip_bits, _edit_header, _edit_header, _fill_a_piece, _move_a_piece)
MUTATIONS += (_change_length,)


def run_case(sound, number):
    """Load one mutated file; return 'refused' or 'loaded', or raise what should never be."""
    rng = random.Random(number)
    data = rng.choice(MUTATIONS)(sound, rng)
    model = float_model()
    try:
        load_model(model, io.BytesIO(data))
    except (BundleError, SchemeError):
        return 'refused'
    held = model.state_dict()
    told = safetensors.torch.load(data)
    assert set(held) == set(told)
    for name, tensor in held.items():
        assert tensor.shape == told[name].shape
        assert torch.equal(tensor, told[name].to(tensor.dtype)), name
    assert model.a(torch.zeros(1, 37)).shape == (1, 11)
    assert model.b(torch.ones(2, 16)).shape == (2, 5)
    assert model.patch(torch.ones(1, 2, 4, 6)).shape == (1, 6, 2, 3)
    return 'loaded'


def run_cases(first, count):
    """Return how many cases were refused and loaded; name the case when one fails."""
    sound, outcomes = sound_file(), Counter()
    load_model(float_model(), io.BytesIO(sound))
    for number in range(first, first + count):
        try:
            outcomes[run_case(sound, number)] += 1
        except BaseException as error:
            error.args = (*error.args, f'case {number}')
            raise
    return outcomes


def test_mutated_files_are_refused_or_load_what_they_say():
    outcomes = run_cases(0, 2000)
    assert outcomes['refused'] > 1000
    assert outcomes['loaded'] > 100


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('count', type=int, nargs='?', default=1_000_000)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--only', type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only is not None:
        print(run_case(sound_file(), options.only))
    else:
        print(dict(run_cases(options.seed * 10**9, options.count)))
