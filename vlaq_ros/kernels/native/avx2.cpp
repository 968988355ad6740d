// AVX2 alone. Its dot product of bytes saturates at 16 bits, so codes and activations are widened to
// 16 bits first; the sums are then exact.
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
  static constexpr int PARTS = 2, STREAM_ROWS = 1, FREE_SUMS = 4;
  static constexpr bool SIGNED_WEIGHTS = false, BYTES = true;

  template <int P>
  VLAQ_INLINE I part(I v) {
    return P ? _mm256_srli_epi16(v, 8) : _mm256_and_si256(v, _mm256_set1_epi16(0xFF));
  }
  // Inline assembly because GCC 12 spills the sums when it schedules the intrinsics.
  VLAQ_INLINE void dot(I& sum, I weight, I x) {
    I product;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(product) : "x"(weight), "x"(x));
  }
};

#include "multiply.h"
#include "outputs.h"
#include "tiles.h"

const Kernels KERNELS = {"avx2", Isa::MAX_ROWS, Isa::PANEL_ROWS, Isa::PARTS, Isa::PANEL_TILES,
                         prepare_tokens<Isa::PARTS, Isa::SIGNED_WEIGHTS>,
                         few_tokens, many_tokens, ManyOutputs::COVERS_PRUNED, &kernels_avx2short};

}  // namespace

const Kernels* kernels_avx2() { return &KERNELS; }

}  // namespace vlaq

#endif
