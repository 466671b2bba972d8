import sysconfig

import pytest
import tiny
import torch

from trainer_loop import UserError
from trainer_loop.runtime import compiler
from trainer_loop.runtime.compiler import check_compiler, compile_layers, compile_model


class CountingBackend:
    """Runs graphs as they are, and counts them."""

    def __init__(self):
        self.num_graphs = 0

    def __call__(self, graph, example_inputs):
        self.num_graphs += 1
        return graph


@pytest.mark.usefixtures("own_dynamo")
@pytest.mark.parametrize("name", ["sequence_classification", pytest.param("causal_lm", marks=pytest.mark.slow)])
def test_the_number_of_graphs_does_not_grow_with_the_lengths_that_are_seen(name):
    model, backend, task = tiny.make_model(name), CountingBackend(), tiny.make_task(name)
    task.bind(tiny.make_tokenizer())
    compile_model(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(steps: range) -> None:
        for step in steps:
            rows = tiny.make_rows(1 + step % 5, seed=step, shortest=1, longest=60, labelled=name != "causal_lm")
            batch = task.collate(rows)
            task.loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 3 == 0:
                model.eval()
                with torch.no_grad():
                    task.loss_and_predict(model, batch)
                model.train()

    train(range(30))
    after_30 = backend.num_graphs
    assert 1 <= after_30 <= 8
    train(range(30, 45))
    assert backend.num_graphs == after_30


@pytest.mark.usefixtures("own_dynamo")
def test_names_of_weights_stay_and_another_model_loads_them():
    model = tiny.make_bert()
    names = list(model.state_dict())
    compile_model(model, backend=CountingBackend())
    assert list(model.state_dict()) == names
    tiny.make_bert(seed=1).load_state_dict(model.state_dict())


@pytest.mark.usefixtures("own_dynamo")
def test_a_model_that_needs_ever_more_graphs_is_told_of_and_not_run_uncompiled(monkeypatch, caplog):
    class Whimsical(torch.nn.Linear):
        mood = 0

        def forward(self, input):
            return super().forward(input) + self.mood

    monkeypatch.setattr(compiler, "_MOST_GRAPHS", 3)
    model = Whimsical(2, 2)
    compile_model(model, backend=CountingBackend())
    for model.mood in range(3):
        model(torch.ones(4, 2))
    model.mood = 3
    with pytest.raises(UserError, match=r"Whimsical was compiled 3 times.*set model.compile=false"):
        model(torch.ones(4, 2))
    assert "self.mood" in caplog.text


@pytest.mark.usefixtures("own_dynamo")
def test_layers_share_their_graphs_and_have_as_many_as_models_if_they_differ(monkeypatch):
    class Layer(torch.nn.Linear):
        position = 0

        def forward(self, input):
            return super().forward(input) + self.position

    monkeypatch.setattr(compiler, "_MOST_GRAPHS", 2)
    alike, unlike = ([Layer(2, 2) for _ in range(3)] for _ in range(2))
    for position, layer in enumerate(unlike):
        layer.position = position
    for layers, num_graphs in ((alike, 1), (unlike, 3)):
        torch._dynamo.reset()
        backend = CountingBackend()
        compile_layers(layers, backend=backend)
        for layer in layers:
            for num_rows in (4, 5, 9):
                rows = torch.ones(num_rows, 2)
                torch.testing.assert_close(layer(rows), rows @ layer.weight.T + layer.bias + layer.position)
        assert backend.num_graphs == num_graphs


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch, tmp_path):
    check_compiler("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no C\+\+ compiler no-such-compiler.*model.compile=false"):
        check_compiler("cpu")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install g"):
        check_compiler("cpu")


def test_missing_headers_and_a_missing_triton_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton"):
        check_compiler("cuda")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="python3-dev"):
        check_compiler("cpu")
