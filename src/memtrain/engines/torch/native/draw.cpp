// One token a row from bfloat16 logits, with its log-prob: drawing.py in one pass, for CPUs with AVX512-BF16.

#include "avx512_bf16.h"

namespace {

constexpr int BLOCK = 128;

inline __m512 load_float(const bf16* p, __mmask16 exist) {  // 0 where there is no number
  const __m256i bits = _mm256_maskz_loadu_epi16(exist, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

}  // namespace

// logits (rows, size); uniform (rows), in [0, 1); temperature (rows), 0 for the largest logit, whose log-prob is that
// at temperature 1; tokens and logprobs (rows).
extern "C" void memtrain_draw(const bf16* logits, const double* uniform, const float* temperature, int64_t* tokens,
                              float* logprobs, int rows, int size) {
  const int blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel
  {
    std::vector<float> of_block(blocks);
#pragma omp for schedule(dynamic, 1)
    for (int row = 0; row < rows; ++row) {
      const bf16* from = logits + size_t(row) * size;
      auto exist = [&](int at) { return at + LANES <= size ? __mmask16(0xffff) : __mmask16((1u << (size - at)) - 1); };
      __m512 most = _mm512_set1_ps(-INFINITY);
      for (int at = 0; at < size; at += LANES)
        most = _mm512_mask_max_ps(most, exist(at), most, load_float(from + at, exist(at)));
      const float largest = _mm512_reduce_max_ps(most), heat = temperature[row] > 0 ? 1.f / temperature[row] : 1.f;
      auto weights = [&](int at) {
        const __m512 score = _mm512_sub_ps(load_float(from + at, exist(at)), _mm512_set1_ps(largest));
        return _mm512_maskz_mov_ps(exist(at), exp_ps(_mm512_mul_ps(score, _mm512_set1_ps(heat))));
      };
      double total = 0;
      for (int block = 0; block < blocks; ++block) {
        __m512 sum = _mm512_setzero_ps();
        for (int at = block * BLOCK; at < std::min(size, (block + 1) * BLOCK); at += LANES)
          sum = _mm512_add_ps(sum, weights(at));
        total += of_block[block] = _mm512_reduce_add_ps(sum);
      }
      int token = -1;
      if (temperature[row] > 0) {
        // Inverse transform sampling: the block in which the sum passes the target, then the token.
        const double target = uniform[row] * total;
        double before = 0;
        int block = 0;
        while (block + 1 < blocks && before + of_block[block] <= target) before += of_block[block++];
        // Rounding may let the target pass the block's end, or the last block that has any mass: its last token then.
        for (; token < 0 && block >= 0; --block)
          for (int at = block * BLOCK; at < std::min(size, (block + 1) * BLOCK) && before <= target; at += LANES) {
            float weight[LANES];
            _mm512_storeu_ps(weight, weights(at));
            for (int lane = 0; lane < LANES && before <= target; ++lane) {
              before += weight[lane];
              if (weight[lane] > 0) token = at + lane;
            }
          }
      } else {
        for (int at = 0; token < 0 && at < size; ++at)
          if (to_float(from[at]) == largest) token = at;
      }
      token = std::max(token, 0);  // logits that are no numbers: their log-prob says so
      tokens[row] = token;
      logprobs[row] = (to_float(from[token]) - largest) * heat - float(std::log(total));
    }
  }
}
