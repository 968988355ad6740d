"""What is planned: options with all their faults, processes, and a run below fifteen minutes."""

import json

import pytest

from vlaq_ros.bench.plan import (
    SECTIONS,
    Job,
    Request,
    make_jobs,
    parse_counts,
    parse_shapes,
)
from vlaq_ros.errors import ConfigError

ISAS = ('avx512vnni', 'avxvnni', 'avx2', 'portable')


def expected_s(request):
    return sum(step.expected_s for job in make_jobs(request) for step in job.steps)


def test_a_complete_run_is_planned_for_less_than_fifteen_minutes():
    assert expected_s(Request(SECTIONS, isas=ISAS)) < 15 * 60
    assert expected_s(Request(SECTIONS, quick=True, isas=ISAS)) < 4 * 60


def test_a_job_survives_the_way_to_its_process():
    for job in make_jobs(Request((*SECTIONS, 'gpu'), isas=ISAS)):
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_narrower_instructions_get_processes_of_their_own_with_every_library_limited():
    jobs = make_jobs(Request(('kernels',), isas=ISAS))
    limited = {job.isa: job for job in jobs if job.isa}
    assert list(limited) == ['avxvnni', 'avx2']
    environment = limited['avx2'].environment()
    assert environment['VLAQ_ISA'] == 'avx2'
    assert environment['ONEDNN_MAX_CPU_ISA'] == 'AVX2'
    assert environment['ATEN_CPU_CAPABILITY'] == 'avx2'


def test_the_best_instructions_are_not_measured_twice():
    assert not [job for job in make_jobs(Request(('kernels',), isas=('avx2',))) if job.isa]


def test_threads_are_set_before_any_library_is_loaded():
    two = next(job for job in make_jobs(Request(('kernels',))) if job.threads == 2)
    assert two.environment()['OMP_NUM_THREADS'] == '2'


def test_every_memory_case_has_a_process_of_its_own():
    jobs = make_jobs(Request(('memory',)))
    assert all(len(job.steps) == 1 for job in jobs)
    assert len({job.steps[0].name for job in jobs}) == len(jobs) > 5


def test_libraries_are_left_out_when_asked():
    names = [job.steps[0].name for job in make_jobs(Request(('memory',), rivals=False))]
    assert not [name for name in names if name.startswith(('onnx', 'openvino'))]


def test_given_shapes_and_tokens_replace_the_default():
    (job,) = make_jobs(Request(('kernels',), shapes=((8, 16),), tokens=(3,), threads=(1,)))
    assert [step.values for step in job.steps] == [{'in': 8, 'out': 16, 'tokens': 3}]


def test_an_unknown_section_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="no section named 'kernel'.*Did you mean 'kernels'"):
        make_jobs(Request(('kernel',)))


def test_shapes_are_inputs_by_outputs():
    assert parse_shapes('2048x8192, 8x4') == ((2048, 8192), (8, 4))


def test_every_wrong_shape_is_named():
    with pytest.raises(ConfigError, match=r"\['8', '0x4', 'axb'\]"):
        parse_shapes('8,0x4,4x4,axb')


def test_every_wrong_count_is_named():
    assert parse_counts('--tokens', '1,64') == (1, 64)
    with pytest.raises(ConfigError, match=r"--tokens: \['0', '-1', 'x'\]"):
        parse_counts('--tokens', '0,-1,x,5')
