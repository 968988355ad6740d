// libvlaq_kernels: vlaq_linear. Sources and the flags each needs (C++17, no libraries but threads):
//
//     linear.cpp store.cpp isa.cpp pool.cpp portable.cpp    -O3
//     avx512vnni.cpp    -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c
//     avx512bf16.cpp    the same and -mavx512bf16
//     avxvnni.cpp       -O3 -mavx2 -mfma -mf16c -mavxvnni
//     avx2.cpp avx2short.cpp    -O3 -mavx2 -mfma -mf16c
//     neon.cpp          -O3 -march=armv8.2-a+dotprod+fp16
//
// The last five are empty on other processors. All of them with -Wno-psabi, and with
// -ffp-contract=off so that all round activations alike.
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "isa.h"
#include "job.h"
#include "pool.h"

namespace vlaq {
namespace {

constexpr int64_t HUGE_PAGE = 2 << 20;
constexpr int64_t HUGE_FROM_BYTES = 64 << 10;

// Advice only: a system without huge pages goes on with its own.
void advise_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

// Memory that grows and is kept for the next call. What a long prompt needs lies in huge pages: small ones
// that happen to share cache sets cost up to 3 %.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { free(memory_); }
  uint8_t* reserve(int64_t bytes) {
    if (bytes <= size_) return memory_;
    const int64_t unit = bytes >= HUGE_FROM_BYTES ? HUGE_PAGE : 4096;
    bytes = (bytes + unit - 1) / unit * unit;
    free(memory_);
    memory_ = static_cast<uint8_t*>(aligned_alloc(unit, bytes));
    size_ = memory_ ? bytes : 0;
    if (memory_ && unit == HUGE_PAGE) advise_huge_pages(memory_, bytes);
    return memory_;
  }

 private:
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0;
};

thread_local Scratch activations;  // of the calls of this thread
thread_local Scratch panels;       // of the tiles that this thread works on

// Unpacked codes of a group of panels. The packed ones of the next group, activations and outputs
// share the second-level cache with them.
constexpr int64_t GROUP_BYTES = 128 << 10;

// Bytes of codes of the tokens that are multiplied together: every group of channels reads them again.
// Fewer than the least number of tokens would read the weights too often instead.
constexpr int64_t BLOCK_BYTES = 512 << 10, LEAST_BLOCK = 256;

// Tiles of tokens from which on widths are mixed in the order of their outputs.
constexpr int64_t LEAST_MIXED = 6;

struct Call {
  Job job;
  const Kernels* kernels;
  int threads;
  bool failed = false;        // no memory
  const int32_t* alone;       // pruned channels that put_pruned writes
  int32_t alone_count;
  // Few tokens: chunks of tiles of one width.
  int64_t first[WIDTHS + 1];  // chunks of work in front of each width
  int chunk_tiles[WIDTHS];
  // Many tokens: panels in the order of their outputs, and where groups of them begin.
  PanelAt* panels;
  int32_t* groups;
  int64_t group_count;
  uint16_t* pruned;           // job.pruned
  int32_t* rest;              // pruned channels that many_tokens does not write
};

// Divides the scratch memory of a call; the first run with a null base only counts the bytes.
int64_t lay_out(Call* call, uint8_t* base) {
  Job* job = &call->job;
  const Store& store = *job->store;
  const int64_t K = store.padded_in, rows = job->integer.tokens * job->integer.passes;
  int64_t end = 0;
  auto take = [&](auto** pointer, int64_t count) {
    *pointer = count ? reinterpret_cast<std::remove_pointer_t<decltype(pointer)>>(base + end) : nullptr;
    end += (count * int64_t(sizeof **pointer) + 63) / 64 * 64;
  };
  const int eight = wanted_tiles(*job, BITS8);
  const bool capped = eight && job->cap == 4;
  const bool full = (eight && job->cap != 4) || wanted_tiles(*job, BITS4);
  const bool two = wanted_tiles(*job, BITS2), integer = capped || full || two;
  const bool rounded = wanted_tiles(*job, BITS16);
  take(&job->codes, integer ? rows * (K / 4) * call->kernels->parts : 0);
  take(&job->start[ZERO_FULL], full ? rows * store.segments : 0);
  take(&job->start[ZERO_CAPPED], capped ? rows * store.segments : 0);
  take(&job->start[ZERO_TWO_BITS], two ? rows * store.segments : 0);
  take(&job->step, integer ? job->integer.tokens : 0);
  take(&job->rounded_x, rounded ? job->rounded.tokens * (K / 2) : 0);
  take(&job->valid, rounded ? job->rounded.tokens : 0);
  const bool many = job->integer.tiles > 1;
  take(&call->panels, many ? store.first_tile(WIDTHS) : 0);
  take(&call->groups, many ? store.first_tile(WIDTHS) + 1 : 0);
  const bool covered = many && store.pruned && job->pruned_wanted && call->kernels->covers_pruned;
  take(&call->pruned, covered ? (store.out_features + TILE - 1) / TILE : 0);
  take(&call->rest, covered ? store.pruned : 0);
  return end;
}

void prepare_tile(void* context, int64_t index) {
  const Call& call = *static_cast<Call*>(context);
  const Tiling& tiling = call.job.codes ? call.job.integer : call.job.rounded;
  call.kernels->prepare(call.job, tiling.first(index), tiling.first(index) + tiling.count(index));
}

void multiply_chunk(void* context, int64_t index) {
  const Call& call = *static_cast<Call*>(context);
  int width = 0;
  while (index >= call.first[width + 1]) width++;
  const int most = call.chunk_tiles[width], first = int(index - call.first[width]) * most;
  call.kernels->few_tokens(call.job, width, first, std::min(most, call.job.store->tiles(width) - first));
}

void multiply_group(void* context, int64_t index) {
  Call& call = *static_cast<Call*>(context);
  const Kernels& kernels = *call.kernels;
  const int64_t tile = int64_t(call.job.store->padded_in) * TILE * kernels.parts;
  uint8_t* unpacked = panels.reserve(std::max(GROUP_BYTES, tile * kernels.panel_tiles));
  if (!unpacked) {
    call.failed = true;
    return;
  }
  const int32_t* begin = call.groups + index;
  // This thread, or another one, will probably come to that group next.
  const int64_t next = std::min(index + call.threads, call.group_count - 1);
  const int32_t* ahead = call.groups + (next > index ? next : call.group_count);
  kernels.many_tokens(call.job, call.panels + begin[0], begin[1] - begin[0], call.panels + ahead[0],
                      next > index ? ahead[1] - ahead[0] : 0, unpacked);
}

template <class T>
bool is_finite(T x);
template <>
bool is_finite(float x) { return std::isfinite(x); }
template <>
bool is_finite(uint16_t x) { return (x & 0x7F80) != 0x7F80; }

// Notes pruned channels for many_tokens, which leaves to put_pruned only those that lie among 16 pruned
// ones.
void plan_pruned(Call* call) {
  const Store& store = *call->job.store;
  call->alone = reinterpret_cast<const int32_t*>(store.at(store.pruned_channels));
  call->alone_count = store.pruned;
  if (!call->pruned) return;
  const int32_t* channels = call->alone;
  memset(call->pruned, 0, (store.out_features + TILE - 1) / TILE * sizeof *call->pruned);
  for (int32_t i = 0; i < store.pruned; i++)
    call->pruned[channels[i] / TILE] |= 1 << channels[i] % TILE;
  int32_t* rest = call->rest;
  for (int32_t i = 0; i < store.pruned; i++) {
    const int size = std::min(TILE, store.out_features - channels[i] / TILE * TILE);
    if (call->pruned[channels[i] / TILE] == (1 << size) - 1) *rest++ = channels[i];
  }
  call->job.pruned = call->pruned;
  call->alone = call->rest;
  call->alone_count = int32_t(rest - call->rest);
}

// Channels without a row: the bias, or NaN in a row that is not finite.
template <class T>
void put_pruned(const Call& call) {
  const Job& job = call.job;
  const auto convert = [](float value) -> T {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if constexpr (sizeof(T) == 4) return value;
    else return std::isnan(value) ? 0x7FC0 : T((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  };
  for (int64_t t = 0; t < job.integer.tokens; t++) {
    const T* x = static_cast<const T*>(job.x) + t * job.x_stride;
    T* y = static_cast<T*>(job.y) + t * job.y_stride;
    const bool finite = job.step ? std::isfinite(job.step[t])
                                 : std::all_of(x, x + job.store->in_features, is_finite<T>);
    const T nothing = convert(finite ? 0.0f : NAN);
    if (job.bias && finite)
      for (int32_t i = 0; i < call.alone_count; i++)
        y[call.alone[i]] = convert(job.bias[call.alone[i]]);
    else
      for (int32_t i = 0; i < call.alone_count; i++) y[call.alone[i]] = nothing;
  }
}

// Few tokens are handed out in chunks of tiles: large enough to read memory in long runs, small
// enough that the threads end together.
void plan_chunks(Call* call) {
  const int threads = call->threads;
  const int pair = call->kernels->panel_tiles;
  call->first[0] = 0;
  for (int width = 0; width < WIDTHS; width++) {
    const int tiles = wanted_tiles(call->job, width), even = tiles / (8 * threads) / pair * pair;
    call->chunk_tiles[width] = threads == 1 ? std::max(tiles, 1) : std::max(pair, std::min(even, 16));
    const int chunk = call->chunk_tiles[width];
    call->first[width + 1] = call->first[width] + (tiles + chunk - 1) / chunk;
  }
}

// Groups of panels whose outputs are neighbours, so that these stay in the cache until all widths have
// written theirs. For fewer tokens it is worth more to read the codes as they lie in memory; so it is for
// kernels that write scattered outputs one by one. The bfloat16 rows are groups of their own: they have
// other tiles of tokens.
void plan_groups(Call* call) {
  const Store& store = *call->job.store;
  const int most = call->kernels->panel_tiles, parts = call->kernels->parts;
  int64_t tiles = 0;
  for (int width = 0; width < WIDTHS; width++) tiles += wanted_tiles(call->job, width);
  const int64_t share = std::max<int64_t>(tiles / most / (8 * call->threads), 1);
  const int64_t longest = call->threads == 1 ? MAX_GROUP : std::min<int64_t>(share, MAX_GROUP);
  int next[WIDTHS] = {};
  const bool mixed = call->kernels->covers_pruned && call->job.integer.tiles >= LEAST_MIXED;
  const auto channel = [&](int width) { return *store.tile_channels(width, next[width]); };
  int64_t count = 0, groups = 0, bytes = 0;
  for (int64_t planned = 0; planned < tiles;) {
    int width = BITS16;
    if (next[BITS16] == wanted_tiles(call->job, BITS16)) {
      width = WIDTHS;
      for (int w = BITS8; w < WIDTHS; w++)
        if (next[w] < wanted_tiles(call->job, w) && (width == WIDTHS || (mixed && channel(w) < channel(width))))
          width = w;
    }
    const PanelAt panel = {width, next[width], next[width] + most <= store.tiles(width) ? most : 1};
    const int64_t size = panel.tiles * (width == BITS16 ? store.tile_bytes(width)
                                                        : int64_t(store.padded_in) * TILE * parts);
    const bool other = count && (call->panels[count - 1].width == BITS16) != (width == BITS16);
    if (!count || other || bytes + size > GROUP_BYTES || count - call->groups[groups - 1] == longest) {
      call->groups[groups++] = int32_t(count);
      bytes = 0;
    }
    bytes += size;
    call->panels[count++] = panel;
    next[width] += panel.tiles;
    planned += panel.tiles;
  }
  call->groups[groups] = int32_t(count);
  call->group_count = groups;
}

// The wanted channels of some tokens.
int multiply_wanted(const Job& common, int64_t tokens, const Kernels& kernels, int threads) {
  Call call{};
  Job& job = call.job = common;
  const Store& store = *job.store;
  const int passes = job.activation_bits == 16 ? 2 : 1;
  job.integer = Tiling(tokens, passes, kernels.max_rows, kernels.panel_rows);
  job.rounded = Tiling(tokens, 1, kernels.max_rows, kernels.max_rows);
  call.kernels = &kernels;
  call.threads = threads;
  uint8_t* scratch = activations.reserve(std::max<int64_t>(lay_out(&call, nullptr), 64));
  if (!scratch) return VLAQ_ERROR_MEMORY;
  lay_out(&call, scratch);

  const bool prepared = job.codes || job.rounded_x;
  if (prepared) run_parallel(threads, (job.codes ? job.integer : job.rounded).tiles, prepare_tile, &call);
  if (store.pruned && job.pruned_wanted) plan_pruned(&call);
  if (call.alone_count) job.dtype == VLAQ_FLOAT32 ? put_pruned<float>(call) : put_pruned<uint16_t>(call);
  if (call.panels) {
    plan_groups(&call);
    run_parallel(threads, call.group_count, multiply_group, &call);
  } else {
    plan_chunks(&call);
    run_parallel(threads, call.first[WIDTHS], multiply_chunk, &call);
  }
  return call.failed ? VLAQ_ERROR_MEMORY : VLAQ_OK;
}

// All channels of some tokens. Where codes of four bits have kernels of their own, 8-bit rows are multiplied
// first.
int multiply(Job job, int64_t tokens, const Kernels& kernels, int threads) {
  std::fill_n(job.wanted, WIDTHS, true);
  job.pruned_wanted = true;
  if (!kernels.nibbles) return multiply_wanted(job, tokens, kernels, threads);
  const Store& store = *job.store;
  const bool bytes = store.rows[BITS8] && job.cap == 8, others = store.rows[BITS4] || store.rows[BITS2];
  if (bytes) {
    job.wanted[BITS4] = job.wanted[BITS2] = false;
    const int error = multiply_wanted(job, tokens, kernels, threads);
    if (error || !others) return error;
    job.wanted[BITS16] = job.wanted[BITS8] = job.pruned_wanted = false;
    job.wanted[BITS4] = job.wanted[BITS2] = true;
  }
  return multiply_wanted(job, tokens, *kernels.nibbles(), threads);
}

}  // namespace
}  // namespace vlaq

using namespace vlaq;

extern "C" int vlaq_linear(const void* bytes, int dtype, const void* x, int64_t x_stride,
                           int64_t tokens, const float* bias, void* y, int64_t y_stride, int cap,
                           int activation_bits, int threads) {
  const Store* store = open_store(bytes);
  if (!store) return VLAQ_ERROR_STORE;
  if (tokens < 0 || (dtype != VLAQ_FLOAT32 && dtype != VLAQ_BFLOAT16)) return VLAQ_ERROR_SHAPE;
  const bool known = activation_bits == 2 || activation_bits == 4 || activation_bits == 8 ||
                     activation_bits == 16;
  if ((cap != 4 && cap != 8) || !known) return VLAQ_ERROR_PRECISION;
  const Kernels* kernels = active_kernels();
  if (!kernels) return VLAQ_ERROR_ISA;

  Job job{};
  job.store = store;
  job.dtype = dtype;
  job.x_stride = x_stride;
  job.y_stride = y_stride;
  job.bias = bias;
  job.cap = cap;
  job.activation_bits = activation_bits;
  const int64_t most = std::max(LEAST_BLOCK, BLOCK_BYTES / store->padded_in);
  const int64_t blocks = (tokens + most - 1) / most, size = dtype == VLAQ_FLOAT32 ? 4 : 2;
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t first = tokens * block / blocks, end = tokens * (block + 1) / blocks;
    job.x = static_cast<const char*>(x) + first * x_stride * size;
    job.y = static_cast<char*>(y) + first * y_stride * size;
    if (const int error = multiply(job, end - first, *kernels, std::max(threads, 1))) return error;
  }
  return VLAQ_OK;
}

extern "C" int vlaq_abi_version(void) { return VLAQ_ABI_VERSION; }

extern "C" const char* vlaq_error_text(int error) {
  switch (error) {
    case VLAQ_OK: return "no error";
    case VLAQ_ERROR_SHAPE: return "a size is not positive, too large, or inconsistent with the rows";
    case VLAQ_ERROR_GROUP: return "the group size is neither a multiple of 16 nor at least in_features";
    case VLAQ_ERROR_ORDER: return "the order holds a channel twice or one that does not exist";
    case VLAQ_ERROR_STORE: return "not a store of this version, or not aligned to 64 bytes";
    case VLAQ_ERROR_PRECISION: return "the cap is not 4 or 8, or activation_bits not 2, 4, 8 or 16";
    case VLAQ_ERROR_ISA: return "this processor or build cannot run the requested instructions";
    case VLAQ_ERROR_MEMORY: return "not enough memory for the activations";
    default: return "unknown error";
  }
}

extern "C" int vlaq_pin_workers(const int32_t* cpus, int count) {
  if (count < 0 || (count && !cpus)) return VLAQ_ERROR_SHAPE;
  pin_workers(cpus, count);
  return VLAQ_OK;
}
