"""Tensors in parts: any part that is read equals that of the whole tensor."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from trainer_loop.record.checkpoint_files import INDEX, part_name
from trainer_loop.record.checkpoint_parts import CheckpointReader
from trainer_loop.record.run_dir import write_json


def write_parts(directory, tensors, *, num_parts, whole=None):
    """Write tensors `{name: tensor}` as `num_parts` processes do, cut as `fully_shard` cuts them."""
    for index in range(num_parts):
        part = {}
        for name, tensor in tensors.items():
            chunks = tensor.chunk(num_parts)
            if index < len(chunks):
                part[name] = chunks[index].contiguous()
        save_file(part | (whole or {} if index == 0 else {}), directory / part_name(index, num_parts))
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    write_json(directory / INDEX, {"num_parts": num_parts, "shapes": shapes})


@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 20),
    num_parts=st.integers(1, 9),
    saved_by_more=st.integers(1, 9),
    columns=st.lists(st.integers(1, 3), max_size=2),
)
def test_every_layout_reads_the_parts_of_another(num_rows, num_parts, saved_by_more, columns, tmp_path_factory):
    directory = tmp_path_factory.mktemp("parts")
    tensor = torch.arange(num_rows * int(torch.tensor(columns or [1]).prod())).view(num_rows, *columns)
    write_parts(directory, {"model.safetensors/a.b": tensor}, num_parts=saved_by_more)
    stored = CheckpointReader(directory).tensors("model.safetensors")["a.b"]
    assert stored.shape == tensor.shape
    assert torch.equal(stored[...], tensor)
    begin = 0
    for chunk in tensor.chunk(num_parts):
        place = (slice(begin, begin + len(chunk)), *(slice(None) for _ in columns))
        assert torch.equal(stored[place], chunk)
        begin += len(chunk)
    assert stored[(slice(num_rows, num_rows), *(slice(None) for _ in columns))].shape == (0, *columns)


def test_states_get_their_tensors_back_and_the_first_part_has_unsharded_values(tmp_path):
    moment = torch.arange(10.0).view(5, 2)
    name = "optimizer.bin/state/0/exp_avg"
    write_parts(tmp_path, {name: moment}, num_parts=2, whole={"model.safetensors/mean": torch.tensor(7)})
    state = {"state": {0: {"exp_avg": {"tensor of the parts": name}, "step": torch.tensor(3.0)}}, "param_groups": []}
    torch.save(state, tmp_path / "optimizer.bin")
    reader = CheckpointReader(tmp_path)
    assert {name: tensor[...].item() for name, tensor in reader.tensors("model.safetensors").items()} == {"mean": 7}
    assert reader.tensors("averages.safetensors") == {}
    whole = reader.load_whole("optimizer.bin")
    assert torch.equal(whole["state"][0]["exp_avg"], moment)
    assert whole["state"][0]["step"] == 3
    whole["state"][0]["exp_avg"].zero_()
    assert torch.equal(reader.load_whole("optimizer.bin")["state"][0]["exp_avg"], moment), "a copy"


def test_only_files_with_the_requested_rows_are_opened(tmp_path):
    write_parts(tmp_path, {"averages.safetensors/a": torch.arange(12.0)}, num_parts=6)
    for index in (1, 4, 5):
        (tmp_path / part_name(index, 6)).unlink()
    stored = CheckpointReader(tmp_path).tensors("averages.safetensors")["a"]
    assert stored[(slice(5, 8),)].tolist() == [5, 6, 7]
