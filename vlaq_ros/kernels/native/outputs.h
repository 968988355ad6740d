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

// Whether the channels of a tile are neighbours in rising order.
VLAQ_INLINE bool is_run(const int32_t* channels) {
  int32_t apart = 0;
  for (int i = 0; i < TILE; i++) apart |= channels[i] ^ (channels[0] + i);
  return apart == 0;
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
// The same with one permutation and one masked store for every line of 16 channels that the tiles
// touch. To find the lines pays from a few tokens on.
struct Lines {
  static constexpr bool COVERS_PRUNED = true;
  struct Line {
    int32_t channel;             // the first one, a multiple of 16
    uint16_t stored, written;    // channels that are rows of the tiles; those and pruned ones beside
    uint8_t row[TILE];           // row of the tiles for every stored channel
  };
  int tiles, count;
  Line lines[MAX_TILES * TILE];

  // The pruned channels that belong to the stored one at `at`, so that each belongs to one: those
  // that follow it directly, and for the first stored one of the line also those in front.
  VLAQ_INLINE int pruned_beside(int pruned, int at) {
    const int above = pruned >> (at + 1), below = (1 << at) - 1;
    return (above & ~(above + 1)) << (at + 1) | ((pruned & below) == below ? below : 0);
  }

  void find(const Job& job, int width, int first, int tiles_) {
    tiles = tiles_;
    count = 0;
    const int32_t* channels = job.store->tile_channels(width, first);
    int32_t channel = -1;  // no line yet
    for (int i = 0; i < tiles * TILE && channels[i] >= 0; i++) {
      const int at = channels[i] % TILE;
      if (i % TILE == 0 && at == 0 && is_run(channels + i)) {
        Line& line = lines[count++];
        channel = line.channel = channels[i];
        line.stored = line.written = 0xFFFF;
        for (int j = 0; j < TILE; j++) line.row[j] = uint8_t(i + j);
        i += TILE - 1;
        continue;
      }
      if (channels[i] - at != channel) {
        channel = channels[i] - at;
        lines[count].channel = channel;
        lines[count].stored = lines[count].written = 0;
        count++;
      }
      Line& line = lines[count - 1];
      line.row[at] = uint8_t(i);
      line.stored |= 1 << at;
      line.written |= 1 << at | (job.pruned ? pruned_beside(job.pruned[channel / TILE], at) : 0);
    }
  }

  template <class T>
  VLAQ_INLINE_MEMBER void put(const Job& job, T* y, int64_t stride, const float* sums,
                              const float* scale, int tokens) const {
    const int second = tiles == 1 ? 0 : TILE;
    for (int i = 0; i < count; i++) {
      const Line& line = lines[i];
      const uint16_t stored = line.stored, written = line.written;
      const Isa::I row = Isa::load_bytes(line.row);
      const Floats bias = job.bias ? (Floats)Isa::load_some(job.bias + line.channel, written) : Floats{};
      const float* from = sums;
      T* to = y + line.channel;
      for (int t = 0; t < tokens; t++, from += tiles * TILE, to += stride) {
        const Isa::F a = Isa::load_floats(from), b = Isa::load_floats(from + second);
        const Floats sum = (Floats)Isa::arrange(a, b, row, stored);
        Isa::store_some(to, written, converted(sum * scale[t] + bias, to));
      }
    }
  }
};
typedef Lines ManyOutputs;
#else
typedef Scattered ManyOutputs;
#endif
