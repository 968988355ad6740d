"""
What is measured, in which process, and how long it is expected to take.

A job is one process: its section, threads and instructions stay as they are for its whole life.
A step is what an interrupt can lose. The seconds are those of one core with AVX-512-VNNI; what
counts is their proportion, from which the remaining time is told.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from vlaq_ros.errors import ConfigError, unknown_name

SHAPES = ((576, 1536), (960, 2560), (2048, 2048), (2048, 8192), (4096, 4096), (4096, 11008))
TOKENS = (1, 8, 50, 64, 256, 512)
QUICK_SHAPES = ((960, 2560), (2048, 8192))
QUICK_TOKENS = (1, 64)
# Wall time on two threads is noisier and says little more: three points of two shapes.
TWO_THREAD_SHAPES = ((2048, 8192), (4096, 11008))
TWO_THREAD_TOKENS = (1, 64, 256)
ISA_SHAPE = (2048, 8192)
ISA_TOKENS = (1, 64, 256)
LIMITED_ISAS = ('avxvnni', 'avx2')
SECTIONS = ('kernels', 'layers', 'policy', 'memory', 'switching')
EXTRA_SECTIONS = ('gpu',)
MEMORY_CASES = (
    'torch bf16',
    'W2',
    'W4',
    'W8, 4 nested',
    'mix 0/4/8/16',
    'torch int4pack',
    'torch dynamic int8 fbgemm',
    'onnxruntime W4',
    'openvino W4',
)
# what the libraries inside torch have to be told to leave newer instructions alone
AVX2_LIMITS = {
    'ATEN_CPU_CAPABILITY': 'avx2',
    'FBGEMM_ENABLE_INSTRUCTIONS': 'AVX2',
    'MKL_ENABLE_INSTRUCTIONS': 'AVX2',
}
ISA_ENVIRONMENT = {
    'avxvnni': {'ONEDNN_MAX_CPU_ISA': 'AVX2_VNNI', **AVX2_LIMITS},
    'avx2': {'ONEDNN_MAX_CPU_ISA': 'AVX2', **AVX2_LIMITS},
}
# glibc then gives freed blocks back to the system at once, so that none is mistaken for a weight
RETURN_MEMORY = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}


@dataclass(frozen=True)
class Step:
    """
    One thing to measure.

    Attributes:
        name: As shown while it runs.
        expected_s: Expected duration [s].
        values: What the section needs to know, as plain values.
    """

    name: str
    expected_s: float
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """
    One process.

    Attributes:
        section: Name of the module part that measures.
        threads: Threads that everything may use.
        isa: Instructions to stay within; '' for all the processor has.
        rivals: Whether libraries outside torch take part where they are installed.
        effort: (rounds, seconds per case and round).
        steps: In order.
    """

    section: str
    threads: int
    isa: str
    rivals: bool
    effort: tuple[int, float]
    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        """How the job is called while it runs."""
        limits = [f'{self.threads} threads'] * (self.threads > 1) + [self.isa] * bool(self.isa)
        return ', '.join([self.section, *limits])

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the process needs."""
        variables = {'OMP_NUM_THREADS': str(self.threads), 'MKL_NUM_THREADS': str(self.threads)}
        if self.isa:
            variables |= {'VLAQ_ISA': self.isa, **ISA_ENVIRONMENT.get(self.isa, {})}
        if self.section == 'memory':
            variables |= RETURN_MEMORY
        return variables

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the process."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> 'Job':
        """Read what `to_json` returned."""
        steps = tuple(Step(**step) for step in values['steps'])
        return Job(**{**values, 'steps': steps, 'effort': tuple(values['effort'])})


@dataclass(frozen=True)
class Request:
    """
    What the user asked for.

    Attributes:
        sections: Some of `SECTIONS`, or `gpu`.
        quick: A few points and short rounds: to see that it works, not to publish.
        shapes: (in, out) of the kernel section; None for the default.
        tokens: Tokens of the kernel section; None for the default.
        threads: Thread counts to measure with; None for one and two.
        rivals: Whether onnxruntime and OpenVINO take part where they are installed.
        isas: Instructions the processor has, best first; narrower ones are measured too.
    """

    sections: tuple[str, ...]
    quick: bool = False
    shapes: tuple[tuple[int, int], ...] | None = None
    tokens: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None
    rivals: bool = True
    isas: tuple[str, ...] = ()


def make_jobs(request: Request) -> list[Job]:
    """
    Return the processes to run, in order.

    Raises:
        ConfigError: A section that does not exist.
    """
    known = (*SECTIONS, *EXTRA_SECTIONS)
    unknown = [section for section in request.sections if section not in known]
    if unknown:
        messages = [unknown_name('section', section, (*known, 'all')) for section in unknown]
        raise ConfigError('\n'.join(messages))
    makers = {
        'kernels': _kernel_jobs,
        'layers': _layer_jobs,
        'policy': _policy_jobs,
        'memory': _memory_jobs,
        'switching': _switching_jobs,
        'gpu': _gpu_jobs,
    }
    return [job for section in request.sections for job in makers[section](request)]


def parse_shapes(text: str) -> tuple[tuple[int, int], ...]:
    """
    Read `2048x8192,960x2560`: inputs x outputs.

    Raises:
        ConfigError: Parts that are not two positive numbers, all of them.
    """
    shapes, wrong = [], []
    for part in text.split(','):
        sizes = part.strip().split('x')
        if len(sizes) == 2 and all(size.isdecimal() and int(size) for size in sizes):
            shapes.append((int(sizes[0]), int(sizes[1])))
        else:
            wrong.append(part)
    if wrong:
        raise ConfigError(f'--shapes: {wrong} are not INxOUT, such as 2048x8192')
    return tuple(shapes)


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """
    Read `1,64,256`.

    Raises:
        ConfigError: Parts that are not positive whole numbers, all of them.
    """
    parts = [part.strip() for part in text.split(',')]
    wrong = [part for part in parts if not (part.isdecimal() and int(part))]
    if wrong:
        raise ConfigError(f'{option}: {wrong} are not positive whole numbers')
    return tuple(int(part) for part in parts)


def _kernel_jobs(request: Request) -> list[Job]:
    effort = (3, 0.02) if request.quick else (5, 0.015)
    jobs = []
    for threads in request.threads or (1, 2):
        several = threads > 1
        default_shapes = TWO_THREAD_SHAPES if several else SHAPES
        default_tokens = TWO_THREAD_TOKENS if several else TOKENS
        shapes = request.shapes or (QUICK_SHAPES if request.quick else default_shapes)
        tokens = request.tokens or (QUICK_TOKENS if request.quick else default_tokens)
        steps = _kernel_steps(shapes, tokens)
        jobs.append(Job('kernels', threads, '', request.rivals, effort, steps))
    if request.threads is None or 1 in request.threads:
        shapes = request.shapes or (ISA_SHAPE,)
        tokens = request.tokens or (QUICK_TOKENS if request.quick else ISA_TOKENS)
        steps = _kernel_steps(shapes, tokens)
        jobs += [
            Job('kernels', 1, isa, False, effort, steps)
            for isa in LIMITED_ISAS
            if isa in request.isas[1:]
        ]
    return jobs


def _kernel_steps(
    shapes: tuple[tuple[int, int], ...], tokens: tuple[int, ...]
) -> tuple[Step, ...]:
    steps = []
    for inputs, outputs in shapes:
        weights = inputs * outputs / 1e6
        for position, count in enumerate(tokens):
            seconds = 3.5 + 0.0045 * weights * count**0.75
            seconds += 4.5 + 0.44 * weights if position == 0 else 0.0  # packing the weights
            values = {'in': inputs, 'out': outputs, 'tokens': count}
            steps.append(Step(f'{inputs}x{outputs}, {_counted(count, "token")}', seconds, values))
    return tuple(steps)


def _layer_jobs(request: Request) -> list[Job]:
    effort = (2, 0.0) if request.quick else (5, 0.0)
    steps = (
        Step('small stack: prefix and denoise', 60.0, {'stack': 'small'}),
        Step('7B-like stack: prefill and decode', 120.0, {'stack': '7b'}),
    )
    if request.quick:
        steps = (Step('small stack, 2 layers', 8.0, {'stack': 'small', 'layers': 2}),)
    return [Job('layers', 1, '', request.rivals, effort, steps)]


def _policy_jobs(request: Request) -> list[Job]:
    effort = (6, 0.0) if request.quick else (40, 0.0)
    steps = [Step('shipped policy', 3.0 + effort[0] * 0.5, {'model': 'shipped'})]
    if not request.quick:
        steps.append(Step('small VLA, random weights', 60.0, {'model': 'small'}))
    return [Job('policy', 1, '', request.rivals, effort, tuple(steps))]


def _memory_jobs(request: Request) -> list[Job]:
    size = (1024, 2048, 4) if request.quick else (4096, 11008, 4)
    return [  # a process each: what one case leaves behind must not count for the next
        Job('memory', 1, '', request.rivals, (1, 0.0), (step,))
        for step in (
            Step(name, 7.0, {'case': name, 'in': size[0], 'out': size[1], 'layers': size[2]})
            for name in MEMORY_CASES
            if request.rivals or not name.startswith(('onnxruntime', 'openvino'))
        )
    ]


def _switching_jobs(request: Request) -> list[Job]:
    sizes = QUICK_SHAPES if request.quick else ((960, 2560), (2048, 8192), (4096, 11008))
    effort = (5, 0.0) if request.quick else (40, 0.0)
    steps = tuple(
        Step(f'{inputs}x{outputs}', 5.0, {'in': inputs, 'out': outputs})
        for inputs, outputs in sizes
    )
    return [Job('switching', 1, '', request.rivals, effort, steps)]


def _gpu_jobs(request: Request) -> list[Job]:
    shapes = request.shapes or ((2048, 8192), (4096, 11008))
    tokens = request.tokens or TOKENS
    steps = tuple(
        Step(
            f'{inputs}x{outputs}, {_counted(count, "token")}',
            4.0,
            {'in': inputs, 'out': outputs, 'tokens': count},
        )
        for inputs, outputs in shapes
        for count in tokens
    )
    return [Job('gpu', 1, '', request.rivals, (7, 0.05), steps)]


def _counted(count: int, noun: str) -> str:
    return f'{count} {noun}' if count == 1 else f'{count} {noun}s'
