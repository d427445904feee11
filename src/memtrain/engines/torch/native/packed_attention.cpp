// Attention of a packed prefix forest, forward: packed_attention.py in one pass, for CPUs with AVX512-BF16.
//
// Shapes: N packed tokens, H query heads, K key-value heads, R = H / K, D head size (a multiple of 32).

#include "avx512_bf16.h"

// q (H, N, D), k and v (K, N, D), by strides, each token's D numbers in a row; out (N, H, D); lse (K, N * R), float32:
// log-sum-exp of the scaled scores, heads of a key head side by side for every token. Segment s holds the tokens
// offsets[s] .. offsets[s + 1] - 1; parents[s] is the segment before it, -1 for a root.
extern "C" void memtrain_packed_attention(const bf16* q, const bf16* k, const bf16* v, const int64_t* offsets,
                                          const int64_t* parents, bf16* out, float* lse, int segments, int kv_heads,
                                          int repeats, int size, int64_t q_head, int64_t q_token, int64_t k_head,
                                          int64_t k_token, float scale) {
  struct Block {
    int segment, head;
    int64_t first, end;  // tokens
  };
  const int64_t tokens = offsets[segments], at_once = QUERIES / repeats, heads = int64_t(kv_heads) * repeats;
  std::vector<Block> blocks;
  for (int s = 0; s < segments; ++s)
    for (int head = 0; head < kv_heads; ++head)
      for (int64_t first = offsets[s]; first < offsets[s + 1]; first += at_once)
        blocks.push_back({s, head, first, std::min(first + at_once, offsets[s + 1])});
#pragma omp parallel
  {
    static thread_local Scratch scratch;
    std::vector<Range> ranges;
    Sums sums;
#pragma omp for schedule(dynamic, 4)
    for (int64_t n = 0; n < int64_t(blocks.size()); ++n) {
      const Block block = blocks[n];
      const bf16 *keys = k + block.head * k_head, *values = v + block.head * k_head;
      auto between = [&](int64_t first, int64_t end) {
        return Range{keys + first * k_token, values + first * k_token, int(end - first)};
      };
      ranges.clear();
      for (int64_t s = parents[block.segment]; s >= 0; s = parents[s])
        ranges.push_back(between(offsets[s], offsets[s + 1]));
      const int64_t own = offsets[block.segment];
      ranges.push_back(between(own, block.end));
      uint32_t* packed = empty_queries(scratch, size);
      const int count = int(block.end - block.first) * repeats;
      for (int i = 0; i < count; ++i) {
        const int64_t token = block.first + i / repeats, head = int64_t(block.head) * repeats + i % repeats;
        pack_query(packed, i, q + head * q_head + token * q_token, size);
      }
      const int diagonal = int(block.first - own);
      attend_for(count)(ranges, size_t(k_token), size, packed, count, scale, diagonal, repeats, scratch, sums);
      for (int i = 0; i < count; ++i) {
        const int64_t token = block.first + i / repeats, head = int64_t(block.head) * repeats + i % repeats;
        lse[block.head * tokens * repeats + block.first * repeats + i] = sums.most[i] + std::log(sums.total[i]);
        const float share = 1.f / sums.total[i];
        bf16* to = out + (token * heads + head) * size;
        for (int d = 0; d < size; ++d) to[d] = to_bf16(sums.out[size_t(i) * size + d] * share);
      }
    }
  }
}
