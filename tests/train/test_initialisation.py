"""Items of converted donors: what is loaded, resized, left fresh or left out, and what is refused."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.checkpoints import save_items
from synclipmae_jax.models.decoder import Decoder
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.position import resize_position
from synclipmae_jax.models.visual_encoder import VisualEncoder
from synclipmae_jax.train.initialisation import Initialisation, fill, plan_item
from synclipmae_jax.types import InputError

OPTIONAL = {
  "visual_encoder/prompt_tokens": "the donor has no prompt tokens",
  "visual_encoder/class_(token|position)": "only one side has a class token",
  "decoder/embed_patches/.*": "made for tokens of another width",
  "decoder/embed_prompts/.*": "the donor has no prompt tokens",
  "decoder/blocks/prompted_mlp/(norm_)?cross/.*": "the donor has no cross-attention",
}


def encoder(**sizes):
  sizes = dict(image_size=32, patch=8, width=16, depth=2, heads=2, mlp_width=32, class_token=True) | sizes
  return Functional(lambda rngs: VisualEncoder(**sizes, rngs=rngs)).abstract


def decoder(**sizes):
  sizes = dict(grid=4, patch=8, token_width=16, width=8, depth=2, heads=2, mlp_width=16) | sizes
  return Functional(lambda rngs: Decoder(**sizes, rngs=rngs)).abstract


def model(**items):
  """The shapes of a model's items, sharded over all devices."""
  items = {"visual_encoder": encoder(), "decoder": decoder(), "speech_encoder": {}} | items
  places = sharding.shardings(items, sharding.make_mesh({"data": 2, "fsdp": -1}), sharding.RULES)
  return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), items, places)


def random(tree, dtype=np.float32):
  draw = np.random.RandomState(0)
  return jax.tree.map(lambda x: draw.normal(size=x.shape).astype(dtype), tree)


def without(tree, *names):
  return {name: leaf for name, leaf in tree.items() if name not in names}


def donate(directory, items, **conversion):
  save_items(directory, items, {"conversion": {"donor": "sapiens", "optional": OPTIONAL, **conversion}})
  return directory


def plan(directory, name="visual_encoder", items=None, *, frozen=False, **options):
  return plan_item(directory, name, items or model(), frozen=frozen, resize_position=resize_position, **options)


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
  """An encoder of an 8 x 8 grid without prompt tokens, in bfloat16."""
  item = random(without(encoder(image_size=64), "prompt_tokens"), ml_dtypes.bfloat16)
  return donate(tmp_path_factory.mktemp("donor") / "sapiens", {"visual_encoder": item}), item


def test_every_leaf_has_the_sharding_of_the_model(donor):
  directory, item = donor
  wanted = model()["visual_encoder"]
  leaves = plan(directory).load(wanted)
  fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), wanted)
  filled = dict(sharding.tree_paths(fill(fresh, leaves)))
  for path, leaf in sharding.tree_paths(wanted):
    if path == "prompt_tokens":
      assert not filled[path].any()
      continue
    given = dict(sharding.tree_paths(item))[path].astype(np.float32)
    given = resize_position(given, 4) if path == "position" else given
    np.testing.assert_array_equal(filled[path], given)
    assert (filled[path].dtype, filled[path].sharding) == (leaf.dtype, leaf.sharding), path


def test_the_report_of_the_initialisation(donor, tmp_path):
  directory, item = donor
  wanted = model(visual_encoder=encoder(class_token=False))
  report = Initialisation(items=[plan(directory, items=wanted)], fresh={"decoder": "none given", "head": "none given"})
  given = without(item, "position", "class_token", "class_position")
  parameters = sum(leaf.size for leaf in jax.tree.leaves(given)) + 16 * 16
  assert report.lines() == [
    f"visual_encoder: {parameters:,} parameters in 17 leaves from sapiens, {directory}, cast from bfloat16",
    "  position resized from 8 x 8 to 4 x 4",
    "  freshly initialised: prompt_tokens (the donor has no prompt tokens)",
    "  left out: class_position, class_token (only one side has a class token)",
    "decoder, head: freshly initialised (none given)",
  ]
  report.write(tmp_path / "initialisation.json")
  written = json.loads((tmp_path / "initialisation.json").read_text())
  assert written["decoder"] == {"from": None, "fresh": "none given"}
  encoder_report = written["visual_encoder"]
  assert encoder_report["loaded"] == [path for path, _ in sharding.tree_paths(given)]
  assert encoder_report["parameters"] == parameters and encoder_report["conversion"]["donor"] == "sapiens"
  assert encoder_report["resized"] == {"position": {"from": [8, 8], "to": [4, 4]}}
  assert list(encoder_report["fresh"]) == ["prompt_tokens"]
  assert list(encoder_report["left_out"]) == ["class_position", "class_token"]


def test_a_group_of_optional_leaves_stays_fresh_as_a_whole(tmp_path):
  """The bias of the donor's embedding fits, but its kernel takes wider tokens."""
  item = without(random(decoder(token_width=24, grid=2)), "embed_prompts")
  item["blocks"]["prompted_mlp"] = without(item["blocks"]["prompted_mlp"], "cross", "norm_cross")
  found = plan(donate(tmp_path / "mae", {"decoder": item}), "decoder")
  cross = "blocks/prompted_mlp"
  assert found.lines()[1:] == [
    "  position resized from 2 x 2 to 4 x 4",
    f"  freshly initialised: {cross}/cross, {cross}/norm_cross (the donor has no cross-attention)",
    "  freshly initialised: embed_patches (made for tokens of another width)",
    "  freshly initialised: embed_prompts (the donor has no prompt tokens)",
  ]
  leaves = found.load(model()["decoder"])
  assert not any("cross" in path or path.startswith("embed_") for path in leaves)
  np.testing.assert_array_equal(leaves["to_pixels/kernel"], item["to_pixels"]["kernel"])


@pytest.mark.parametrize(
  ("sizes", "sentences"),
  [
    (dict(depth=3), ["different (12)", "blocks/mlp/up/bias: float32[2, 32] in the checkpoint, here float32[3, 32]"]),
    (dict(patch=16, image_size=64), ["different (1)", "patch_embedding/kernel: float32[192, 16]"]),
    (dict(width=32, heads=4), ["blocks/attention/out/bias: float32[2, 16] in the checkpoint, here float32[2, 32]"]),
  ],
)
def test_another_model_is_refused_with_both_sides(tmp_path, sizes, sentences):
  directory = donate(tmp_path / "donor", {"visual_encoder": random(encoder())})
  with pytest.raises(InputError, match="does not fit") as error:
    plan(directory, items=model(visual_encoder=encoder(**sizes)))
  assert all(sentence in str(error.value) for sentence in sentences), error.value


def test_leaves_not_listed_as_optional_are_refused(tmp_path):
  item = without(random(encoder()), "norm") | {"neck": {"kernel": np.zeros((2, 2), np.float32)}}
  directory = donate(tmp_path / "donor", {"visual_encoder": item})
  with pytest.raises(InputError) as error:
    plan(directory)
  assert str(error.value).splitlines()[1:] == [
    "  only in the checkpoint (1):",
    "    visual_encoder/neck/kernel: float32[2, 2]",
    "  only in this model (2):",
    "    visual_encoder/norm/bias: float32[16]",
    "    visual_encoder/norm/scale: float32[16]",
  ]


def test_integers_and_tables_that_are_not_square_do_not_fit(tmp_path):
  item = random(encoder()) | {"position": np.zeros((12, 16), np.float32), "prompt_tokens": np.zeros((3, 16), np.int32)}
  with pytest.raises(InputError, match="position: float32\\[12, 16\\]"):
    plan(donate(tmp_path / "table", {"visual_encoder": item}))
  with pytest.raises(InputError, match="class_token: int32"):
    item = random(encoder()) | {"class_token": np.zeros((1, 16), np.int32)}
    plan(donate(tmp_path / "integers", {"visual_encoder": item}, optional={}))


def test_no_leaf_of_a_frozen_item_stays_fresh(tmp_path):
  item = without(random(encoder()), "prompt_tokens")
  directory = donate(tmp_path / "donor", {"speech_encoder": item}, optional={"speech_encoder/.*": "why not"})
  items = model(speech_encoder=encoder())
  with pytest.raises(InputError, match="speech_encoder/prompt_tokens: float32"):
    plan(directory, "speech_encoder", items, frozen=True)
  extra = donate(tmp_path / "more", {"speech_encoder": random(encoder()) | {"mask": np.zeros(4, np.float32)}},
                 optional={"speech_encoder/mask": "for training only"})  # fmt: skip
  found = plan(extra, "speech_encoder", items, frozen=True)
  assert not found.fresh and found.left_out == {"mask": "for training only"}
  assert found.load(items["speech_encoder"]).keys() == dict(sharding.tree_paths(items["speech_encoder"])).keys()


def test_a_checkpoint_of_this_package_must_fit_exactly(tmp_path):
  item = random(encoder())
  save_items(tmp_path / "ours", {"visual_encoder": item}, {})
  found = plan(tmp_path / "ours")
  assert len(found.lines()) == 1 and "sapiens" not in found.lines()[0] and not found.fresh
  filled = fill(item, found.load(model()["visual_encoder"]))
  jax.tree.map(np.testing.assert_array_equal, filled, item)
  for sizes in (dict(image_size=64), dict(class_token=False)):
    with pytest.raises(InputError, match="does not fit"):
      plan(tmp_path / "ours", items=model(visual_encoder=encoder(**sizes)))


def test_a_missing_item_and_damage(donor, tmp_path):
  directory, _ = donor
  with pytest.raises(InputError, match=r"has no item 'decoder'; it has \['visual_encoder'\]"):
    plan(directory, "decoder")
  with pytest.raises(InputError, match="this model has no item 'speech_encoder' to start from"):
    plan(directory, "speech_encoder")
  with pytest.raises(InputError, match="no complete checkpoint in"):
    plan(tmp_path / "nowhere")
  damaged = tmp_path / "damaged"
  shutil.copytree(directory, damaged)
  largest = max((path for path in damaged.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-1])
  with pytest.raises(InputError, match="damaged is damaged \\(changed"):
    plan(damaged)
  assert plan(damaged, verify=False).loaded  # a check of keys and shapes alone
  description = damaged / "visual_encoder" / "_METADATA"
  description.write_bytes(b"{")
  with pytest.raises(InputError, match="damaged \\('visual_encoder' cannot be read"):
    plan(damaged, verify=False)
  description.unlink()
  with pytest.raises(InputError, match="damaged \\(missing visual_encoder/_METADATA"):
    plan(damaged, verify=False)
