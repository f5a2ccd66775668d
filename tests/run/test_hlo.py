"""The cost of a compiled step against XLA's own count and against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synclipmae_jax import sharding
from synclipmae_jax.run import hlo

DEPTH, TOKENS, WIDTH = 6, 32, 48


def compiled(function, *shapes, **options):
  arguments = [shape if hasattr(shape, "dtype") else jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function, **options).lower(*arguments).compile()


def stack(x, weights, unroll):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)[0].sum()


def gradient(unroll):
  return compiled(jax.grad(lambda w, x: stack(x, w, unroll)), (DEPTH, WIDTH, WIDTH), (TOKENS, WIDTH)).as_text()


@pytest.fixture(scope="module")
def scanned():
  return gradient(1)


def test_a_scan_counts_like_the_unrolled_loop_and_like_arithmetic(scanned):
  forward_and_two_gradients = 3 * DEPTH - 1  # the input of the first block has no gradient
  expected = forward_and_two_gradients * 2 * TOKENS * WIDTH * WIDTH
  assert hlo.read_cost(gradient(True)).flops == expected
  assert hlo.read_cost(scanned).flops == expected + 2 * TOKENS * WIDTH * WIDTH  # a loop computes it nevertheless


def test_a_loop_whose_trip_count_is_only_in_its_condition():
  """The form of the TPU compiler, and that of a program before compilation."""
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((TOKENS, WIDTH), (DEPTH, WIDTH, WIDTH))]
  text = jax.jit(lambda x, w: stack(x, w, 1)).lower(*shapes).compiler_ir("hlo").as_hlo_text()
  assert "known_trip_count" not in text
  assert hlo.read_cost(text).flops == DEPTH * 2 * TOKENS * WIDTH * WIDTH


def test_a_loop_of_unknown_length_is_refused():
  text = compiled(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), (4, 4)).as_text()
  with pytest.raises(hlo.UnknownTripCount):
    hlo.read_cost(text)


@pytest.mark.parametrize(
  "options",
  [
    dict(window_strides=(1,), padding="VALID"),
    dict(window_strides=(2,), padding=[(3, 1)]),
    dict(window_strides=(1,), padding="SAME", rhs_dilation=(3,)),
    dict(window_strides=(1,), padding=[(2, 2)], lhs_dilation=(2,)),
    dict(window_strides=(1,), padding="SAME", feature_group_count=4),
  ],
  ids=str,
)
def test_convolutions_against_the_compiler(options):
  groups = options.get("feature_group_count", 1)
  program = compiled(lambda x, k: jax.lax.conv_general_dilated(x, k, **options), (2, 8, 30), (16, 8 // groups, 5))
  assert hlo.read_cost(program.as_text()).flops == program.cost_analysis()["flops"]


# From a step compiled for v5e: a product of [10, 2] pairs of matrices, [16, 8] by [8, 16], and, as a fusion, an
# all-reduce of which every chip keeps one slice.
BATCHED = """HloModule m
ENTRY %main (a: f32[10,2,16,8], b: f32[10,2,16,8]) -> f32[10,2,16,16] {
  %a = f32[10,2,16,8]{3,2,1,0:T(8,128)} parameter(0)
  %b = f32[10,2,16,8]{3,2,1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = f32[10,2,16,16]{3,2,1,0:T(8,128)} convolution(%a, %b), window={size=10x2 stride=9x1 lhs_dilate=10x2}, \
dim_labels=01bf_01oi->01bf
}
"""
SCATTERED = """HloModule m
%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[8,32] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = bf16[8,32]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,32}
}
ENTRY %main (x: bf16[64,32]) -> bf16[8,32] {
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %fusion = bf16[8,32]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_batched_product_written_as_a_dilated_convolution():
  cost = hlo.read_cost(BATCHED)
  assert cost.flops == 10 * 2 * 2 * 16 * 16 * 8
  # Rows of 8 and of 16 are padded to 128; on-chip arrays are not counted.
  assert cost.hbm_bytes == 4 * (10 * 2 * 16 * 128) * 2


def test_a_reduce_scatter_in_the_form_of_the_tpu_compiler():
  cost = hlo.read_cost(SCATTERED)
  size = 64 * 32 * 2
  assert cost.collectives == {"reduce-scatter": hlo.Collective(count=1, bytes=size, sent=size * 7 / 8)}
  assert cost.hbm_bytes == (64 + 8) * 128 * 2


# An all-gather concurrent with a matrix product, as compiled for v5e.
OVERLAPPED = """HloModule m
%start (a: bf16[8,32]) -> (bf16[64,32], u32[]) {
  %a = bf16[8,32]{1,0} parameter(0)
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%a), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %c = (bf16[64,32]{1,0}, u32[]) custom-call(%a, %all-gather.1), custom_call_target="start"
}
%beside (a.1: bf16[8,32], x: bf16[16,16]) -> bf16[16,16] {
  %a.1 = bf16[8,32]{1,0} parameter(0)
  %x = bf16[16,16]{1,0} parameter(1)
  %all-gather.2 = bf16[64,32]{1,0:S(1)} all-gather(%a.1), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %d = bf16[16,16]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
}
ENTRY %main (w: bf16[8,32], y: bf16[16,16]) -> bf16[16,16] {
  %w = bf16[8,32]{1,0} parameter(0)
  %y = bf16[16,16]{1,0} parameter(1)
  %async-collective-start = (bf16[64,32]{1,0}, u32[]) fusion(%w), kind=kCustom, calls=%start
  ROOT %fusion.1 = bf16[16,16]{1,0} fusion(%w, %y), kind=kCustom, calls=%beside
}
"""


def test_an_asynchronous_collective_counts_once():
  cost = hlo.read_cost(OVERLAPPED)
  size = 64 * 32 * 2
  assert cost.collectives == {"all-gather": hlo.Collective(count=1, bytes=size, sent=size * 7 / 8)}
  assert cost.flops == 2 * 16**3


KERNELS = """
HloModule kernels
ENTRY %main (q: bf16[2,3,64,128], k: bf16[2,3,32,128]) -> bf16[2,3,64,128] {
  %q = bf16[2,3,64,128]{3,2,1,0} parameter(0)
  %k = bf16[2,3,32,128]{3,2,1,0} parameter(1)
  %own = bf16[2,3,64,128]{3,2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","transcendentals":"7"}}}
  %dkv = bf16[2,3,32,128]{3,2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/transpose(jvp(dit))/flash_mha_bwd_dkv_block_q=64/pallas_call"}
  %sent = (bf16[2,3,32,128]{3,2,1,0}, u32[], token[]) send(%dkv), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %dq = bf16[2,3,64,128]{3,2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/transpose(jvp(dit))/flash_mha_bwd_dq_block_q=64/pallas_call"}
}
"""  # noqa: E501


def test_what_kernels_compute_and_what_other_slices_get():
  cost = hlo.read_cost(KERNELS)
  product = 2 * (2 * 3) * 64 * 32 * 128
  assert cost.flops == 1000 + (4 + 3) * product
  assert cost.dcn_bytes == 2 * 3 * 32 * 128 * 2


def test_collectives_inside_a_loop_count_in_every_iteration():
  """Weights sharded over four devices: every block gathers them; the sum over the batch of eight runs once."""
  mesh = sharding.make_mesh((("data", 2), ("fsdp", 4)), jax.devices()[:8])
  place = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )

  def loss(x, weights):
    def block(x, w):
      return jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))), None

    return jax.lax.scan(block, x, weights)[0].sum()

  program = compiled(loss, place((64, WIDTH), ("data", "fsdp")), place((DEPTH, WIDTH, WIDTH), None, "fsdp"))
  found = hlo.read_cost(program.as_text()).collectives
  gathered = DEPTH * WIDTH * WIDTH * 4
  assert found["all-gather"] == hlo.Collective(count=DEPTH, bytes=gathered, sent=gathered * 3 / 4)
  assert found["all-reduce"] == hlo.Collective(count=1, bytes=4, sent=2 * 4 * 7 / 8)


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4),
    ("[2,4]<=[8], use_global_device_ids=true", 4),
    ("[4,2]<=[2,4]T(1,0)", 2),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}", 4),
    ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0','axis_2'}, to_apply=%add", 8),
    ("mesh['axis_0'=16] {'axis_0':(2)4}", 4),
  ],
)
def test_all_notations_of_participants(groups, size):
  assert hlo._group_size(f"channel_id=1, replica_groups={groups}") == size


def test_a_loop_reads_slices_of_its_stack_and_not_the_whole_stack():
  """Memory traffic of a scan: each weight once, and the carry in every iteration."""
  depth = 40
  program = compiled(lambda x, w: stack(x, w, 1), (TOKENS, WIDTH), (depth, WIDTH, WIDTH))
  weights, activations = depth * WIDTH * WIDTH * 4, TOKENS * WIDTH * 4
  moved = hlo.read_cost(program.as_text()).hbm_bytes
  assert weights + depth * activations < moved < 3 * weights + 8 * depth * activations < depth * weights


@pytest.mark.parametrize(
  ("dtype", "dims", "layout", "elements"),
  [
    ("bf16", (1536, 68, 1024), "2,1,0:T(8,128)(2,1)", 1536 * 72 * 1024),
    ("bf16", (1536, 68, 1024), "2,0,1:T(8,128)(2,1)", 1536 * 68 * 1024),  # the rows of the tokens do not fill a tile
    ("bf16", (1536, 68, 1024), "2,1,0:T(8,128)(2,1)S(1)", 0),  # on the chip
    ("f32", (1000,), "0:T(1024)", 1024),
    ("f32", (3, 5), "1,0", 15),
    ("u32", (), ":T(128)", 1),
  ],
)
def test_padding_to_tiles(dtype, dims, layout, elements):
  array = hlo.Array(dtype, dims, layout)
  assert array.hbm_bytes == elements * (2 if dtype == "bf16" else 4)
  assert array.bytes == np.prod(dims) * (2 if dtype == "bf16" else 4)
