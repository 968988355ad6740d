// What this processor can do at best, for `vlaq bench`: reading memory in order, and multiply-adds
// that stay in registers. A kernel is judged by its distance to these two, measured in the same run
// and with the same instructions (vlaq_isa) that the kernels use.
//
// Nothing here takes the time; the caller does, with the clock it uses for everything else.
#include <cstdint>
#include <cstring>

#include "vlaq_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define VLAQ_VECTOR_REGISTER "x"
#elif defined(__aarch64__)
#include <arm_neon.h>
#define VLAQ_VECTOR_REGISTER "w"
#endif

#define VLAQ_EXPORT __attribute__((visibility("default")))

namespace {

// Twelve chains hide the latency of a multiply-add on two ports.
constexpr int kChains = 12;

// Bytes that are fetched ahead of reading, as the kernels do.
constexpr int64_t kAhead = 9728;

// `code` on one chain: %0 is its sum, %1 is scratch, %2 a factor. Volatile: none is left out.
#define VLAQ_STEP(code, sum)                                                   \
  asm volatile(code                                                            \
               : "+" VLAQ_VECTOR_REGISTER(sum), "=&" VLAQ_VECTOR_REGISTER(scratch) \
               : VLAQ_VECTOR_REGISTER(factor));

// Defines `name(iterations)`. The chains are twelve variables: an array would live in memory.
#define VLAQ_PEAK(name, features, vector, code)                                        \
  __attribute__((noinline, target(features))) void name(int64_t iterations) {          \
    vector c0{}, c1{}, c2{}, c3{}, c4{}, c5{}, c6{}, c7{}, c8{}, c9{}, c10{}, c11{};   \
    vector factor{}, scratch;                                                          \
    for (; iterations > 0; iterations--) {                                             \
      VLAQ_STEP(code, c0) VLAQ_STEP(code, c1) VLAQ_STEP(code, c2) VLAQ_STEP(code, c3)  \
      VLAQ_STEP(code, c4) VLAQ_STEP(code, c5) VLAQ_STEP(code, c6) VLAQ_STEP(code, c7)  \
      VLAQ_STEP(code, c8) VLAQ_STEP(code, c9) VLAQ_STEP(code, c10) VLAQ_STEP(code, c11) \
    }                                                                                  \
  }

struct Peak {
  const char* isa;       // a name of vlaq_isa
  int kind;              // 0 fp32, 1 bf16, 2 int8
  int operations;        // of one step; a multiply and an add are two
  void (*run)(int64_t);  // one step per chain and iteration
};

#if defined(__x86_64__)
VLAQ_PEAK(fp32_avx512, "avx512f", __m512, "vfmadd231ps %2, %2, %0")
VLAQ_PEAK(bf16_avx512, "avx512f,avx512bf16", __m512, "vdpbf16ps %2, %2, %0")
VLAQ_PEAK(int8_avx512, "avx512f,avx512vnni", __m512, "vpdpbusd %2, %2, %0")
VLAQ_PEAK(fp32_avx2, "avx2,fma", __m256, "vfmadd231ps %2, %2, %0")
VLAQ_PEAK(int8_avxvnni, "avx2,avxvnni", __m256, "%{vex%} vpdpbusd %2, %2, %0")
// Without dot products: products of 16-bit numbers, which cannot saturate, and an addition.
VLAQ_PEAK(int8_avx2, "avx2", __m256, "vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0")

const Peak kPeaks[] = {
    {"avx512vnni", 0, 32, fp32_avx512}, {"avx512vnni", 1, 64, bf16_avx512},
    {"avx512vnni", 2, 128, int8_avx512}, {"avxvnni", 0, 16, fp32_avx2},
    {"avxvnni", 2, 64, int8_avxvnni},   {"avx2", 0, 16, fp32_avx2},
    {"avx2", 2, 32, int8_avx2},
};

bool has_unit(const Peak& peak) {
  return peak.run != bf16_avx512 || __builtin_cpu_supports("avx512bf16");
}
#elif defined(__aarch64__)
VLAQ_PEAK(fp32_neon, "arch=armv8-a", float32x4_t, "fmla %0.4s, %2.4s, %2.4s")
VLAQ_PEAK(int8_neon, "arch=armv8.2-a+dotprod", int32x4_t, "sdot %0.4s, %2.16b, %2.16b")

const Peak kPeaks[] = {{"neon", 0, 8, fp32_neon}, {"neon", 2, 32, int8_neon}};

bool has_unit(const Peak&) { return true; }
#else
const Peak kPeaks[] = {{"", -1, 0, nullptr}};

bool has_unit(const Peak&) { return false; }
#endif

}  // namespace

extern "C" {

// Does `iterations` rounds of multiply-adds of a kind (0 fp32, 1 bf16, 2 int8) and returns the
// operations done; 0 when the instructions in use have no such unit.
VLAQ_EXPORT double vlaq_ceiling_run(int kind, int64_t iterations) {
  for (const Peak& peak : kPeaks) {
    if (peak.kind != kind || std::strcmp(peak.isa, vlaq_isa()) != 0 || !has_unit(peak)) continue;
    peak.run(iterations);
    return static_cast<double>(iterations) * kChains * peak.operations;
  }
  return 0.0;
}

// Reads whole lines of 64 bytes in order and returns their exclusive or, so that they are read.
#if defined(__x86_64__)
VLAQ_EXPORT __attribute__((target_clones("avx512f", "avx2", "default")))
#else
VLAQ_EXPORT
#endif
int64_t vlaq_ceiling_read(const void* from, int64_t bytes) {
  const auto* words = static_cast<const int64_t*>(from);
  int64_t folded[32] = {};
  const int64_t count = bytes / 64 * 8, whole = count / 32 * 32;
  for (int64_t i = 0; i < whole; i += 32) {
    for (int line = 0; line < 4; line++) __builtin_prefetch(words + i + line * 8 + kAhead / 8);
    for (int lane = 0; lane < 32; lane++) folded[lane] ^= words[i + lane];
  }
  for (int64_t i = whole; i < count; i++) folded[0] ^= words[i];
  int64_t all = 0;
  for (int64_t lane : folded) all ^= lane;
  return all;
}

}  // extern "C"
