// Outputs of processors with AVX-512: one permutation and one masked store for every line of 16 channels
// that some tiles of channels touch.
//
// Included by outputs.h.

struct Lines {
  static constexpr bool COVERS_PRUNED = true;
  static constexpr int MOST = MAX_TILES * TILE;

  int tiles, count;
  // What the tiles touch, line by line. `find` writes 16 at a time, hence the room behind the last.
  int32_t channel[MOST + TILE];   // the first channel of the line, a multiple of 16
  int32_t from[MOST + TILE];      // the first row of the tiles that belongs to it
  uint32_t stored[MOST + TILE];   // a bit for every channel of it that is a row of the tiles
  uint32_t written[MOST];         // those and pruned ones beside

  VLAQ_INLINE __m512i lanes() {
    return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  }
  // Lane i becomes lane i - N of v, or of `below` if that is negative.
  template <int N>
  VLAQ_INLINE __m512i lower(__m512i v, __m512i below) { return _mm512_alignr_epi32(v, below, TILE - N); }
  template <int N>
  VLAQ_INLINE __m512i add_lower(__m512i v) {
    return _mm512_add_epi32(v, lower<N>(v, _mm512_setzero_si512()));
  }

  void find(const Job& job, int width, int first, int tiles_) {
    tiles = tiles_;
    count = 0;
    const int32_t* channels = job.store->tile_channels(width, first);
    for (int tile = 0; tile < tiles; tile++) add_tile(channels + tile * TILE, tile * TILE);
    for (int i = 0; i < count; i++)
      written[i] = stored[i] | (job.pruned ? pruned_beside(job.pruned[channel[i] / TILE], stored[i]) : 0);
  }

  // A line goes on while channels rise within 16. The bits of its channels are what they add to a running
  // sum of all bits.
  VLAQ_INLINE_MEMBER void add_tile(const int32_t* channels, int row) {
    const __m512i none = _mm512_set1_epi32(-1), of = _mm512_load_si512(channels);
    const __m512i before = lower<1>(of, none);
    const uint32_t used = _mm512_cmpge_epi32_mask(of, _mm512_setzero_si512());
    const __mmask16 begins = used & (_mm512_cmpneq_epi32_mask(_mm512_srai_epi32(of, 4), _mm512_srai_epi32(before, 4)) |
                                     _mm512_cmplt_epi32_mask(of, before));
    const __mmask16 ends = (begins >> 1 | ~(used >> 1)) & used;
    __m512i sum = _mm512_maskz_sllv_epi32(used, _mm512_set1_epi32(1), _mm512_and_si512(of, _mm512_set1_epi32(15)));
    sum = add_lower<8>(add_lower<4>(add_lower<2>(add_lower<1>(sum))));
    sum = _mm512_maskz_compress_epi32(ends, sum);
    const __m512i bits = _mm512_sub_epi32(sum, lower<1>(sum, _mm512_setzero_si512()));
    const __m512i line = _mm512_maskz_compress_epi32(begins, _mm512_and_si512(of, _mm512_set1_epi32(-TILE)));
    const __m512i at = _mm512_maskz_compress_epi32(begins, _mm512_add_epi32(lanes(), _mm512_set1_epi32(row)));
    // The last line of the tile before may go on.
    const int last = count - 1;
    const uint32_t more = uint32_t(_mm512_cvtsi512_si32(bits));
    const bool joins = count && channels[0] / TILE * TILE == channel[last] && (more & -more) > stored[last];
    const int to = count - joins;
    const uint32_t first_stored = joins ? stored[last] | more : more;
    const int32_t first_from = joins ? from[last] : row;
    _mm512_storeu_si512(channel + to, line);
    _mm512_storeu_si512(from + to, at);
    _mm512_storeu_si512(stored + to, bits);
    stored[to] = first_stored;
    from[to] = first_from;
    count = to + __builtin_popcount(begins);
  }

  // The pruned channels that belong to the stored ones, so that each belongs to one: those that follow
  // directly, and for the first stored one of the line also those in front.
  VLAQ_INLINE uint32_t pruned_beside(uint32_t pruned, uint32_t stored) {
    const uint32_t behind = pruned & ~(pruned + (stored << 1 & pruned));  // the carry clears what follows
    const uint32_t before = (stored & -stored) - 1;
    return (pruned & before) == before ? behind | before : behind;
  }

  template <class T>
  VLAQ_INLINE_MEMBER void put(const Job& job, T* y, int64_t stride, const float* sums,
                              const float* scale, int tokens) const {
    const int second = tiles == 1 ? 0 : TILE;
    for (int i = 0; i < count; i++) {
      const __mmask16 here = stored[i], all = written[i];
      const __m512i row = _mm512_add_epi32(_mm512_maskz_expand_epi32(here, lanes()), _mm512_set1_epi32(from[i]));
      const Floats bias = job.bias ? (Floats)Isa::load_some(job.bias + channel[i], all) : Floats{};
      const float* at = sums;
      T* to = y + channel[i];
      for (int t = 0; t < tokens; t++, at += tiles * TILE, to += stride) {
        const __m512 a = _mm512_load_ps(at), b = _mm512_load_ps(at + second);
        const Floats sum = (Floats)_mm512_maskz_permutex2var_ps(here, a, row, b);
        Isa::store_some(to, all, converted(sum * scale[t] + bias, to));
      }
    }
  }
};
