// From sums to outputs, and the loop over the tokens for a run of tiles of channels.
//
// Included by every <isa>.cpp inside an anonymous namespace, after activations.h and multiply.h.

// Where the sums of up to NB tiles of channels go.
template <int NB>
struct Destination {
  const int32_t* channels[NB];
  bool contiguous[NB];
  float bias[NB][TILE];

  Destination(const Job& job, int width, int first) {
    for (int n = 0; n < NB; n++) {
      channels[n] = job.store->tile_channels(width, first + n);
      contiguous[n] = channels[n][0] >= 0;
      for (int i = 0; i < TILE; i++) {
        contiguous[n] = contiguous[n] && channels[n][i] == channels[n][0] + i;
        bias[n][i] = job.bias && channels[n][i] >= 0 ? job.bias[channels[n][i]] : 0.0f;
      }
    }
  }
};

VLAQ_INLINE Floats load_floats(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

VLAQ_INLINE void convert(Floats v, float* to) { __builtin_memcpy(to, &v, sizeof v); }
// float32 -> bfloat16 to nearest even; a NaN stays one.
VLAQ_INLINE void convert(Floats v, uint16_t* to) {
  Ints bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  const Ints is_nan = (bits & 0x7FFFFFFF) > EXPONENT;
  const Ints rounded = (round_bits(bits) & ~is_nan) | (0x7FC0 & is_nan);
  const UShorts halves = __builtin_convertvector(rounded, UShorts);
  __builtin_memcpy(to, &halves, sizeof halves);
}

// Asks for the lines that put_outputs will write: the rows of y lie far apart.
template <int NB>
VLAQ_INLINE void prefetch_outputs(const Job& job, int64_t first, int tokens,
                                  const Destination<NB>& to) {
  const int size = job.dtype == VLAQ_FLOAT32 ? 4 : 2;
  for (int i = 0; i < tokens; i++) {
    const char* row = static_cast<const char*>(job.y) + (first + i) * job.y_stride * size;
    for (int n = 0; n < NB; n++)
      if (to.contiguous[n]) __builtin_prefetch(row + to.channels[n][0] * size, 1);
  }
}

// Writes the outputs of the tokens of one tile. Two rows of sums per token are high and low byte.
template <class T, int NB>
VLAQ_INLINE void put_tile(const Job& job, const Tiling& tiling, int64_t tile, const float* sums,
                          const float* token_scale, float factor, const Destination<NB>& to) {
  const int64_t first = tiling.first(tile);
  const int tokens = tiling.count(tile), passes = tiling.passes;
  for (int i = 0; i < tokens; i++) {
    const float scale = token_scale[first + i] * factor;
    T* y = static_cast<T*>(job.y) + (first + i) * job.y_stride;
    for (int n = 0; n < NB; n++) {
      const float* from = sums + (i * passes * NB + n) * TILE;
      const int32_t* channels = to.channels[n];
      T scattered[TILE];
      T* values = to.contiguous[n] ? y + channels[0] : scattered;
      for (int j = 0; j < TILE; j += VALUES) {
        Floats sum = load_floats(from + j);
        if (passes == 2) sum = sum * 256.0f + load_floats(from + NB * TILE + j);
        convert(sum * scale + load_floats(to.bias[n] + j), values + j);
      }
      if (to.contiguous[n]) continue;
      for (int j = 0; j < TILE && channels[j] >= 0; j++) y[channels[j]] = values[j];
    }
  }
}

template <int NB>
void put_outputs(const Job& job, const Tiling& tiling, int64_t tile, const float* sums,
                 const float* token_scale, float factor, const Destination<NB>& to) {
  if (job.dtype == VLAQ_FLOAT32)
    put_tile<float>(job, tiling, tile, sums, token_scale, factor, to);
  else
    put_tile<uint16_t>(job, tiling, tile, sums, token_scale, factor, to);
}

typedef void Multiply(const Operands&);

// One entry per number of rows, 1 first.
template <class Codes, int NB, PanelUse PANEL, int... ROWS>
constexpr Multiply* multiply_for(int rows, std::integer_sequence<int, ROWS...>) {
  constexpr Multiply* table[] = {multiply<Codes, ROWS + 1, NB, PANEL>...};
  return table[rows - 1];
}
template <int NB, int... ROWS>
constexpr Multiply* multiply16_for(int rows, std::integer_sequence<int, ROWS...>) {
  constexpr Multiply* table[] = {multiply16<ROWS + 1, NB>...};
  return table[rows - 1];
}
typedef std::make_integer_sequence<int, Isa::MAX_ROWS> AllRows;
typedef std::make_integer_sequence<int, Isa::PANEL_ROWS> PanelRows;

// The first tile of tokens waits for codes from memory, the others do not: each of them fetches a
// part of the codes of the next panel. `part` counts from 0; a part has one line per chunk.
template <int NB>
VLAQ_INLINE void fetch_ahead(Operands* o, int planes, int64_t part) {
  const int64_t bytes = o->chunks * 64, parts = NB * o->tile_bytes / bytes;
  const uint8_t* plane = part < parts ? o->high : o->low - parts * bytes;
  o->ahead_step = part < parts * planes ? 64 : 0;
  o->ahead = o->ahead_step ? plane + NB * o->tile_bytes + part * bytes : o->high;
}

// NB tiles of channels times all tokens. With several tiles of tokens the first one leaves the
// unpacked codes behind in a panel that stays in the second-level cache.
template <class Codes, int NB>
void integer_panel(const Job& job, int width, int first, Zero zero, float factor, uint8_t* panel) {
  const Store& store = *job.store;
  const Tiling& tiling = job.integer;
  const int64_t bytes = store.tile_bytes(width), K = store.padded_in;
  alignas(64) float sums[Isa::MAX_ROWS * NB * TILE];
  const Destination<NB> to(job, width, first);
  Operands o;
  o.high = store.at(store.codes[width] + first * bytes);
  o.low = store.at(store.low8 + first * bytes);
  o.tile_bytes = bytes;
  o.panel = panel;
  o.scale = store.tile_scale(width, first);
  o.scale_tile = int64_t(store.segments) * TILE;
  o.sums = sums;
  o.chunks = K / CHUNK;
  o.segment_chunks = store.segment / CHUNK;
  const bool last = first + 2 * NB > store.tiles(width);
  const int planes = last ? 0 : width == BITS8 && job.cap == 8 ? 2 : 1;
  for (int64_t tile = 0; tile < tiling.tiles; tile++) {
    const int64_t before = tiling.first(tile) * tiling.passes;
    const int rows = tiling.count(tile) * tiling.passes;
    o.codes = job.codes + before * (K / 4) * Isa::PARTS;
    o.start = job.start[zero] + before * store.segments;
    if (tile) fetch_ahead<NB>(&o, planes, tile - 1);
    prefetch_outputs<NB>(job, tiling.first(tile), tiling.count(tile), to);
    if (tile) multiply_for<Codes, NB, READ_PANEL>(rows, PanelRows())(o);
    else if (tiling.tiles > 1) multiply_for<Codes, NB, WRITE_PANEL>(rows, PanelRows())(o);
    else multiply_for<Codes, NB, NO_PANEL>(rows, AllRows())(o);
    put_outputs(job, tiling, tile, sums, job.step, factor, to);
  }
}

template <int NB>
void bfloat16_panel(const Job& job, int first) {
  const Store& store = *job.store;
  const Tiling& tiling = job.rounded;
  alignas(64) float sums[Isa::MAX_ROWS * NB * TILE];
  const Destination<NB> to(job, BITS16, first);
  Operands o = {};
  o.tile_bytes = store.tile_bytes(BITS16);
  o.high = store.at(store.codes[BITS16] + first * o.tile_bytes);
  o.sums = sums;
  o.chunks = store.padded_in / CHUNK;
  for (int64_t tile = 0; tile < tiling.tiles; tile++) {
    const int64_t before = tiling.first(tile);
    o.codes = reinterpret_cast<const int32_t*>(job.rounded_x) + before * (store.padded_in / 2);
    multiply16_for<NB>(tiling.count(tile), AllRows())(o);
    put_outputs(job, tiling, tile, sums, job.valid, 1.0f, to);
  }
}

template <class Codes>
void integer_codes(const Job& job, int width, int first, int count, Zero zero, float factor,
                   uint8_t* panel) {
  // One token is bound by memory: one tile at a time reads every plane from front to back.
  const bool single = job.integer.tokens * job.integer.passes <= Isa::STREAM_ROWS;
  int tile = first;
  if (Isa::PANEL_TILES > 1 && !single)
    for (; tile + Isa::PANEL_TILES <= first + count; tile += Isa::PANEL_TILES)
      integer_panel<Codes, Isa::PANEL_TILES>(job, width, tile, zero, factor, panel);
  for (; tile < first + count; tile++)
    integer_panel<Codes, 1>(job, width, tile, zero, factor, panel);
}

void integer_tiles(const Job& job, int width, int first, int count, uint8_t* panel) {
  if (width == BITS8 && job.cap == 4)
    integer_codes<Nibbles>(job, width, first, count, ZERO_CAPPED, 1.0f, panel);
  else if (width == BITS8)
    integer_codes<Bytes>(job, width, first, count, ZERO_FULL, 1.0f, panel);
  else if (width == BITS4)
    integer_codes<Nibbles>(job, width, first, count, ZERO_FULL, 1.0f / 16, panel);
  else
    integer_codes<Pairs>(job, width, first, count, ZERO_TWO_BITS, 1.0f / 64, panel);
}

void bfloat16_tiles(const Job& job, int first, int count, uint8_t*) {
  int tile = first;
  if (Isa::PANEL_TILES > 1 && job.rounded.tokens > Isa::STREAM_ROWS)
    for (; tile + Isa::PANEL_TILES <= first + count; tile += Isa::PANEL_TILES)
      bfloat16_panel<Isa::PANEL_TILES>(job, tile);
  for (; tile < first + count; tile++) bfloat16_panel<1>(job, tile);
}
