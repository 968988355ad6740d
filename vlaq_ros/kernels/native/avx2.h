// What the kernels of all processors with AVX2 have in common; for inside an anonymous namespace.

struct Avx2 {
  typedef __m256i I;
  typedef __m256 F;
  static constexpr int LANES = 8;

  VLAQ_INLINE I load(const void* from) { return _mm256_load_si256(static_cast<const I*>(from)); }
  VLAQ_INLINE void store(void* to, I v) { _mm256_store_si256(static_cast<I*>(to), v); }
  VLAQ_INLINE I broadcast(const int32_t* from) { return _mm256_set1_epi32(*from); }
  VLAQ_INLINE I zero() { return _mm256_setzero_si256(); }
  VLAQ_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }

  VLAQ_INLINE I high_nibbles(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(char(0xF0))); }
  VLAQ_INLINE I low_nibbles(I v) { return high_nibbles(_mm256_slli_epi16(v, 4)); }
  VLAQ_INLINE I join(I high, I low) {
    return _mm256_or_si256(high_nibbles(high), _mm256_and_si256(low, _mm256_set1_epi8(0x0F)));
  }
  VLAQ_INLINE I first_bytes(I high, I low) { return join(_mm256_slli_epi16(high, 4), low); }
  VLAQ_INLINE I second_bytes(I high, I low) { return join(high, _mm256_srli_epi16(low, 4)); }
  template <int S>
  VLAQ_INLINE I pairs(I v) {
    return _mm256_and_si256(_mm256_slli_epi16(v, 6 - 2 * S), _mm256_set1_epi8(char(0xC0)));
  }

  VLAQ_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  VLAQ_INLINE F load_scale(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
  }
  VLAQ_INLINE F load_floats(const float* from) { return _mm256_load_ps(from); }
  VLAQ_INLINE void store_floats(float* to, F v) { _mm256_store_ps(to, v); }
  VLAQ_INLINE F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  VLAQ_INLINE F zero_floats() { return _mm256_setzero_ps(); }

  // Two bfloat16 per lane; each is the upper half of a float.
  VLAQ_INLINE F first16(I v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  VLAQ_INLINE F second16(I v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int32_t(0xFFFF0000))));
  }
  VLAQ_INLINE void dot16(F& sum, I weight, I x) {
    sum = _mm256_fmadd_ps(first16(weight), first16(x), sum);
    sum = _mm256_fmadd_ps(second16(weight), second16(x), sum);
  }
};
