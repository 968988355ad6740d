"""Statistics: equal to those of all inputs at once, over every call of a layer."""

import torch

from vlaq_ros.calibration.statistics import collect_statistics


def inputs_and_outputs(context, name):
    calls = []
    layer = context.linear(name)
    handle = layer.register_forward_hook(lambda _, args, y: calls.append((args[0], y)))
    with torch.no_grad():
        for batch in context.batches:
            context.forward(batch)
    handle.remove()
    return (torch.cat([c[i].flatten(0, -2) for c in calls]).double() for i in (0, 1))


def test_streamed_moments_equal_those_of_all_inputs_together(context):
    names = ('language_model.layers.1.mlp.down_proj', 'dit.0.fc2')
    statistics = collect_statistics(context, names)
    assert set(statistics) == set(names)
    for name in names:
        x, y = inputs_and_outputs(context, name)
        found = statistics[name]
        assert found.tokens == len(x)
        torch.testing.assert_close(found.second_moment, x.T @ x / len(x), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found.input_mean, x.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.input_mean_abs, x.abs().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.input_absmax, x.abs().amax(0).float())
        torch.testing.assert_close(found.output_mean, y.mean(0), rtol=1e-4, atol=1e-6)


def test_a_layer_of_the_flow_head_is_seen_at_every_denoise_step(context):
    statistics = collect_statistics(context)
    observations = sum(len(batch.state) for batch in context.batches)
    assert statistics['time_in'].tokens == 5 * observations
    assert statistics['dit.0.fc1'].tokens == 5 * 8 * observations


def test_the_model_keeps_no_hooks(context):
    collect_statistics(context)
    assert not any(module._forward_hooks for module in context.model.modules())
