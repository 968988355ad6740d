// vlaq_store_bytes, vlaq_pack, vlaq_unpack: row-major rows <-> tiles, one row at a time.

#include "store.h"

#include <string.h>

#include <vector>

namespace vlaq {
namespace {

constexpr char MAGIC[8] = {'V', 'L', 'A', 'Q', 'T', 'I', 'L', 'E'};
constexpr uint32_t VERSION = 1;
constexpr int64_t MAX_FEATURES = 1 << 24;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Inputs per segment: the group, or its largest part that is a multiple of 16 and short enough.
int segment_of(int64_t group) {
  int64_t parts = 1;
  while (group / parts > LONGEST_SEGMENT || group % (parts * CHUNK)) parts++;
  return int(group / parts);
}

// Four bits each of a 16-bit word -> the low halves of four bytes, and back.
uint32_t spread_nibbles(uint32_t x) {
  x = (x | x << 8) & 0x00FF00FF;
  return (x | x << 4) & 0x0F0F0F0F;
}
uint32_t join_nibbles(uint32_t x) {
  x = (x | x >> 4) & 0x00FF00FF;
  return (x | x >> 8) & 0xFFFF;
}

// Two bits each of a byte -> the low quarters of four bytes, and back.
uint32_t spread_pairs(uint32_t x) {
  x = (x | x << 12) & 0x000F000F;
  return (x | x << 6) & 0x03030303;
}
uint32_t join_pairs(uint32_t x) {
  x = (x | x >> 6) & 0x000F000F;
  return (x | x >> 12) & 0xFF;
}

// One row of a tile seen as words: word i of channel slot j is word 16 i + j of the plane.
template <class Word>
struct Column {
  Word* word;
  Word& operator[](int64_t i) const { return word[i * TILE]; }
};

// Reads the bytes of word i of a row; what lies behind the end of the row is zero.
template <class Word>
Word read_word(const uint8_t* row, int64_t row_bytes, int64_t i) {
  Word word = 0;
  const int64_t begin = i * int64_t(sizeof(Word)), left = row_bytes - begin;
  if (left > 0) memcpy(&word, row + begin, left < int64_t(sizeof(Word)) ? left : sizeof(Word));
  return word;
}

template <class Word>
void write_word(uint8_t* row, int64_t row_bytes, int64_t i, Word word) {
  const int64_t begin = i * int64_t(sizeof(Word)), left = row_bytes - begin;
  if (left > 0) memcpy(row + begin, &word, left < int64_t(sizeof(Word)) ? left : sizeof(Word));
}

constexpr uint64_t LOW = 0x0F0F0F0F;

struct Row {           // one stored row: where it lies row-major, and in its tile
  uint8_t* bytes;
  int64_t count;       // bytes
  uint32_t* plane;     // first word of its column
  uint32_t* low;       // the same in the plane of low nibbles, 8-bit rows only
};

void pack_row(int width, const Row& row, int64_t padded_in) {
  const Column<uint32_t> plane{row.plane}, low{row.low};
  if (width == BITS16) {
    for (int64_t i = 0; i < padded_in / 2; i++) plane[i] = read_word<uint32_t>(row.bytes, row.count, i);
  } else if (width == BITS8) {
    for (int64_t i = 0; i < padded_in / 8; i++) {
      const uint64_t codes = read_word<uint64_t>(row.bytes, row.count, i);
      const uint32_t first = uint32_t(codes), second = uint32_t(codes >> 32);
      plane[i] = (first >> 4 & LOW) | (second & ~LOW);
      low[i] = (first & LOW) | (second & LOW) << 4;
    }
  } else if (width == BITS4) {
    for (int64_t i = 0; i < padded_in / 8; i++) {
      const uint32_t codes = read_word<uint32_t>(row.bytes, row.count, i);
      plane[i] = spread_nibbles(codes & 0xFFFF) | spread_nibbles(codes >> 16) << 4;
    }
  } else {
    for (int64_t i = 0; i < padded_in / 16; i++) {
      const uint32_t codes = read_word<uint32_t>(row.bytes, row.count, i);
      plane[i] = 0;
      for (int s = 0; s < 4; s++) plane[i] |= spread_pairs(codes >> 8 * s & 0xFF) << 2 * s;
    }
  }
}

void unpack_row(int width, const Row& row, int64_t padded_in) {
  const Column<uint32_t> plane{row.plane}, low{row.low};
  if (width == BITS16) {
    for (int64_t i = 0; i < padded_in / 2; i++) write_word(row.bytes, row.count, i, plane[i]);
  } else if (width == BITS8) {
    for (int64_t i = 0; i < padded_in / 8; i++) {
      const uint64_t first = (plane[i] & LOW) << 4 | (low[i] & LOW);
      const uint64_t second = (plane[i] & ~uint32_t(LOW)) | (low[i] >> 4 & LOW);
      write_word(row.bytes, row.count, i, first | second << 32);
    }
  } else if (width == BITS4) {
    for (int64_t i = 0; i < padded_in / 8; i++) {
      const uint32_t p = plane[i];
      const uint32_t codes = join_nibbles(p & LOW) | join_nibbles(p >> 4 & LOW) << 16;
      write_word(row.bytes, row.count, i, codes);
    }
  } else {
    for (int64_t i = 0; i < padded_in / 16; i++) {
      uint32_t codes = 0;
      for (int s = 0; s < 4; s++) codes |= join_pairs(plane[i] >> 2 * s & 0x03030303) << 8 * s;
      write_word(row.bytes, row.count, i, codes);
    }
  }
}

uint8_t* row_major(const vlaq_rows& rows, int width, int64_t row, int64_t count) {
  uint8_t* const first[WIDTHS] = {reinterpret_cast<uint8_t*>(rows.values16), rows.codes8,
                                  rows.codes4, rows.codes2};
  return first[width] + row * count;
}

// Calls f(width, row, index among all rows, index in its width) for every stored row.
template <class F>
void for_each_row(const Store& store, const vlaq_rows& rows, uint8_t* base, F f) {
  const int64_t in = store.in_features;
  const int64_t counts[WIDTHS] = {in * 2, in, (in + 1) / 2, (in + 3) / 4};
  int64_t index = 0;
  for (int width = 0; width < WIDTHS; width++) {
    for (int64_t i = 0; i < store.rows[width]; i++, index++) {
      const int64_t tile = i / TILE, slot = i % TILE, offset = tile * store.tile_bytes(width);
      Row row{row_major(rows, width, i, counts[width]), counts[width],
              reinterpret_cast<uint32_t*>(base + store.codes[width] + offset) + slot, nullptr};
      if (width == BITS8) row.low = reinterpret_cast<uint32_t*>(base + store.low8 + offset) + slot;
      f(width, row, index, i);
    }
  }
}

// The float16 scales of one row, one per group on disk and one per segment in the store.
uint16_t* scale_column(const Store& store, uint8_t* base, int width, int64_t row) {
  const int64_t tile = row / TILE;
  return reinterpret_cast<uint16_t*>(base + ((const uint8_t*)store.tile_scale(width, int(tile)) -
                                             store.at(0))) + row % TILE;
}

int check_order(const Store& store, const int32_t* order, int64_t rows, std::vector<bool>* used) {
  used->assign(store.out_features, false);
  for (int64_t i = 0; i < rows; i++) {
    if (order[i] < 0 || order[i] >= store.out_features || (*used)[order[i]]) return VLAQ_ERROR_ORDER;
    (*used)[order[i]] = true;
  }
  return VLAQ_OK;
}

void write_channels(const Store& store, const int32_t* order, const std::vector<bool>& used,
                    uint8_t* base) {
  int32_t* channels = reinterpret_cast<int32_t*>(base + store.channels);
  for (int width = 0; width < WIDTHS; width++)
    for (int64_t i = 0; i < int64_t(store.tiles(width)) * TILE; i++)
      *channels++ = i < store.rows[width] ? *order++ : -1;
  int32_t* pruned = reinterpret_cast<int32_t*>(base + store.pruned_channels);
  for (int32_t n = 0; n < store.out_features; n++)
    if (!used[n]) *pruned++ = n;
}

int64_t groups_of(const Store& store) {
  const int64_t in = store.in_features, group = store.group_size;
  return group >= in ? 1 : (in + group - 1) / group;
}

}  // namespace

int plan_store(const vlaq_layout& layout, Store* store) {
  const int64_t in = layout.in_features, out = layout.out_features;
  const int32_t rows[WIDTHS] = {layout.rows16, layout.rows8, layout.rows4, layout.rows2};
  if (in < 1 || out < 1 || in > MAX_FEATURES || out > MAX_FEATURES) return VLAQ_ERROR_SHAPE;
  int64_t kept = 0;
  for (int32_t count : rows) {
    if (count < 0) return VLAQ_ERROR_SHAPE;
    kept += count;
  }
  if (kept > out) return VLAQ_ERROR_SHAPE;
  if (layout.group_size < 1 || (layout.group_size < in && layout.group_size % CHUNK))
    return VLAQ_ERROR_GROUP;

  memset(store, 0, sizeof *store);
  memcpy(store->magic, MAGIC, sizeof MAGIC);
  store->version = VERSION;
  store->in_features = int32_t(in);
  store->out_features = int32_t(out);
  store->group_size = layout.group_size;
  memcpy(store->rows, rows, sizeof rows);
  store->pruned = int32_t(out - kept);
  const int64_t padded = round_up(in, CHUNK);
  store->padded_in = int32_t(padded);
  store->segment = segment_of(layout.group_size < in ? layout.group_size : padded);
  store->segments = int32_t((padded + store->segment - 1) / store->segment);

  int64_t end = 0;
  auto reserve = [&end](int64_t bytes) {
    const int64_t begin = round_up(end, 64);
    end = begin + bytes;
    return begin;
  };
  reserve(sizeof *store);
  for (int width = 0; width < WIDTHS; width++) {
    store->codes[width] = reserve(store->tiles(width) * store->tile_bytes(width));
    if (width == BITS8) store->low8 = reserve(store->tiles(width) * store->tile_bytes(width));
  }
  const int64_t scaled = store->first_tile(WIDTHS) - store->tiles(BITS16);
  store->scale = reserve(scaled * store->segments * TILE * 2);
  store->channels = reserve(int64_t(store->first_tile(WIDTHS)) * TILE * 4);
  store->pruned_channels = reserve(int64_t(store->pruned) * 4);
  store->bytes = round_up(end, 64);
  return VLAQ_OK;
}

const Store* open_store(const void* bytes) {
  const Store* store = static_cast<const Store*>(bytes);
  if (!store || reinterpret_cast<uintptr_t>(bytes) % 64) return nullptr;
  return memcmp(store->magic, MAGIC, sizeof MAGIC) || store->version != VERSION ? nullptr : store;
}

}  // namespace vlaq

using namespace vlaq;

extern "C" int64_t vlaq_store_bytes(const vlaq_layout* layout) {
  Store store;
  const int error = plan_store(*layout, &store);
  return error ? -error : store.bytes;
}

extern "C" int vlaq_pack(const vlaq_layout* layout, const vlaq_rows* rows, void* bytes) {
  Store store;
  if (const int error = plan_store(*layout, &store)) return error;
  if (reinterpret_cast<uintptr_t>(bytes) % 64) return VLAQ_ERROR_STORE;
  std::vector<bool> used;
  const int64_t kept = int64_t(store.out_features) - store.pruned;
  if (const int error = check_order(store, rows->order, kept, &used)) return error;

  uint8_t* base = static_cast<uint8_t*>(bytes);
  memset(base, 0, store.bytes);
  memcpy(base, &store, sizeof store);
  write_channels(store, rows->order, used, base);
  const int64_t groups = groups_of(store);
  for_each_row(store, *rows, base, [&](int width, const Row& row, int64_t index, int64_t i) {
    pack_row(width, row, store.padded_in);
    if (width == BITS16) return;
    const uint16_t* scale = rows->scale + (index - store.rows[BITS16]) * groups;
    uint16_t* column = scale_column(store, base, width, i);
    for (int64_t s = 0; s < store.segments; s++)
      column[s * TILE] = scale[groups == 1 ? 0 : s * store.segment / store.group_size];
  });
  return VLAQ_OK;
}

extern "C" int vlaq_unpack(const void* bytes, const vlaq_layout* layout, const vlaq_rows* rows) {
  const Store* found = open_store(bytes);
  if (!found) return VLAQ_ERROR_STORE;
  Store store;
  if (const int error = plan_store(*layout, &store)) return error;
  if (memcmp(found, &store, sizeof store)) return VLAQ_ERROR_SHAPE;

  uint8_t* base = static_cast<uint8_t*>(const_cast<void*>(bytes));  // only read below
  const int64_t groups = groups_of(store);
  for_each_row(store, *rows, base, [&](int width, const Row& row, int64_t index, int64_t i) {
    unpack_row(width, row, store.padded_in);
    rows->order[index] = found->tile_channels(width, int(i / TILE))[i % TILE];
    if (width == BITS16) return;
    uint16_t* scale = rows->scale + (index - store.rows[BITS16]) * groups;
    const uint16_t* column = scale_column(store, base, width, i);
    for (int64_t s = 0; s < store.segments; s++)
      scale[groups == 1 ? 0 : s * store.segment / store.group_size] = column[s * TILE];
  });
  return VLAQ_OK;
}
