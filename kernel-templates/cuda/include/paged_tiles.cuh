// Attention over a paged cache: which sequence a tile of queries belongs to, and how its keys are split into parts.
//
// Sequence b owns the places from q_starts[b] / P + b on, P queries each: enough for its queries wherever they start, so
// that a grid of tokens / P + batch places is enough for any batch. Some places are empty. With P = 1 it owns exactly
// the places from q_starts[b] on.
//
// Uses TILE_POSITIONS (queries of a tile) and KEY_BLOCK (keys of a block) of the including kernel.
#pragma once
#include "common.cuh"

template <int P> DEV int first_place(int start, int b) { return P == 1 ? start : start / P + b; }

// The last sequence whose first place is not beyond `place`. A 32-ary search by a converged warp.
template <int P> DEV int find_sequence(const int *q_starts, int batch, int place) {
  int low = 0, size = batch;
  while (size > 1) {
    const int step = cdiv(size, 32), b = lane_id() * step;
    const bool below = b < size && first_place<P>(q_starts[low + b], low + b) <= place;
    const int at = max(__popc(__ballot_sync(0xffffffffu, below)) - 1, 0) * step;
    low += at;
    size = min(step, size - at);
  }
  return low;
}

struct Tile {
  int seq;     // its sequence
  int token;   // its first query's row in q and o
  int count;   // its queries; none: an empty place
  int visible; // keys that the first query sees; every further one sees one more
  int kv;      // keys of the sequence

  // By a converged warp.
  DEV Tile(const int *q_starts, const int *kv_lens, int batch, int place) {
    seq = find_sequence<TILE_POSITIONS>(q_starts, batch, place);
    const int start = q_starts[seq], q = q_starts[seq + 1] - start;
    const int position = (place - first_place<TILE_POSITIONS>(start, seq)) * TILE_POSITIONS;
    kv = kv_lens[seq];
    token = start + position;
    count = min(TILE_POSITIONS, q - position);
    visible = kv - q + position + 1;
  }
  DEV int keys() const { return visible + count - 1; } // that the tile sees
};

// Part `part` of a tile's blocks of keys: as even as whole blocks allow, and no more parts than blocks.
struct Part {
  int begin, end, parts;
  DEV Part(int keys, int part, int max_parts) {
    const int blocks = cdiv(keys, KEY_BLOCK), share = cdiv(blocks, max_parts);
    parts = cdiv(blocks, share);
    begin = part * share;
    end = min(blocks, begin + share);
  }
};
