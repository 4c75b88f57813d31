#if SPLIT_K > 1
    reduce_parts(acc, ring_at, rank);
#endif
    Rotation rotation;
#pragma unroll
    for (int i = 0; i < BLOCKS_M * CHUNKS; i++) {
#if ROPE
      int at = col + i % CHUNKS * CHUNK;
      // Where a chunk is a head, all chunks of a row rotate alike.
      if ((HEAD_DIM != CHUNK || i % CHUNKS == 0) && at < ROTATED_COLS)
        load_rotation(rotation, e, position[i / CHUNKS], at);
#endif
      constexpr int PER_CHUNK = (SWIGLU ? 2 : 1) * CHUNK / 2; // accumulators of a thread
#pragma unroll
      for (int share = 0; share < SPLIT_K; share++)
        if (share == rank.k)
          write_chunk(e, i, acc[i / CHUNKS] + (share * CHUNKS + i % CHUNKS) * PER_CHUNK, row + i / CHUNKS * 64,
                      col + i % CHUNKS * CHUNK, rotation);
#if RESIDUAL
      constexpr int LAG = EPI_BUFS > 1; // stores whose buffer need not be free yet
      if (i >= LAG && i + EPI_BUFS - LAG < BLOCKS_M * CHUNKS && lane == 0) {
        tma_store_wait_read<LAG>();
        load_residual(e, i + EPI_BUFS - LAG, row, col);
      }
#endif
    }
  }
  if (lane == 0) tma_store_wait<0>();
  __syncwarp();
}

