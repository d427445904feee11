// What the kernels share: products in bfloat16 summed in float32, exponentials, and attention of a block of queries to
// ranges of keys. For CPUs with AVX512-BF16. Head sizes are multiples of 32.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef uint16_t bf16;

constexpr int LANES = 16;        // float32 numbers a register
constexpr int QUERY_GROUPS = 3;  // registers of queries that share a pass over a prefix
constexpr int QUERIES = QUERY_GROUPS * LANES;
constexpr float NEVER = -1e30f;
constexpr int AHEAD = 2048;  // bytes that are asked for early: the hardware's own prefetch stops at every page of 4 KiB

inline __m512bh as_bf16(__m512i x) { return (__m512bh)x; }

inline __m512bh load_bf16(const bf16* p) { return as_bf16(_mm512_loadu_si512(p)); }

inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline bf16 to_bf16(float x) {  // round to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp(x) for x <= 0, relative error below 1e-6: 2^n by the exponent, 2^f with |f| <= 1/2 by its Taylor series.
inline __m512 exp_ps(__m512 x) {
  const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(t, n);
  const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                          2.4022651e-1f, 6.9314718e-1f, 1.f};
  __m512 y = _mm512_set1_ps(series[0]);
  for (int i = 1; i < 7; ++i) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(series[i]));
  return _mm512_scalef_ps(y, n);
}

// Sixteen registers -> their sixteen sums, register ORDER[i] in lane i.
constexpr int ORDER[LANES] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};

inline __m512 sums(__m512* a) {
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44), _mm512_shuffle_f32x4(a[i], a[i + 8], 0xEE));
  for (int i = 0; i < 4; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD));
  for (int i = 0; i < 2; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_ps(a[i], a[i + 2], 0x44), _mm512_shuffle_ps(a[i], a[i + 2], 0xEE));
  return _mm512_add_ps(_mm512_shuffle_ps(a[0], a[1], 0x88), _mm512_shuffle_ps(a[0], a[1], 0xDD));
}

// Two rows of 32 values, interleaved lane by lane for the pairwise product; low[j] and high[j] hold columns
// 8 b + j and 8 b + 4 + j of block b.
struct Pair {
  __m512bh low, high;
};

inline Pair interleave(const bf16* even, const bf16* odd) {
  const __m512i x = _mm512_loadu_si512(even), y = _mm512_loadu_si512(odd);
  return {as_bf16(_mm512_unpacklo_epi16(x, y)), as_bf16(_mm512_unpackhi_epi16(x, y))};
}

inline void add_pair(float* out, __m512 low, __m512 high) {  // 32 columns back in order
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  auto add = [](float* to, __m512 x) { _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), x)); };
  add(out, _mm512_permutex2var_ps(low, first, high));
  add(out + LANES, _mm512_permutex2var_ps(low, second, high));
}

// out[i, :] += sum over tokens of weight * value for ROWS weight rows. Values are `row` apart from token to token;
// weights come in pairs of tokens, `step` pairs apart along a row and `stride` from row to row; FETCH: values come from
// memory. COLUMNS registers of 32 at a time.
template <int ROWS, int COLUMNS, bool FETCH>
void weigh_block(const bf16* values, size_t row, int tokens, const uint32_t* weights, int step, int stride, float* out,
                 int size) {
  __m512 acc[ROWS][2 * COLUMNS];
  for (int i = 0; i < ROWS; ++i)
    for (int c = 0; c < 2 * COLUMNS; ++c) acc[i][c] = _mm512_setzero_ps();
  for (int s = 0; s < tokens; s += 2) {
    const bf16* even = values + s * row;
    const bf16* odd = s + 1 < tokens ? even + row : even;  // its weight is 0
    for (int c = 0; c < COLUMNS; ++c) {
      if (FETCH) {
        _mm_prefetch((const char*)(even + 32 * c) + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char*)(even + row + 32 * c) + AHEAD, _MM_HINT_T0);
      }
      const Pair v = interleave(even + 32 * c, odd + 32 * c);
      for (int i = 0; i < ROWS; ++i) {
        const __m512bh w = as_bf16(_mm512_set1_epi32(int(weights[size_t(s / 2) * step + size_t(i) * stride])));
        acc[i][2 * c] = _mm512_dpbf16_ps(acc[i][2 * c], v.low, w);
        acc[i][2 * c + 1] = _mm512_dpbf16_ps(acc[i][2 * c + 1], v.high, w);
      }
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int c = 0; c < COLUMNS; ++c) add_pair(out + size_t(i) * size + 32 * c, acc[i][2 * c], acc[i][2 * c + 1]);
}

template <int COLUMNS>
void weigh_columns(const bf16* v, size_t row, int tokens, const uint32_t* w, int step, int stride, int rows, float* out,
                   int size) {
  auto from = [&](int i) { return w + size_t(i) * stride; };
  auto to = [&](int i) { return out + size_t(i) * size; };
  int i = 0;
  if (rows >= 6) {  // the first rows bring the values into the cache for the others
    weigh_block<6, COLUMNS, true>(v, row, tokens, w, step, stride, out, size);
    for (i = 6; i + 6 <= rows; i += 6)
      weigh_block<6, COLUMNS, false>(v, row, tokens, from(i), step, stride, to(i), size);
  }
  for (; i + 3 <= rows; i += 3) weigh_block<3, COLUMNS, true>(v, row, tokens, from(i), step, stride, to(i), size);
  for (; i < rows; ++i) weigh_block<1, COLUMNS, true>(v, row, tokens, from(i), step, stride, to(i), size);
}

// out (rows, size) is filled anew where `add` is false.
void weigh(const bf16* v, size_t row, int tokens, const uint32_t* w, int step, int stride, int rows, float* out,
           int size, bool add) {
  if (!add) std::fill(out, out + size_t(rows) * size, 0.f);
  int c = 0;
  for (; c + 64 <= size; c += 64) weigh_columns<2>(v + c, row, tokens, w, step, stride, rows, out + c, size);
  for (; c < size; c += 32) weigh_columns<1>(v + c, row, tokens, w, step, stride, rows, out + c, size);
}

struct Scratch {  // of one thread; grows, never shrinks
  uint64_t products = 0;  // cycles of the time-stamp counter spent in products
  std::vector<float> scores, out;
  std::vector<uint32_t> weights, queries;
  template <class T>
  static T* room(std::vector<T>& of, size_t count) {
    if (of.size() < count) of.resize(count);
    return of.data();
  }
};

// Scores of GROUPS x 16 queries, packed in pairs (D / 2, QUERIES), with KEYS keys from `keys` on.
template <int KEYS, int GROUPS>
inline void score_block(const bf16* keys, size_t row, int size, const uint32_t* queries, float* scores, __m512* most) {
  __m512 acc[KEYS][GROUPS];
  for (int k = 0; k < KEYS; ++k)
    for (int g = 0; g < GROUPS; ++g) acc[k][g] = _mm512_setzero_ps();
  for (int k = 0; k < KEYS; ++k)
    for (int d = 0; d < size; d += 32) _mm_prefetch((const char*)(keys + k * row + d) + AHEAD, _MM_HINT_T0);
  for (int d = 0; d < size / 2; ++d) {
    __m512bh q[GROUPS];
    for (int g = 0; g < GROUPS; ++g) q[g] = as_bf16(_mm512_loadu_si512(queries + size_t(d) * QUERIES + LANES * g));
    for (int k = 0; k < KEYS; ++k) {
      int pair;
      std::memcpy(&pair, keys + k * row + 2 * d, sizeof pair);
      const __m512bh key = as_bf16(_mm512_set1_epi32(pair));
      for (int g = 0; g < GROUPS; ++g) acc[k][g] = _mm512_dpbf16_ps(acc[k][g], key, q[g]);
    }
  }
  for (int k = 0; k < KEYS; ++k)
    for (int g = 0; g < GROUPS; ++g) {
      _mm512_storeu_ps(scores + size_t(k) * QUERIES + LANES * g, acc[k][g]);
      most[g] = _mm512_max_ps(most[g], acc[k][g]);
    }
}

struct Range {  // of keys and values that lie one after another
  const bf16 *keys, *values;
  int count;
};

struct Sums {  // of up to QUERIES queries: unnormalised results (QUERIES, size), largest scores, sums of weights
  float* out;
  float most[QUERIES], total[QUERIES];
};

// GROUPS registers of queries, packed in pairs (size / 2, QUERIES), against ranges of keys whose rows are `row` apart.
// `causal` is the last range's key at which a triangle begins: query i sees keys up to causal + i / repeats (-1: all).
template <int GROUPS>
void attend(const std::vector<Range>& ranges, size_t row, int size, const uint32_t* queries, int count, float scale,
            int causal, int repeats, Scratch& scratch, Sums& sums) {
  int room = 0;  // ranges begin at even places, so that pairs of keys stay within one
  for (const Range& range : ranges) room += (range.count + 1) / 2 * 2;
  float* scores = Scratch::room(scratch.scores, size_t(room) * QUERIES);
  uint32_t* weights = Scratch::room(scratch.weights, size_t(room) / 2 * QUERIES);
  sums.out = Scratch::room(scratch.out, size_t(QUERIES) * size);
  const __m512 never = _mm512_set1_ps(NEVER), factor = _mm512_set1_ps(scale);
  __m512 most[GROUPS], total[GROUPS], unmasked[GROUPS];
  for (int g = 0; g < GROUPS; ++g) most[g] = unmasked[g] = never, total[g] = _mm512_setzero_ps();
  int place = 0;
  const uint64_t began = __rdtsc();
  for (size_t n = 0; n < ranges.size(); ++n) {
    const Range& range = ranges[n];
    float* to = scores + size_t(place) * QUERIES;
    const int open = n + 1 == ranges.size() && causal >= 0 ? causal : range.count;  // keys that all queries see
    for (int part = 0; part < 2; ++part) {
      int k = part ? open : 0;
      const int end = part ? range.count : open;
      __m512* top = part ? unmasked : most;
      for (; k + 4 <= end; k += 4)
        score_block<4, GROUPS>(range.keys + k * row, row, size, queries, to + size_t(k) * QUERIES, top);
      for (; k < end; ++k)
        score_block<1, GROUPS>(range.keys + k * row, row, size, queries, to + size_t(k) * QUERIES, top);
    }
    for (int k = open; k < range.count; ++k) {
      const int first = std::min((k - open) * repeats, QUERIES);  // the first query that sees this key
      for (int g = 0; g < GROUPS; ++g) {
        const int hidden = std::min(std::max(first - LANES * g, 0), LANES);
        float* at = to + size_t(k) * QUERIES + LANES * g;
        const __m512 seen = _mm512_mask_blend_ps(__mmask16((1u << hidden) - 1), _mm512_loadu_ps(at), never);
        _mm512_storeu_ps(at, seen);
        most[g] = _mm512_max_ps(most[g], seen);
      }
    }
    if (range.count % 2)
      for (int g = 0; g < GROUPS; ++g) _mm512_storeu_ps(to + size_t(range.count) * QUERIES + LANES * g, never);
    place += (range.count + 1) / 2 * 2;
  }
  const uint64_t scored = __rdtsc();
  for (int s = 0; s < room; s += 2)
    for (int g = 0; g < GROUPS; ++g) {
      const float* from = scores + size_t(s) * QUERIES + LANES * g;
      auto weight = [&](const float* score) {
        return exp_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(score), most[g]), factor));
      };
      const __m512 even = weight(from), odd = weight(from + QUERIES);
      total[g] = _mm512_add_ps(total[g], _mm512_add_ps(even, odd));
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd)), 16);
      _mm512_storeu_si512(weights + size_t(s / 2) * QUERIES + LANES * g, _mm512_or_si512(low, high));
    }
  place = 0;
  const uint64_t weighted = __rdtsc();
  for (const Range& range : ranges) {
    weigh(range.values, row, range.count, weights + size_t(place) / 2 * QUERIES, QUERIES, 1, count, sums.out, size,
          place > 0);
    place += (range.count + 1) / 2 * 2;
  }
  scratch.products += scored - began + __rdtsc() - weighted;
  for (int g = 0; g < GROUPS; ++g) {
    _mm512_storeu_ps(sums.most + LANES * g, _mm512_mul_ps(most[g], factor));
    _mm512_storeu_ps(sums.total + LANES * g, total[g]);
  }
}

inline decltype(&attend<1>) attend_for(int queries) {
  return queries <= LANES ? attend<1> : queries <= 2 * LANES ? attend<2> : attend<3>;
}

// Query i of a block, in pairs: packed (size / 2, QUERIES).
inline void pack_query(uint32_t* packed, int i, const bf16* query, int size) {
  for (int d = 0; d < size / 2; ++d) std::memcpy(packed + size_t(d) * QUERIES + i, query + 2 * d, sizeof(uint32_t));
}

inline uint32_t* empty_queries(Scratch& scratch, int size) {
  uint32_t* packed = Scratch::room(scratch.queries, size_t(size) / 2 * QUERIES);
  std::fill(packed, packed + size_t(size) / 2 * QUERIES, 0u);
  return packed;
}

}  // namespace
