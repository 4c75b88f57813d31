#pragma once
static_assert(PAGE % BOX == 0 && KV_TILE % BOX == 0 && BOX % 8 == 0, "a box lies in one page and in one block");
constexpr int UNITS = HEADS / PACK;              // tiles of the same queries
constexpr int SECTION_UNITS = SECTION * (UNITS / KV_HEADS) < UNITS ? SECTION * (UNITS / KV_HEADS) : UNITS;
constexpr int PIECES = KV_TILE / BOX;            // boxes of a block and slab
constexpr int Q_BOX = PACK * GROUP_POSITIONS * 128; // bytes of a slab that are loaded: whole positions
static_assert(PIECES <= 32, "a lane holds a piece's page");
static_assert(PACK <= 64, "a warpgroup holds whole positions");

struct Args {
  const int *block_table, *q_starts, *kv_lens;
  elem *o;
  void *workspace;
  int tokens, batch, max_pages, max_parts;
  DEV int places() const { return tokens / TILE_POSITIONS + (TILE_POSITIONS == 1 ? 0 : batch); }
  DEV int tiles() const { return places() * UNITS * max_parts; }
};

// What a consumer has to know of a tile, in shared memory beside the Q stage.
struct Work {
  int token, count, visible, head; // of the tile's first row; token < 0: no more tiles
  int begin, end, tail, part;      // blocks of keys; keys of block end - 1 that exist; the part, -1: the only one
};
constexpr int WORK_BYTES = 32;
DEV u32 work_at(const Smem sm, int stage) { return sm.tile(0) + stage * WORK_BYTES; }
DEV void write_work(u32 at, const Work &w) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(w.token), "r"(w.count), "r"(w.visible), "r"(w.head)
               : "memory");
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at + 16), "r"(w.begin), "r"(w.end), "r"(w.tail), "r"(w.part)
               : "memory");
}
// By lane 0, whose arrival gives the stage back, and from it to the warp.
DEV Work read_work(u32 at) {
  Work w{};
  if (lane_id() == 0) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.token), "=r"(w.count), "=r"(w.visible), "=r"(w.head) : "r"(at) : "memory");
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.begin), "=r"(w.end), "=r"(w.tail), "=r"(w.part) : "r"(at + 16) : "memory");
  }
  w.token = warp_uniform(w.token), w.count = warp_uniform(w.count), w.visible = warp_uniform(w.visible);
  w.head = warp_uniform(w.head), w.begin = warp_uniform(w.begin), w.end = warp_uniform(w.end);
  w.tail = warp_uniform(w.tail), w.part = warp_uniform(w.part);
  return w;
}
