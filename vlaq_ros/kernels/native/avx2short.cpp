// AVX2 alone, for calls in which no code has more than four bits: products of bytes and their sums then fit
// in 16 bits, and one instruction does the work of two.
#include "job.h"

#if defined(__x86_64__)

#if !defined(__AVX2__)
#error compile with -mavx2 -mfma -mf16c
#endif

#include <immintrin.h>

#include <utility>

namespace vlaq {
namespace {

#include "activations.h"
#include "avx2.h"

struct Isa : Avx2 {
  static constexpr int MAX_ROWS = 6, PANEL_ROWS = 6, PANEL_TILES = 1;
  static constexpr int PARTS = 1, STREAM_ROWS = 1, FREE_SUMS = 0;
  static constexpr bool SIGNED_WEIGHTS = false, BYTES = false;

  // Codes as they are, not in the upper bits of a byte.
  VLAQ_INLINE I low_nibbles(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0F)); }
  VLAQ_INLINE I high_nibbles(I v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
  template <int S>
  VLAQ_INLINE I pairs(I v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 2 * S), _mm256_set1_epi8(3));
  }
  template <int P>
  VLAQ_INLINE I part(I v) { return v; }

  VLAQ_INLINE I add_short(I a, I b) { return _mm256_add_epi16(a, b); }
  VLAQ_INLINE I widen(I v, int32_t unit) { return _mm256_madd_epi16(v, _mm256_set1_epi32(unit)); }
  // Inline assembly because GCC 12 spills the sums when it schedules the intrinsics.
  VLAQ_INLINE void dot(I& sum, I weight, I x) {
    I product;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
        : "+x"(sum), "=&x"(product) : "x"(weight), "x"(x));
  }
};

#include "multiply_short.h"
#include "outputs.h"
#include "tiles.h"

const Kernels KERNELS = {"avx2", Isa::MAX_ROWS, Isa::PANEL_ROWS, Isa::PARTS, Isa::PANEL_TILES,
                         prepare_tokens<Isa::PARTS, Isa::SIGNED_WEIGHTS>,
                         few_tokens, many_tokens, ManyOutputs::COVERS_PRUNED, nullptr};

}  // namespace

const Kernels* kernels_avx2short() { return &KERNELS; }

}  // namespace vlaq

#endif
