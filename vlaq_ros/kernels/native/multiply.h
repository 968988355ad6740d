// The inner loop of integer rows: a tile of tokens times one or more tiles of channels.
//
// Included by <isa>.cpp inside an anonymous namespace, after a struct `Isa`; see steps.h.

#include "steps.h"

// sums = ROWS rows of activations times NB tiles of channels. Few sums are kept in several sets,
// because a dot product that adds to the result of the one before has to wait for it.
template <class Codes, int ROWS, int NB, PanelUse PANEL>
void multiply(const Operands& operands) {
  constexpr int COLUMNS = NB * VECTORS;
  constexpr int SETS = ROWS * COLUMNS >= 8 ? 1 : ROWS * COLUMNS >= 4 ? 2 : 4;
  constexpr bool WAITS = Codes::WAITS && PANEL == NO_PANEL && ROWS == 1 && NB == 1;
  Operands o = operands;  // a copy: what is stored below cannot change it
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
  int64_t chunk = 0, nothing = 0;
  asm("" : "+r"(nothing));  // zero, which the compiler does not know
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
      const int64_t first = chunk, stop = WAITS && chunk + WAIT_CHUNKS < end ? chunk + WAIT_CHUNKS : end;
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
      } while (++chunk < stop);
      if (WAITS)  // nibbles: 128 bytes per chunk
        o.high += *reinterpret_cast<const int32_t*>(o.high + first * 128 + 64) & nothing;
    } while (WAITS && chunk < end);
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
