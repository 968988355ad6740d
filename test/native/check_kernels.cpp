// Compares every set of instructions with a double loop, over all widths, sizes and precisions, and
// packs, unpacks and calls from several threads on the way. No Python and no torch: for sanitizers
// and for processors that are emulated (tools/native_checks.py).
//
// Every array is exactly as long as the interface asks for, so that one byte read or written beyond
// an end is seen by the address sanitizer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "vlaq_kernels.h"

namespace {

int failures = 0;
std::mt19937 random_bits(7);

void expect(bool holds, const std::string& what) {
  if (holds) return;
  failures++;
  std::printf("FAILED %s\n", what.c_str());
}

int pick(int below) { return int(random_bits() % unsigned(below)); }

float normal() { return std::normal_distribution<float>()(random_bits); }

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fc0;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// float16 of a power of two from 2^-14 to 2^15.
uint16_t half_of_power(int exponent) { return uint16_t((exponent + 15) << 10); }

struct Layer {
  vlaq_layout layout;
  int groups;
  std::vector<int32_t> order;
  std::vector<uint16_t> values16, scale;
  std::vector<uint8_t> codes8, codes4, codes2;
  std::vector<double> scale_value;

  vlaq_rows rows() {
    return {order.data(),  values16.data(), codes8.data(),
            codes4.data(), codes2.data(),   scale.data()};
  }
  int integer_rows() const { return layout.rows8 + layout.rows4 + layout.rows2; }

  double factor(int row, int k) const {
    return scale_value[size_t(row) * groups + k / layout.group_size];
  }

  // The value of one weight of an integer row, counted from the first 8-bit row.
  double weight(int row, int k, int cap) const {
    const int columns = layout.in_features;
    const double scale = factor(row, k);
    if (row < layout.rows8) {
      const int q = codes8[size_t(row) * columns + k];
      return scale * (cap == 4 ? 16 * (q >> 4) + 7.5 - 128 : q - 128);
    }
    row -= layout.rows8;
    if (row < layout.rows4) {
      const int q = codes4[size_t(row) * ((columns + 1) / 2) + k / 2];
      return scale * ((q >> 4 * (k % 2) & 15) - 8);
    }
    row -= layout.rows4;
    const int q = codes2[size_t(row) * ((columns + 3) / 4) + k / 4];
    return scale * ((q >> 2 * (k % 4) & 3) - 1.5);
  }
};

// Bits behind the last code of a row are zero, as in files.
void fill_codes(std::vector<uint8_t>& packed, int rows, int columns, int bits) {
  const int per_byte = 8 / bits, row_bytes = (columns + per_byte - 1) / per_byte;
  packed.assign(size_t(rows) * row_bytes, 0);
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < columns; k++)
      packed[size_t(r) * row_bytes + k / per_byte] |= pick(1 << bits) << k % per_byte * bits;
}

Layer make_layer(int in, int out, int group_size, const std::vector<int>& counts) {
  Layer layer;
  layer.layout = {in, out, group_size, counts[0], counts[1], counts[2], counts[3]};
  layer.groups = (in + group_size - 1) / group_size;
  std::vector<int32_t> channels(out);
  for (int n = 0; n < out; n++) channels[n] = n;
  std::shuffle(channels.begin(), channels.end(), random_bits);
  channels.resize(counts[0] + layer.integer_rows());
  int first = 0;
  const bool sorted = pick(4);  // files are; the interface does not ask for it
  for (int count : counts) {
    if (sorted) std::sort(channels.begin() + first, channels.begin() + first + count);
    first += count;
  }
  layer.order = channels;
  layer.values16.resize(size_t(counts[0]) * in);
  for (uint16_t& value : layer.values16) value = to_bfloat16(normal());
  fill_codes(layer.codes8, counts[1], in, 8);
  fill_codes(layer.codes4, counts[2], in, 4);
  fill_codes(layer.codes2, counts[3], in, 2);
  for (int i = 0; i < layer.integer_rows() * layer.groups; i++) {
    const int exponent = pick(4) - 8;
    layer.scale.push_back(half_of_power(exponent));
    layer.scale_value.push_back(std::ldexp(1.0, exponent));
  }
  return layer;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Store = std::unique_ptr<uint8_t, Free>;

Store pack(Layer& layer, const std::string& name) {
  const int64_t bytes = vlaq_store_bytes(&layer.layout);
  expect(bytes > 0 && bytes % 64 == 0, name + ": size of the store");
  Store store(static_cast<uint8_t*>(std::aligned_alloc(64, size_t(bytes))));
  const vlaq_rows rows = layer.rows();
  expect(vlaq_pack(&layer.layout, &rows, store.get()) == VLAQ_OK, name + ": pack");
  Layer again = layer;
  for (auto* part : {&again.codes8, &again.codes4, &again.codes2})
    std::fill(part->begin(), part->end(), 0xAA);
  std::fill(again.order.begin(), again.order.end(), -1);
  std::fill(again.values16.begin(), again.values16.end(), 0xAAAA);
  std::fill(again.scale.begin(), again.scale.end(), 0xAAAA);
  const vlaq_rows empty = again.rows();
  expect(vlaq_unpack(store.get(), &layer.layout, &empty) == VLAQ_OK, name + ": unpack");
  expect(again.order == layer.order && again.values16 == layer.values16 &&
             again.codes8 == layer.codes8 && again.codes4 == layer.codes4 &&
             again.codes2 == layer.codes2 && again.scale == layer.scale,
         name + ": the same bytes come back");
  return store;
}

struct Call {
  int dtype, tokens, extra;  // extra: values between the rows of x and of y
  int cap, activation_bits, threads;
  bool with_bias;
  std::string text() const {
    std::ostringstream text;
    text << (dtype == VLAQ_FLOAT32 ? "float32" : "bfloat16") << " tokens " << tokens << " cap "
         << cap << " a" << activation_bits << " threads " << threads;
    return text.str();
  }
};

// Compares one call with the double loop. An input half-way between two codes may take either.
void check_call(const Layer& layer, const uint8_t* store, const Call& call,
                const std::string& name) {
  const int in = layer.layout.in_features, out = layer.layout.out_features;
  const int64_t x_stride = in + call.extra, y_stride = out + call.extra;
  const size_t x_size = size_t(call.tokens - 1) * x_stride + in;
  const size_t y_size = size_t(call.tokens - 1) * y_stride + out;
  std::vector<float> x(x_size), bias(call.with_bias ? out : 0), y(y_size, -77.0f);
  std::vector<uint16_t> short_x(x_size), short_y(y_size, 0xC29A);
  for (size_t i = 0; i < x_size; i++) {
    short_x[i] = to_bfloat16(normal());
    x[i] = call.dtype == VLAQ_FLOAT32 ? normal() : from_bfloat16(short_x[i]);
  }
  const int sick = call.tokens > 2 ? 1 : -1, zero = call.tokens > 3 ? 2 : -1;
  for (int k = 0; k < in; k++) {
    if (zero >= 0) x[zero * x_stride + k] = 0.0f, short_x[zero * x_stride + k] = 0;
    if (sick >= 0 && k == in / 2) {
      x[sick * x_stride + k] = INFINITY;
      short_x[sick * x_stride + k] = 0x7f80;
    }
  }
  for (float& value : bias) value = normal();
  const bool wide = call.dtype == VLAQ_FLOAT32;
  const int status = vlaq_linear(
      store, call.dtype, wide ? static_cast<void*>(x.data()) : short_x.data(), x_stride,
      call.tokens, call.with_bias ? bias.data() : nullptr,
      wide ? static_cast<void*>(y.data()) : short_y.data(), y_stride, call.cap,
      call.activation_bits, call.threads);
  const std::string what = name + ": " + call.text();
  expect(status == VLAQ_OK, what + ": status");
  const double levels = call.activation_bits == 16  ? 32512
                        : call.activation_bits == 8 ? 127
                        : call.activation_bits == 4 ? 7
                                                    : 1;
  for (int m = 0; m < call.tokens; m++) {
    const float* row = &x[m * x_stride];
    double most = 0;
    bool finite = true;
    for (int k = 0; k < in; k++) {
      finite = finite && std::isfinite(row[k]);
      most = std::max(most, double(std::fabs(row[k])));
    }
    const double step = most > 0 && finite ? most / levels : 1;
    std::vector<double> expected(out, 0), bound(out, 1e-6);
    for (int i = 0; i < int(layer.order.size()); i++) {
      double sum = 0, size = 0, undecided = 0;
      for (int k = 0; k < in; k++) {
        double term, weight;
        if (i < layer.layout.rows16) {
          weight = from_bfloat16(layer.values16[size_t(i) * in + k]);
          term = weight * from_bfloat16(to_bfloat16(row[k]));
        } else {
          weight = layer.weight(i - layer.layout.rows16, k, call.cap);
          const double code = row[k] / step;
          term = weight * step * std::nearbyint(code);
          const double to_half = std::fabs(std::fabs(code - std::trunc(code)) - 0.5);
          if (to_half < 1e-6 * levels) undecided += step * std::fabs(weight);
          // The middle of a capped weight is a half, which an integer sum may lose once a group.
          if (k % layer.layout.group_size == 0 && call.cap == 4)
            undecided += 0.5 * step * layer.factor(i - layer.layout.rows16, k);
        }
        sum += term;
        size += std::fabs(term);
      }
      const int n = layer.order[i];
      expected[n] = sum;
      bound[n] += 1e-5 * size + 1.01 * undecided;
    }
    for (int n = 0; n < out; n++) {
      const size_t at = m * y_stride + n;
      const double got = wide ? y[at] : from_bfloat16(short_y[at]);
      const double sum = expected[n] + (call.with_bias ? bias[n] : 0.0);
      if (!finite) {
        expect(std::isnan(got), what + ": a broken token is NaN");
      } else if (m == zero) {
        const float only = call.with_bias ? bias[n] : 0.0f;
        expect(got == (wide ? only : from_bfloat16(to_bfloat16(only))), what + ": zeros");
      } else if (!(std::fabs(got - sum) <=
                   bound[n] + 1e-6 * std::fabs(sum) + (wide ? 0 : std::fabs(sum) / 250))) {
        std::ostringstream text;
        text << what << ": [" << m << ", " << n << "] " << got << " instead of " << sum;
        expect(false, text.str());
      }
    }
    if (m + 1 < call.tokens)
      for (int gap = 0; gap < call.extra; gap++) {
        const size_t at = m * y_stride + out + gap;
        expect(wide ? y[at] == -77.0f : short_y[at] == 0xC29A, what + ": writes between rows");
      }
  }
}

struct Shape {
  int in, out, group_size;
};

std::vector<int> random_counts(int out) {
  std::vector<int> counts(4, 0);
  for (int n = 0; n < out; n++) {
    const int width = pick(5);
    if (width < 4) counts[width]++;
  }
  return counts;
}

void check_layers(const std::string& isa) {
  const Shape shapes[] = {{1, 1, 16},    {1, 5, 1},      {15, 17, 15},  {16, 16, 16},
                          {33, 40, 16},  {64, 33, 32},   {130, 70, 64}, {257, 19, 128},
                          {320, 96, 64}, {500, 21, 500}, {1024, 35, 128}};
  for (const Shape& shape : shapes) {
    std::vector<std::vector<int>> mixes(4, std::vector<int>(4, 0));
    for (int width = 0; width < 4; width++) mixes[width][width] = shape.out;
    mixes.push_back({0, 0, 0, 0});
    mixes.push_back(random_counts(shape.out));
    mixes.push_back(random_counts(shape.out));
    for (const std::vector<int>& counts : mixes) {
      Layer layer = make_layer(shape.in, shape.out, shape.group_size, counts);
      std::ostringstream name;
      name << isa << " [" << shape.out << ", " << shape.in << "] groups of " << shape.group_size
           << " rows " << counts[0] << " " << counts[1] << " " << counts[2] << " " << counts[3];
      const Store store = pack(layer, name.str());
      const int activation_bits[] = {8, 8, 16, 4, 2};
      for (int tokens : {1, 2, 5, 19, 47})
        for (int dtype : {VLAQ_FLOAT32, VLAQ_BFLOAT16})
          check_call(layer, store.get(),
                     {dtype, tokens, pick(2) * 3, pick(3) ? 8 : 4, activation_bits[pick(5)],
                      1 + pick(3), pick(2) == 1},
                     name.str());
    }
  }
}

// Two tiles that share 16 outputs, of which the second tile has one in front of that of the first.
void check_order(const std::string& isa) {
  Layer layer = make_layer(64, 32, 32, {0, 0, 32, 0});
  layer.order = {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 5,
                 3,  7,  0,  1,  2,  4,  6,  8,  9,  10, 11, 12, 13, 14, 15, 31};
  const Store store = pack(layer, isa + ": order");
  for (int tokens : {1, 5, 47})
    check_call(layer, store.get(), {VLAQ_FLOAT32, tokens, 0, 8, 8, 1, true}, isa + ": order");
}

void check_threads(const std::string& isa) {
  Layer layer = make_layer(200, 150, 64, {20, 50, 40, 30});
  const Store store = pack(layer, isa);
  std::vector<float> x(60 * 200);
  for (float& value : x) value = normal();
  auto multiply = [&](int tokens, int cap, int activation_bits, int threads) {
    std::vector<float> y(size_t(tokens) * 150);
    expect(vlaq_linear(store.get(), VLAQ_FLOAT32, x.data(), 200, tokens, nullptr, y.data(), 150,
                       cap, activation_bits, threads) == VLAQ_OK,
           isa + ": threads: status");
    return y;
  };
  const std::vector<std::vector<float>> alone = {
      multiply(1, 8, 8, 1), multiply(7, 4, 8, 1), multiply(60, 8, 16, 1), multiply(33, 8, 4, 1)};
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; caller++)
    callers.emplace_back([&, caller] {
      const int tokens[] = {1, 7, 60, 33}, caps[] = {8, 4, 8, 8}, bits[] = {8, 8, 16, 4};
      for (int turn = 0; turn < 40; turn++)
        wrong[caller] += multiply(tokens[caller], caps[caller], bits[caller], 1 + turn % 4) !=
                         alone[caller];
    });
  for (std::thread& caller : callers) caller.join();
  for (int count : wrong) expect(count == 0, isa + ": threads: the same bits");
}

void check_refusals() {
  Layer layer = make_layer(64, 8, 32, {1, 2, 2, 1});
  const Store store = pack(layer, "refusals");
  const vlaq_rows rows = layer.rows();
  auto refused = [&](const char* what, int error, const std::function<void(vlaq_layout&)>& edit) {
    vlaq_layout bad = layer.layout;
    edit(bad);
    expect(vlaq_store_bytes(&bad) == -error, what);
  };
  refused("no inputs", VLAQ_ERROR_SHAPE, [](vlaq_layout& l) { l.in_features = 0; });
  refused("no outputs", VLAQ_ERROR_SHAPE, [](vlaq_layout& l) { l.out_features = -1; });
  refused("too many rows", VLAQ_ERROR_SHAPE, [](vlaq_layout& l) { l.rows4 = 7; });
  refused("negative rows", VLAQ_ERROR_SHAPE, [](vlaq_layout& l) { l.rows8 = -2; });
  refused("odd group", VLAQ_ERROR_GROUP, [](vlaq_layout& l) { l.group_size = 24; });
  refused("no group", VLAQ_ERROR_GROUP, [](vlaq_layout& l) { l.group_size = 0; });
  for (int32_t channel : {-1, 8, layer.order[1]}) {
    Layer bad = layer;
    bad.order[0] = channel;
    const vlaq_rows bad_rows = bad.rows();
    Store other(static_cast<uint8_t*>(
        std::aligned_alloc(64, size_t(vlaq_store_bytes(&layer.layout)))));
    expect(vlaq_pack(&layer.layout, &bad_rows, other.get()) == VLAQ_ERROR_ORDER, "bad order");
  }
  vlaq_layout another = layer.layout;
  another.rows8--, another.rows4++;
  expect(vlaq_unpack(store.get(), &another, &rows) == VLAQ_ERROR_SHAPE, "another layout");
  std::vector<float> x(64), y(8);
  auto call = [&](const void* bytes, int cap, int activation_bits) {
    return vlaq_linear(bytes, VLAQ_FLOAT32, x.data(), 64, 1, nullptr, y.data(), 8, cap,
                       activation_bits, 1);
  };
  expect(call(store.get(), 2, 8) == VLAQ_ERROR_PRECISION, "cap 2");
  expect(call(store.get(), 8, 7) == VLAQ_ERROR_PRECISION, "a7");
  alignas(64) uint8_t zeros[256] = {};
  expect(call(zeros, 8, 8) == VLAQ_ERROR_STORE, "not a store");
  expect(vlaq_set_isa("mmx") == VLAQ_ERROR_ISA, "unknown instructions");
  for (int error = VLAQ_OK; error <= VLAQ_ERROR_MEMORY; error++)
    expect(*vlaq_error_text(error) != 0, "every error has a text");
}

}  // namespace

int main() {
  expect(vlaq_abi_version() == VLAQ_ABI_VERSION, "interface version");
  check_refusals();
  std::istringstream names(vlaq_available_isas());
  for (std::string isa; std::getline(names, isa, ',');) {
    expect(vlaq_set_isa(isa.c_str()) == VLAQ_OK && isa == vlaq_isa(), isa + ": can be chosen");
    const int before = failures;
    check_layers(isa);
    check_order(isa);
    check_threads(isa);
    std::printf("%s %s\n", isa.c_str(), failures == before ? "ok" : "FAILED");
  }
  return failures != 0;
}
