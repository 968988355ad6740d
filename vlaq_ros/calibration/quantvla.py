"""
QuantVLA: which layers to quantize in a policy with a flow head, and two repairs of its attention.

arXiv 2602.20309. `paper` layout: all linear layers of the backbone and the feed-forward layers of
the action head get 4 bits with 8-bit activations; attention, conditioning and time embedding of
the head stay float. `all` quantizes every layer instead, at the widest width in the budget. Base
quantizer: an orthogonal block rotation of the inputs, symmetric weights with searched clips. Then
attention temperature matching and output head balancing (`attention_balance`).

Two things differ from the published code because no integer kernel can run it: activations are
rounded per token, as the paper says and its code does not, and a rotation is used only where it
folds. Inputs whose rotation would need a product at run time are listed in the provenance.
"""

from dataclasses import dataclass, replace

from vlaq_ros.calibration.attention_balance import RANGES, balance_attention
from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.rtn import uniform_widths, widest_within_budget
from vlaq_ros.calibration.transforms import BlockRotation, FoldedModel, hadamard
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight

ROTATION_BLOCK = 64
BACKBONE_ROLE = 'llm'


@dataclass(frozen=True)
class QuantVlaOptions:
    """
    Options of QuantVLA.

    Attributes:
        layout: `paper` or `all`; see the module.
        limits: Name of the range of both corrections in `attention_balance.RANGES`.
        rotate: Whether inputs are rotated where that folds.
        balance: Whether attention is corrected.

    Raises:
        SchemeError: A choice does not exist; all are listed.
    """

    layout: str = 'paper'
    limits: str = 'log'
    rotate: bool = True
    balance: bool = True

    def __post_init__(self) -> None:
        wrong = []
        if self.layout not in ('paper', 'all'):
            wrong.append(f"layout={self.layout!r} must be 'paper' or 'all'")
        if self.limits not in RANGES:
            wrong.append(f'limits={self.limits!r} must be one of {sorted(RANGES)}')
        if wrong:
            raise SchemeError('\n'.join(wrong))


def selected_layers(context: CalibrationContext, layout: str) -> dict[str, str]:
    """Return the layers that a layout quantizes, with their roles."""
    if layout == 'all':
        return dict(context.layers)
    feed_forward = set(context.structure.feed_forward)
    return {
        name: role
        for name, role in context.layers.items()
        if role == BACKBONE_ROLE or name in feed_forward
    }


def calibrate(context: CalibrationContext, options: QuantVlaOptions | None = None) -> MethodResult:
    """
    Quantize the selected layers and balance the attention of the whole policy.

    Raises:
        SchemeError: No layer is selected, or (`all`) no width fits the budget.
    """
    options = options or QuantVlaOptions()
    layers = selected_layers(context, options.layout)
    if not layers:
        raise SchemeError("the 'paper' layout selects no layer of this policy; use 'all'")
    narrowed = replace(context, layers=layers)
    bits = 4 if options.layout == 'paper' else widest_within_budget(narrowed)
    folded = FoldedModel(narrowed.model)
    rotated = _rotate(narrowed, folded) if options.rotate else []
    weights = {
        name: MixedWeight.from_float(
            folded.weight(name),
            uniform_widths(narrowed, name, bits),
            narrowed.group_of(name),
            'mse',
        )
        for name in layers
    }
    record = {
        'bits': bits,
        'layout': options.layout,
        'limits': options.limits,
        'rotated': rotated,
        'not_rotated': [name for name in layers if name not in rotated],
        'float_layers': [name for name in context.layers if name not in layers],
    }
    result = MethodResult(
        'quantvla',
        weights,
        dict.fromkeys(layers, context.activation_bits),
        folded.parameters(layers),
        record,
        folded.targets(layers),
    )
    if options.balance:
        limits = RANGES[options.limits]
        attentions = context.structure.attentions
        result, found = balance_attention(narrowed, result, attentions, limits)
        record['attention'] = found
    return result


def _rotate(context: CalibrationContext, folded: FoldedModel) -> list[str]:
    """Rotate every input that can be folded; return the layers that read them."""
    rotated = []
    for stream in context.structure.streams:
        inputs = context.linear(stream.readers[0]).in_features
        block = min(stream.mixes, ROTATION_BLOCK)
        block = 2 ** (block.bit_length() - 1)  # the largest power of two below
        readers = [name for name in stream.readers if name in context.layers]
        if readers and block > 1 and inputs % block == 0 and stream.mixes % block == 0:
            folded.fold(stream, BlockRotation(hadamard(block)))
            rotated += readers
    return rotated
