// The bytes of one layer in the order in which the kernels read them.
//
// Rows of one width are cut into tiles of 16 channels. In every plane the codes of four neighbouring
// inputs ("k4") of the 16 channels lie next to each other: 16 x 4 codes are what one vector dot product
// takes. K below is in_features rounded up to a multiple of 16.
//
//     16 bits   [K / 2][16 channels][2] bfloat16
//      8 bits   two planes of nibbles, all high ones before all low ones, so that cap 4 reads half
//      4 bits   one plane of nibbles
//               [K / 8][16][4] bytes: low nibble = input 8 i + e, high nibble = input 8 i + 4 + e
//      2 bits   [K / 16][16][4] bytes: bits 2 s, 2 s + 1 = input 16 i + 4 s + e
//     scales    [tile][segments][16] float16 for the 8-, 4- and 2-bit tiles, in this order
//     channels  [tile][16] int32, -1 in the slots that pad the last tile of a width
//     pruned    [rows of width 0] int32, the channels without a row
//
// A segment is a run of inputs summed up in integers: a group, or part of a very long group.
#pragma once

#include <stdint.h>

#include "vlaq_kernels.h"

namespace vlaq {

constexpr int TILE = 16;                    // channels per tile
constexpr int CHUNK = 16;                   // inputs are padded to a multiple of this
constexpr int64_t LONGEST_SEGMENT = 65536;  // 65536 * 128 * 128 still fits in an int32

enum Width { BITS16, BITS8, BITS4, BITS2, WIDTHS };

struct Store {
  char magic[8];
  uint32_t version;
  int32_t in_features, out_features, group_size;
  int32_t rows[WIDTHS];
  int32_t pruned;
  int32_t padded_in;            // K
  int32_t segment, segments;    // inputs per segment; segments per row
  int64_t codes[WIDTHS];        // offsets in bytes from the beginning of the store
  int64_t low8;                 // the plane of low nibbles of the 8-bit rows
  int64_t scale, channels, pruned_channels;
  int64_t bytes;

  int tiles(int width) const { return (rows[width] + TILE - 1) / TILE; }
  // Tiles in front of those of `width`, and in front of them among the tiles that have scales.
  int first_tile(int width) const {
    int first = 0;
    for (int w = 0; w < width; w++) first += tiles(w);
    return first;
  }
  int64_t tile_bytes(int width) const {
    return int64_t(padded_in) * (width == BITS16 ? 32 : width == BITS2 ? 4 : 8);
  }
  const uint8_t* at(int64_t offset) const { return reinterpret_cast<const uint8_t*>(this) + offset; }
  const int32_t* tile_channels(int width, int tile) const {
    return reinterpret_cast<const int32_t*>(at(channels)) + (first_tile(width) + tile) * TILE;
  }
  const uint16_t* tile_scale(int width, int tile) const {
    const int64_t index = first_tile(width) - first_tile(BITS8) + tile;
    return reinterpret_cast<const uint16_t*>(at(scale)) + index * segments * TILE;
  }
};

// Fills in everything but the contents; VLAQ_OK or the error that makes the layer impossible.
int plan_store(const vlaq_layout& layout, Store* store);

// The store at `bytes`, or null when it is none.
const Store* open_store(const void* bytes);

}  // namespace vlaq
