// Activations: quantized per token, or rounded to bfloat16, in the order of the dot products.
//
// Included by every <isa>.cpp inside an anonymous namespace, so that each compiles it with its own
// flags. Values are handled as GCC vectors of the width of the processor: the compiler keeps wider
// ones in memory.

#if defined(__AVX512F__)
constexpr int VALUES = 16;
#elif defined(__AVX2__)
constexpr int VALUES = 8;
#else
constexpr int VALUES = 4;
#endif
static_assert(CHUNK % VALUES == 0, "rows are padded to whole vectors");

typedef float Floats __attribute__((vector_size(4 * VALUES)));
typedef int32_t Ints __attribute__((vector_size(4 * VALUES)));
typedef int16_t Shorts __attribute__((vector_size(2 * VALUES)));
typedef uint16_t UShorts __attribute__((vector_size(2 * VALUES)));
typedef int8_t SignedBytes __attribute__((vector_size(VALUES)));

#define VLAQ_INLINE_MEMBER inline __attribute__((always_inline))
#define VLAQ_INLINE static VLAQ_INLINE_MEMBER

constexpr int32_t EXPONENT = 0x7F800000;

// The next inputs of a row of either type as float bits.
VLAQ_INLINE Ints load_bits(const float* x) {
  Ints v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}
VLAQ_INLINE Ints load_bits(const uint16_t* x) {
  UShorts v;
  __builtin_memcpy(&v, x, sizeof v);
  return __builtin_convertvector(v, Ints) << 16;
}
// The last `left` inputs of a row, followed by zeros.
template <class T>
VLAQ_INLINE Ints load_last_bits(const T* x, int64_t left) {
  T padded[VALUES] = {};
  if (left > 0) __builtin_memcpy(padded, x, (left < VALUES ? left : VALUES) * sizeof(T));
  return load_bits(padded);
}

VLAQ_INLINE Floats as_floats(Ints bits) {
  Floats v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
VLAQ_INLINE float as_float(int32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
VLAQ_INLINE int32_t as_bits(float v) {
  int32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits;
}

VLAQ_INLINE int32_t largest_of(Ints v) {
  int32_t largest = v[0];
  for (int i = 1; i < VALUES; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// Calls put(bits, word) for the values begin .. end - 1 of one token, vector by vector; those behind the last
// input are zero. `word` begins at `to`, advances by one per `per_word` values, and by `stride` per chunk.
// The next token lies `next` values further on; it is fetched, as this one is in the cache by now.
template <class T, class Word, class Put>
VLAQ_INLINE void for_each_vector(const T* x, int64_t next, int64_t in, int64_t begin, int64_t end, Word* to,
                                 int64_t stride, int per_word, Put put) {
  const int64_t full = end <= in ? end : in / CHUNK * CHUNK;
  int64_t k = begin;
  for (; k < full; k += CHUNK, to += stride) {
    __builtin_prefetch(x + k + next);
#pragma GCC unroll 4
    for (int v = 0; v < CHUNK; v += VALUES) put(load_bits(x + k + v), to + v / per_word);
  }
  for (; k < end; k += CHUNK, to += stride)
    for (int v = 0; v < CHUNK; v += VALUES) put(load_last_bits(x + k + v, in - k - v), to + v / per_word);
}

// The largest magnitude of a row as float bits: magnitudes compare like integers, and a result of
// EXPONENT or more says that the row holds an infinity or a NaN.
template <class T>
VLAQ_INLINE int32_t largest_magnitude(const T* x, int64_t in) {
  Ints most = {};
  int64_t k = 0;
  for (; k + VALUES <= in; k += VALUES) {
    const Ints magnitude = load_bits(x + k) & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
  }
  if (k < in) {
    const Ints magnitude = load_last_bits(x + k, in - k) & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
  }
  return largest_of(most);
}

// The bits of float32 values rounded to bfloat16, to nearest, ties to even; in the low halves.
// NaN may become infinity: rows that are not finite are marked elsewhere.
VLAQ_INLINE Ints round_bits(Ints bits) {
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF;
}

// The largest magnitude as above; also writes the values rounded to bfloat16. The `rows` tokens of a tile lie
// interleaved, and what is behind the last input is zero.
template <class T>
int32_t round_token(const T* x, int64_t next, int64_t in, int64_t padded_in, uint32_t* to, int rows) {
  Ints most = {};
  const auto put = [&](Ints bits, uint32_t* word) __attribute__((always_inline)) {
    const Ints magnitude = bits & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
    const UShorts halves = __builtin_convertvector(round_bits(bits), UShorts);
    __builtin_memcpy(word, &halves, sizeof halves);
  };
  for_each_vector(x, next, in, 0, padded_in, to, rows * (CHUNK / 2), 2, put);
  return largest_of(most);
}

// Rounds to the nearest integer, ties to even, by pushing the fraction out of the mantissa.
VLAQ_INLINE Ints to_codes(Floats scaled) {
  const Floats pushed = scaled + 12582912.0f;  // 1.5 * 2^23
  Ints bits;
  __builtin_memcpy(&bits, &pushed, sizeof bits);
  return bits - 0x4B400000;
}

// The words of VALUES codes: one word per four of them, or with PARTS = 2 a pair of words that hold the
// even and the odd ones as 16-bit numbers.
template <int PARTS>
VLAQ_INLINE void write_codes(int32_t* to, Ints codes) {
  if (PARTS == 1) {
    const SignedBytes bytes = __builtin_convertvector(codes, SignedBytes);
    __builtin_memcpy(to, &bytes, sizeof bytes);
  } else {
    Shorts pairs;
    for (int i = 0; i < VALUES; i++) pairs[i] = int16_t(codes[i / 4 * 4 + i % 4 / 2 + i % 2 * 2]);
    __builtin_memcpy(to, &pairs, sizeof pairs);
  }
}

VLAQ_INLINE int32_t sum_of(Ints v) {
  int32_t sum = 0;
  for (int i = 0; i < VALUES; i++) sum += v[i];
  return sum;
}

// How the values of one token become codes.
struct Step {
  float inverse;
  int doubled;
  int32_t keep;  // all ones, or zero for a row that is not finite
};

// Quantizes one token in one segment and adds up the codes of each pass.
template <class T, int PARTS, int PASSES>
VLAQ_INLINE void quantize_segment(const T* x, int64_t next, int64_t in, int64_t begin, int64_t end, Step step,
                                  int32_t* to, int rows, int32_t sums[2]) {
  Ints sum_high = {}, sum_low = {};
  const auto put = [&](Ints bits, int32_t* word) __attribute__((always_inline)) {
    const Ints codes = (to_codes(as_floats(bits) * step.inverse) & step.keep) << step.doubled;
    if (PASSES == 2) {
      const Ints high = (codes + 128) >> 8, low = codes - (high << 8);
      write_codes<PARTS>(word, high);
      write_codes<PARTS>(word + CHUNK / 4 * PARTS, low);
      sum_high += high;
      sum_low += low;
    } else {
      write_codes<PARTS>(word, codes);
      sum_high += codes;
    }
  };
  constexpr int WORDS = CHUNK / 4 * PARTS;
  for_each_vector(x, next, in, begin, end, to + begin / CHUNK * rows * WORDS, rows * WORDS, CHUNK / WORDS, put);
  sums[0] = sum_of(sum_high);
  sums[1] = sum_of(sum_low);
}

// `most` is the largest magnitude of the token.
template <class T, int PARTS, int PASSES, bool SIGNED_WEIGHTS>
void quantize_token(const Job& job, int64_t tile, int token, int rows, int32_t most) {
  const Store& store = *job.store;
  const int64_t in = store.in_features, K = store.padded_in;
  const int64_t t = job.integer.first(tile) + token;
  const T* x = static_cast<const T*>(job.x) + t * job.x_stride;
  const int64_t before = job.integer.first(tile) * PASSES;  // rows in front of this tile
  int32_t* to = job.codes + (before * K + token * PASSES * CHUNK) / 4 * PARTS;

  const float levels = job.activation_bits == 16 ? 32512.0f
                       : job.activation_bits == 8 ? 127.0f
                       : job.activation_bits == 4 ? 7.0f : 1.0f;
  const bool finite = most < EXPONENT;
  float inverse = most == 0 || !finite ? 0.0f : levels / as_float(most);
  float value = as_float(most) / levels;
  if (as_bits(inverse) >= EXPONENT) {  // a tiny row: 1 / value must stay finite
    inverse = 1e38f;
    value = 1e-38f;
  }
  // Codes of 2 and 4 bits are doubled: the product of odd sum and odd twice-zero has no exact half.
  const int doubled = job.activation_bits < 8;
  job.step[t] = finite ? (doubled ? value * 0.5f : value) : __builtin_nanf("");
  const Step step = {inverse, doubled, finite ? -1 : 0};

  for (int64_t segment = 0; segment < store.segments; segment++) {
    const int64_t begin = segment * store.segment;
    const int64_t end = begin + store.segment < K ? begin + store.segment : K;
    int32_t sums[2];
    quantize_segment<T, PARTS, PASSES>(x, job.x_stride, in, begin, end, step, to, rows, sums);
    for (int z = 0; z < ZEROS; z++) {
      if (!job.start[z]) continue;
      int32_t* start = job.start[z] + before * store.segments + segment * rows + token * PASSES;
      // The half that an odd product loses is 1 / 30000 of the largest term of the sum at most;
      // with two bytes the low one takes over the half of the high one.
      const int64_t twice_zero = TWICE_ZERO[z] - (SIGNED_WEIGHTS ? 256 : 0);
      const int64_t high = -twice_zero * sums[0], low = -twice_zero * sums[1] + (high & 1) * 256;
      start[0] = int32_t(high >> 1);
      if (PASSES == 2) start[1] = int32_t(low >> 1);
    }
  }
}

// Quantizes or rounds token t, or both.
template <class T, int PARTS, bool SIGNED_WEIGHTS>
VLAQ_INLINE void prepare_token(const Job& job, int64_t t) {
  const int64_t in = job.store->in_features, K = job.store->padded_in;
  const T* x = static_cast<const T*>(job.x) + t * job.x_stride;
  int32_t most;
  if (job.rounded_x) {
    const int64_t tile = job.rounded.tile_of(t), first = job.rounded.first(tile);
    uint32_t* to = job.rounded_x + (first * K + (t - first) * CHUNK) / 2;
    most = round_token(x, job.x_stride, in, K, to, job.rounded.count(tile));
    job.valid[t] = most < EXPONENT ? 1.0f : __builtin_nanf("");
  } else {
    most = largest_magnitude(x, in);
  }
  if (!job.codes) return;
  const int64_t tile = job.integer.tile_of(t);
  const int token = int(t - job.integer.first(tile)), rows = job.integer.count(tile) * job.integer.passes;
  if (job.integer.passes == 2) quantize_token<T, PARTS, 2, SIGNED_WEIGHTS>(job, tile, token, rows, most);
  else quantize_token<T, PARTS, 1, SIGNED_WEIGHTS>(job, tile, token, rows, most);
}

template <int PARTS, bool SIGNED_WEIGHTS>
void prepare_tokens(const Job& job, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; t++) {
    if (job.dtype == VLAQ_FLOAT32) prepare_token<float, PARTS, SIGNED_WEIGHTS>(job, t);
    else prepare_token<uint16_t, PARTS, SIGNED_WEIGHTS>(job, t);
  }
}
