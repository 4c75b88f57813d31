// Reference of sample: one block of 256 threads a row. Thresholds are found bit by bit, and the token by halving, with a pass over
// the row for each step; log-probabilities in f64.
#include "reduce_f64.cuh"
#include "sampling.cuh"

template <class AMOUNT> DEV u64 sum_of(int cols, AMOUNT amount) {
  __shared__ u64 part[256];
  u64 sum = 0;
  for (int i = threadIdx.x; i < cols; i += 256) sum += amount(i);
  __syncthreads(); // an earlier call may still be reading
  part[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < 256; i++) sum += part[i];
  return sum;
}
template <class PLACE> DEV u64 largest(int cols, PLACE place) {
  __shared__ u64 part[256];
  u64 best = 0;
  for (int i = threadIdx.x; i < cols; i += 256) best = place(i) > best ? place(i) : best;
  __syncthreads();
  part[threadIdx.x] = best;
  __syncthreads();
  for (int i = 0; i < 256; i++) best = part[i] > best ? part[i] : best;
  return best;
}
// The largest key so that the amounts of it and of those above it add up to so much; 0 where all together do not.
template <class AMOUNT> DEV u32 last_key(const row_t &r, u64 enough, AMOUNT amount) {
  u32 key = 0;
  for (u32 bit = 1u << 31; bit; bit >>= 1) {
    const u32 tried = key | bit;
    if (sum_of(r.cols, [&](int i) -> u64 { return key_of(value(r, i)) >= tried ? amount(i) : 0; }) >= enough) key = tried;
  }
  return key;
}
// The first index with which the amounts add up to so much.
template <class AMOUNT> DEV int first_index(int cols, u64 enough, AMOUNT amount) {
  int before = 0;
  for (int step = 1 << 30; step; step /= 2) {
    const int tried = before + step;
    if (tried <= cols && sum_of(tried, amount) < enough) before = tried;
  }
  return before;
}

DEV int draw(row_t &r) {
  const u64 best = largest(r.cols, [&](int i) { return (u64)key_of(value(r, i)) << 32 | (u32)~i; });
  if ((u32)(best >> 32) <= KEY_LOW) return 0;
  const int greedy = (int)~(u32)best;
  if (!is_sampled(r)) return greedy;
  start(r, value(r, greedy));
  auto weight_at = [&](int i) -> u64 { return weight(r, value(r, i)); };
  u32 key = 0;
  int last = -1;
  if (r.top_k > 0) key = last_key(r, r.top_k, [&](int) -> u64 { return 1; });
  if (r.share < ALL) {
    const u64 sum = sum_of(r.cols, [&](int i) -> u64 { return key_of(value(r, i)) >= key ? weight_at(i) : 0; });
    const u64 enough = needed(r, sum);
    key = last_key(r, enough, weight_at);
    const u64 above = sum_of(r.cols, [&](int i) -> u64 { return key_of(value(r, i)) > key ? weight_at(i) : 0; });
    last = first_index(r.cols, enough - above, [&](int i) -> u64 { return key_of(value(r, i)) == key ? weight_at(i) : 0; });
  } else
    last = r.cols;
  auto kept = [&](int i) -> u64 {
    const u32 mine = key_of(value(r, i));
    const bool in = mine > key || (mine == key && i <= last);
    return in && weight_at(i) >= r.least ? weight_at(i) : 0;
  };
  return first_index(r.cols, target(r, sum_of(r.cols, kept)) + 1, kept);
}

extern "C" __global__ void __launch_bounds__(256)
sample_reference(const elem *x, const float *settings, const int *top_k, const u32 *seen, double *y, double *logprobs, double *ids,
                 int cols, int top) {
  const int row = blockIdx.x;
  row_t r = row_of(x, settings, top_k, seen, cols, row);
  const double nothing = __longlong_as_double(0xfff0000000000000ll);
  double most = nothing, sum = 0.0;
  for (int i = threadIdx.x; i < cols; i += 256) most = fmax(most, (double)logit(r, i));
  most = block_max_f64(most);
  auto below = [&](double v) { return v == most ? 0.0 : v < most ? v - most : nothing; };
  for (int i = threadIdx.x; i < cols; i += 256) sum += exp(below(logit(r, i)));
  const double log_sum = log(block_sum_f64(sum));
  u64 at = ~0ull;
  for (int n = 0; n <= top; n++) {
    int token;
    if (n == 0)
      token = draw(r);
    else {
      at = largest(cols, [&](int i) {
        const u64 place = (u64)key_of(logit(r, i)) << 32 | (u32)~i;
        return place < at ? place : 0ull;
      });
      token = (int)~(u32)at;
    }
    if (threadIdx.x > 0) continue;
    const double v = logit(r, token);
    logprobs[(i64)row * (1 + top) + n] = v != v ? nothing : below(v) - log_sum;
    if (n == 0) y[row] = token;
    else ids[(i64)row * top + n - 1] = token;
  }
}
