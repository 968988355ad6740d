// What one call of vlaq_linear hands to the code of an instruction set, and what it gets from it.
#pragma once

#include <stdint.h>

#include "store.h"

namespace vlaq {

// Rows of activations cut into nearly equal tiles: one tile of up to `alone` rows, or several of
// up to `together`. A token takes `passes` rows: two when its codes have 16 bits (high bytes and low
// bytes), else one.
struct Tiling {
  int64_t tokens = 0, tiles = 0, least = 0, larger = 0;  // the first `larger` have least + 1 tokens
  int passes = 1;

  Tiling() = default;
  Tiling(int64_t tokens_, int passes_, int alone, int together) : tokens(tokens_), passes(passes_) {
    const int64_t most = (tokens * passes <= alone ? alone : together) / passes;
    tiles = (tokens + most - 1) / most;
    least = tokens / tiles;
    larger = tokens % tiles;
  }
  int64_t first(int64_t tile) const { return least * tile + (tile < larger ? tile : larger); }
  int64_t tile_of(int64_t token) const {
    const int64_t in_larger = larger * (least + 1);
    return token < in_larger ? token / (least + 1) : larger + (token - in_larger) / least;
  }
  int count(int64_t tile) const { return int(least + (tile < larger)); }
};

// The value of an integer code u of the kernels is u - zero; twice the zero is a whole number.
//   8 bits   u = q                     4 bits   u = 16 q
//   8 bits, cap 4   u = q & 0xF0, whose middle is 7.5 higher: zero = 128 - 7.5
//   2 bits   u = 64 q, zero = 64 * 1.5
enum Zero { ZERO_FULL, ZERO_CAPPED, ZERO_TWO_BITS, ZEROS };
constexpr int TWICE_ZERO[ZEROS] = {256, 241, 192};

struct Job {
  const Store* store;
  int dtype;
  const void* x;
  int64_t x_stride;
  void* y;
  int64_t y_stride;
  const float* bias;  // or null
  int cap, activation_bits;
  bool wanted[WIDTHS];          // the rows of which widths to multiply
  bool pruned_wanted;           // whether to write channels without a row
  const uint16_t* pruned;       // per 16 channels, a bit for every pruned one; null: not to be written

  // Activations as the dot products take them, one block per tile of tokens; see activations.h.
  Tiling integer, rounded;      // for the integer rows; for the bfloat16 rows
  int32_t* codes;               // [tile][K / 16][rows][4][PARTS] groups of four codes
  int32_t* start[ZEROS];        // [tile][segment][rows] -zero * (sum of codes); null if not needed
  float* step;                  // [tokens] value of one code; NaN for a row that is not finite
  uint32_t* rounded_x;          // [tile][K / 16][rows][8] pairs of bfloat16
  float* valid;                 // [tokens] 1, or NaN for a row that is not finite
};

// Tiles of channels of one width to be multiplied.
inline int wanted_tiles(const Job& job, int width) {
  return job.wanted[width] ? job.store->tiles(width) : 0;
}

// Some tiles of channels of one width, read together.
struct PanelAt {
  int32_t width, first, tiles;
};
constexpr int MAX_GROUP = 16;  // panels that many_tokens takes

// The code of one instruction set. `unpacked` is scratch memory of the calling thread.
struct Kernels {
  const char* name;
  int max_rows;         // rows of activations per tile when one tile holds all of them
  int panel_rows;       // the same for several tiles; at most max_rows
  int parts;            // dot products per group of four codes
  int panel_tiles;      // tiles of channels that are multiplied together
  void (*prepare)(const Job&, int64_t begin, int64_t end);  // activations of these tokens
  void (*few_tokens)(const Job&, int width, int first, int count);
  void (*many_tokens)(const Job&, const PanelAt* group, int count, const PanelAt* ahead,
                      int ahead_count, uint8_t* unpacked);
  bool covers_pruned;   // many_tokens also writes the channels that job.pruned names, except where
                        // all 16 are pruned
  const Kernels* (*nibbles)();  // faster ones for calls in which no code has more than four bits, or null
};

const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx2();
const Kernels* kernels_avx2short();
const Kernels* kernels_neon();
const Kernels* kernels_portable();

}  // namespace vlaq
