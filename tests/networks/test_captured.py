"""What is recorded and replayed on a GPU, with a stand-in for its graphs on the CPU."""

from contextlib import contextmanager

import pytest
import torch

from erl.networks.captured import Captured


class Work:
    """A function of two courses, and a stand-in for CUDA graphs that replays its calls on the
    tensors of then.
    """

    def __init__(self):
        self.calls, self.recorded, self.replayed = [], [], 0

    def __call__(self, key, x, y):
        result = {"sum": key * x + (0 if y is None else y)}
        self.calls.append((key, x, y, result))
        return result

    @contextmanager
    def graph(self, graph):
        before = len(self.calls)
        yield
        [graph.call] = self.calls[before:]
        self.recorded.append(graph)

    def new_graph(self):
        work = self

        class Graph:
            def replay(self):
                work.replayed += 1
                *given, result = self.call
                result["sum"].copy_(work(*given)["sum"])

        return Graph()


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", work.new_graph)
    monkeypatch.setattr(torch.cuda, "graph", work.graph)
    return work


@pytest.mark.parametrize("with_y", [True, False])
def test_a_course_that_was_recorded_works_on_what_it_is_given_now(work, with_y):
    run = Captured(work, "cpu")
    run._graphed = True
    generator, given = torch.Generator().manual_seed(0), []
    for k in range(16):
        key = 1 + k % 2
        x, y = (torch.randn(3, generator=generator) for _ in range(2))
        given.append((x, x.clone()))
        expected = key * x + (y if with_y else 0)
        torch.testing.assert_close(run(key, x, y if with_y else None)["sum"], expected)
    assert all(torch.equal(x, then) for x, then in given)
    assert len(work.recorded) == 2  # once for each course
    assert work.replayed == 16 - 2 * Captured._WARM


def test_elsewhere_than_on_a_gpu_nothing_is_recorded(work):
    run = Captured(work, "cpu")
    for _ in range(2 * Captured._WARM):
        run(1, torch.ones(1), None)
    assert len(work.calls) == 2 * Captured._WARM
    assert not work.recorded
