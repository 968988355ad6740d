// Tiles of channels times all tokens.
//
// Included by every <isa>.cpp inside an anonymous namespace, after outputs.h.

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

// NB tiles of channels of one width, with the codes of that width.
template <int NB>
Multiply* integer_multiply(const Job& job, int width, PanelUse use, int rows) {
  if (use == READ_PANEL) return multiply_for<Nibbles, NB, READ_PANEL>(rows, PanelRows());  // of all
  const bool alone = use == NO_PANEL;
  if (width == BITS2)
    return alone ? multiply_for<Pairs, NB, NO_PANEL>(rows, AllRows())
                 : multiply_for<Pairs, NB, WRITE_PANEL>(rows, PanelRows());
  if constexpr (Isa::BYTES)
    if (width == BITS8 && job.cap == 8)
      return alone ? multiply_for<Bytes, NB, NO_PANEL>(rows, AllRows())
                   : multiply_for<Bytes, NB, WRITE_PANEL>(rows, PanelRows());
  return alone ? multiply_for<Nibbles, NB, NO_PANEL>(rows, AllRows())
               : multiply_for<Nibbles, NB, WRITE_PANEL>(rows, PanelRows());
}

// One or PANEL_TILES tiles of channels of one width, to be multiplied by one tile of tokens after
// the other.
template <class Outputs>
struct Panel {
  Operands o;
  Outputs outputs;
  int width, tiles;
  Zero zero;
  float factor;  // of the codes

  void open(const Job& job, int width_, int first, int tiles_, uint8_t* unpacked) {
    const Store& store = *job.store;
    width = width_;
    tiles = tiles_;
    outputs.find(job, width, first, tiles);
    o = {};
    o.tile_bytes = store.tile_bytes(width);
    o.high = store.at(store.codes[width] + first * o.tile_bytes);
    o.chunks = store.padded_in / CHUNK;
    zero = ZERO_FULL;
    factor = 1.0f;
    if (width == BITS16) return;
    o.low = store.at(store.low8 + first * o.tile_bytes);
    o.panel = unpacked;
    o.scale = store.tile_scale(width, first);
    o.scale_tile = int64_t(store.segments) * TILE;
    o.segment_chunks = store.segment / CHUNK;
    if (width == BITS8 && job.cap == 4) zero = ZERO_CAPPED;
    if (width == BITS4) factor = 1.0f / 16;
    if (width == BITS2) zero = ZERO_TWO_BITS, factor = 1.0f / 64;
    o.unit = width == BITS2 ? 0x00400040 : 0x00100010;
  }

  void multiply(const Job& job, int64_t tile, PanelUse use) {
    alignas(64) float sums[Isa::MAX_ROWS * MAX_TILES * TILE];
    const bool pair = tiles == Isa::PANEL_TILES;
    const Tiling& tiling = width == BITS16 ? job.rounded : job.integer;
    const int64_t before = tiling.first(tile) * tiling.passes, K = job.store->padded_in;
    const int rows = tiling.count(tile) * tiling.passes;
    o.sums = sums;
    if (width == BITS16) {
      o.codes = reinterpret_cast<const int32_t*>(job.rounded_x) + before * (K / 2);
      (pair ? multiply16_for<Isa::PANEL_TILES>(rows, AllRows()) : multiply16_for<1>(rows, AllRows()))(o);
    } else {
      o.codes = job.codes + before * (K / 4) * Isa::PARTS;
      o.start = job.start[zero] + before * job.store->segments;
      (pair ? integer_multiply<Isa::PANEL_TILES>(job, width, use, rows)
            : integer_multiply<1>(job, width, use, rows))(o);
    }
    put(job, tiling, tile, sums);
  }

  // Writes the outputs. Two rows of sums per token are high and low byte.
  void put(const Job& job, const Tiling& tiling, int64_t tile, float* sums) const {
    const int64_t first = tiling.first(tile);
    const int tokens = tiling.count(tile), columns = tiles * TILE;
    const float* token_scale = width == BITS16 ? job.valid : job.step;
    float scale[Isa::MAX_ROWS];
    for (int t = 0; t < tokens; t++) scale[t] = token_scale[first + t] * factor;
    if (tiling.passes == 2)
      for (int t = 0; t < tokens; t++)
        for (int i = 0; i < columns; i++)
          sums[t * columns + i] =
              sums[2 * t * columns + i] * 256.0f + sums[(2 * t + 1) * columns + i];
    const int64_t at = first * job.y_stride;
    if (job.dtype == VLAQ_FLOAT32)
      outputs.put(job, static_cast<float*>(job.y) + at, job.y_stride, sums, scale, tokens);
    else
      outputs.put(job, static_cast<uint16_t*>(job.y) + at, job.y_stride, sums, scale, tokens);
  }
};

// `count` tiles of channels times few tokens, which one tile of tokens holds; `most` tiles at a time.
template <class Outputs>
void few_tokens(const Job& job, int width, int first, int count, int most) {
  Panel<Outputs> panel;
  for (int tile = first, tiles; tile < first + count; tile += tiles) {
    tiles = first + count - tile < most ? 1 : most;
    panel.open(job, width, tile, tiles, nullptr);
    panel.multiply(job, 0, NO_PANEL);
  }
}
void few_tokens(const Job& job, int width, int first, int count) {
  // One token is bound by memory: one tile at a time reads every plane from front to back.
  const int64_t rows = width == BITS16 ? job.rounded.tokens : job.integer.tokens * job.integer.passes;
  if (rows > Isa::STREAM_ROWS) few_tokens<ManyOutputs>(job, width, first, count, Isa::PANEL_TILES);
  else few_tokens<Scattered>(job, width, first, count, 1);
}

// What to fetch while panels are read: the codes of the panels of the next group, a part with one
// line per chunk each time.
struct Ahead {
  const Job& job;
  const PanelAt* next;
  const PanelAt* end;
  int64_t part = 0;

  VLAQ_INLINE_MEMBER void fetch(Operands* o) {
    o->ahead = o->high;
    o->ahead_step = 0;
    if (next == end) return;
    const Store& store = *job.store;
    const int64_t tile_bytes = store.tile_bytes(next->width), bytes = o->chunks * 64;
    const int64_t parts = next->tiles * tile_bytes / bytes;  // of one plane
    const int planes = next->width == BITS8 && job.cap == 8 ? 2 : 1;
    const int64_t plane = part < parts ? store.codes[next->width] : store.low8 - parts * bytes;
    o->ahead = store.at(plane + next->first * tile_bytes + part * bytes);
    o->ahead_step = 64;
    if (++part == parts * planes) next++, part = 0;
  }
};

// A group of panels times many tokens. The first tile of tokens leaves the unpacked codes behind; they
// stay in the second-level cache, the activations and outputs of one tile of tokens in the first.
void many_tokens(const Job& job, const PanelAt* group, int count, const PanelAt* ahead, int ahead_count,
                 uint8_t* unpacked) {
  Panel<ManyOutputs> panels[MAX_GROUP];
  for (int i = 0; i < count; i++) {
    panels[i].open(job, group[i].width, group[i].first, group[i].tiles, unpacked);
    unpacked += int64_t(group[i].tiles) * job.store->padded_in * TILE * Isa::PARTS;
  }
  const Tiling& tiling = group->width == BITS16 ? job.rounded : job.integer;
  Ahead next{job, ahead, ahead + ahead_count};
  for (int64_t tile = 0; tile < tiling.tiles; tile++)
    for (int i = 0; i < count; i++) {
      if (tile && group->width != BITS16) next.fetch(&panels[i].o);
      panels[i].multiply(job, tile, tile ? READ_PANEL : WRITE_PANEL);
    }
}
