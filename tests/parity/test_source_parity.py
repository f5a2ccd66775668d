"""Files written by torch, in every released layout, against the values of torch."""

import argparse
import collections
import functools
import os
import pickle
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from synclipmae_jax.convert.source import open_source  # noqa: E402
from synclipmae_jax.types import InputError  # noqa: E402


@pytest.fixture
def state():
  """A state dict with typical content: both precisions, tied tensors, transposed views, counters."""
  generator = torch.Generator().manual_seed(0)
  weight = torch.randn(6, 4, generator=generator)
  return collections.OrderedDict(
    {
      "proj.weight": torch.nn.Parameter(weight),
      "tied.weight": weight,
      "transposed": weight.T,
      "part": weight[2:4, 1:],
      "expanded": weight[:1].expand(5, 4),
      "half": weight.half(),
      "brain": weight.bfloat16().T,
      "double": weight.double(),
      "scale": torch.tensor(3.0, dtype=torch.bfloat16),
      "empty": torch.zeros(0, 3),
      "norm.num_batches_tracked": torch.tensor(3),
    }
  )


def refusal(path) -> str:
  with pytest.raises(InputError) as error:
    open_source(path)
  assert "\n" not in str(error.value) and len(str(error.value)) < 600
  assert "weights_only" not in str(error.value)  # torch recommends disabling it
  return str(error.value)


def assert_holds(source, state) -> None:
  wanted = {key: value.detach() for key, value in state.items() if value.is_floating_point()}
  assert set(source.shapes) == set(wanted)
  for key, value in wanted.items():
    found = source.read(key)
    assert source.shapes[key] == found.shape == tuple(value.shape)
    assert source.dtypes[key] == found.dtype.name == str(value.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(found.astype(np.float64), value.double().numpy())


def save(path, value, layout: str):
  torch.save(value, path, _use_new_zipfile_serialization=layout == "zip")
  return path


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("container", ["", "state_dict", "model"])
def test_a_torch_file_is_read(tmp_path, state, container, layout):
  loaded = {container: state, "epoch": 3, "optimizer": {"step": torch.ones(2)}} if container else state
  with open_source(save(tmp_path / "model.pth", loaded, layout)) as source:
    assert (source.kind, source.container) == ("torch", container)
    assert source.skipped.pop("norm.num_batches_tracked") == "int64, not a weight"
    assert source.skipped == (
      {"epoch": "int beside the weights", "optimizer": "dict beside the weights"} if container else {}
    )
    assert_holds(source, state)


def test_state_dict_precedes_model_and_the_dictionary_itself(tmp_path, state):
  flat = {"model": {"b": torch.ones(2)}, "a": torch.ones(3)}
  assert set(open_source(save(tmp_path / "a.pth", flat, "zip")).shapes) == {"b"}
  assert set(open_source(save(tmp_path / "a.pth", flat | {"state_dict": {"c": torch.ones(1)}}, "zip")).shapes) == {"c"}
  nested = {"model": {"encoder": {"a": torch.ones(2)}}}
  assert "holds a dict of model, not a dictionary of tensors" in refusal(save(tmp_path / "a.pth", nested, "zip"))
  assert "holds a Tensor, not a dictionary of tensors" in refusal(save(tmp_path / "a.pth", torch.ones(2), "zip"))


def test_sharded_torch_files_are_read(tmp_path):
  torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
  torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
  where = '{"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}'
  (tmp_path / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {where}}}')
  source = open_source(tmp_path)
  assert source.kind == "torch (2 shards)" and source.shapes == {"a": (2,), "b": (3,)}


# Bookkeeping next to the weights


def foreign(module: str, name: str, **attributes):
  """A class that pickles as `module.name` during the test."""
  made = type(name, (), {"__module__": module, "__qualname__": name, **attributes})
  for i, _ in enumerate(module.split(".")):
    sys.modules.setdefault(".".join(module.split(".")[: i + 1]), types.ModuleType("foreign"))
  setattr(sys.modules[module], name, made)
  return made


@pytest.fixture
def forget_modules():
  known = set(sys.modules)
  yield
  for name in set(sys.modules) - known:
    if getattr(sys.modules[name], "__name__", "") == "foreign":
      del sys.modules[name]


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_fairseq_file_is_read(tmp_path, state, layout, forget_modules):
  arguments = argparse.Namespace(arch="wav2vec2", lr=[5e-4], nested=argparse.Namespace(a=1))
  config = foreign("omegaconf.dictconfig", "DictConfig")()
  config.__dict__.update(content={"a": 1}, flags=collections.defaultdict(dict, {"x": {"y": 1}}))
  meters = collections.OrderedDict(train_loss=foreign("fairseq.meters", "AverageMeter")())
  meters["train_loss"].__dict__.update(sum=np.float64(3.0), count=torch.tensor(2), round=None)
  value = {"args": arguments, "cfg": config, "model": state, "optimizer_history": [{"best_loss": 1.0}],
           "extra_state": {"train_iterator": {"epoch": 2}, "meters": meters},
           "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}}}  # fmt: skip
  source = open_source(save(tmp_path / "wav2vec_small.pt", value, layout))
  assert source.container == "model"
  assert source.skipped["args"] == "argparse.Namespace beside the weights"
  assert source.skipped["cfg"] == "omegaconf.dictconfig.DictConfig beside the weights"
  assert_holds(source, state)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_an_mmengine_file_is_read(tmp_path, state, layout, forget_modules):
  history = foreign("mmengine.logging.history_buffer", "HistoryBuffer", mean=lambda self: 0.0)
  history.mean.__module__, history.mean.__qualname__ = history.__module__, "HistoryBuffer.mean"
  buffer = history()
  # mmengine's buffers refer to their own methods: pickle writes them as getattr(HistoryBuffer, 'mean').
  buffer.__dict__.update(_log_history=np.arange(3.0), _max_length=1000, statistics_methods={"mean": history.mean})
  hub = {"log_scalars": {"train/loss": buffer}, "runtime_info": {"iter": np.int64(3), "recent": collections.deque([1])}}
  value = {"meta": {"epoch": 1600, "cfg": "model = dict()"}, "state_dict": state, "message_hub": hub}
  path = save(tmp_path / "epoch_1600.pth", value, layout)
  names = path.read_bytes()
  assert b"getattr" in names and b"HistoryBuffer" in names and b"_reconstruct" in names and b"deque" in names
  source = open_source(path)
  assert source.container == "state_dict" and source.skipped["message_hub"] == "dict beside the weights"
  assert_holds(source, state)


def test_a_numpy_array_among_the_weights_is_skipped(tmp_path):
  source = open_source(save(tmp_path / "a.pth", {"a": torch.ones(2), "b": np.ones(2)}, "zip"))
  assert source.skipped == {"b": "numpy._core.multiarray._reconstruct, not a tensor"}


# Refused


class Call:
  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("hidden", ["value", "key", "inside bookkeeping", "state"])
def test_a_call_is_refused_wherever_it_hides(tmp_path, layout, hidden):
  marker = tmp_path / "ran"
  call = Call(os.system, f"touch {marker}")
  state = {"a": torch.ones(2)}
  value = {
    "value": {"state_dict": state, "x": call},
    "key": {call: 1, "state_dict": state},
    "inside bookkeeping": {"args": argparse.Namespace(x=call), "model": state},
    "state": {"args": functools.reduce(lambda inner, _: [inner], range(50), call), "model": state},
  }[hidden]
  sentence = refusal(save(tmp_path / "a.pth", value, layout))
  assert f"is refused: reading it would run `{os.system.__module__}.system` (no code was run)" in sentence
  assert not marker.exists()


def test_functions_of_torch_are_refused_by_torch(tmp_path):
  value = {"a": torch.ones(2), "b": Call(torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/")}
  assert "would run `torch.hub.load_state_dict_from_url` (no code" in refusal(save(tmp_path / "a.pth", value, "zip"))


def rewritten(path, pickled: bytes):
  """The same archive with another pickle."""
  with zipfile.ZipFile(path) as archive:
    files = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in files.items():
      archive.writestr(name, pickled if name.endswith("data.pkl") else data)
  return path


@pytest.mark.parametrize(
  "program",
  [
    # getattr is allowed for mmengine only. Its stand-in returns nothing and keeps nothing.
    b"cargparse\nNamespace\nX\x08\0\0\0__dict__\x86R",
    b"cargparse\nNamespace\nX\x0b\0\0\0__globals__\x86R",
    # Setting attributes of stand-ins for a class, an object and a function.
    b"cargparse\nNamespace\n}X\x07\0\0\0__new__K\x01sb",
    b"cargparse\nNamespace\n)\x81}X\x09\0\0\0__class__K\x01sb",
    b"ccollections\ndefaultdict\n}X\x0c\0\0\0__defaults__K\x01sb",
    # Calling the result of a stand-in, and an instruction that weights do not need.
    b"cargparse\nNamespace\n)\x81(I1\n.",
    b"cargparse\nNamespace\n)\x81)R",
  ],
)
def test_the_stand_ins_cannot_be_abused(tmp_path, program):
  """The result is a harmless object or a refusal, and the stand-ins of the next file are not affected."""
  for prefix in (b"\x80\x02}X\x01\0\0\0x", b"\x80\x02}X\x01\0\0\0xcbuiltins\ngetattr\n0"):
    path = save(tmp_path / "a.pth", {"a": torch.ones(2)}, "zip")
    sentence = refusal(rewritten(path, prefix + program + b"s."))
    assert "truncated or damaged" in sentence or "holds a dict of x" in sentence
  value = {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(a=1), "d": collections.defaultdict(list)}
  assert open_source(save(tmp_path / "b.pth", value, "zip")).shapes == {"a": (2,)}


def test_methods_that_a_pickle_shadows_are_not_called(tmp_path):
  state = collections.OrderedDict(a=torch.ones(2))
  state.Items = state.Get = state.Keys = collections.OrderedDict  # stored as attributes of the dictionary
  path = save(tmp_path / "a.pth", state, "zip")
  with zipfile.ZipFile(path) as archive:
    pickled = archive.read("a/data.pkl")
  for name in (b"Items", b"Get", b"Keys"):
    assert name in pickled
    pickled = pickled.replace(name, name.lower())
  assert_holds(open_source(rewritten(path, pickled)), state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path):
  plain = torch.ones(3, 3)
  for kind, value in {
    "quantised": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
    "sparse": plain.to_sparse(),
    "meta": plain.to("meta"),
    "float8_e4m3fn": plain.to(torch.float8_e4m3fn),
  }.items():
    path = save(tmp_path / "a.pth", {"fine": plain, "odd": value}, "zip")
    assert f"a.pth: tensor 'odd' is {kind}; supported types are float16, bfloat16, float32" in refusal(path)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_truncated_files_are_refused(tmp_path, state, layout):
  whole = save(tmp_path / "a.pth", state, layout).read_bytes()
  for length in {*range(len(whole) // 20, len(whole), len(whole) // 20), len(whole) - 1}:
    (tmp_path / "cut.pth").write_bytes(whole[:length])
    assert "cut.pth is truncated or damaged" in refusal(tmp_path / "cut.pth")


def test_a_storage_that_claims_more_than_the_file_holds_is_refused(tmp_path):
  path = save(tmp_path / "a.pth", {"a": torch.ones(100)}, "zip")
  with zipfile.ZipFile(path) as archive:
    pickled = archive.read("a/data.pkl")
  claim = pickled.replace(b"Kdtq", b"J\xff\xff\xff\x7ftq", 1).replace(b"Kd\x85", b"J\xff\xff\xff\x7f\x85", 1)
  assert len(claim) == len(pickled) + 6
  assert "is truncated or damaged" in refusal(rewritten(path, claim))


def test_without_torch_the_message_names_the_package(tmp_path):
  path = save(tmp_path / "a.pth", {"a": torch.ones(2)}, "zip")
  code = (
    "import sys; sys.modules['torch'] = None\n"
    "from synclipmae_jax.convert.source import open_source\n"
    f"try: open_source({str(path)!r})\nexcept ValueError as error: print(error)"
  )
  said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
  assert "a.pth is a torch file and needs torch: `pip install torch` (safetensors files do not need it)" in said


def test_a_torch_with_known_vulnerabilities_is_not_used(tmp_path, monkeypatch):
  path = save(tmp_path / "a.pth", {"a": torch.ones(2)}, "zip")
  monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
  assert "torch 2.9.1+cpu does not read untrusted files safely: `pip install 'torch>=2.10'`" in refusal(path)


# TorchScript and torch.export


class Net(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    self.brain = torch.nn.Parameter(torch.randn(2, 3).T.bfloat16())
    self.listed = torch.nn.ParameterList([torch.randn(2), torch.randn(3)])
    self.register_buffer("table", torch.randn(2, 2).double())

  def forward(self, x):
    return self.backbone(x) * self.brain.float().sum() + self.listed[0].sum() * self.table.sum()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 3, 4, 4))])
def test_torchscript_is_read(tmp_path, make):
  net = Net().eval()
  if make is torch.jit.script:
    net = net.backbone
  make(net).save(tmp_path / "a_torchscript.pt2")
  source = open_source(tmp_path / "a_torchscript.pt2")
  assert source.kind == "torchscript"
  wanted = {key: value for key, value in net.state_dict().items()}
  assert_holds(source, wanted)
  assert set(source.skipped) == {key for key in wanted if key.endswith("num_batches_tracked")}


class Opens(torch.nn.Module):
  """Opens a file when torch.jit.load reads it. This is the reason for a separate reader."""

  def __init__(self, path):
    super().__init__()
    self.path = path
    self.a = torch.ones(2)

  def forward(self, x):
    return x

  @torch.jit.export
  def __getstate__(self):
    return (self.path, self.a, self.training)

  @torch.jit.export
  def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
    self.path = state[0]
    self.a = torch.from_file(self.path, True, 4, dtype=torch.uint8)
    self.training = state[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_that_runs_when_read_is_not_run(tmp_path):
  torch.jit.script(Opens(str(tmp_path / "made"))).save(tmp_path / "a.pt2")
  refusal(tmp_path / "a.pt2")
  assert not (tmp_path / "made").exists()
  torch.jit.load(tmp_path / "a.pt2")
  assert (tmp_path / "made").exists()


def test_an_exported_program_is_refused_with_advice(tmp_path):
  class Linear(torch.nn.Linear):
    pass

  program = torch.export.export(Linear(2, 3), (torch.ones(1, 2),))
  path = tmp_path / "a_bfloat16.pt2"
  torch.export.save(program, path)
  assert "is a torch.export program, which is not supported: use the plain checkpoint" in refusal(path)


# Memory

_READ = """
import sys
from pathlib import Path
import numpy as np
from synclipmae_jax.convert.source import open_source
import synclipmae_jax.convert.weights_file
if sys.argv[1].endswith("pth"):
  import torch; torch.ones(2).numpy()
def anonymous():
  return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024
start = peak = anonymous()
with open_source(sys.argv[1]) as source:
  total = 0
  for key in source.shapes:
    total += float(np.asarray(source.read(key)).view(np.uint16).max())
    peak = max(peak, anonymous())
print(peak - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_reading_needs_the_memory_of_one_tensor(tmp_path, name):
  from safetensors.torch import save_file

  tensors = {f"layers.{i}": torch.full((1024, 4096), i, dtype=torch.bfloat16) for i in range(16)}  # 16 of 8 MiB
  (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
  run = subprocess.run([sys.executable, "-c", _READ, str(tmp_path / name)], check=True, capture_output=True, text=True)
  assert float(run.stdout) < 24  # MiB, of 128


def test_pickles_other_than_torchs_are_refused(tmp_path):
  (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": np.ones(2)}))
  assert "is a Python pickle that torch.save did not write" in refusal(tmp_path / "a.pth")
