// Activations: quantized per token, or rounded to bfloat16, in the order of the dot products.
//
// Included by every <isa>.cpp inside an anonymous namespace, so that each compiles it with its own
// flags. Sixteen values are handled at a time as a GCC vector; the compiler splits it as needed.

typedef float Float16 __attribute__((vector_size(64)));
typedef int32_t Int16 __attribute__((vector_size(64)));
typedef int16_t Short16 __attribute__((vector_size(32)));
typedef uint16_t UShort16 __attribute__((vector_size(32)));
typedef int8_t Byte16 __attribute__((vector_size(16)));

#define VLAQ_INLINE_MEMBER inline __attribute__((always_inline))
#define VLAQ_INLINE static VLAQ_INLINE_MEMBER

constexpr int32_t EXPONENT = 0x7F800000;

// Sixteen inputs of a row of either type as float bits.
VLAQ_INLINE Int16 load_bits(const float* x) {
  Int16 v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}
VLAQ_INLINE Int16 load_bits(const uint16_t* x) {
  UShort16 v;
  __builtin_memcpy(&v, x, sizeof v);
  return __builtin_convertvector(v, Int16) << 16;
}
// The last `left` inputs of a row, followed by zeros.
template <class T>
VLAQ_INLINE Int16 load_last_bits(const T* x, int64_t left) {
  T padded[CHUNK] = {};
  __builtin_memcpy(padded, x, left * sizeof(T));
  return load_bits(padded);
}

VLAQ_INLINE Float16 as_floats(Int16 bits) {
  Float16 v;
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

VLAQ_INLINE int32_t largest_of(Int16 v) {
  int32_t largest = v[0];
  for (int i = 1; i < CHUNK; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// The largest magnitude of a row as float bits: magnitudes compare like integers, and a result of
// EXPONENT or more says that the row holds an infinity or a NaN.
template <class T>
VLAQ_INLINE int32_t largest_magnitude(const T* x, int64_t in) {
  Int16 most = {};
  int64_t k = 0;
  for (; k + CHUNK <= in; k += CHUNK) {
    const Int16 magnitude = load_bits(x + k) & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
  }
  if (k < in) {
    const Int16 magnitude = load_last_bits(x + k, in - k) & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
  }
  return largest_of(most);
}

// Rounds to the nearest integer, ties to even, by pushing the fraction out of the mantissa.
VLAQ_INLINE Int16 to_codes(Float16 scaled) {
  const Float16 pushed = scaled + 12582912.0f;  // 1.5 * 2^23
  Int16 bits;
  __builtin_memcpy(&bits, &pushed, sizeof bits);
  return bits - 0x4B400000;
}

// Writes 16 codes of one row: four words, or with PARTS = 2 four pairs of words that hold the even
// and the odd ones of four codes as 16-bit numbers.
template <int PARTS>
VLAQ_INLINE void write_codes(int32_t* to, int rows, Int16 codes) {
  if (PARTS == 1) {
    const Byte16 bytes = __builtin_convertvector(codes, Byte16);
    int32_t word[4];
    __builtin_memcpy(word, &bytes, sizeof word);
    for (int i = 0; i < 4; i++) to[i * rows] = word[i];
  } else {
    const Short16 shorts = __builtin_convertvector(codes, Short16);
    const Short16 order = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const Short16 ordered = __builtin_shuffle(shorts, order);
    int32_t word[8];
    __builtin_memcpy(word, &ordered, sizeof word);
    for (int i = 0; i < 8; i++) to[i * rows] = word[i];
  }
}

VLAQ_INLINE int32_t sum_of(Int16 v) {
  int32_t sum = 0;
  for (int i = 0; i < CHUNK; i++) sum += v[i];
  return sum;
}

// How the values of one token become codes.
struct Step {
  float inverse;
  int doubled;
  int32_t keep;  // all ones, or zero for a row that is not finite
};

// Quantizes one token in one segment and adds up the codes of each pass. The next token lies `next`
// values further on.
template <class T, int PARTS, int PASSES>
VLAQ_INLINE void quantize_segment(const T* x, int64_t next, int64_t in, int64_t begin, int64_t end,
                                  Step step, int32_t* to, int rows, int32_t sums[2]) {
  Int16 sum_high = {}, sum_low = {};
  const auto put = [&](Int16 bits, int64_t k) __attribute__((always_inline)) {
    const Int16 codes = (to_codes(as_floats(bits) * step.inverse) & step.keep) << step.doubled;
    int32_t* word = to + k / 4 * rows * PARTS;
    if (PASSES == 2) {
      const Int16 high = (codes + 128) >> 8, low = codes - (high << 8);
      write_codes<PARTS>(word, rows, high);
      write_codes<PARTS>(word + 1, rows, low);
      sum_high += high;
      sum_low += low;
    } else {
      write_codes<PARTS>(word, rows, codes);
      sum_high += codes;
    }
  };
  const int64_t full = end <= in ? end : in / CHUNK * CHUNK;
  for (int64_t k = begin; k < full; k += CHUNK) {
    __builtin_prefetch(x + k + next);  // this row is in the cache by now, the next one is not
    put(load_bits(x + k), k);
  }
  if (full < end) put(load_last_bits(x + full, in - full), full);
  sums[0] = sum_of(sum_high);
  sums[1] = sum_of(sum_low);
}

template <class T, int PARTS, bool SIGNED_WEIGHTS>
VLAQ_INLINE void quantize_token(const Job& job, int64_t tile, int token, int rows) {
  const Store& store = *job.store;
  const int64_t in = store.in_features, K = store.padded_in;
  const int64_t t = job.integer.first(tile) + token;
  const T* x = static_cast<const T*>(job.x) + t * job.x_stride;
  const int passes = job.integer.passes;
  const int64_t before = job.integer.first(tile) * passes;  // rows in front of this tile
  int32_t* to = job.codes + before * (K / 4) * PARTS + token * passes;

  const float levels = job.activation_bits == 16 ? 32512.0f
                       : job.activation_bits == 8 ? 127.0f
                       : job.activation_bits == 4 ? 7.0f : 1.0f;
  const int32_t most = largest_magnitude(x, in);
  const bool finite = most < EXPONENT;
  float inverse = most == 0 || !finite ? 0.0f : levels / as_float(most);
  float value = as_float(most) / levels;
  if (as_bits(inverse) >= EXPONENT) {  // a tiny row: 1 / value must stay finite
    inverse = 1e38f;
    value = 1e-38f;
  }
  // Codes of 2 and 4 bits are doubled: an odd sum of codes times an odd twice-zero has no exact half.
  const int doubled = job.activation_bits < 8;
  job.step[t] = finite ? (doubled ? value * 0.5f : value) : __builtin_nanf("");
  const Step step = {inverse, doubled, finite ? -1 : 0};

  for (int64_t segment = 0; segment < store.segments; segment++) {
    const int64_t begin = segment * store.segment;
    const int64_t end = begin + store.segment < K ? begin + store.segment : K;
    int32_t sums[2];
    if (passes == 2) quantize_segment<T, PARTS, 2>(x, job.x_stride, in, begin, end, step, to, rows, sums);
    else quantize_segment<T, PARTS, 1>(x, job.x_stride, in, begin, end, step, to, rows, sums);
    for (int z = 0; z < ZEROS; z++) {
      if (!job.start[z]) continue;
      int32_t* start = job.start[z] + before * store.segments + segment * rows + token * passes;
      // The half that an odd product loses is 1 / 30000 of the largest term of the sum at most;
      // with two bytes the low one takes over the half of the high one.
      const int64_t twice_zero = TWICE_ZERO[z] - (SIGNED_WEIGHTS ? 256 : 0);
      const int64_t high = -twice_zero * sums[0], low = -twice_zero * sums[1] + (high & 1) * 256;
      start[0] = int32_t(high >> 1);
      if (passes == 2) start[1] = int32_t(low >> 1);
    }
  }
}

template <int PARTS, bool SIGNED_WEIGHTS>
void quantize_tile(const Job& job, int64_t tile) {
  const int tokens = job.integer.count(tile), rows = tokens * job.integer.passes;
  for (int token = 0; token < tokens; token++) {
    if (job.dtype == VLAQ_FLOAT32)
      quantize_token<float, PARTS, SIGNED_WEIGHTS>(job, tile, token, rows);
    else
      quantize_token<uint16_t, PARTS, SIGNED_WEIGHTS>(job, tile, token, rows);
  }
}

// The bits of float32 values rounded to bfloat16, to nearest, ties to even; in the low halves.
// NaN may become infinity: rows that are not finite are marked elsewhere.
VLAQ_INLINE Int16 round_bits(Int16 bits) { return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF; }

template <class T>
VLAQ_INLINE void round_token(const Job& job, int64_t tile, int token, int rows) {
  const int64_t in = job.store->in_features, K = job.store->padded_in;
  const int64_t t = job.rounded.first(tile) + token;
  const T* x = static_cast<const T*>(job.x) + t * job.x_stride;
  uint32_t* to = job.rounded_x + job.rounded.first(tile) * (K / 2) + token;
  Int16 most = {};
  const auto put = [&](Int16 bits, int64_t k) __attribute__((always_inline)) {
    const Int16 magnitude = bits & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
    const UShort16 halves = __builtin_convertvector(round_bits(bits), UShort16);
    uint32_t word[8];
    __builtin_memcpy(word, &halves, sizeof word);
    for (int i = 0; i < 8; i++) to[(k / 2 + i) * rows] = word[i];
  };
  const int64_t full = in / CHUNK * CHUNK;
  for (int64_t k = 0; k < full; k += CHUNK) put(load_bits(x + k), k);
  if (full < K) put(load_last_bits(x + full, in - full), full);
  job.valid[t] = largest_of(most) < EXPONENT ? 1.0f : __builtin_nanf("");
}

static void round_tile(const Job& job, int64_t tile) {
  const int rows = job.rounded.count(tile);
  for (int token = 0; token < rows; token++) {
    if (job.dtype == VLAQ_FLOAT32) round_token<float>(job, tile, token, rows);
    else round_token<uint16_t>(job, tile, token, rows);
  }
}
