// One decoding step's attention of one layer, for CPUs with AVX512-BF16: what decode_attention.py says in torch ops,
// in one pass over keys and values, with nothing but the result written to memory.
//
// Shapes: B slots, H query heads, K key-value heads, R = H / K, D head size (a multiple of 32), G prefix rows.
// Keys and values lie row by row, (.., tokens, D). Products take bfloat16 and add in float32; softmax and merge are
// float32; weights are rounded to bfloat16 before their product with the values, as in transformers' eager attention.

#include "avx512_bf16.h"

#include <omp.h>

#include <chrono>

namespace {

// R queries of one slot and head against the slot's own keys; unnormalised results, maximum and sum of each query.
void own_block(const bf16* keys, const bf16* values, int size, int tokens, const bf16* q, int repeats, float scale,
               Scratch& scratch, float* out, float* most, float* total) {
  const int padded = (tokens + LANES - 1) / LANES * LANES, pairs = padded / 2;
  float* scores = Scratch::room(scratch.scores, size_t(repeats) * padded);
  uint32_t* weights = Scratch::room(scratch.weights, size_t(repeats) * pairs);
  const uint64_t began = __rdtsc();
  for (int s = 0; s < padded; s += LANES) {
    const bf16* rows[LANES];
    for (int i = 0; i < LANES; ++i) rows[i] = keys + size_t(std::min(s + ORDER[i], tokens - 1)) * size;
    const char* ahead = (const char*)(keys + size_t(s) * size) + AHEAD;
    for (int line = 0; line < LANES * size * int(sizeof(bf16)); line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
    const __mmask16 exist = s + LANES <= tokens ? __mmask16(0xffff) : __mmask16((1u << (tokens - s)) - 1);
    for (int r = 0; r < repeats; ++r) {
      __m512 acc[LANES];
      for (int i = 0; i < LANES; ++i) acc[i] = _mm512_setzero_ps();
      for (int d = 0; d < size; d += 32) {
        const __m512bh query = load_bf16(q + size_t(r) * size + d);
        for (int i = 0; i < LANES; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], load_bf16(rows[i] + d), query);
      }
      const __m512 found = _mm512_mul_ps(sums(acc), _mm512_set1_ps(scale));
      _mm512_storeu_ps(scores + size_t(r) * padded + s, _mm512_mask_blend_ps(exist, _mm512_set1_ps(NEVER), found));
    }
  }
  const uint64_t scored = __rdtsc();
  for (int r = 0; r < repeats; ++r) {
    const float* from = scores + size_t(r) * padded;
    __m512 largest = _mm512_set1_ps(NEVER), sum = _mm512_setzero_ps();
    for (int s = 0; s < padded; s += LANES) largest = _mm512_max_ps(largest, _mm512_loadu_ps(from + s));
    most[r] = _mm512_reduce_max_ps(largest);
    for (int s = 0; s < padded; s += LANES) {
      const __m512 weight = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(from + s), _mm512_set1_ps(most[r])));
      sum = _mm512_add_ps(sum, weight);
      _mm256_storeu_si256((__m256i*)((bf16*)(weights + size_t(r) * pairs) + s), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    total[r] = _mm512_reduce_add_ps(sum);
  }
  const uint64_t weighted = __rdtsc();
  weigh(values, size, tokens, weights, 1, pairs, repeats, out, size, false);
  scratch.products += scored - began + __rdtsc() - weighted;
}

}  // namespace

// Nanoseconds so far, in products (mean of the threads) and in the whole kernel: what memtrain bench reads.
extern "C" {
double memtrain_decode_nanoseconds[2];
}

// What stays from step to step for a layer.
//   own_k, own_v (B, K, own_room, D); prefix_k, prefix_v (G, K, prefix_room, D); own_lengths (B): own tokens stored
//   before this step; row_of (B): prefix row, -1 for none; prefix_lengths (G); prefix_out (B, H, D) and prefix_lse
//   (B, H): room for the prefixes' part, float32.
struct Layer {
  bf16 *own_k, *own_v;
  const bf16 *prefix_k, *prefix_v;
  const int64_t *own_lengths, *row_of, *prefix_lengths;
  float *prefix_out, *prefix_lse;
  int32_t slots, kv_heads, repeats, size, own_room, rows, prefix_room;
  float scale;
};

// Stores this step's key and value of every slot behind its own ones and attends: q, out (B, H, D); k, v (B, K, D).
extern "C" void memtrain_decode_attention(const Layer* layer, const bf16* q, const bf16* k, const bf16* v, bf16* out) {
  bf16 *own_k = layer->own_k, *own_v = layer->own_v;
  const bf16 *prefix_k = layer->prefix_k, *prefix_v = layer->prefix_v;
  const int64_t *own_lengths = layer->own_lengths, *row_of = layer->row_of, *prefix_lengths = layer->prefix_lengths;
  float *prefix_out = layer->prefix_out, *prefix_lse = layer->prefix_lse;
  const int slots = layer->slots, kv_heads = layer->kv_heads, repeats = layer->repeats, size = layer->size;
  const int own_room = layer->own_room, rows = layer->rows, prefix_room = layer->prefix_room;
  const float scale = layer->scale;
  const int heads = kv_heads * repeats;
  struct Block {
    int row, head, first, count;
  };
  std::vector<std::vector<int>> members(rows);
  for (int b = 0; b < slots; ++b)
    if (row_of[b] >= 0 && prefix_lengths[row_of[b]] > 0) members[row_of[b]].push_back(b);
  std::vector<Block> blocks;
  for (int g = 0; g < rows; ++g) {
    const int wanted = int(members[g].size()) * repeats;
    for (int head = 0; head < kv_heads; ++head)
      for (int first = 0; first < wanted; first += QUERIES)
        blocks.push_back({g, head, first, std::min(QUERIES, wanted - first)});
  }
  const auto clock = std::chrono::steady_clock::now();
  const uint64_t began = __rdtsc();
  uint64_t products = 0;
  int threads = 1;
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    scratch.products = 0;
#pragma omp for schedule(dynamic, 1)
    for (int n = 0; n < int(blocks.size()); ++n) {
      const Block block = blocks[n];
      uint32_t* packed = empty_queries(scratch, size);
      size_t places[QUERIES];
      for (int i = 0; i < block.count; ++i) {
        const int number = block.first + i, b = members[block.row][number / repeats];
        places[i] = size_t(b) * heads + size_t(block.head) * repeats + number % repeats;
        pack_query(packed, i, q + places[i] * size, size);
      }
      const size_t from = (size_t(block.row) * kv_heads + block.head) * prefix_room * size;
      const std::vector<Range> all = {{prefix_k + from, prefix_v + from, int(prefix_lengths[block.row])}};
      Sums sums;
      attend_for(block.count)(all, size, size, packed, block.count, scale, -1, repeats, scratch, sums);
      for (int i = 0; i < block.count; ++i) {
        prefix_lse[places[i]] = sums.most[i] + std::log(sums.total[i]);
        const float share = 1.f / sums.total[i], *found = sums.out + size_t(i) * size;
        for (int d = 0; d < size; ++d) prefix_out[places[i] * size + d] = found[d] * share;
      }
    }
#pragma omp for schedule(dynamic, 4)
    for (int n = 0; n < slots * kv_heads; ++n) {
      const int b = n / kv_heads, head = n % kv_heads, before = int(own_lengths[b]);
      bf16* keys = own_k + size_t(n) * own_room * size;
      bf16* values = own_v + size_t(n) * own_room * size;
      std::memcpy(keys + size_t(before) * size, k + size_t(n) * size, sizeof(bf16) * size);
      std::memcpy(values + size_t(before) * size, v + size_t(n) * size, sizeof(bf16) * size);
      const size_t place = size_t(b) * heads + size_t(head) * repeats;
      float* found = Scratch::room(scratch.out, size_t(repeats) * (size + 2));
      float *most = found + size_t(repeats) * size, *total = most + repeats;
      own_block(keys, values, size, before + 1, q + place * size, repeats, scale, scratch, found, most, total);
      const bool shared = row_of[b] >= 0 && prefix_lengths[row_of[b]] > 0;
      for (int r = 0; r < repeats; ++r) {
        float own_share = 1.f / total[r], prefix_share = 0.f;
        if (shared) {  // merge by log-sum-exp
          const float lse = most[r] + std::log(total[r]);
          prefix_share = 1.f / (1.f + std::exp(lse - prefix_lse[place + r]));
          own_share *= 1.f - prefix_share;
        }
        const float* prefix = prefix_out + (place + r) * size;
        for (int d = 0; d < size; ++d) {
          float value = found[size_t(r) * size + d] * own_share;
          if (shared) value += prefix[d] * prefix_share;
          out[(place + r) * size + d] = to_bf16(value);
        }
      }
    }
#pragma omp atomic
    products += scratch.products;
#pragma omp single
    threads = omp_get_num_threads();
  }
  const double took = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - clock).count();
  memtrain_decode_nanoseconds[0] += took * double(products) / double(__rdtsc() - began) / threads;
  memtrain_decode_nanoseconds[1] += took;
}
