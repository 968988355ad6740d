// AVX2 with AVX-VNNI (recent laptops): 8 channels per vector, 6 rows x 1 tile of sums in 12 of the
// 16 registers.
#include "job.h"

#if defined(__x86_64__)

#if !defined(__AVXVNNI__)
#error compile with -mavx2 -mfma -mf16c -mavxvnni
#endif

#include <immintrin.h>

#include <utility>

namespace vlaq {
namespace {

#include "activations.h"
#include "avx2.h"

struct Isa : Avx2 {
  static constexpr int MAX_ROWS = 6, PANEL_ROWS = 6, PANEL_TILES = 1;
  static constexpr int PARTS = 1, STREAM_ROWS = 1, FREE_SUMS = 4;
  static constexpr bool SIGNED_WEIGHTS = false, BYTES = true;

  template <int P>
  VLAQ_INLINE I part(I v) { return v; }
  // Inline assembly because GCC 12 spills the sums when it schedules the intrinsic.
  VLAQ_INLINE void dot(I& sum, I weight, I x) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weight), "x"(x));
  }
};

#include "multiply.h"
#include "outputs.h"
#include "tiles.h"

const Kernels KERNELS = {"avxvnni", Isa::MAX_ROWS, Isa::PANEL_ROWS, Isa::PARTS, Isa::PANEL_TILES,
                         prepare_tokens<Isa::PARTS, Isa::SIGNED_WEIGHTS>,
                         few_tokens, many_tokens, ManyOutputs::COVERS_PRUNED, nullptr};

}  // namespace

const Kernels* kernels_avxvnni() { return &KERNELS; }

}  // namespace vlaq

#endif
