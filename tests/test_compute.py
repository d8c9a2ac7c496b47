import pytest
import torch

from fl.core import compute, machine
from fl.core.compute import autocast, choose_device, choose_precision, dtype_of
from fl.core.errors import ConfigError


def test_without_a_gpu_everything_is_on_the_cpu_in_single_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert dtype_of("auto", torch.device("cpu")) is torch.float32


def test_a_gpu_that_is_there_is_taken_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use auto or cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("supported", [True, False])
def test_auto_is_bf16_where_products_are_faster_in_it(monkeypatch, supported):
    chosen = "bf16" if supported else "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose_precision("auto", torch.device("cuda", 0)) == chosen
    monkeypatch.setattr(compute, "has_matrix_tiles", lambda: supported)
    assert choose_precision("auto", torch.device("cpu")) == chosen
    for name in ("float32", "bf16"):  # what was asked for is what there is, slow or not
        assert choose_precision(name, torch.device("cpu")) == name


def test_tiles_are_asked_of_the_processor(monkeypatch, tmp_path):
    for flags, tiles in (("avx512_bf16 amx_tile amx_bf16 amx_int8", True), ("avx512_bf16", False)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: X\nflags\t\t: fpu {flags}\n")
        monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
        assert machine.has_matrix_tiles() is tiles


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="auto, float32, bf16"):
        dtype_of("fp16", torch.device("cpu"))


def test_weights_that_are_trained_stay_float32_and_only_their_products_are_not():
    weight = torch.ones(2, 2, requires_grad=True)
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            product = torch.ones(2, 2) @ weight
        assert product.dtype is dtype
        product.sum().backward()
        assert weight.grad.dtype is torch.float32
