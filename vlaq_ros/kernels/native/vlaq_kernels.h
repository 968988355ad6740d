// Low-bit linear layers on the CPU: the C interface of libvlaq_kernels.
//
// A layer is one "store": a block of bytes without pointers, 64-byte aligned, that holds the codes
// in the order in which the kernels read them, the scales, and where every row goes. It is made
// from the row-major form of quant/mixed.py by vlaq_pack and turned back by vlaq_unpack. Which
// instructions run is decided once, at the first call; the layout of a store does not depend on it.
//
// All functions are safe to call from several threads. None throws. int results are 0 or a
// VLAQ_ERROR_*; vlaq_error_text explains it.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)  // all else in the library is hidden

#define VLAQ_ABI_VERSION 1

enum { VLAQ_FLOAT32 = 0, VLAQ_BFLOAT16 = 1 };

enum {
  VLAQ_OK = 0,
  VLAQ_ERROR_SHAPE = 1,      // a size is not positive, too large, or inconsistent with the counts
  VLAQ_ERROR_GROUP = 2,      // group_size is neither a multiple of 16 nor at least in_features
  VLAQ_ERROR_ORDER = 3,      // order holds a channel twice or out of range
  VLAQ_ERROR_STORE = 4,      // not a store, or one of another version
  VLAQ_ERROR_PRECISION = 5,  // cap is not 4 or 8, or activation_bits not 2, 4, 8 or 16
  VLAQ_ERROR_ISA = 6,        // this processor cannot run the requested instructions
  VLAQ_ERROR_MEMORY = 7,     // no memory for the activations
};

// Sizes of a layer. Rows are sorted by width: rows16 bfloat16 rows first, then 8-, 4- and 2-bit
// ones. out_features minus their sum are pruned: their output is the bias.
typedef struct {
  int32_t in_features;
  int32_t out_features;
  int32_t group_size;  // inputs per scale; multiple of 16, or >= in_features for one per channel
  int32_t rows16, rows8, rows4, rows2;
} vlaq_layout;

// Row-major parts of a layer, as on disk (see quant/mixed.py). Absent classes may be null.
typedef struct {
  int32_t* order;      // [rows] original channel of every stored row
  uint16_t* values16;  // [rows16, in]
  uint8_t* codes8;     // [rows8, in]
  uint8_t* codes4;     // [rows4, ceil(in / 2)], first code in the low nibble
  uint8_t* codes2;     // [rows2, ceil(in / 4)], first code in the lowest bits
  uint16_t* scale;     // float16 [rows8 + rows4 + rows2, groups]
} vlaq_rows;

int vlaq_abi_version(void);
const char* vlaq_error_text(int error);

// Bytes of the store of a layer, a multiple of 64; negative VLAQ_ERROR_* when it cannot exist.
int64_t vlaq_store_bytes(const vlaq_layout* layout);
int vlaq_pack(const vlaq_layout* layout, const vlaq_rows* rows, void* store);
int vlaq_unpack(const void* store, const vlaq_layout* layout, const vlaq_rows* rows);

// y[m, n] = sum_k x'[m, k] * w[n, k] + bias[n] for tokens m = 0 .. tokens - 1.
//   x, y       rows of in_features and out_features values of `dtype`; strides count values
//   bias       float32 [out_features] or null
//   cap        4 reads only the high nibble of 8-bit rows; 8 reads all
//   threads    at most this many take part, the caller included
int vlaq_linear(const void* store, int dtype, const void* x, int64_t x_stride, int64_t tokens,
                const float* bias, void* y, int64_t y_stride, int cap, int activation_bits,
                int threads);

// Instructions: "avx512vnni", "avxvnni", "avx2", "neon", "portable". The best one that the processor
// has is taken at first use, unless the environment variable VLAQ_ISA names another.
const char* vlaq_isa(void);
int vlaq_set_isa(const char* name);
const char* vlaq_available_isas(void);  // separated by commas, best first

// Pins worker i of the pool to cpus[i]; count 0 lets them run anywhere.
int vlaq_pin_workers(const int32_t* cpus, int count);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
