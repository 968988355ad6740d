// The inner loops: a tile of tokens times one or more tiles of channels.
//
// Included by every <isa>.cpp inside an anonymous namespace, after a struct `Isa` with the vectors
// and operations of that instruction set:
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
  int64_t chunks, segment_chunks;
};

constexpr int VECTORS = TILE / Isa::LANES;      // per tile of channels
constexpr int VECTOR_BYTES = 4 * Isa::LANES;
constexpr int64_t PREFETCH_BYTES = 2048;

// How to make the codes u of step s (0..3, four inputs each) of a chunk. `v` counts vectors within
// a tile of channels.
struct Bytes {
  template <int S>
  static VLAQ_INLINE_MEMBER Isa::I load(const Operands& o, int tile, int64_t chunk, int v) {
    const int64_t at = tile * o.tile_bytes + chunk * 128 + S / 2 * 64 + v * VECTOR_BYTES;
    const Isa::I high = Isa::load(o.high + at), low = Isa::load(o.low + at);
    return S % 2 ? Isa::second_bytes(high, low) : Isa::first_bytes(high, low);
  }
  static VLAQ_INLINE_MEMBER void prefetch(const Operands& o, int tile, int64_t chunk) {
    const int64_t at = tile * o.tile_bytes + chunk * 128 + PREFETCH_BYTES;
    __builtin_prefetch(o.high + at);
    __builtin_prefetch(o.high + at + 64);
    __builtin_prefetch(o.low + at);
    __builtin_prefetch(o.low + at + 64);
  }
};
struct Nibbles {
  template <int S>
  static VLAQ_INLINE_MEMBER Isa::I load(const Operands& o, int tile, int64_t chunk, int v) {
    const int64_t at = tile * o.tile_bytes + chunk * 128 + S / 2 * 64 + v * VECTOR_BYTES;
    const Isa::I plane = Isa::load(o.high + at);
    return S % 2 ? Isa::high_nibbles(plane) : Isa::low_nibbles(plane);
  }
  static VLAQ_INLINE_MEMBER void prefetch(const Operands& o, int tile, int64_t chunk) {
    const int64_t at = tile * o.tile_bytes + chunk * 128 + PREFETCH_BYTES;
    __builtin_prefetch(o.high + at);
    __builtin_prefetch(o.high + at + 64);
  }
};
struct Pairs {
  template <int S>
  static VLAQ_INLINE_MEMBER Isa::I load(const Operands& o, int tile, int64_t chunk, int v) {
    return Isa::template pairs<S>(
        Isa::load(o.high + tile * o.tile_bytes + chunk * 64 + v * VECTOR_BYTES));
  }
  static VLAQ_INLINE_MEMBER void prefetch(const Operands& o, int tile, int64_t chunk) {
    __builtin_prefetch(o.high + tile * o.tile_bytes + chunk * 64 + PREFETCH_BYTES);
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

// sums = ROWS rows of activations times NB tiles of channels. Few sums are kept in several sets,
// because a dot product that adds to the result of the one before has to wait for it.
template <class Codes, int ROWS, int NB, PanelUse PANEL>
void multiply(const Operands& operands) {
  constexpr int COLUMNS = NB * VECTORS;
  constexpr int SETS = ROWS * COLUMNS >= 8 ? 1 : ROWS * COLUMNS >= 4 ? 2 : 4;
  const Operands o = operands;  // a copy: what is stored below cannot change it
  const int32_t* start = o.start;
  const uint16_t* scale = o.scale;
  constexpr bool IN_REGISTERS = ROWS * COLUMNS <= Isa::FREE_SUMS;
  Isa::F total[ROWS][COLUMNS];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
    for (int v = 0; v < COLUMNS; v++) {
      total[m][v] = Isa::zero_floats();
      if (!IN_REGISTERS) Isa::store_floats(o.sums + (m * COLUMNS + v) * Isa::LANES, total[m][v]);
    }
  int64_t chunk = 0;
  do {
    const int64_t end = chunk + o.segment_chunks < o.chunks ? chunk + o.segment_chunks : o.chunks;
    Isa::I sum[SETS][ROWS][COLUMNS];
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++) {
      const Isa::I first = Isa::broadcast(start + m);
#pragma GCC unroll 16
      for (int v = 0; v < COLUMNS; v++) sum[0][m][v] = first;
    }
#pragma GCC unroll 4
    for (int set = 1; set < SETS; set++)
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
        for (int v = 0; v < COLUMNS; v++) sum[set][m][v] = Isa::zero();
    do {
      if (PANEL == READ_PANEL)
        __builtin_prefetch(o.ahead + chunk * o.ahead_step, 0, 2);  // into the second-level cache
      else
#pragma GCC unroll 4
        for (int tile = 0; tile < NB; tile++) Codes::prefetch(o, tile, chunk);
      steps<Codes, ROWS, NB, PANEL, SETS, 0>(o, chunk, sum);
      steps<Codes, ROWS, NB, PANEL, SETS, 1>(o, chunk, sum);
      steps<Codes, ROWS, NB, PANEL, SETS, 2>(o, chunk, sum);
      steps<Codes, ROWS, NB, PANEL, SETS, 3>(o, chunk, sum);
    } while (++chunk < end);
#pragma GCC unroll 16
    for (int v = 0; v < COLUMNS; v++) {
      const uint16_t* scales = scale + v / VECTORS * o.scale_tile;
      const Isa::F s = Isa::load_scale(scales + v % VECTORS * Isa::LANES);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++) {
#pragma GCC unroll 4
        for (int set = 1; set < SETS; set++)
          sum[0][m][v] = Isa::add(sum[0][m][v], sum[set][m][v]);
        const Isa::F value = Isa::to_float(sum[0][m][v]);
        float* to = o.sums + (m * COLUMNS + v) * Isa::LANES;
        if (IN_REGISTERS) total[m][v] = Isa::multiply_add(value, s, total[m][v]);
        else Isa::store_floats(to, Isa::multiply_add(value, s, Isa::load_floats(to)));
      }
    }
    if (!IN_REGISTERS) asm volatile("" ::: "memory");  // no caching of float sums in registers
    start += ROWS;
    scale += TILE;
  } while (chunk < o.chunks);
  if (IN_REGISTERS)
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
      for (int v = 0; v < COLUMNS; v++)
        Isa::store_floats(o.sums + (m * COLUMNS + v) * Isa::LANES, total[m][v]);
}

// The same for bfloat16 rows: dot16 adds the products of two neighbouring inputs per lane.
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
        if (v % VECTORS == 0) __builtin_prefetch(from + PREFETCH_BYTES);
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
