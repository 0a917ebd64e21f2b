"""Networks with hand-written gradients against autograd; the replay buffer and its checkpoints."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from erl.learners.core.replay import Batch, ReplayBuffer, smoothed
from erl.networks.captured import Captured
from erl.networks.perceptrons import Perceptrons, Shape
from erl.networks.products import bfloat16_way, narrow_product, product, rounds_to_bfloat16
from erl.networks.trained import Trained, shortening


def perceptrons(shape, n, seed=0, low=False):
    values, grads = torch.zeros(shape.size(n)), torch.full((shape.size(n),), float("nan"))
    made = Perceptrons(shape, n, values, grads, low)
    made.initialise(torch.Generator().manual_seed(seed))
    return made, values, grads


def plain(shape, layers, code, x, own):
    """One perceptron by PyTorch's operators, in double precision where its inputs are."""
    for i, layer in enumerate(layers):
        x = x @ layer.weight + layer.bias
        if i == 0 and code is not None:
            x = x + own @ code
        if i == len(shape.hidden):
            return x
        if layer.gain is not None:
            x = (
                layer.gain * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
                + layer.shift
            )
        x = torch.tanh(x) if shape.activation == "Tanh" else F.leaky_relu(x)
    return x


SHAPES = {
    "critic": Shape(5, (20, 12), 1),
    "representation": Shape(5, (20, 12), 0, activation="Tanh"),
    "encoder": Shape(5, (8, 8), 8, norm=False),
    "policy value": Shape(5, (20, 12), 1, code=8),
    "actor": Shape(5, (20, 12), 3, activation="Tanh", norm=False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_autograds(name):
    shape, n = SHAPES[name], 3
    made, values, grads = perceptrons(shape, n)
    values += 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    x, codes = torch.randn(16, 5, generator=torch.Generator().manual_seed(2)), torch.randn(n, 8)
    trace = made.forward(x, codes)
    d = torch.randn(trace.output.shape)
    by_code = made.backward(made.forward(x, codes), d.clone())
    weight_grads = grads.clone()
    by_input = made.backward(made.forward(x, codes), d.clone(), weights=False, inputs=slice(None))
    assert torch.equal(grads, weight_grads)

    flat = values.double().requires_grad_()
    xs = [x.double().requires_grad_() for _ in range(n)]
    owns = codes.double().requires_grad_()
    outputs = torch.stack(
        [
            plain(shape, layers, code, xs[k], owns[k])
            for k, (layers, code) in enumerate(made.cut(flat))
        ]
    )
    torch.testing.assert_close(trace.output.double(), outputs, rtol=1e-4, atol=1e-5)
    outputs.backward(d.double())
    torch.testing.assert_close(weight_grads.double(), flat.grad, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(by_input, xs):
        torch.testing.assert_close(mine.double(), theirs.grad, rtol=1e-3, atol=1e-4)
    if shape.code:
        torch.testing.assert_close(by_code.double(), owns.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["critic", "encoder"])
def test_the_first_of_twins_alone(name):
    made, _, _ = perceptrons(SHAPES[name], 2)
    x = torch.randn(7, 5)
    one, both = made.forward(x, first=1), made.forward(x)
    torch.testing.assert_close(one.output[0], both.output[0])
    d = torch.randn(1, *one.output.shape[1:])
    by_input = made.backward(one, d.clone(), weights=False, inputs=slice(None))
    whole = made.backward(both, d.repeat(2, 1, 1), weights=False, inputs=slice(None))
    assert len(whole) == 2
    torch.testing.assert_close(by_input, whole[:1])


@pytest.mark.parametrize("name", SHAPES)
def test_what_leaves_no_trace_gives_the_same(name):
    made, _, _ = perceptrons(SHAPES[name], 2)
    x, codes = torch.randn(6, 5), torch.randn(2, 8)
    assert torch.equal(made.forward(x, codes, keep=False).output, made.forward(x, codes).output)


@pytest.fixture(params=["this processor", "one that rounds", "one that does not"])
def processor(request, monkeypatch):
    """PyTorch's products as they are here, and as they are on a processor that rounds when it may
    and on one that never does.
    """
    rounds_to_bfloat16.cache_clear()
    if request.param != "this processor":
        way = "kernel" if request.param == "one that rounds" else "fp32"
        monkeypatch.setattr("erl.networks.products.bfloat16_way", lambda device: way)
        for name, function, first in (
            ("mm", torch.mm, 0),
            ("addmm", torch.addmm, 1),
            ("bmm", torch.bmm, 0),
            ("baddbmm", torch.baddbmm, 1),
        ):

            def multiply(*tensors, out=None, function=function, first=first):
                setting, before = (
                    torch.backends.mkldnn.matmul,
                    torch.backends.mkldnn.matmul.fp32_precision,
                )
                if before == "bf16" and request.param == "one that rounds":
                    tensors = (*tensors[:first], *(t.bfloat16().float() for t in tensors[first:]))
                setting.fp32_precision = "ieee"
                try:
                    return function(*tensors, out=out)
                finally:
                    setting.fp32_precision = before

            monkeypatch.setattr(torch, name, multiply)
    yield request.param
    rounds_to_bfloat16.cache_clear()


@pytest.mark.parametrize("stacked", [False, True])
def test_bfloat16_rounds_the_factors_of_wide_products_only(processor, stacked):
    n = (2,) if stacked else ()
    a, b, bias, out = (
        torch.randn(*n, *shape) for shape in ((150, 130), (130, 140), (1, 140), (150, 140))
    )
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    exact = a.double() @ b.double()
    rounds, converts = rounds_to_bfloat16(), False
    if processor == "this processor":
        converts = bfloat16_way() == "tensors"
    else:
        assert rounds == (processor == "one that rounds")
    for result, more in (
        (product(a, b, True), 0.0),
        (product(a, b, True, bias), bias),
        (product(a, b, True, out=out), 0.0),
        (product(a.mT.contiguous().mT, b.mT.contiguous().mT, True), 0.0),
    ):
        error = (result - more - (rounded if rounds or converts else exact)).abs()
        # Converted tensors have a rounded result.
        assert error.max() < (0.005 * exact.abs().max() if converts else 1e-4)
    few = a[..., : 95 if converts else 127, :]
    assert torch.equal(product(few, b, True), product(few, b))
    torch.testing.assert_close(product(a, b).double(), exact, rtol=1e-4, atol=1e-4)


@pytest.fixture
def precisions():
    """PyTorch's settings of the rounding of factors, the general and the special one; they are put
    back afterwards.
    """
    owners = (torch.backends, torch.backends.mkldnn.matmul)

    def read():
        return tuple(owner.fp32_precision for owner in owners)

    def write(values):
        for owner, value in zip(owners, values, strict=True):
            owner.fp32_precision = value

    write(("none", "none"))
    yield read, write
    write(("none", "none"))


@pytest.mark.parametrize(
    "values",
    [
        ("none", "none"),
        ("ieee", "none"),
        ("bf16", "none"),
        ("none", "ieee"),
        ("none", "bf16"),
        ("tf32", "ieee"),
    ],
)
def test_bfloat16_leaves_the_process_as_it_was(precisions, values, monkeypatch):
    monkeypatch.setattr("erl.networks.products.bfloat16_way", lambda device: "kernel")
    read, write = precisions
    write(values)
    before = read()
    a, out = torch.randn(130, 130), torch.empty(130, 130)
    product(a, a, True)
    assert read() == before
    with pytest.raises(RuntimeError):
        product(a, a[:129], True)
    with pytest.raises(RuntimeError):
        product(a, a, True, out=out.double())
    assert read() == before
    # What follows the general setting still does.
    for general in ("ieee", "bf16"):
        torch.backends.fp32_precision = general
        assert read()[1] == (general if values[1] == "none" else values[1])


def test_every_wide_product_of_a_low_network_is_rounded(monkeypatch):
    asked = []

    def spy(a, b, low=False, bias=None, out=None):
        asked.append((min(*a.shape[-2:], b.shape[-1]) >= 128, low))
        return product(a, b, low, bias, out)

    monkeypatch.setattr("erl.networks.products.product", spy)
    made, _, _ = perceptrons(Shape(5, (130, 130, 130), 1), 2, low=True)
    made.backward(made.forward(torch.randn(128, 5)), torch.ones(2, 128, 1))
    assert all(low for _, low in asked)
    assert sum(wide for wide, _ in asked) == 2 * (
        2 + 2 * 2
    )  # forward, and backward by weights and by inputs, of two


@pytest.mark.parametrize("norm", [True, False])
def test_bfloat16_differs_by_its_rounding(processor, norm):
    exact, values, grads = perceptrons(Shape(150, (150, 150), 1, norm=norm), 2)
    rounded_grads = torch.zeros_like(grads)
    rounded = Perceptrons(exact.shape, 2, values, rounded_grads, low=True)
    x = torch.randn(150, 150)
    (of_exact, of_rounded) = exact.forward(x), rounded.forward(x)
    difference = (of_exact.output - of_rounded.output).abs().max()
    assert difference < 0.05
    for network, trace in ((exact, of_exact), (rounded, of_rounded)):
        network.backward(trace, torch.ones_like(trace.output))
    assert F.cosine_similarity(grads, rounded_grads, 0) > 0.999
    here = processor == "this processor" and bfloat16_way() != "fp32"
    rounds = here or processor == "one that rounds"
    assert (difference > 0) == rounds
    assert torch.equal(grads, rounded_grads) != rounds


@pytest.mark.parametrize("way", ["tensors", "fp32"])
def test_bfloat16_tensors_of_members(way, monkeypatch):
    """Wide factors are converted where the processor multiplies them fast, and only there."""
    monkeypatch.setattr("erl.networks.products.bfloat16_way", lambda device: way)
    shape = Shape(40, (128, 128), 1, "ReLU", norm=False, aligned=True)
    exact, values, grads = stacked(shape, 2)
    rounded_grads = torch.zeros_like(grads.zero_())
    rounded = Perceptrons(shape, 2, values, rounded_grads, low=True)
    x = torch.randn(2, 128, 40)
    outputs = [network.forward(x) for network in (exact, rounded)]
    differ = not torch.equal(outputs[0].output, outputs[1].output)
    assert differ == (way == "tensors" or rounds_to_bfloat16())
    torch.testing.assert_close(outputs[1].output, outputs[0].output, rtol=0.05, atol=0.05)
    for network, trace in zip((exact, rounded), outputs):
        network.backward(trace, torch.ones_like(trace.output))
    assert F.cosine_similarity(grads, rounded_grads, 1).min() > 0.999
    with_bias = narrow_product(
        x.repeat(1, 1, 3), torch.randn(2, 120, 128), True, torch.ones(2, 1, 128)
    )
    assert with_bias.dtype == torch.float32


MEMBERS = {
    "critic": Shape(5, (48, 32), 1, "ReLU", norm=False, aligned=True),
    "actor": Shape(5, (40,), 6, "Tanh", norm=False, aligned=True),
    "wide output": Shape(5, (20,), 40, "LeakyReLU", norm=False, aligned=True),
    "one hidden unit": Shape(3, (1,), 2, "ReLU", norm=False, aligned=True),
    "normalised": Shape(5, (48, 32), 1, "ReLU", aligned=True),
}


def stacked(shape, n):
    """Perceptrons of n members, a row each."""
    values, grads = torch.zeros(n, shape.size()), torch.full((n, shape.size()), float("nan"))
    made = Perceptrons(shape, n, values, grads)
    for k, (layers, _) in enumerate(made.cut(values)):
        for layer in layers:
            generator = torch.Generator().manual_seed(k)
            bound = layer.weight.shape[0] ** -0.5
            for block in (layer.weight, layer.bias):
                block.copy_(torch.empty(block.shape).uniform_(-bound, bound, generator=generator))
            if layer.gain is not None:
                layer.gain.fill_(0.9)
    return made, values, grads


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_of_members_are_autograds(name, n):
    """Each member sees a batch of its own."""
    shape = MEMBERS[name]
    made, values, grads = stacked(shape, n)
    x = torch.randn(n, 33, shape.inputs)
    trace = made.forward(x)
    d = torch.randn(trace.output.shape)
    by_input = made.backward(trace, d.clone(), inputs=slice(1, None))

    flat = values.double().requires_grad_()
    xs = x.double().requires_grad_()
    activate = getattr(
        F, {"ReLU": "relu", "Tanh": "tanh", "LeakyReLU": "leaky_relu"}[shape.activation]
    )
    outputs = []
    for k, (layers, _) in enumerate(made.cut(flat)):
        h = xs[k]
        for i, layer in enumerate(layers):
            h = h @ layer.weight + layer.bias
            if layer.gain is not None:
                normalised = (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-6)
                h = layer.gain * normalised + layer.shift
            h = activate(h) if i < len(shape.hidden) else h
        outputs.append(h)
    outputs = torch.stack(outputs)
    torch.testing.assert_close(trace.output.double(), outputs, rtol=1e-4, atol=1e-5)
    outputs.backward(d.double())
    torch.testing.assert_close(by_input.double(), xs.grad[..., 1:], rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(made.cut(grads), made.cut(flat.grad)):
        for layer, wanted in zip(mine[0], theirs[0]):
            torch.testing.assert_close(layer.weight.double(), wanted.weight, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(layer.bias.double(), wanted.bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "Tanh"])
def test_rows_that_go_back_through_one_perceptron_each(activation, large, monkeypatch):
    """Two groups of three, one of which no row goes through."""
    monkeypatch.setattr("erl.networks.perceptrons._LARGE", 0 if large else 1 << 30)
    made, values, _ = stacked(Shape(5, (48, 32), 1, activation, norm=False, aligned=True), 6)
    x, which = torch.randn(6, 40, 5), torch.randint(3, (2, 40, 1))
    which[1][which[1] == 1] = 0
    by_input = made.backward_through(made.forward(x), which, -0.5, slice(2, None))

    xs = x.double().requires_grad_()
    activate = {"ReLU": torch.relu, "Tanh": torch.tanh}[activation]
    outputs = []
    for h, (layers, _) in zip(xs, made.cut(values.double())):
        for layer in layers[:-1]:
            h = activate(h @ layer.weight + layer.bias)
        outputs.append(h @ layers[-1].weight + layers[-1].bias)
    q_values = torch.stack(outputs).view(2, 3, 40, 1)
    (-0.5 * q_values.gather(1, which.unsqueeze(1))).sum().backward()
    wanted = xs.grad.view(2, 3, 40, 5).sum(1)[..., 2:]
    torch.testing.assert_close(by_input.double(), wanted, rtol=1e-4, atol=1e-6)


def test_initialisation_is_torchs():
    """The same bounds as `torch.nn.Linear`, the code's columns counted among the inputs."""
    made, _, _ = perceptrons(Shape(100, (400, 300), 1, code=44), 2)
    for layers, code in made.members:
        for block, inputs in (
            (layers[0].weight, 144),
            (code, 144),
            (layers[1].weight, 400),
            (layers[2].weight, 300),
        ):
            bound = inputs**-0.5
            assert 0.95 * bound < block.abs().max() <= bound
            assert abs(block.mean()) < 0.1 * bound
        assert (layers[0].gain == 1).all()
        assert (layers[0].shift == 0).all()


def test_adam_with_clipping_is_torchs():
    """A row each: one has its own rate, one begins afresh, one stays where it is."""
    mine = Trained(4, 50, rate=0.01, max_norm=1.0, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    mine.values.copy_(torch.randn(4, 50))
    mine.alike = False
    mine.set_rates([0.01, 0.02, 0.01, 0.01])
    before = mine.values.clone()

    def adam(parameter, rate):
        return torch.optim.Adam([parameter], rate, (0.8, 0.99), 1e-6, weight_decay=0.1)

    theirs = [torch.nn.Parameter(row.clone()) for row in mine.values]
    adams = [adam(p, rate) for p, rate in zip(theirs, mine.rates)]
    for step, scale in enumerate((0.01, 1.0, 100.0, 1.0)):
        grad = scale * torch.randn(4, 50)
        mine.grads.copy_(grad)
        if step == 2:
            mine.reset(1)
            adams[1] = adam(theirs[1], 0.02)
        norms = mine.step(0, 3)
        for i in range(3):
            theirs[i].grad = grad[i].clone()
            norm = torch.nn.utils.clip_grad_norm_([theirs[i]], 1.0)
            # A GPU multiplies by this whatever the norm.
            torch.testing.assert_close(grad[i] * shortening(norm, 1.0), theirs[i].grad)
            torch.testing.assert_close(norms[i], norm)
            adams[i].step()
            torch.testing.assert_close(mine.values[i], theirs[i].data, rtol=1e-6, atol=1e-7)
    assert torch.equal(mine.values[3], before[3])
    assert [mine.moments(i)["step"].item() for i in range(4)] == [4.0, 2.0, 4.0, 0.0]
    expected = [t.clone() for t in mine.moments(2).values()]
    mine.keep([2, 0])
    assert mine.rates == [0.01, 0.01]
    assert all(map(torch.equal, mine.moments(0).values(), expected))


def test_targets_follow_and_states_come_back():
    one, two = Trained(2, 4), Trained(2, 4)
    one.values.fill_(1.0)
    for network in (one, two):
        network.follow([0.25] * 2)
    assert one.target.tolist() == [[0.25] * 4] * 2
    assert two.target.tolist() == [[0.0] * 4] * 2
    two.values.fill_(2.0)
    two.follow([0.5, 0.25])
    assert two.target.tolist() == [[1.0] * 4, [0.5] * 4]
    one.grads.fill_(1.0)
    one.step()
    two.set_state(one.get_state())
    three = Trained(1, 4)
    three.set_state(one.get_state(1), 0)
    for network in (one, two, three):
        network.grads.fill_(0.5)
        network.step()
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.target, two.target)
    assert torch.equal(one.values[1], three.values[0])


def test_targets_by_hand():
    rows = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    batch, values = Batch(rows, rows.clone(), 1, 1), torch.tensor([[8.0], [10.0]])
    # 1 + 0.5 * 8, and nothing after an end.
    assert batch.targets(values, 0.5).tolist() == [[5.0], [1.0]]
    assert batch.targets(values, torch.full((1, 1), 0.5)).tolist() == [[5.0], [1.0]]
    assert batch.next_pairs(torch.ones(2, 1)).tolist() == [[0.0, 1.0]] * 2
    assert batch.pairs_with(torch.ones(2, 1)).tolist() == [[0.0, 1.0]] * 2


def test_smoothing_is_clipped_twice():
    actions = torch.tensor([[0.0, 0.9, -0.9, 0.0]])
    noise = torch.tensor([[10.0, 1.0, -10.0, 1.0]])
    assert smoothed(actions, noise, 0.2).tolist() == [[0.5, 1.0, -1.0, pytest.approx(0.2)]]
    assert torch.equal(smoothed(actions, noise, 0.0), actions)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_captured_calls_are_calls(device):
    state, calls = torch.zeros(3, device=device), []

    def function(key, x, y):
        calls.append(key)
        state.add_(x if key == "add" else -x)
        return {"sum": state.sum() if y is None else (state * y).sum()}

    captured = Captured(function, device)
    expected = torch.zeros(3)
    for k in range(12):
        key, x = ("add", "take")[k % 3 == 0], torch.full((3,), float(k))
        y = torch.arange(3.0) if key == "add" else None
        expected += x if key == "add" else -x
        result = captured(key, x.to(device), None if y is None else y.to(device))["sum"]
        assert result.item() == (expected.sum() if y is None else (expected * y).sum()).item()
    assert state.tolist() == expected.tolist()
    assert len(calls) == (12 if device == "cpu" else 8)


def rows(begin, end):
    """Transitions that tell their number."""
    t = np.arange(begin, end, dtype=float)
    return t[:, None] * [1.0, 2.0], t[:, None] / 1000, t[:, None] * [3.0, 4.0], t, t % 2 == 0


def held(buffer):
    """Everything that a buffer says of its transitions."""
    b = buffer.batch(torch.arange(len(buffer)))
    return torch.cat([b.pairs, b.next_observations, b.rewards, b.not_done], 1)


def numbers(buffer):
    return sorted(buffer.batch(torch.arange(len(buffer))).rewards[:, 0].tolist())


def test_buffer_keeps_the_latest():
    buffer = ReplayBuffer(10, 2, 1)
    for begin, end in ((0, 4), (4, 13), (13, 14)):
        buffer.add(*rows(begin, end))
        assert len(buffer) == min(end, 10)
        assert numbers(buffer) == list(range(max(0, end - 10), end))
    b = buffer.batch(torch.tensor([2]))
    assert b.observations.tolist() == [[12.0, 24.0]]
    assert b.actions.tolist() == [[pytest.approx(0.012)]]
    assert b.next_observations.tolist() == [[36.0, 48.0]]
    assert (b.rewards.item(), b.not_done.item()) == (12.0, 0.0)
    # An episode may be longer than the buffer.
    for begin, end in ((14, 39), (39, 41)):
        buffer.add(*rows(begin, end))
        assert numbers(buffer) == list(range(end - 10, end))


def test_the_one_member_is_sampled_as_all_are():
    buffer, places = ReplayBuffer(10, 2, 1), torch.tensor([[0, 4, 2]])
    buffer.add(*rows(0, 5))
    one, all_of_them = buffer.batch(places[0]), buffer.batches(places)
    for name in ("observations", "actions", "next_observations", "rewards", "not_done"):
        assert torch.equal(getattr(one, name), getattr(all_of_them, name)[0])


def test_buffer_goes_on_from_any_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("erl.learners.core.replay._SEGMENT_BYTES", 4 * 5 * 3)  # three rows
    buffer, folder, states = ReplayBuffer(10, 2, 1), tmp_path / "buffer", []
    for begin, end in ((0, 2), (2, 8), (8, 9), (9, 19), (19, 32)):
        for t in range(begin, end):
            buffer.add(*rows(t, t + 1))
        before = {p.name: p.read_bytes() for p in folder.glob("*")} if folder.exists() else {}
        states.append((buffer.save(folder), held(buffer)))
        # Whatever an earlier state needs is untouched until the new one is safe.
        assert all((folder / name).read_bytes() == content for name, content in before.items())
        for k, (state, now) in enumerate(states[-2:]):
            again, there = ReplayBuffer(10, 2, 1), tmp_path / f"{end}-{k}"
            shutil.copytree(folder, there)
            again.load(there, state)
            assert {p.name for p in there.glob("*")} == set(
                state["files"]
            )  # those of later states are gone
            assert again.added == state["added"]
            assert torch.equal(held(again), now)
        ReplayBuffer.tidy(folder, states[-1][0])
        assert len(list(folder.glob("*"))) <= 5
    whole = next(folder.glob("*.npy"))
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(ValueError):  # noqa: PT011
        ReplayBuffer(10, 2, 1).load(folder, states[-1][0])
