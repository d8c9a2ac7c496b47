"""Which adapters a served base takes: those of low rank, trained on it and under its correction."""

from dataclasses import replace

import pytest
import torch

from fl.core.errors import AdapterError, AdapterMismatchError
from fl.packed.blob import PackedInfo, pack, unpack
from fl.serving.engine.adapters import admit
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.engine.requests import Request, ServedAdapter

LAYER = "base_model.model.model.decoder.layers.0.encoder_attn.v_proj"


@pytest.fixture
def corrected_base(nano):
    return nano.with_correction({LAYER: torch.randn(64, 64, generator=torch.Generator().manual_seed(7))})


def packed(adapter: ServedAdapter, fingerprint: str, **config: object) -> bytes:

    info = adapter.info
    values = {key: value for key, value in info.config.to_dict().items() if not isinstance(value, set)}
    return pack(
        {name: tensor.numpy() for name, tensor in adapter.tensors.items()},
        PackedInfo(
            base_name=info.base_name,
            base_fingerprint=fingerprint,
            split=info.split,
            tokenizer="",
            window=info.window,
            language=info.language,
            config={**values, "peft_type": "GATED_LORA", **config},
            dtype="float16",
        ),
    )


def test_an_adapter_is_admitted_under_the_correction_that_it_names(nano, corrected_base, served) -> None:
    mine = packed(served(1), corrected_base.fingerprint)
    assert admit(mine, corrected_base).info.base_fingerprint == corrected_base.fingerprint
    with pytest.raises(AdapterMismatchError, match=r"made for correction [0-9a-f]{16}, and this base has no corr"):
        admit(mine, nano)
    with pytest.raises(AdapterMismatchError, match="made for no correction, and this base has correction"):
        admit(packed(served(1), nano.fingerprint), corrected_base)


def test_the_engine_decodes_on_a_corrected_base(nano, corrected_base, served, speech, finish) -> None:
    adapter = served(3)
    own = replace(adapter, info=replace(adapter.info, base_fingerprint=corrected_base.fingerprint))
    found = {}
    for base, one in ((nano, adapter), (corrected_base, own)):
        engine = BatchEngine(base, EngineSettings(rows=2), start=False)
        found[base.fingerprint] = finish(engine, [engine.submit(Request(speech(1.2, 3), one))])[0].tokens
    assert found[nano.fingerprint] != found[corrected_base.fingerprint]
    with pytest.raises(AdapterMismatchError, match="this base has no correction"):
        BatchEngine(nano, EngineSettings(rows=2), start=False).submit(Request(speech(1.2, 3), own))


def test_a_method_that_is_not_of_low_rank_is_refused_with_the_reason(nano, served) -> None:
    data = packed(served(1), nano.fingerprint, method="prefix", idiolect_method=1)
    assert unpack(data)[1].config["method"] == "prefix"
    with pytest.raises(
        AdapterError, match=r"'prefix': only low-rank adapters are rows of a batch.*transcribe --adapter"
    ):
        admit(data, nano)


@pytest.mark.parametrize("change", [{"r": 0}, {"r": "8"}, {"gate": "revolving"}, {"lora_alpha": [1]}], ids=str)
def test_an_impossible_configuration_is_refused(nano, served, change) -> None:
    with pytest.raises(AdapterError, match="configuration is not one"):
        admit(packed(served(1), nano.fingerprint, **change), nano)
