// What compares results that are codes: each is held to what was rounded to it. Compiled behind support.cu, and apart from it:
// problems without such results do not depend on it.
#include "e4m3.cuh"

// Values by their magnitude, from 0 on, with their sign.
DEV int e4m3_number(u32 code) { return code & 0x80 ? -(int)(code & 0x7f) : (int)code; }
DEV double e4m3_worth(int number) {
  const float magnitude = to_f32(e4m3_t{(u8)(number < 0 ? -number : number)});
  return number < 0 ? -magnitude : magnitude;
}

// How far the reference is from what is rounded to a code, at least; infinite where the code that the reference is rounded to is no neighbour
// of it, and NaN where the code is.
struct e4m3_result {
  u8 bits;
  DEV bool poison() const { return bits == 0xff; }
  DEV double error(double r) const {
    if ((bits & 0x7f) == 0x7f) return __longlong_as_double(0x7ff8000000000000ll);
    const int largest = 0x7e, at = e4m3_number(bits), apart = at - e4m3_number(e4m3_from_f32((float)r));
    if (apart < -1 || apart > 1) return __longlong_as_double(0x7ff0000000000000ll);
    double e = 0.0;
    if (at > -largest) e = fmax(e, (e4m3_worth(at - 1) + e4m3_worth(at)) / 2 - r);
    if (at < largest) e = fmax(e, r - (e4m3_worth(at) + e4m3_worth(at + 1)) / 2);
    return e;
  }
};
struct int8_result {
  signed char code;
  DEV bool poison() const { return code == -1; }
  DEV double error(double r) const {
    const double apart = fabs(code - r);
    return apart <= 1.5 ? fmax(apart - 0.5, 0.0) : __longlong_as_double(0x7ff0000000000000ll);
  }
};

template <class T> DEV void compare_codes(const T *out, const double *ref, u64 n, const double *ref_stats, check_stats *s) {
  const double rms = ref_stats[1] > 0 ? sqrt(ref_stats[0] / ref_stats[1]) : 0.0;
  double sum = 0;
  u64 worst = 0, not_finite = 0, touched = 0;
  for (u64 i = thread_index(); i < n; i += thread_count()) {
    const double r = ref[i];
    if (r != r) {
      touched += !out[i].poison();
      continue;
    }
    const double e = out[i].error(r);
    if (e != e) {
      not_finite += 1;
      continue;
    }
    const bool near = e < __longlong_as_double(0x7ff0000000000000ll);
    const float scaled = near ? (float)fmin(e / (rms + fabs(r) + 0x1p-126), 3e38) : 3e38f;
    sum += near ? e * e : 0.0;
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
extern "C" __global__ void compare_e4m3(const e4m3_result *out, const double *ref, u64 n, const double *ref_stats, check_stats *s) {
  compare_codes(out, ref, n, ref_stats, s);
}
extern "C" __global__ void compare_int8(const int8_result *out, const double *ref, u64 n, const double *ref_stats, check_stats *s) {
  compare_codes(out, ref, n, ref_stats, s);
}
