"""What traces or differentiates a model sees one operator, with a shape and a gradient."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vlaq_ros.kernels.kernel import row_major_parts

WIDTHS = [16, 8, 8, 4, 4, 2, 0, 8]


class Layer(nn.Module):
    """The smallest module around a kernel."""

    def __init__(self, kernel, weight):
        super().__init__()
        self.kernel, self.layout = kernel, weight.layout
        self.packed = nn.ParameterList(
            nn.Parameter(tensor, requires_grad=False) for tensor in kernel.pack(weight)
        )
        self.register_buffer('precision', torch.tensor([8, 8], dtype=torch.int32))
        self.register_buffer('bias', torch.arange(weight.layout.shape[0]).float())

    def forward(self, x):
        packed = tuple(self.packed)
        return self.kernel.run(x, packed, self.layout, self.precision, self.bias)


@pytest.fixture
def layer(kernel, make_weight):
    return Layer(kernel, make_weight(WIDTHS, 48, 16))


@pytest.fixture
def x(generator):
    return torch.randn(5, 48, generator=generator)


@pytest.fixture(autouse=True)
def forget_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def nodes(graph):
    return [node.target for node in graph.nodes if node.op == 'call_function']


def test_a_compiled_layer_is_one_node_and_gives_the_same_bits(layer, x):
    graphs = []

    def remember(module, inputs):
        graphs.append(module.graph)
        return module

    compiled = torch.compile(layer, fullgraph=True, backend=remember)
    assert torch.equal(compiled(x), layer(x))
    assert nodes(graphs[0]) == [torch.ops.vlaq.mixed_linear.default]


def test_a_layer_compiles_through_autograd_with_any_number_of_tokens(layer, generator):
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager', dynamic=True)
    for tokens in (1, 5, 9):
        x = torch.randn(2, tokens, 48, generator=generator)
        assert torch.equal(compiled(x), layer(x))


def test_a_change_of_precision_needs_no_new_graph(layer, x):
    compilations = []

    def count(module, inputs):
        compilations.append(module)
        return module

    compiled = torch.compile(layer, fullgraph=True, backend=count)
    results = []
    for precision in ([8, 8], [4, 8], [8, 16]):
        layer.precision.copy_(torch.tensor(precision))
        results.append(compiled(x))
        assert torch.equal(results[-1], layer(x))
    assert not torch.equal(results[0], results[1])
    assert len(compilations) == 1


@pytest.mark.parametrize('strict', [True, False])
def test_an_exported_layer_is_one_node_and_gives_the_same_bits(layer, x, strict):
    tokens = {'x': {0: torch.export.Dim('tokens', min=2, max=64)}}
    exported = torch.export.export(layer, (x,), dynamic_shapes=tokens, strict=strict)
    assert nodes(exported.graph).count(torch.ops.vlaq.mixed_linear.default) == 1
    module, more = exported.module(), torch.cat((x, x, x))
    assert torch.equal(module(more), layer(more))


def test_a_traced_layer_computes_instead_of_repeating_its_example(layer, x):
    traced = torch.jit.trace(layer, (x,))
    assert torch.equal(traced(x * 2), layer(x * 2))


def test_fake_tensors_have_the_shape_and_type_of_real_ones(layer, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for example in (x, x.bfloat16(), x[0], x.expand(3, 5, 48)):
            y = layer(mode.from_tensor(example))
            assert (y.shape, y.dtype) == ((*example.shape[:-1], 8), example.dtype)


def test_a_dispatch_mode_sees_the_layer(layer, x):
    with FlopCounterMode(display=False):
        assert torch.equal(layer(x), layer(x.clone()))


def test_opcheck(kernel, make_weight, x):
    weight = make_weight(WIDTHS, 48, 16)
    layout = weight.layout
    sizes = [*layout.shape, layout.group_size, *layout.counts]
    precision = torch.tensor([8, 8], dtype=torch.int32)
    packed = list(kernel.pack(weight))
    for example in (x, x.bfloat16(), x[0], x.clone().requires_grad_()):
        arguments = (example, packed, kernel.name, sizes, precision, torch.randn(8))
        torch.library.opcheck(torch.ops.vlaq.mixed_linear.default, arguments)
    arguments = (torch.randn(5, 8), packed, kernel.name, sizes, precision)
    torch.library.opcheck(torch.ops.vlaq.mixed_linear_backward.default, arguments)


def test_a_wrong_width_is_refused_in_a_graph_as_well(layer):
    with pytest.raises(Exception, match='expected'):
        torch.compile(layer, fullgraph=True, backend='eager')(torch.randn(2, 47))


@pytest.mark.parametrize('cap', [8, 4])
def test_the_gradient_reaches_the_input(layer, x, cap):
    """It is that of the dequantized weight; the rounding of activations counts as identity."""
    layer.precision[0] = cap
    x.requires_grad_()
    y = layer(x)
    assert torch.equal(y, layer(x.detach()))
    layer.precision[0] = 12 - cap  # a later change does not touch a graph that exists
    y.backward(torch.ones_like(y))
    kernel = layer.kernel
    weight = kernel.unpack(tuple(layer.packed), layer.layout)
    expected = weight.dequantize(torch.float32, cap).sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, expected)


def test_the_gradient_is_the_same_when_compiled(layer, x):
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    grads = []
    for forward in (layer, compiled):
        leaf = x.clone().requires_grad_()
        forward(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_no_gradient_is_kept_where_none_is_wanted(layer, x):
    x.requires_grad_()
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert not layer(x).requires_grad


def test_row_major_parts_are_in_the_order_of_the_constructor(make_weight):
    weight = make_weight(WIDTHS, 48, 16)
    for part, name in zip(row_major_parts(weight), weight.layout.tensors()):
        assert part is getattr(weight, name)
