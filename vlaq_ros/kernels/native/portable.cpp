// Plain C++ for every other processor; also what the other kernels are compared with bit by bit.
#include <string.h>

#include <utility>

#include "job.h"

namespace vlaq {
namespace {

#include "activations.h"

struct Isa {
  struct I { uint32_t lane[4]; };
  struct F { float lane[4]; };
  static constexpr int LANES = 4, MAX_ROWS = 2, PANEL_ROWS = 2;
  static constexpr int PANEL_TILES = 1, PARTS = 1, STREAM_ROWS = 1, FREE_SUMS = 0;
  static constexpr bool SIGNED_WEIGHTS = false, BYTES = true;

  template <class V, class Function>
  VLAQ_INLINE V make(Function f) {
    V v;
    for (int i = 0; i < LANES; i++) v.lane[i] = f(i);
    return v;
  }
  VLAQ_INLINE I load(const void* from) {
    I v;
    memcpy(&v, from, sizeof v);
    return v;
  }
  VLAQ_INLINE void store(void* to, I v) { memcpy(to, &v, sizeof v); }
  VLAQ_INLINE I broadcast(const int32_t* from) {
    return make<I>([=](int) { return uint32_t(*from); });
  }
  VLAQ_INLINE I zero() { return I{}; }
  VLAQ_INLINE I add(I a, I b) {
    return make<I>([=](int i) { return a.lane[i] + b.lane[i]; });
  }

  VLAQ_INLINE I first_bytes(I high, I low) {
    return make<I>([=](int i) {
      return (uint32_t(high.lane[i]) << 4 & 0xF0F0F0F0) | (low.lane[i] & 0x0F0F0F0F);
    });
  }
  VLAQ_INLINE I second_bytes(I high, I low) {
    return make<I>([=](int i) {
      return (high.lane[i] & 0xF0F0F0F0) | (low.lane[i] >> 4 & 0x0F0F0F0F);
    });
  }
  VLAQ_INLINE I high_nibbles(I v) {
    return make<I>([=](int i) { return v.lane[i] & 0xF0F0F0F0; });
  }
  VLAQ_INLINE I low_nibbles(I v) {
    return make<I>([=](int i) { return uint32_t(v.lane[i]) << 4 & 0xF0F0F0F0; });
  }
  template <int S>
  VLAQ_INLINE I pairs(I v) {
    return make<I>([=](int i) { return uint32_t(v.lane[i]) << (6 - 2 * S) & 0xC0C0C0C0; });
  }
  template <int P>
  VLAQ_INLINE I part(I v) { return v; }
  VLAQ_INLINE void dot(I& sum, I weight, I x) {
    for (int i = 0; i < LANES; i++)
      for (int shift = 0; shift < 32; shift += 8)
        sum.lane[i] += uint32_t(int32_t(weight.lane[i] >> shift & 0xFF) * int8_t(x.lane[i] >> shift));
  }

  VLAQ_INLINE F to_float(I v) {
    return make<F>([=](int i) { return float(int32_t(v.lane[i])); });
  }
  // float16 -> float32 by moving the bits; the factor repairs the exponent, subnormals included.
  VLAQ_INLINE F load_scale(const uint16_t* from) {
    return make<F>([=](int i) {
      const float magnitude = as_float((from[i] & 0x7FFF) << 13) * 0x1p112f;
      return from[i] & 0x8000 ? -magnitude : magnitude;
    });
  }
  VLAQ_INLINE F load_floats(const float* from) {
    F v;
    memcpy(&v, from, sizeof v);
    return v;
  }
  VLAQ_INLINE void store_floats(float* to, F v) { memcpy(to, &v, sizeof v); }
  VLAQ_INLINE F multiply_add(F a, F b, F c) {
    return make<F>([=](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  VLAQ_INLINE F zero_floats() { return F{}; }
  VLAQ_INLINE void dot16(F& sum, I weight, I x) {
    for (int i = 0; i < LANES; i++) {
      const uint32_t w = weight.lane[i], v = x.lane[i];
      sum.lane[i] += as_float(int32_t(w << 16)) * as_float(int32_t(v << 16));
      sum.lane[i] += as_float(int32_t(w & 0xFFFF0000)) * as_float(int32_t(v & 0xFFFF0000));
    }
  }
};

#include "multiply.h"
#include "outputs.h"
#include "tiles.h"

const Kernels KERNELS = {"portable", Isa::MAX_ROWS, Isa::PANEL_ROWS, Isa::PARTS, Isa::PANEL_TILES,
                         prepare_tokens<Isa::PARTS, Isa::SIGNED_WEIGHTS>,
                         few_tokens, many_tokens, ManyOutputs::COVERS_PRUNED, nullptr};

}  // namespace

const Kernels* kernels_portable() { return &KERNELS; }

}  // namespace vlaq
