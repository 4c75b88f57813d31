// What compares results that are codes of E4M3: each is held to what was rounded to it. Compiled behind support.cu, and apart from it:
// problems without such results do not depend on it.
#include "e4m3.cuh"

// Values by their magnitude, from 0 on, with their sign.
DEV int e4m3_number(u32 code) { return code & 0x80 ? -(int)(code & 0x7f) : (int)code; }
DEV double e4m3_worth(int number) {
  const float magnitude = to_f32(e4m3_t{(u8)(number < 0 ? -number : number)});
  return number < 0 ? -magnitude : magnitude;
}

// The error of a code is how far the reference is from what is rounded to it, at least; it is out of bounds where the code that the
// reference is rounded to is no neighbour of it.
extern "C" __global__ void compare_e4m3(const u8 *out, const double *ref, u64 n, const double *ref_stats, check_stats *s) {
  const double rms = ref_stats[1] > 0 ? sqrt(ref_stats[0] / ref_stats[1]) : 0.0;
  const int largest = 0x7e;
  double sum = 0;
  u64 worst = 0, not_finite = 0, touched = 0;
  for (u64 i = thread_index(); i < n; i += thread_count()) {
    const double r = ref[i];
    if (r != r) {
      touched += out[i] != 0xff;
      continue;
    }
    if ((out[i] & 0x7f) == 0x7f) {
      not_finite += 1;
      continue;
    }
    const int at = e4m3_number(out[i]), wanted = e4m3_number(e4m3_from_f32((float)r)), apart = at - wanted;
    double e = 0.0;
    float scaled = 3e38f;
    if (apart >= -1 && apart <= 1) {
      if (at > -largest) e = fmax(e, (e4m3_worth(at - 1) + e4m3_worth(at)) / 2 - r);
      if (at < largest) e = fmax(e, r - (e4m3_worth(at) + e4m3_worth(at + 1)) / 2);
      scaled = (float)fmin(e / (rms + fabs(r) + 0x1p-126), 3e38);
    }
    sum += e * e;
    const u64 key = (u64)__float_as_uint(scaled) << 32 | (i < 0xffffffffull ? i : 0xffffffffull);
    worst = key > worst ? key : worst;
  }
  sum = warp_sum_f64(sum);
  worst = warp_max_u64(worst);
  not_finite = warp_sum_u64(not_finite);
  touched = warp_sum_u64(touched);
  if (lane_id() == 0) {
    atomicAdd(&s->sum_sq_error, sum);
    atomicMax(&s->worst, worst);
    if (not_finite) atomicAdd(&s->not_finite, not_finite);
    if (touched) atomicAdd(&s->touched, touched);
  }
}
