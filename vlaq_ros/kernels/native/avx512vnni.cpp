// AVX-512 with VNNI: 16 channels per vector, 12 rows x 2 tiles of sums in 24 of the 32 registers.
#include "job.h"

#if defined(__x86_64__)

#if !defined(__AVX512VNNI__) || !defined(__AVX512BW__)
#error compile with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c
#endif

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in a header of GCC 12 itself
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <utility>

namespace vlaq {
namespace {

#include "activations.h"

struct Isa {
  typedef __m512i I;
  typedef __m512 F;
  static constexpr int LANES = 16, MAX_ROWS = 12, PANEL_ROWS = 7;
  static constexpr int PANEL_TILES = 2, PARTS = 1, STREAM_ROWS = 2, FREE_SUMS = 14;
  static constexpr bool SIGNED_WEIGHTS = false, BYTES = true;

  VLAQ_INLINE I load(const void* from) { return _mm512_load_si512(from); }
  VLAQ_INLINE void store(void* to, I v) { _mm512_store_si512(to, v); }
  VLAQ_INLINE I broadcast(const int32_t* from) { return _mm512_set1_epi32(*from); }
  VLAQ_INLINE I zero() { return _mm512_setzero_si512(); }
  VLAQ_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }

  // 0xE4 takes the first operand where the third has ones, and the second elsewhere.
  VLAQ_INLINE I select_high(I high, I low) {
    return _mm512_ternarylogic_epi32(high, low, _mm512_set1_epi8(char(0xF0)), 0xE4);
  }
  VLAQ_INLINE I first_bytes(I high, I low) { return select_high(_mm512_slli_epi16(high, 4), low); }
  VLAQ_INLINE I second_bytes(I high, I low) { return select_high(high, _mm512_srli_epi16(low, 4)); }
  VLAQ_INLINE I high_nibbles(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(char(0xF0))); }
  VLAQ_INLINE I low_nibbles(I v) { return high_nibbles(_mm512_slli_epi16(v, 4)); }
  template <int S>
  VLAQ_INLINE I pairs(I v) {
    return _mm512_and_si512(_mm512_slli_epi16(v, 6 - 2 * S), _mm512_set1_epi8(char(0xC0)));
  }
  template <int P>
  VLAQ_INLINE I part(I v) { return v; }

  // Inline assembly because GCC 12 spills the sums when it schedules the intrinsic.
  VLAQ_INLINE void dot(I& sum, I weight, I x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
  }

  VLAQ_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  VLAQ_INLINE F load_scale(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
  }
  VLAQ_INLINE F load_floats(const float* from) { return _mm512_load_ps(from); }
  VLAQ_INLINE void store_floats(float* to, F v) { _mm512_store_ps(to, v); }
  // The lanes of `from` or `to` that the mask names; no other memory is touched.
  VLAQ_INLINE F load_some(const float* from, uint16_t mask) { return _mm512_maskz_loadu_ps(mask, from); }
  VLAQ_INLINE void store_some(float* to, uint16_t mask, Floats v) {
    _mm512_mask_storeu_ps(to, mask, (F)v);
  }
  VLAQ_INLINE void store_some(uint16_t* to, uint16_t mask, UShorts v) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)v);
  }
  VLAQ_INLINE F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  VLAQ_INLINE F zero_floats() { return _mm512_setzero_ps(); }

  // Two bfloat16 per lane. Without instructions for them a bfloat16 is the upper half of a float.
  VLAQ_INLINE void dot16(F& sum, I weight, I x) {
#if defined(__AVX512BF16__)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
#else
    const I upper = _mm512_set1_epi32(int32_t(0xFFFF0000));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(weight, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), sum);
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(weight, upper)),
                          _mm512_castsi512_ps(_mm512_and_si512(x, upper)), sum);
#endif
  }
};

#include "multiply.h"
#include "outputs.h"
#include "tiles.h"

#if defined(__AVX512BF16__)
#define VLAQ_KERNELS kernels_avx512bf16
#else
#define VLAQ_KERNELS kernels_avx512vnni
#endif

const Kernels KERNELS = {"avx512vnni", Isa::MAX_ROWS, Isa::PANEL_ROWS, Isa::PARTS, Isa::PANEL_TILES,
                         prepare_tokens<Isa::PARTS, Isa::SIGNED_WEIGHTS>,
                         few_tokens, many_tokens, ManyOutputs::COVERS_PRUNED, nullptr};

}  // namespace

const Kernels* VLAQ_KERNELS() { return &KERNELS; }

}  // namespace vlaq

#endif
