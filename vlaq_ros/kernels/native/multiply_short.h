// The inner loop of integer rows where a dot product of bytes adds up in 16 bits.
//
// Included instead of multiply.h. Codes have four bits at most, so the sums of SHORT_CHUNKS chunks fit:
// 15 * 128 * 2 products * 4 steps * 2 chunks = 30720. Then they move on to sums of 32 bits, in memory.

#include "steps.h"

constexpr int SHORT_CHUNKS = 2;

template <class Codes, int ROWS, int NB, PanelUse PANEL>
void multiply(const Operands& operands) {
  constexpr int COLUMNS = NB * VECTORS;
  constexpr int SETS = ROWS * COLUMNS >= 8 ? 1 : ROWS * COLUMNS >= 4 ? 2 : 4;
  const Operands o = operands;  // a copy: what is stored below cannot change it
  const int32_t* start = o.start;
  const uint16_t* scale = o.scale;
  alignas(64) int32_t sums[ROWS * COLUMNS * Isa::LANES];
  for (int i = 0; i < ROWS * COLUMNS; i++)
    Isa::store_floats(o.sums + i * Isa::LANES, Isa::zero_floats());
  int64_t chunk = 0;
  do {
    const int64_t segment_end = chunk + o.segment_chunks < o.chunks ? chunk + o.segment_chunks : o.chunks;
    for (int m = 0; m < ROWS; m++)
      for (int v = 0; v < COLUMNS; v++)
        Isa::store(sums + (m * COLUMNS + v) * Isa::LANES, Isa::broadcast(start + m));
    do {
      const int64_t end = chunk + SHORT_CHUNKS < segment_end ? chunk + SHORT_CHUNKS : segment_end;
      Isa::I sum[SETS][ROWS][COLUMNS];
#pragma GCC unroll 4
      for (int set = 0; set < SETS; set++)
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
          for (int v = 0; v < COLUMNS; v++) sum[set][m][v] = Isa::zero();
      do {
        if (PANEL == READ_PANEL)
          __builtin_prefetch(o.ahead + chunk * o.ahead_step, 0, 2);  // into the second-level cache
        else
#pragma GCC unroll 4
          for (int tile = 0; tile < NB; tile++) Codes::template prefetch<ROWS, NB>(o, tile, chunk);
        steps<Codes, ROWS, NB, PANEL, SETS, 0>(o, chunk, sum);
        steps<Codes, ROWS, NB, PANEL, SETS, 1>(o, chunk, sum);
        steps<Codes, ROWS, NB, PANEL, SETS, 2>(o, chunk, sum);
        steps<Codes, ROWS, NB, PANEL, SETS, 3>(o, chunk, sum);
      } while (++chunk < end);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
        for (int v = 0; v < COLUMNS; v++) {
#pragma GCC unroll 4
          for (int set = 1; set < SETS; set++)
            sum[0][m][v] = Isa::add_short(sum[0][m][v], sum[set][m][v]);
          int32_t* to = sums + (m * COLUMNS + v) * Isa::LANES;
          Isa::store(to, Isa::add(Isa::load(to), Isa::widen(sum[0][m][v], o.unit)));
        }
    } while (chunk < segment_end);
    for (int v = 0; v < COLUMNS; v++) {
      const uint16_t* scales = scale + v / VECTORS * o.scale_tile;
      const Isa::F s = Isa::load_scale(scales + v % VECTORS * Isa::LANES);
      for (int m = 0; m < ROWS; m++) {
        const int at = (m * COLUMNS + v) * Isa::LANES;
        const Isa::F value = Isa::to_float(Isa::load(sums + at));
        Isa::store_floats(o.sums + at, Isa::multiply_add(value, s, Isa::load_floats(o.sums + at)));
      }
    }
    start += ROWS;
    scale += TILE;
  } while (chunk < o.chunks);
}
