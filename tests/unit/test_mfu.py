"""How much of a device a run uses: rates by the names of GPUs, and what stands in metrics.jsonl."""

import pytest
import torch

from trainer_loop.data.sample_microbatches import find_typical
from trainer_loop.runtime.peak_rates import find_peak_rate

HALF = torch.bfloat16


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "wanted"),
    [
        ("NVIDIA A100-SXM4-40GB", HALF, True, 312e12),
        ("NVIDIA A100 80GB PCIe", torch.float32, True, 156e12),
        ("NVIDIA A100 80GB PCIe", torch.float32, False, 19.5e12),
        ("NVIDIA H100 80GB HBM3", HALF, True, 989.4e12),
        ("NVIDIA H100 PCIe", torch.float16, True, 756e12),
        ("NVIDIA H200", HALF, True, 989.4e12),
        ("NVIDIA GH200 480GB", HALF, True, 989.4e12),
        ("Tesla V100-SXM2-16GB", torch.float16, True, 125e12),
        ("Tesla V100-SXM2-16GB", torch.float32, True, 15.7e12),
        ("AMD Instinct MI300X", HALF, False, 1307.4e12),
        # None is guessed.
        ("Tesla V100-SXM2-16GB", HALF, True, None),
        ("AMD Instinct MI300X", torch.float32, True, None),
        ("NVIDIA A100", torch.float64, False, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", HALF, True, None),
        ("NVIDIA A100-SXM-64GB", HALF, True, None),
        ("NVIDIA A10G", HALF, True, None),
        ("NVIDIA GeForce RTX 4090", HALF, True, None),
        ("", HALF, True, None),
    ],
)
def test_a_rate_is_that_of_the_very_device_or_none(name, dtype, tf32, wanted):
    assert find_peak_rate(name, dtype, tf32=tf32) == (wanted if wanted is None else pytest.approx(wanted))


def test_work_per_token_of_the_typical_row_is_that_of_all_rows():
    lengths = torch.randint(1, 512, (5000,), generator=torch.Generator().manual_seed(0)).numpy()
    place = find_typical(lengths)

    def work(tokens):
        return 3.0 * tokens + 0.01 * tokens**2

    assert work(lengths[place]) / lengths[place] == pytest.approx(work(lengths).sum() / lengths.sum(), rel=1e-2)
