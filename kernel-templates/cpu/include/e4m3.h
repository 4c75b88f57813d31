INLINE float e4m3_to_f32(uint8_t bits) {
  uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7, u = (exponent + 120) << 23 | mantissa << 20;
  float f;
  if (exponent == 15 && mantissa == 7) return __builtin_nanf("");
  memcpy(&f, &u, 4);
  if (exponent == 0) f = mantissa * (1.0f / 512.0f);
  return bits & 0x80 ? -f : f;
}
