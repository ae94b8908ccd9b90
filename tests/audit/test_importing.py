"""A published pickle is rebuilt here in its own format: persistent objects that carry source text, by name only."""

import collections
import math
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mi_audit.audit.importing import import_generator
from mi_audit.core.errors import TargetError
from mi_audit.priors.stylegan2 import StyleGAN2
from mi_audit.store.stylegan2_pickle import NVIDIA, UNKNOWN, read_generator
from mi_audit.store.weights import read_header, read_weights
from tests.nn.test_stylegan2 import TINY, arrays, generator, picture

SOURCE = "# Copyright (c) NVIDIA CORPORATION\nimport os\nos.mkdir('ran')\nraise SystemExit('the source was run')\n"
OUTER = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the published reader was called")


class EasyDict(dict):
    pass


@pytest.fixture
def dnnlib(monkeypatch):
    """Modules under the published names, so that pickles name them."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util.EasyDict = EasyDict
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    for name, module in (("torch_utils.persistence", persistence), ("dnnlib.util", util)):
        monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)


class Persistent:
    """Pickled like a decorated module: a call by name, with source and state as the argument."""

    def __init__(self, name, source=SOURCE, parameters=(), buffers=(), modules=(), **arguments):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name}
        self.meta["state"] = {
            "training": False,
            "_parameters": collections.OrderedDict((k, nn.Parameter(v, requires_grad=False)) for k, v in parameters),
            "_buffers": collections.OrderedDict(buffers),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": collections.OrderedDict(),
            "_modules": collections.OrderedDict(modules),
            "_init_args": (),
            "_init_kwargs": EasyDict(arguments),
            "weight_gain": np.float64(0.25),
        }

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def linear(state, prefix):
    return Persistent("FullyConnectedLayer", parameters=[(k, state[f"{prefix}.{k}"]) for k in ("weight", "bias")])


def conv(state, prefix, colour=False):
    parameters = [("weight", state[f"{prefix}.weight"]), ("bias", state[f"{prefix}.bias"])]
    buffers = []
    if not colour:
        parameters.append(("noise_strength", state[f"{prefix}.strength"]))
        buffers = [("resample_filter", OUTER.clone()), ("noise_const", state[f"{prefix}.noise"])]
    affine = linear(state, f"{prefix}.style")
    return Persistent("Layer", parameters=parameters, buffers=buffers, modules=[("affine", affine)])


def published(shape=TINY, clamp=None, source=SOURCE, rename=(None, None), flat=False, endless=False, **settings):
    """G_ema as the published code stores it, from the random weights of `generator`; blocks may be renamed or left out.

    A `flat` one has a number where a matrix belongs, an `endless` one is among its own parts.
    """
    state = {name: tensor.float() for name, tensor in generator(shape).state_dict().items()}
    if flat:
        state["mapping.layers.0.weight"] = torch.ones(())
    mapping = Persistent(
        "MappingNetwork",
        buffers=[("w_avg", state["mapping.average"])],
        modules=[(f"fc{i}", linear(state, f"mapping.layers.{i}")) for i in range(shape.depth)],
    )
    blocks = []
    for place in range(len(shape.widths)):
        own = f"blocks.{place}"
        layers = [("conv1", conv(state, f"{own}.refine")), ("torgb", conv(state, f"{own}.colour", colour=True))]
        const = [("const", state[f"{own}.start"])] if place == 0 else []
        if place:
            layers.insert(0, ("conv0", conv(state, f"{own}.grow")))
        block = Persistent("Block", parameters=const, buffers=[("resample_filter", OUTER.clone())], modules=layers)
        old, new = rename
        if (name := f"b{4 << place}") != old or new is not None:
            blocks.append((new if name == old else name, block))
    arguments = {"z_dim": 5, "c_dim": 0, "w_dim": 4, "img_resolution": 32, "img_channels": 3}
    arguments["synthesis_kwargs"] = EasyDict(channel_base=128, conv_clamp=clamp)
    synthesis = Persistent("SynthesisNetwork", modules=blocks)
    modules = [("synthesis", synthesis), ("mapping", mapping)]
    if endless:
        inner, outer = Persistent("Block"), Persistent("Block")
        parts = outer.meta["state"]["_modules"] = inner.meta["state"]["_modules"]
        parts["again"] = inner
        modules.append(("own", outer))
    return Persistent("Generator", source, modules=modules, **arguments | settings)


def written(path: Path, protocol=4, **more):
    content = {"training_set_kwargs": EasyDict(path="x"), "G_ema": published(**more), "augment_pipe": None}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_imported_generator_paints_what_the_published_equations_say(dnnlib, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    facts = import_generator(written(tmp_path / "ffhq.pkl", protocol), tmp_path / "ffhq.safetensors")
    assert not (tmp_path / "ran").exists()
    assert (facts["size"], facts["channels"], facts["licence"]) == (32, 3, NVIDIA)
    weights, _ = read_weights(tmp_path / "ffhq.safetensors")
    prior = StyleGAN2(weights=str(tmp_path / "ffhq.safetensors")).restore(weights, 32, 3, "cpu")
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    expected = np.clip(picture(z.double().numpy(), arrays(generator()), TINY) * 0.5 + 0.5, 0, 1)
    torch.testing.assert_close(prior.z.decode(z).double(), torch.from_numpy(expected), atol=2e-4, rtol=1e-3)


def test_settings_licence_and_origin_are_kept(dnnlib, tmp_path):
    import_generator(written(tmp_path / "a.pkl", clamp=256), tmp_path / "a.safetensors", accepted=True)
    weights, metadata = read_weights(tmp_path / "a.safetensors")
    assert weights["bound"] == 256
    assert '"licence_accepted": true' in metadata["mi_audit"] and '"source": "a.pkl"' in metadata["mi_audit"]
    described = StyleGAN2(weights=str(tmp_path / "a.safetensors")).describe(32, 3)
    assert described["weights_licence"] == NVIDIA
    facts = import_generator(written(tmp_path / "b.pkl", source="class G: pass"), tmp_path / "b.safetensors")
    assert facts["licence"] == UNKNOWN
    assert len(read_header(tmp_path / "b.safetensors")[0]) == len(weights)


class Call:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, exec, getattr, __import__, torch.load, nn.ReLU, os.system])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_files_that_want_to_call_anything_else_are_refused(tmp_path, function, protocol):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"G_ema": Call(function, str(tmp_path / "proof"))}, protocol=protocol))
    with pytest.raises(TargetError, match="wants to call"):
        import_generator(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "proof").exists() and not (tmp_path / "out.safetensors").exists()


def test_a_storage_that_hides_a_pickle_is_refused(dnnlib, tmp_path):
    evil = pickle.dumps(Call(os.mkdir, str(tmp_path / "proof")))
    data = Call(torch.storage._load_from_bytes, evil)
    tensor = Call(torch._utils._rebuild_tensor_v2, data, 0, (1,), (1,), False, {})
    net = Persistent("Generator", buffers=[("w_avg", tensor)])
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"G_ema": net}))
    with pytest.raises(TargetError, match="storage of numbers"):
        import_generator(tmp_path / "bad.pkl", tmp_path / "out.safetensors")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, (9,), (1,)), (-1, (2,), (1,)), (3, (2,), (1,)), (0, (2,), (9,))]
)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(dnnlib, tmp_path, offset, size, stride):
    data = Call(torch.storage._load_from_bytes, torch.ones(4).storage().__reduce__()[1][0])
    tensor = Call(torch._utils._rebuild_tensor_v2, data, offset, size, stride, False, {})
    net = Persistent("Generator", buffers=[("w_avg", tensor)])
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"G_ema": net}))
    with pytest.raises(TargetError, match="inside its storage"):
        read_generator(tmp_path / "bad.pkl").tensors()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"G": 1}), pickle.dumps([1]), b"\x80\x04N."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(TargetError, match="expected a"):
        import_generator(tmp_path / "x.pkl", tmp_path / "out.safetensors")
    with pytest.raises(TargetError, match="correct the path"):
        import_generator(tmp_path / "missing.pkl", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"c_dim": 10}, "without classes"),
        ({"synthesis_kwargs": {"architecture": "resnet"}}, "architecture 'skip'"),
        ({"synthesis_kwargs": {"activation": "relu"}}, "activation 'lrelu', got 'relu'"),
        ({"mapping_kwargs": {"activation": "linear"}}, "activation 'lrelu', got 'linear'"),
        ({"mapping_kwargs": {"lr_multiplier": 1.0}}, "lr_multiplier is 0.01, got 1.0"),
        ({"clamp": math.nan}, "conv_clamp above 0, got nan"),
        ({"clamp": math.inf}, "conv_clamp above 0, got inf"),
        ({"clamp": -1}, "conv_clamp above 0, got -1"),
        ({"clamp": 10**400}, "conv_clamp above 0, got 1000"),
        ({"clamp": "256"}, "conv_clamp above 0, got '256'"),
        ({"mapping_kwargs": [1]}, "AttributeError"),
        ({"rename": ("b4", "b²")}, "tensor of StyleGAN2's generator, got 'synthesis.b²"),
        ({"rename": ("b32", "b33")}, "tensor of StyleGAN2's generator, got 'synthesis.b33"),
        ({"rename": ("b4", None)}, "KeyError: 'blocks.0"),
        ({"rename": ("b4", 4)}, "tensor of StyleGAN2's generator, got 'synthesis.4|TypeCheckError"),
        ({"rename": ("b32", None)}, "a difference in|ConfigError"),
        ({"rename": ("b16", None)}, "KeyError|ConfigError|a difference in"),
        ({"flat": True}, "expected StyleGAN2's generator, got one with"),
        ({"endless": True}, "RecursionError"),
    ],
)
def test_generators_of_another_kind_are_refused(dnnlib, tmp_path, settings, message):
    with pytest.raises(TargetError, match=message) as told:
        import_generator(written(tmp_path / "x.pkl", **settings), tmp_path / "out.safetensors")
    assert told.value.exit_code == 3 and "\n" not in str(told.value) and len(str(told.value)) < 400


@pytest.mark.parametrize("settings", [{"lr_multiplier": 0.01, "activation": "lrelu", "num_layers": 2}, None])
def test_the_usual_settings_of_the_mapping_are_accepted(dnnlib, tmp_path, settings):
    facts = import_generator(written(tmp_path / "x.pkl", mapping_kwargs=settings), tmp_path / "out.safetensors")
    assert facts["size"] == 32


@pytest.mark.parametrize("content", [b"\x80\x04\x8e" + (1 << 45).to_bytes(8, "little"), b"\x80\x04\x8e" + b"\xff" * 8])
def test_files_that_ask_for_more_memory_than_there_is_are_refused(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)  # bytes of that length, and none of them
    with pytest.raises(TargetError, match="expected a StyleGAN2-ADA pickle"):
        read_generator(tmp_path / "x.pkl")


def test_a_name_without_end_is_refused(tmp_path):
    deep = 100_000
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + b"]" * deep + b"a" * (deep - 1) + b"Q.")  # lists in lists, as a name
    with pytest.raises(TargetError, match="expected a StyleGAN2-ADA pickle"):
        read_generator(tmp_path / "x.pkl")


def test_a_tensor_that_repeats_what_is_stored_is_refused(dnnlib, tmp_path):
    data = Call(torch.storage._load_from_bytes, torch.ones(4).storage().__reduce__()[1][0])
    tensor = Call(torch._utils._rebuild_tensor_v2, data, 0, (3000, 3000), (0, 0), False, {})
    net = Persistent("Generator", buffers=[("w_avg", tensor)])
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"G_ema": net}))
    with pytest.raises(TargetError, match=r"at most the 4 stored numbers, got \(3000, 3000\)"):
        read_generator(tmp_path / "bad.pkl").tensors()


def test_another_filter_is_refused(dnnlib, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "OUTER", OUTER.flip(0) * 2)
    with pytest.raises(TargetError, match="filter"):
        import_generator(written(tmp_path / "x.pkl"), tmp_path / "out.safetensors")
