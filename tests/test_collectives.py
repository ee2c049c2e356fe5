"""What is read from the text of a compiled program, as compilers for CPU, GPU and TPU write it."""

import pytest

from pom_jax.training.collectives import collectives, in_layers, total_bytes

# Nine turns of a loop of unknown text in a loop of four; starts and dones; groups listed, counted and named.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[2,16])) -> (s32[], f32[2,16]) {
  %r = (f32[2,16]{1,0:T(8,128)}, bf16[4]{0}) all-reduce(%x, %y), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add, metadata={op_name="jit(step)/mixer/reduce_sum"}
}

%inner_condition (p: (s32[], f32[2,16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(9)
  ROOT %lt = pred[] compare(%counter, %bound), direction=LT
}

%scattered (p: f32[64]) -> f32[8] {
  ROOT %rs = f32[8]{0} reduce-scatter(%p), channel_id=2, replica_groups={}, dimensions={0}, to_apply=%add
}

%outer_body (q: f32[64]) -> f32[64] {
  %loop = (s32[], f32[2,16]{1,0}) while(%start), condition=%inner_condition, body=%inner_body
  %gather = (f32[8]{0}, f32[32]{0}) all-gather-start(%q), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %gathered = f32[32]{0} all-gather-done(%gather)
  %wait = ((f32[64]{0}), f32[8]{0}) async-start(%q), calls=%scattered
  %waited = f32[8]{0} async-done(%wait), calls=%scattered
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %layers = f32[64]{0} while(%x), condition=%c, body=%outer_body, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %moved = u8[6]{0} collective-permute(%z), channel_id=4, source_target_pairs={{1,3},{3,1}}
}
"""  # noqa: E501


@pytest.mark.smoke
def test_kinds_bytes_turns_and_groups_are_read() -> None:
    read = {one.kind: (one.bytes, one.times, one.group) for one in collectives(PROGRAM)}
    assert read == {
        "all-reduce": (2 * 16 * 4 + 4 * 2, 4 * 9, (0, 1, 2, 3)),
        "reduce-scatter": (8 * 4 * 8, 4, tuple(range(8))),
        "all-gather": (32 * 4, 4, (0, 2, 4, 6)),
        "collective-permute": (6, 1, (1, 3)),
    }


def test_they_run_along_axes_of_the_mesh_and_in_layers() -> None:
    found = collectives(PROGRAM)
    mesh = {"data": 2, "context": 2, "tensor": 2}
    axes = {one.kind: one.axes(mesh) for one in found}
    assert axes["all-reduce"] == ("context", "tensor")
    assert axes["all-gather"] == ("data", "context")
    assert axes["reduce-scatter"] == ("data", "context", "tensor")
    assert axes["collective-permute"] == ("context",)
    assert found[0].origin == "jit(step)/mixer/reduce_sum"
    assert in_layers(found, 4) == {
        "all-reduce": (9, 9 * 136),
        "reduce-scatter": (1, 256),
        "all-gather": (1, 128),
    }
    assert total_bytes(found) == 36 * 136 + 4 * 256 + 4 * 128 + 6
