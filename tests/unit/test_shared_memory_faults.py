"""The search for faults in a kernel's TTGIR, on a kernel of the least lines that can have them."""

from shared_memory_faults import filled_by_copies, idle_barriers, unfenced_reads

TILE = "!ttg.memdesc<64x128xbf16, #shared, #smem, mutable>"
TILES = "!ttg.memdesc<2x64x128xbf16, #shared, #smem, mutable>"
BARRIER = "!ttg.memdesc<1xi64, #shared1, #smem, mutable>"
FENCE = "        ttng.fence_async_shared {bCluster = false}\n"
KERNEL = f"""
    %tiles = ttg.local_alloc : () -> {TILES}
    %facts = ttg.local_alloc : () -> !ttg.memdesc<64xf32, #shared1, #smem, mutable>
    %free = ttg.local_alloc : () -> !ttg.memdesc<2x1xi64, #shared1, #smem, mutable>
    %0 = ttg.memdesc_index %free[%c0_i32] : !ttg.memdesc<2x1xi64, #shared1, #smem, mutable> -> {BARRIER}
    ttng.init_barrier %0, 1 : {BARRIER}
    %1 = ttg.memdesc_index %tiles[%c0_i32] : {TILES} -> {TILE}
    ttg.warp_specialize(%1, %facts, %free, %tiles)
    default {{
        ttg.warp_yield
    }}
    partition0(%arg7: {TILE}, %arg8: !ttg.memdesc<64xf32>, %arg9: !ttg.memdesc<2x1xi64>, %arg10: {TILES}) {{
        %q = ttg.local_load %arg7 : {TILE} -> tensor<64x128xbf16>
FENCE        %2 = ttg.memdesc_index %arg9[%c0_i32] : !ttg.memdesc<2x1xi64> -> {BARRIER}
        ttng.arrive_barrier %2, 1, %true : {BARRIER}
        %f = ttg.local_load %arg8 : !ttg.memdesc<64xf32> -> tensor<64xf32>
        ttng.arrive_barrier %2, 1, %true : {BARRIER}
    }}
    partition1(%arg7: {TILE}, %arg8: !ttg.memdesc<64xf32>, %arg9: !ttg.memdesc<2x1xi64>, %arg10: {TILES}) {{
        %3 = ttg.memdesc_index %arg10[%c0_i32] : {TILES} -> {TILE}
        %4 = ttg.memdesc_reinterpret %3 : {TILE} -> !ttg.memdesc<1x64x128xbf16>
        ttng.async_tma_copy_global_to_local %desc[%b, %r, %c] %4, %ready, %true : !tt.tensordesc<tensor<1x64x128xbf16>>
    }}
"""


def test_a_load_without_a_fence_is_found() -> None:
    assert filled_by_copies(KERNEL) == {"%tiles"}
    assert unfenced_reads(KERNEL.replace("FENCE", "")) == {"%tiles"}


def test_a_fenced_load_and_one_of_what_no_copy_fills_are_not() -> None:
    assert unfenced_reads(KERNEL.replace("FENCE", FENCE)) == set()


def test_a_barrier_that_is_made_and_left_is_found() -> None:
    left = "".join(line for line in KERNEL.splitlines(keepends=True) if "%arg9[" not in line and "arrive" not in line)
    assert idle_barriers(left.replace("%facts, %free, ", "%facts, ")) == {"%free"}
    assert idle_barriers(KERNEL) == set()
