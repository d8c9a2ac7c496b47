import numpy as np
import pytest
import torch

from fl.bases.sources.ctranslate2 import parse, whisper_tensors
from fl.core.errors import BaseModelError


def converted(path, model):
    path.write_bytes(model.to_bytes())
    return whisper_tensors(parse(path), "test")


def test_every_tensor_gets_its_own_rows_of_the_fused_ones(tmp_path, ct2_model, nano):
    tensors = converted(tmp_path / "model.bin", ct2_model)
    expected = {name: value for name, value in nano.model.state_dict().items() if name != "proj_out.weight"}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(torch.from_numpy(tensors[name]), value) for name, value in expected.items())


def test_half_precision_becomes_float32(tmp_path, ct2_model, nano):
    ct2_model.variables = {
        name: value.astype("<f2") if value.dtype == np.float32 else value for name, value in ct2_model.variables.items()
    }
    tensors = converted(tmp_path / "model.bin", ct2_model)
    name = "model.encoder.layers.1.fc1.weight"
    assert tensors[name].dtype == np.float32
    np.testing.assert_array_equal(tensors[name], nano.model.state_dict()[name].half().float().numpy())


@pytest.mark.parametrize("per_row", [True, False])
def test_integer_weights_are_divided_by_their_scales(tmp_path, ct2_model, nano, per_row):
    name = "encoder/layer_0/ffn/linear_0/weight"
    weight = ct2_model.variables[name]
    peak = np.abs(weight).max(axis=1) if per_row else np.abs(weight).max().reshape(1)
    scale = (127 / peak).astype(np.float32)
    ct2_model.variables[name] = np.round(weight * scale.reshape(-1, 1)).astype("i1")
    ct2_model.variables[f"{name}_scale"] = scale
    tensors = converted(tmp_path / "model.bin", ct2_model)
    error = np.abs(tensors["model.encoder.layers.0.fc1.weight"] - weight).max()
    assert error <= (0.51 / scale).max()


def test_integer_weights_without_scales_are_refused(tmp_path, ct2_model):
    name = "encoder/layer_0/ffn/linear_0/weight"
    ct2_model.variables[name] = ct2_model.variables[name].astype("i1")
    with pytest.raises(BaseModelError, match="weight_scale"):
        converted(tmp_path / "model.bin", ct2_model)


def test_a_bias_on_the_keys_is_refused(tmp_path, ct2_model):
    bias = ct2_model.variables["encoder/layer_0/self_attention/linear_0/bias"].copy()
    bias[64] = 1.0  # d_model is 64: the first key
    ct2_model.variables["encoder/layer_0/self_attention/linear_0/bias"] = bias
    with pytest.raises(BaseModelError, match="bias on its keys"):
        converted(tmp_path / "model.bin", ct2_model)


def test_a_missing_variable_is_named(tmp_path, ct2_model):
    del ct2_model.variables["encoder/conv2/bias"]
    with pytest.raises(BaseModelError, match="encoder/conv2/bias"):
        converted(tmp_path / "model.bin", ct2_model)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.999999])
def test_a_file_cut_anywhere_is_refused(tmp_path, ct2_model, share):
    data = ct2_model.to_bytes()
    path = tmp_path / "model.bin"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BaseModelError, match=r"model\.bin"):
        parse(path)


@pytest.mark.parametrize(
    ("field", "value"), [("version", 5), ("spec", "TransformerSpec"), ("aliases", {"a": "nothing"})]
)
def test_another_format_is_refused(tmp_path, ct2_model, field, value):
    setattr(ct2_model, field, value)
    with pytest.raises(BaseModelError, match="not a readable CTranslate2 model"):
        converted(tmp_path / "model.bin", ct2_model)


def test_a_shape_larger_than_the_file_is_refused_before_it_is_allocated(tmp_path, ct2_model):
    data = bytearray(ct2_model.to_bytes())
    at = data.index(b"encoder/conv1/weight\0") + len(b"encoder/conv1/weight\0") + 1
    data[at : at + 4] = (2**32 - 1).to_bytes(4, "little")
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(BaseModelError, match="bytes, which is not"):
        parse(path)
