  float out[TB][TILE_N + 2 * TB];
  for (long i = 0; i < mt; i += TB) {
    for (long n = 0; n < nt; n += TB) transpose_block(out[0] + n, TILE_N + 2 * TB, sums + n * LDS + i, LDS);
    for (long r = 0; r < min_l(TB, mt - i); r++) finish_row(&e, m0 + i + r, n0, n0 + nt, out[r]);
  }
