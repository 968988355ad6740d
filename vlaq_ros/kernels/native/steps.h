// What the inner loops are made of: operands, codes and steps; and the loop of bfloat16 rows.
//
// Included by multiply.h or multiply_short.h inside an anonymous namespace, after a struct `Isa` with the
// vectors and operations of that instruction set:
//
//   I, F              a vector of LANES 32-bit integers, of LANES floats
//   MAX_ROWS          rows of activations whose sums fit in the registers, for PANEL_TILES tiles
//                     of channels
//   PANEL_ROWS        the same when codes come from a panel: so few that FREE_SUMS covers them
//   FREE_SUMS         vectors of integer sums that leave registers for as many of floats
//   STREAM_ROWS       up to so many rows one tile of channels is read at a time
//   PARTS             1: dot() takes four 8-bit codes per lane. 2: two 16-bit codes, and part<0>,
//                     part<1> make the even and the odd codes of them
//   SIGNED_WEIGHTS    part() also subtracts 128
//   BYTES             whether codes may have 8 bits, as in multiply.h
//
// The integer sums of a segment start at -zero * (sum of activations), so that nothing but a
// conversion and one multiplication with the scale is left to do at its end.

struct Operands {
  const uint8_t* high;      // codes of the first tile of channels: its only plane, or the high one
  const uint8_t* low;       // the plane of low nibbles
  int64_t tile_bytes;       // from one tile of channels to the next
  uint8_t* panel;           // unpacked codes: written by the first tile of tokens, then read
  const int32_t* codes;     // activations
  const int32_t* start;     // first value of the sums
  const uint16_t* scale;
  int64_t scale_tile;       // values from one tile of channels to the next
  const uint8_t* ahead;     // memory to fetch while the panel is read, one line per chunk
  int64_t ahead_step;       // 64, or 0 when there is nothing to fetch
  float* sums;              // [rows][tiles][16]
  int32_t unit;             // for multiply_short.h: what a code of one is worth, in both halves
  int64_t chunks, segment_chunks;
};

constexpr int VECTORS = TILE / Isa::LANES;      // per tile of channels
constexpr int VECTOR_BYTES = 4 * Isa::LANES;

// How far ahead memory is fetched: so many bytes in all streams of codes together cover its latency. No stream
// is fetched a multiple of 4096 bytes ahead, which would be into the cache sets that are being read.
constexpr int64_t AHEAD_BYTES = 9728;

// Where one of STREAMS streams through NB tiles of codes, now at `at` of its tile, is that much later: behind the
// end of the tile, in the one that it reads next.
template <int NB, int STREAMS>
VLAQ_INLINE int64_t later(const Operands& o, int64_t at) {
  const int64_t ahead = at + AHEAD_BYTES / STREAMS;
  return ahead < o.tile_bytes ? ahead : ahead + (NB - 1) * o.tile_bytes;
}

// A processor that waits for memory starts loads up to 2 KB ahead of the products, and what is to be fetched still
// further ahead has to wait for them. So a single row of nibbles goes on, after so many chunks, with an address
// that depends on a word of the first of them.
constexpr int64_t WAIT_CHUNKS = 4;

// How to make the codes u of step s (0..3, four inputs each) of a chunk. `v` counts vectors within
// a tile of channels.
struct Bytes {
  static constexpr bool WAITS = false;
  template <int S>
  static VLAQ_INLINE_MEMBER Isa::I load(const Operands& o, int tile, int64_t chunk, int v) {
    const int64_t at = tile * o.tile_bytes + chunk * 128 + S / 2 * 64 + v * VECTOR_BYTES;
    const Isa::I high = Isa::load(o.high + at), low = Isa::load(o.low + at);
    return S % 2 ? Isa::second_bytes(high, low) : Isa::first_bytes(high, low);
  }
  template <int ROWS, int NB>
  static VLAQ_INLINE_MEMBER void prefetch(const Operands& o, int tile, int64_t chunk) {
    if (ROWS == 1 && NB == 1) return;  // the two streams of a single row come sooner without
    const int64_t at = tile * o.tile_bytes + later<NB, 2 * NB>(o, chunk * 128);
    __builtin_prefetch(o.high + at);
    __builtin_prefetch(o.high + at + 64);
    __builtin_prefetch(o.low + at);
    __builtin_prefetch(o.low + at + 64);
  }
};
struct Nibbles {
  static constexpr bool WAITS = true;
  template <int S>
  static VLAQ_INLINE_MEMBER Isa::I load(const Operands& o, int tile, int64_t chunk, int v) {
    const int64_t at = tile * o.tile_bytes + chunk * 128 + S / 2 * 64 + v * VECTOR_BYTES;
    const Isa::I plane = Isa::load(o.high + at);
    return S % 2 ? Isa::high_nibbles(plane) : Isa::low_nibbles(plane);
  }
  template <int ROWS, int NB>
  static VLAQ_INLINE_MEMBER void prefetch(const Operands& o, int tile, int64_t chunk) {
    const int64_t at = tile * o.tile_bytes + later<NB, NB>(o, chunk * 128);
    __builtin_prefetch(o.high + at);
    __builtin_prefetch(o.high + at + 64);
  }
};
struct Pairs {
  static constexpr bool WAITS = false;  // their products take as long as their bytes
  template <int S>
  static VLAQ_INLINE_MEMBER Isa::I load(const Operands& o, int tile, int64_t chunk, int v) {
    return Isa::template pairs<S>(
        Isa::load(o.high + tile * o.tile_bytes + chunk * 64 + v * VECTOR_BYTES));
  }
  template <int ROWS, int NB>
  static VLAQ_INLINE_MEMBER void prefetch(const Operands& o, int tile, int64_t chunk) {
    __builtin_prefetch(o.high + tile * o.tile_bytes + later<NB, NB>(o, chunk * 64));
  }
};

// Where vector v of step S, part P of a chunk lies in a panel of NB tiles.
template <int NB, int S, int P>
VLAQ_INLINE uint8_t* panel_at(const Operands& o, int64_t chunk, int v) {
  return o.panel + (((chunk * 4 + S) * Isa::PARTS + P) * NB * VECTORS + v) * VECTOR_BYTES;
}

enum PanelUse { NO_PANEL, WRITE_PANEL, READ_PANEL };

template <class Codes, int ROWS, int NB, PanelUse PANEL, int SETS, int S, int P>
VLAQ_INLINE void step(const Operands& o, int64_t chunk, Isa::I (&sum)[SETS][ROWS][NB * VECTORS]) {
  Isa::I weight[NB * VECTORS];
#pragma GCC unroll 16
  for (int v = 0; v < NB * VECTORS; v++) {
    if (PANEL == READ_PANEL) {
      weight[v] = Isa::load(panel_at<NB, S, P>(o, chunk, v));
    } else {
      weight[v] = Isa::template part<P>(
          Codes::template load<S>(o, v / VECTORS, chunk, v % VECTORS));
      if (PANEL == WRITE_PANEL) Isa::store(panel_at<NB, S, P>(o, chunk, v), weight[v]);
    }
  }
  const int32_t* codes = o.codes + chunk * ROWS * (4 * Isa::PARTS) + S * Isa::PARTS + P;
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++) {
    const Isa::I x = Isa::broadcast(codes + m * (4 * Isa::PARTS));
#pragma GCC unroll 16
    for (int v = 0; v < NB * VECTORS; v++) Isa::dot(sum[S % SETS][m][v], weight[v], x);
  }
}

template <class Codes, int ROWS, int NB, PanelUse PANEL, int SETS, int S>
VLAQ_INLINE void steps(const Operands& o, int64_t chunk, Isa::I (&sum)[SETS][ROWS][NB * VECTORS]) {
  step<Codes, ROWS, NB, PANEL, SETS, S, 0>(o, chunk, sum);
  if (Isa::PARTS == 2) step<Codes, ROWS, NB, PANEL, SETS, S, Isa::PARTS - 1>(o, chunk, sum);
}

// ROWS rows of activations times NB tiles of bfloat16 rows: dot16 adds the products of two neighbouring inputs per lane.
template <int ROWS, int NB>
void multiply16(const Operands& o) {
  constexpr int COLUMNS = NB * VECTORS;
  Isa::F sum[ROWS][COLUMNS];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
    for (int v = 0; v < COLUMNS; v++) sum[m][v] = Isa::zero_floats();
  const int32_t* x = o.codes;
  const uint8_t* plane = o.high;
  for (int64_t chunk = 0; chunk < o.chunks; chunk++, x += ROWS * 8, plane += 8 * 64)
#pragma GCC unroll 8
    for (int pair = 0; pair < 8; pair++) {
      Isa::I weight[COLUMNS];
#pragma GCC unroll 16
      for (int v = 0; v < COLUMNS; v++) {
        const uint8_t* from = plane + v / VECTORS * o.tile_bytes + pair * 64;
        if (v % VECTORS == 0)
          __builtin_prefetch(o.high + v / VECTORS * o.tile_bytes + later<NB, NB>(o, plane - o.high + pair * 64));
        weight[v] = Isa::load(from + v % VECTORS * VECTOR_BYTES);
      }
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++) {
        const Isa::I pair_x = Isa::broadcast(x + m * 8 + pair);
#pragma GCC unroll 16
        for (int v = 0; v < COLUMNS; v++) Isa::dot16(sum[m][v], weight[v], pair_x);
      }
    }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
    for (int v = 0; v < COLUMNS; v++)
      Isa::store_floats(o.sums + (m * COLUMNS + v) * Isa::LANES, sum[m][v]);
}
