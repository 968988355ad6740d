// Arm with the dot product extension: 4 channels per vector, 6 rows x 1 tile of sums in 24 of the 32
// registers. Both factors are signed there, so part() moves the codes down by 128.
#include "job.h"

#if defined(__aarch64__)

#if !defined(__ARM_FEATURE_DOTPROD)
#error compile with -march=armv8.2-a+dotprod
#endif

#include <arm_neon.h>

#include <utility>

namespace vlaq {
namespace {

#include "activations.h"

struct Isa {
  typedef uint32x4_t I;
  typedef float32x4_t F;
  static constexpr int LANES = 4, MAX_ROWS = 6, PANEL_ROWS = 6;
  static constexpr int PANEL_TILES = 1, PARTS = 1, STREAM_ROWS = 1, FREE_SUMS = 12;
  static constexpr bool SIGNED_WEIGHTS = true, BYTES = true;

  VLAQ_INLINE I load(const void* from) { return vld1q_u32(static_cast<const uint32_t*>(from)); }
  VLAQ_INLINE void store(void* to, I v) { vst1q_u32(static_cast<uint32_t*>(to), v); }
  VLAQ_INLINE I broadcast(const int32_t* from) { return vdupq_n_u32(uint32_t(*from)); }
  VLAQ_INLINE I zero() { return vdupq_n_u32(0); }
  VLAQ_INLINE I add(I a, I b) { return vaddq_u32(a, b); }

  VLAQ_INLINE I first_bytes(I high, I low) {
    return vbslq_u32(vdupq_n_u32(0xF0F0F0F0), vshlq_n_u32(high, 4), low);
  }
  VLAQ_INLINE I second_bytes(I high, I low) {
    return vbslq_u32(vdupq_n_u32(0xF0F0F0F0), high, vshrq_n_u32(low, 4));
  }
  VLAQ_INLINE I high_nibbles(I v) { return vandq_u32(v, vdupq_n_u32(0xF0F0F0F0)); }
  VLAQ_INLINE I low_nibbles(I v) { return high_nibbles(vshlq_n_u32(v, 4)); }
  template <int S>
  VLAQ_INLINE I pairs(I v) { return vandq_u32(vshlq_n_u32(v, 6 - 2 * S), vdupq_n_u32(0xC0C0C0C0)); }
  template <int P>
  VLAQ_INLINE I part(I v) { return veorq_u32(v, vdupq_n_u32(0x80808080)); }
  VLAQ_INLINE void dot(I& sum, I weight, I x) {
    sum = vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sum), vreinterpretq_s8_u32(weight),
                                          vreinterpretq_s8_u32(x)));
  }

  VLAQ_INLINE F to_float(I v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
  VLAQ_INLINE F load_scale(const uint16_t* from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
  }
  VLAQ_INLINE F load_floats(const float* from) { return vld1q_f32(from); }
  VLAQ_INLINE void store_floats(float* to, F v) { vst1q_f32(to, v); }
  VLAQ_INLINE F multiply_add(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  VLAQ_INLINE F zero_floats() { return vdupq_n_f32(0); }

  // Two bfloat16 per lane; each is the upper half of a float.
  VLAQ_INLINE F first16(I v) { return vreinterpretq_f32_u32(vshlq_n_u32(v, 16)); }
  VLAQ_INLINE F second16(I v) {
    return vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xFFFF0000)));
  }
  VLAQ_INLINE void dot16(F& sum, I weight, I x) {
    sum = vfmaq_f32(sum, first16(weight), first16(x));
    sum = vfmaq_f32(sum, second16(weight), second16(x));
  }
};

#include "multiply.h"
#include "outputs.h"
#include "tiles.h"

const Kernels KERNELS = {"neon", Isa::MAX_ROWS, Isa::PANEL_ROWS, Isa::PARTS, Isa::PANEL_TILES,
                         prepare_tokens<Isa::PARTS, Isa::SIGNED_WEIGHTS>,
                         few_tokens, many_tokens, ManyOutputs::COVERS_PRUNED, nullptr};

}  // namespace

const Kernels* kernels_neon() { return &KERNELS; }

}  // namespace vlaq

#endif
