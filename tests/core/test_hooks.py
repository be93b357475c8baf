"""Temporary changes leave nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unmemorize.core.hooks import frozen, observed, outputs_before, patched, record, replaced, replayed


class Boom(Exception):
    """Raised inside a block on purpose."""


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.5, 0.5]])


def hooks(module):
    return sum(len(m._forward_hooks) for m in module.modules())


def test_record_collects_every_call_in_order(net):
    """Each named submodule's outputs are kept call by call, and the module's own output is unchanged."""
    before = net(X)
    with record(net, ["0", "2"]) as outputs:
        during = net(X)
        net(2 * X)
    assert torch.equal(before, during)
    assert [len(outputs[name]) for name in ("0", "2")] == [2, 2]
    assert torch.equal(outputs["0"][1], net[0](2 * X))
    assert torch.equal(outputs["2"][0], before)


def test_patched_changes_what_a_submodule_returns(net):
    """The rest of the network sees the changed activations."""
    with patched(net, {"1": torch.zeros_like}):
        assert torch.equal(net(X), net[2].bias.expand(2, 2))


@pytest.mark.parametrize("how", ["record", "patched"])
def test_hooks_are_gone_afterwards_even_after_an_exception(net, how):
    """No hook is left and the output is the old one, whether the block ended or raised."""
    before = net(X)

    def block():
        return record(net, ["0"]) if how == "record" else patched(net, {"0": lambda y: y + 1})

    with block():
        pass
    with pytest.raises(Boom), block():
        raise Boom
    assert hooks(net) == 0
    assert torch.equal(net(X), before)


def test_observed_sees_the_input_of_every_call_and_changes_nothing(net):
    """What goes into a submodule is shown call by call; afterwards no hook is left, after an exception either."""
    before, seen = net(X), []

    def block():
        with observed(net, {"2": seen.append}):
            assert torch.equal(net(X), before)
            net(2 * X)
            raise Boom

    with pytest.raises(Boom):
        block()
    net(X)
    assert [torch.equal(x, torch.relu(net[0](k * X))) for x, k in zip(seen, (1, 2), strict=True)] == [True, True]
    assert not any(module._forward_pre_hooks for module in net.modules())
    with pytest.raises(KeyError), observed(net, {"0": seen.append, "nowhere": seen.append}):
        pass
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_precedes_a_layer_is_replayed_and_not_computed(net):
    """Rows of the earlier run come out whatever goes in, changes further on count, and afterwards all is as before."""
    before = net(X)
    outputs = outputs_before(net, "2", lambda: net(X))
    assert sorted(outputs) == ["0", "1"]
    rows = torch.tensor([1, 0, 1])
    with replayed(net, outputs, rows):
        assert torch.equal(net(torch.full((3, 3), torch.nan)), before[rows])
        with patched(net, {"2": lambda y: y + 1}):
            assert torch.equal(net(X), before[rows] + 1)
    with pytest.raises(Boom), replayed(net, outputs, rows):
        raise Boom
    assert torch.equal(net(X), before)
    assert not any("forward" in vars(module) for module in net.modules())
    assert hooks(net) == 0


def test_a_forward_of_its_own_comes_back(net):
    """Libraries that wrap `forward` on the instance find their wrapper again."""
    wrapper = net[0].forward = lambda x, plain=net[0].forward: 2 * plain(x)
    with replayed(net, outputs_before(net, "1", lambda: net(X)), torch.tensor([0])):
        assert net[0].forward is not wrapper
    assert net[0].forward is wrapper


def test_only_what_is_called_once_and_row_by_row_is_replayed():
    """Nested submodules count as one; one that is called again, or reduces its rows, is computed."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.twice, self.total, self.last = nn.Tanh(), nn.Flatten(0), nn.Linear(3, 3)

        def forward(self, x):
            x = self.twice(self.block(x))
            return self.twice(self.last(x + self.total(x).sum()))

    net = Net()
    assert list(outputs_before(net, "last", lambda: net(X))) == ["block"]


def test_hooks_placed_before_an_unknown_name_are_removed(net):
    """An unknown submodule is a KeyError that leaves no hook of the names before it."""
    with pytest.raises(KeyError), patched(net, {"0": torch.zeros_like, "nowhere": torch.zeros_like}):
        pass
    assert hooks(net) == 0


def test_replaced_uses_the_new_weights_and_restores_the_old_bit_for_bit(net):
    """Weights come back exactly (no adding and subtracting), also NaN and the sign of zero, after an exception too."""
    with torch.no_grad():
        net[0].weight[0, 0] = 1e-30
        net[0].weight[0, 1] = -0.0
    before = copy.deepcopy(net.state_dict())
    large = torch.full((4, 3), 1e30)

    def block():
        with replaced(net, {"0.weight": large, "2.bias": torch.ones(2)}):
            assert torch.equal(net[0].weight, large)
            assert torch.equal(net[2].bias, torch.ones(2))
            raise Boom

    with pytest.raises(Boom):
        block()
    for name, value in net.state_dict().items():
        assert torch.equal(value.view(torch.int32), before[name].view(torch.int32))


def test_replaced_restores_when_a_value_does_not_fit(net):
    """A replacement of the wrong shape fails and takes back the ones already made."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError), replaced(net, {"0.bias": torch.ones(4), "2.bias": torch.ones(9)}):
        pass
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_replaced_keeps_parameters_and_their_gradient_flags(net):
    """The parameters are the same objects throughout, so an optimiser that holds them still does."""
    parameters = list(net.parameters())
    with replaced(net, {"0.weight": torch.zeros(4, 3)}):
        assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_replaced_rejects_an_unknown_name(net):
    """An unknown parameter is a KeyError before anything is changed."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), replaced(net, {"0.weight": torch.zeros(4, 3), "nowhere": torch.zeros(1)}):
        pass
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_frozen_computes_input_gradients_only_and_restores_each_flag(net):
    """Inside: evaluation mode, gradients of the input alone. Afterwards every mode and flag is its own old one."""
    net.train()
    net[1].eval()
    net[2].bias.requires_grad_(False)
    modes = [m.training for m in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    x = X.clone().requires_grad_()

    def block():
        with frozen(net):
            assert not any(m.training for m in net.modules())
            net(x).sum().backward()
            raise Boom

    with pytest.raises(Boom):
        block()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
