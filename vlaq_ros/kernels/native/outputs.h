// From sums to outputs: where the channels of some tiles lie in a row of y, and how to write them.
//
// Included by every <isa>.cpp inside an anonymous namespace, after activations.h and multiply.h.
// Channels of one width are strewn over the row, so the 16 outputs of a tile go to several places.

constexpr int MAX_TILES = Isa::PANEL_TILES;

VLAQ_INLINE Floats load_floats(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// The values as they are stored: as they are, or as bfloat16 to nearest even, where a NaN stays one.
VLAQ_INLINE Floats converted(Floats v, const float*) { return v; }
VLAQ_INLINE UShorts converted(Floats v, const uint16_t*) {
  Ints bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  const Ints is_nan = (bits & 0x7FFFFFFF) > EXPONENT;
  const Ints rounded = (round_bits(bits) & ~is_nan) | (0x7FC0 & is_nan);
  return __builtin_convertvector(rounded, UShorts);
}

// The outputs of some tiles of channels, written one by one where they are not neighbours.
struct Scattered {
  static constexpr bool COVERS_PRUNED = false;
  int tiles;
  const int32_t* channels[MAX_TILES];
  bool contiguous[MAX_TILES];
  float bias[MAX_TILES][TILE];

  void find(const Job& job, int width, int first, int tiles_) {
    tiles = tiles_;
    for (int n = 0; n < tiles; n++) {
      channels[n] = job.store->tile_channels(width, first + n);
      contiguous[n] = channels[n][0] >= 0;
      for (int i = 0; i < TILE; i++) {
        contiguous[n] = contiguous[n] && channels[n][i] == channels[n][0] + i;
        bias[n][i] = job.bias && channels[n][i] >= 0 ? job.bias[channels[n][i]] : 0.0f;
      }
    }
  }

  template <class T>
  VLAQ_INLINE_MEMBER void put(const Job&, T* y, int64_t stride, const float* sums, const float* scale,
                              int tokens) const {
    for (int t = 0; t < tokens; t++, y += stride)
      for (int n = 0; n < tiles; n++, sums += TILE) {
        T scattered[TILE];
        T* values = contiguous[n] ? y + channels[n][0] : scattered;
        for (int j = 0; j < TILE; j += VALUES) {
          const Floats value = load_floats(sums + j) * scale[t] + load_floats(bias[n] + j);
          const auto stored = converted(value, y);
          __builtin_memcpy(values + j, &stored, sizeof stored);
        }
        if (contiguous[n]) continue;
        for (int i = 0; i < TILE && channels[n][i] >= 0; i++) y[channels[n][i]] = scattered[i];
      }
  }
};

#if defined(__AVX512F__)
#include "lines.h"
typedef Lines ManyOutputs;
#else
typedef Scattered ManyOutputs;
#endif
