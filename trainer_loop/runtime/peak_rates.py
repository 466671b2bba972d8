"""Peak computing rates of GPUs. A GPU that is not in the table has no rate; none is estimated.

Rates are for dense matrix products with fp32 accumulation at the boost clock, in 10^12 floating-point operations per
second, from the data sheets of NVIDIA and AMD. If a sheet has only the rate of sparse products, half of it is used.
"""

import re

import torch

# torch's device name without the words of `_IGNORED_WORDS` -> rates in fp16, bf16, TF32 and fp32.
_RATES: dict[str, tuple[float | None, float | None, float | None, float | None]] = {
    "V100 SXM2": (125, None, None, 15.7),
    "V100 PCIE": (112, None, None, 14),
    "V100S PCIE": (130, None, None, 16.4),
    "T4": (65, None, None, 8.1),
    "A10": (125, 125, 62.5, 31.2),
    "A30": (165, 165, 82, 10.3),
    "A40": (149.7, 149.7, 74.8, 37.4),
    "A100 SXM4": (312, 312, 156, 19.5),
    "A100 PCIE": (312, 312, 156, 19.5),
    "L4": (121, 121, 60, 30.3),
    "L40": (181.05, 181.05, 90.5, 90.5),
    "L40S": (362.05, 362.05, 183, 91.6),
    "H100 HBM3": (989.4, 989.4, 494.7, 67),
    "H100 PCIE": (756, 756, 378, 51),
    "H100 NVL": (835.5, 835.5, 417.5, 60),
    "H200": (989.4, 989.4, 494.7, 67),
    "H200 NVL": (835.5, 835.5, 417.5, 60),
    "GH200": (989.4, 989.4, 494.7, 67),
    "B200": (2250, 2250, 1125, 75),
    "MI300X": (1307.4, 1307.4, None, None),
}
_IGNORED_WORDS = re.compile(r"NVIDIA|AMD|TESLA|GEFORCE|INSTINCT|[0-9]+GB")  # of a device name
_BEFORE_TF32 = ("V100 SXM2", "V100 PCIE", "V100S PCIE", "T4")


def find_peak_rate(device_name: str, dtype: torch.dtype, *, tf32: bool) -> float | None:
    """Return the peak rate for matrix products of this type, in floating-point operations per second; None: unknown.

    Args:
        device_name: name from `torch.cuda.get_device_name`.
        tf32: TF32 is used for fp32 if the device has it.

    >>> find_peak_rate("NVIDIA A100-SXM4-80GB", torch.bfloat16, tf32=True)
    312000000000000.0
    >>> find_peak_rate("NVIDIA A100-SXM4-80GB MIG 1g.10gb", torch.bfloat16, tf32=True)
    """
    words = re.findall(r"[A-Z0-9]+", device_name.upper())
    name = " ".join(word for word in words if not _IGNORED_WORDS.fullmatch(word))
    fp16, bf16, with_tf32, fp32 = _RATES.get(name, (None, None, None, None))
    if tf32 and name not in _BEFORE_TF32:
        fp32 = with_tf32
    rate = {torch.float16: fp16, torch.bfloat16: bf16, torch.float32: fp32}.get(dtype)
    return None if rate is None else rate * 1e12
