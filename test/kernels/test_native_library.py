"""Finding, loading and configuring the shared library; what is said when that fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlaq_ros.errors import ConfigError, MissingDependencyError
from vlaq_ros.kernels import native_library

HEADER = Path(native_library.__file__).parent / 'native' / 'vlaq_kernels.h'
needs_library = pytest.mark.skipif(
    native_library.problem() != '', reason=native_library.problem() or 'the library is there'
)


def python(code, **environment):
    """Run code in a Python of its own: the environment is read when the library is loaded."""
    return subprocess.run(
        [sys.executable, '-c', f'from vlaq_ros.kernels import native_library\n{code}'],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_library_that_was_never_built_says_how_to_build_it():
    with pytest.raises(MissingDependencyError, match=r'has not been built: install a C\+\+ comp'):
        native_library._load([])


def test_a_file_that_is_no_library_is_named_with_the_remedy(tmp_path):
    path = tmp_path / native_library.FILE_NAME
    path.write_text('not a library')
    with pytest.raises(MissingDependencyError, match='build again') as caught:
        native_library._load([path])
    assert str(path) in str(caught.value)


@needs_library
def test_another_interface_version_is_refused(monkeypatch):
    path = Path(native_library.library()._name)
    monkeypatch.setattr(native_library, 'ABI_VERSION', 77)
    with pytest.raises(MissingDependencyError, match=r'this package needs 77.*build again'):
        native_library._load([path])


@needs_library
def test_a_broken_newer_file_does_not_hide_a_good_one(tmp_path):
    broken = tmp_path / native_library.FILE_NAME
    broken.write_text('not a library')
    good = Path(native_library.library()._name)
    assert native_library._load([broken, good])._name == str(good)


def test_the_newest_build_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules['vlaq_ros'], '__path__', [str(tmp_path / f) for f in 'abc'])
    for age, folder in enumerate('ba'):  # c has none
        path = tmp_path / folder / 'kernels' / native_library.FILE_NAME
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert [path.parts[-3] for path in native_library._candidates()] == ['b', 'a']


def test_the_signatures_are_those_of_the_header():
    """A forgotten argument would be read from the stack, silently."""
    text = re.sub(r'//[^\n]*', '', HEADER.read_text())
    declared = re.findall(r'[a-z0-9_*]+ \*?(vlaq_\w+)\(([^)]*)\)', text)
    counts = {name: 0 if args == 'void' else args.count(',') + 1 for name, args in declared}
    assert counts == {name: len(args) for name, (_, args) in native_library.SIGNATURES.items()}
    version = int(re.search(r'VLAQ_ABI_VERSION (\d+)', text)[1])
    assert version == native_library.ABI_VERSION


@pytest.mark.parametrize(
    ('structure', 'name'),
    [(native_library.Layout, 'vlaq_layout'), (native_library.Rows, 'vlaq_rows')],
)
def test_the_structures_are_those_of_the_header(structure, name):
    text = re.sub(r'//[^\n]*', '', HEADER.read_text())
    body = re.search(r'typedef struct \{([^}]*)\} ' + name, text)[1]
    declared = re.findall(r'(\w+)(?=[,;])', body)
    assert declared == [field for field, _ in structure._fields_]


@needs_library
def test_loading_needs_no_torch():
    done = python("native_library.library(); import sys; print('torch' in sys.modules)")
    assert done.stdout == 'False\n', done.stderr


@needs_library
def test_every_available_isa_can_be_chosen_from_outside():
    for isa in native_library.available_isas():
        done = python('print(native_library.isa())', VLAQ_ISA=isa)
        assert done.stdout == f'{isa}\n', done.stderr


@needs_library
def test_the_portable_one_is_always_there_and_the_default_is_the_best():
    available = native_library.available_isas()
    assert available[-1] == 'portable'
    assert python('print(native_library.isa())', VLAQ_ISA='').stdout == f'{available[0]}\n'


@needs_library
def test_an_unknown_isa_is_an_error_that_lists_those_there_are():
    done = python('native_library.problem()', VLAQ_ISA='mmx')
    last = done.stderr.splitlines()[-1]
    assert 'ConfigError' in last
    assert "VLAQ_ISA='mmx' cannot run here" in last
    assert last.endswith(', '.join(native_library.available_isas()))


@needs_library
def test_a_refused_isa_leaves_the_present_one():
    before = native_library.isa()
    with pytest.raises(ConfigError, match="'sse9' cannot run here"):
        native_library.set_isa('sse9')
    assert native_library.isa() == before


@needs_library
def test_the_description_names_file_and_instructions():
    text = native_library.describe()
    assert native_library.FILE_NAME in text
    assert text.startswith(native_library.isa())


@pytest.mark.parametrize(
    ('text', 'cpus'), [('3', [3]), ('2,3', [2, 3]), ('4-7', [4, 5, 6, 7]), ('0, 2-3', [0, 2, 3])]
)
def test_processors_are_listed_as_for_taskset(text, cpus):
    assert native_library.parse_cpus(text) == cpus


@pytest.mark.parametrize('text', ['a', '1,', '-1', '1-', '1;2', '1.5'])
def test_what_is_no_list_of_processors_is_an_error(text):
    with pytest.raises(ConfigError, match='neither a number nor a range'):
        native_library.parse_cpus(text)


@needs_library
def test_a_processor_outside_the_allowed_set_is_refused():
    done = python('native_library.library()', VLAQ_PIN_WORKERS='100000')
    assert 'processors 100000 cannot be used' in done.stderr


@needs_library
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='one processor')
def test_workers_run_where_they_are_pinned_and_the_caller_where_it_was():
    """The kernel says where each thread may run; the first thread is that of Python."""
    cpu = max(os.sched_getaffinity(0))
    done = python(
        """
import os
import pathlib
import torch
from vlaq_ros.kernels import cpu
from vlaq_ros.quant.mixed import MixedWeight
torch.set_num_threads(2)
before = set(os.listdir('/proc/self/task'))
weight = MixedWeight.from_float(torch.randn(512, 512), [8] * 512, 64)
packed = cpu.pack(weight)
for _ in range(20):
    cpu.run(torch.randn(64, 512), packed, weight.layout, torch.tensor([8, 8]), None)
for thread in set(os.listdir('/proc/self/task')) - before:
    print(*os.sched_getaffinity(int(thread)))
print('caller', len(os.sched_getaffinity(0)))
""",
        VLAQ_PIN_WORKERS=str(cpu),
        OMP_NUM_THREADS='1',
        MKL_NUM_THREADS='1',
    )
    *workers, caller = done.stdout.splitlines()
    assert str(cpu) in workers, done.stdout + done.stderr
    assert caller == f'caller {len(os.sched_getaffinity(0))}'
